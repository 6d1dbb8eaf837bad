//! `cargo bench --bench batch`: one batch of 250 new requests, all of fence, snapshot, decide, write and COMMIT, on a real Postgres.
//!
//! Needs `DATABASE_URL` (`make bench` starts a private server with fsync on). Makes a schema of its own, loads
//! `BENCH_ROWS` reservations (500,000), then commits `BENCH_BATCHES` batches (400) of one SKU with unique users, for time-ordered ids
//! (requests without a key) and for random ids (requests with one), and prints medians, percentiles and Postgres CPU per row.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flashsale::ids::{self, IdempotencyKey, Place, Quantity, SkuId, UserId};
use flashsale::inventory::{Command, Configure, Logged, Reserve, Settings, decide};
use flashsale::limits;
use flashsale::store::{BatchHead, Claim, Writer, WriterConfig, migrate};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};

const TOPIC: &str = "bench";
const SKU: &str = "hot";

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

async fn connect(url: &str) -> PgConnection {
    url.parse::<PgConnectOptions>().expect("a legal URL").connect().await.expect("the server answers")
}

async fn run(conn: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.expect("a statement of this benchmark");
}

/// CPU time of all server processes, from /proc: user and system, in microseconds.
async fn server_cpu_us(conn: &mut PgConnection) -> u64 {
    let pids: Vec<i32> = sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE pid IS NOT NULL")
        .fetch_all(conn)
        .await
        .expect("pids");
    // Clock ticks are hundredths of a second on Linux.
    pids.iter().filter_map(|pid| cpu_ticks(*pid)).sum::<u64>() * 10_000
}

fn cpu_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// One batch of full records; `n` makes its users unique.
fn batch(claim: &Claim, n: usize, is_keyed: bool) -> Vec<Logged> {
    let sku = SkuId::parse(SKU).expect("legal");
    (0..limits::BATCH_SIZE_MAX)
        .map(|i| {
            let user = UserId::parse(&format!("user-{n}-{i}")).expect("legal");
            let id = if is_keyed {
                ids::keyed_reservation_id(&user, &sku, &IdempotencyKey::parse("k").expect("legal"))
            } else {
                ids::fresh_id()
            };
            let offset = claim.position + (i / limits::RECORD_COMMANDS_MAX) as i64;
            let index = (i % limits::RECORD_COMMANDS_MAX) as u16;
            let reserve =
                Reserve { id, user, sku: sku.clone(), quantity: Quantity::new(1).expect("legal"), metadata: None };
            Logged { place: Place { offset, index }, at: 1_000, command: Ok(Command::Reserve(reserve)) }
        })
        .collect()
}

/// Times of one batch: fence, snapshot, decide, write, COMMIT.
type Phases = [Duration; 5];

async fn commit(writer: &mut Writer, claim: &mut Claim, commands: &[Logged]) -> Phases {
    let records = 1 + commands.last().expect("not empty").place.offset - claim.position;
    let head = BatchHead {
        first_offset: claim.position,
        position: claim.position + records,
        log_time_before: claim.log_time,
        log_time: 1_000,
        last_digest: 1,
    };
    let mut times = [Instant::now(); 6];
    let mut tx = writer.begin(head).await.expect("the fence lets us pass");
    times[1] = Instant::now();
    let snapshot = tx.load_snapshot(commands).await.expect("a snapshot");
    times[2] = Instant::now();
    let outcome = decide(&snapshot, commands);
    times[3] = Instant::now();
    tx.write(commands, &outcome, &BTreeMap::new()).await.expect("written");
    times[4] = Instant::now();
    tx.commit().await.expect("committed");
    times[5] = Instant::now();
    (claim.position, claim.log_time) = (head.position, head.log_time);
    std::array::from_fn(|n| times[n + 1] - times[n])
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = std::env::var("DATABASE_URL").expect("DATABASE_URL names a server; `make bench` starts one");
    let (rows, batches) = (setting("BENCH_ROWS", 500_000), setting("BENCH_BATCHES", 400));
    let mut admin = connect(&server).await;
    let fsync: String = sqlx::query_scalar("SHOW fsync").fetch_one(&mut admin).await.expect("a setting");
    let sync_commit: String =
        sqlx::query_scalar("SHOW synchronous_commit").fetch_one(&mut admin).await.expect("a setting");
    println!(
        "batches of {} commands, one SKU, {rows} rows present, fsync={fsync}, synchronous_commit={sync_commit}",
        limits::BATCH_SIZE_MAX
    );
    println!("{:<10} {:>9} {:>9} {:>9} {:>9} {:>14}", "ids", "p50 ms", "p95 ms", "p99 ms", "rows/s", "pg CPU-us/row");
    for (name, is_keyed) in [("ordered", false), ("random", true)] {
        let schema = format!("bench_{}", ids::fresh_token().simple());
        run(&mut admin, &format!("CREATE SCHEMA {schema}")).await;
        let url = format!("{server}?options=-csearch_path%3D{schema}");
        migrate(&url, TOPIC, 1).await.expect("migrated");
        measure(name, &url, is_keyed, rows, batches).await;
        run(&mut admin, &format!("DROP SCHEMA {schema} CASCADE")).await;
    }
}

async fn measure(name: &str, url: &str, is_keyed: bool, rows: usize, batches: usize) {
    let config =
        WriterConfig { database_url: url.into(), topic: TOPIC.into(), owner: "bench".into(), build: "bench".into() };
    let (mut writer, mut claim) = Writer::claim(&config, 0).await.expect("claimed");
    let settings = Settings::default();
    let on_hand = Some(limits::ON_HAND_MAX);
    let sku = SkuId::parse(SKU).expect("legal");
    let (id, patch_hash) = (ids::fresh_id(), None);
    let create = Command::Configure(Configure { id, sku, pin: 0, seen_version: 0, on_hand, settings, patch_hash });
    let place = Place { offset: 0, index: 0 };
    commit(&mut writer, &mut claim, &[Logged { place, at: 1_000, command: Ok(create) }]).await;
    let mut admin = connect(url).await;
    run(
        &mut admin,
        &format!(
            "INSERT INTO reservation SELECT gen_random_uuid(), hashtextextended(n::text, 0), 0, now(), now(), NULL, 1, 1, NULL, NULL,
               0, 0, 1, NULL, 'old-' || n, 'old', NULL FROM generate_series(1, {rows}) AS n; ANALYZE; CHECKPOINT"
        ),
    )
    .await;
    // Claimed again: as after a restart, the first batch reads who holds units.
    let (mut writer, mut claim) = Writer::claim(&config, 0).await.expect("claimed again");
    let first = batch(&claim, 2_000_000, is_keyed);
    let began = Instant::now();
    commit(&mut writer, &mut claim, &first).await;
    println!("{name:<10} {:>9.2} ms: the first batch of a claim, which reads who holds units", ms(began.elapsed()));
    for n in 0..20 {
        let commands = batch(&claim, 1_000_000 + n, is_keyed); // Warms caches and plans.
        commit(&mut writer, &mut claim, &commands).await;
    }
    let prepared: Vec<Vec<Logged>> = (0..batches).map(|n| batch(&claim, n, is_keyed)).collect();
    let cpu_before = server_cpu_us(&mut admin).await;
    let began = Instant::now();
    let (mut times, mut phases) = (Vec::with_capacity(batches), Vec::with_capacity(batches));
    for mut commands in prepared {
        let first = commands[0].place.offset;
        commands.iter_mut().for_each(|logged| logged.place.offset += claim.position - first);
        let began = Instant::now();
        phases.push(commit(&mut writer, &mut claim, &commands).await);
        times.push(began.elapsed());
    }
    let took = began.elapsed();
    let cpu = server_cpu_us(&mut admin).await - cpu_before;
    times.sort_unstable();
    let at = |share: f64| ms(times[((times.len() - 1) as f64 * share) as usize]);
    let row_count = (batches * limits::BATCH_SIZE_MAX) as f64;
    println!(
        "{name:<10} {:>9.2} {:>9.2} {:>9.2} {:>9.0} {:>14.1}",
        at(0.5),
        at(0.95),
        at(0.99),
        row_count / took.as_secs_f64(),
        cpu as f64 / row_count
    );
    let median = |phase: usize| {
        let mut times: Vec<Duration> = phases.iter().map(|p| p[phase]).collect();
        times.sort_unstable();
        ms(times[times.len() / 2])
    };
    println!(
        "{:<10} fence {:.2}, snapshot {:.2}, decide {:.2}, write {:.2}, commit {:.2} ms",
        "",
        median(0),
        median(1),
        median(2),
        median(3),
        median(4)
    );
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
