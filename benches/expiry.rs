//! `cargo bench --bench expiry`: many holds of one SKU end in the same second; what does that do to everybody else of the partition?
//!
//! Needs `DATABASE_URL` (`make bench` starts a private server with fsync on). Stores `BENCH_HOLDS` holds (300,000) that end together, claims
//! the partition, lets them end by one tick, and meanwhile decides requests for another SKU, one batch after the other, each with its share of
//! rows to settle, until every row says so. Prints how long the tick and the slowest of the others took.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flashsale::ids::{self, Place, Quantity, SkuId, UserId};
use flashsale::inventory::{Command, Configure, Logged, Reserve, Settings, Tick, decide};
use flashsale::store::{BatchHead, Claim, Writer, WriterConfig, migrate};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};

const TOPIC: &str = "bench";
/// When the holds end, in log time.
const END: i64 = 1_000_000;

async fn run(conn: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.expect("a statement of this benchmark");
}

fn sku(name: &str) -> SkuId {
    SkuId::parse(name).expect("legal")
}

fn create(name: &str) -> Command {
    let settings = Settings::default();
    Command::Configure(Configure {
        id: ids::fresh_id(),
        sku: sku(name),
        pin: 0,
        seen_version: 0,
        on_hand: Some(1_000_000_000),
        settings,
        patch_hash: None,
    })
}

/// The promise: ended holds delay no other decision by more than this. The command fails if they did.
const DELAY_MAX_MS: f64 = 50.0;

/// Decides, settles and commits one command; how long it took, and how many rows were settled.
async fn commit(writer: &mut Writer, claim: &mut Claim, at: i64, command: Command) -> (Duration, usize) {
    let began = Instant::now();
    let commands = [Logged { place: Place { offset: claim.position, index: 0 }, at, command: Ok(command) }];
    let head = BatchHead {
        first_offset: claim.position,
        position: claim.position + 1,
        log_time_before: claim.log_time,
        log_time: claim.log_time.max(at),
        last_digest: 1,
    };
    let mut tx = writer.begin(head).await.expect("the fence lets us pass");
    let snapshot = tx.load_snapshot(&commands).await.expect("a snapshot");
    let outcome = decide(&snapshot, &commands);
    tx.write(&commands, &outcome, &BTreeMap::new()).await.expect("written");
    let settled = tx.settle().await.expect("settled").len();
    tx.commit().await.expect("committed");
    (claim.position, claim.log_time) = (head.position, head.log_time);
    (began.elapsed(), settled)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = std::env::var("DATABASE_URL").expect("DATABASE_URL names a server; `make bench` starts one");
    let holds: i64 = std::env::var("BENCH_HOLDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300_000);
    let mut admin =
        server.parse::<PgConnectOptions>().expect("a legal URL").connect().await.expect("the server answers");
    let schema = format!("bench_{}", ids::fresh_token().simple());
    run(&mut admin, &format!("CREATE SCHEMA {schema}")).await;
    let url = format!("{server}?options=-csearch_path%3D{schema}");
    migrate(&url, TOPIC, 1).await.expect("migrated");
    measure(&url, holds).await;
    run(&mut admin, &format!("DROP SCHEMA {schema} CASCADE")).await;
}

async fn measure(url: &str, holds: i64) {
    let config =
        WriterConfig { database_url: url.into(), topic: TOPIC.into(), owner: "bench".into(), build: "bench".into() };
    let (mut writer, mut claim) = Writer::claim(&config, 0).await.expect("claimed");
    commit(&mut writer, &mut claim, 1, create("ending")).await;
    commit(&mut writer, &mut claim, 1, create("other")).await;
    let mut admin = url.parse::<PgConnectOptions>().expect("a legal URL").connect().await.expect("the server answers");
    run(
        &mut admin,
        &format!(
            "INSERT INTO reservation (reservation_id, user_hash, log_offset, log_time, expires_at, quantity, version, partition, log_index,
                                      status, user_id, sku_id)
             SELECT gen_random_uuid(), hashtextextended(n::text, 0), 0, 'epoch', timestamptz 'epoch' + {END} * interval '1 millisecond', 1, 1,
                    0, 0, 1, 'user-' || n, 'ending' FROM generate_series(1, {holds}) AS n;
             UPDATE sku SET reserved = {holds} WHERE sku_id = 'ending'; ANALYZE; CHECKPOINT"
        ),
    )
    .await;
    let began = Instant::now();
    (writer, claim) = Writer::claim(&config, 0).await.expect("claimed again");
    writer.remember().await.expect("remembered");
    println!("{holds} holds that end together, one partition");
    println!("claim with reading them: {:.0} ms", ms(began.elapsed()));
    let tick = Command::Tick(Tick { id: ids::fresh_id(), sku: sku("ending") });
    let (took, mut settled) = commit(&mut writer, &mut claim, END, tick).await;
    println!("their end in the counters, by one tick: {:.1} ms", ms(took));
    let tick_took = took;
    let (mut times, began) = (Vec::new(), Instant::now());
    while writer.has_unsettled() {
        let user = UserId::parse(&format!("buyer-{}", times.len())).expect("legal");
        let quantity = Quantity::new(1).expect("legal");
        let reserve = Reserve { id: ids::fresh_id(), user, sku: sku("other"), quantity, metadata: None };
        let (took, more) = commit(&mut writer, &mut claim, END, Command::Reserve(reserve)).await;
        times.push(took);
        settled += more;
    }
    let all = began.elapsed();
    times.sort_unstable();
    let at = |share: f64| ms(times[((times.len() - 1) as f64 * share) as usize]);
    println!(
        "{settled} rows settled in {:.1} s by {} batches of another SKU, one request each:",
        all.as_secs_f64(),
        times.len()
    );
    println!("such a batch: p50 {:.1} ms, p99 {:.1} ms, slowest {:.1} ms", at(0.5), at(0.99), at(1.0));
    let (reserved, expired): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT reserved FROM sku WHERE sku_id = 'ending'), (SELECT count(*) FROM reservation WHERE status = 5 AND version = 2)",
    )
    .fetch_one(&mut admin)
    .await
    .expect("counted");
    assert_eq!((reserved, expired), (0, holds), "every hold ended once");
    let slowest = at(1.0).max(ms(tick_took));
    assert!(slowest <= DELAY_MAX_MS, "a decision waited {slowest:.1} ms, more than {DELAY_MAX_MS} ms");
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
