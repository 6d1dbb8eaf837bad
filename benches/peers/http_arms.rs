//! Arms that sell over HTTP: each peer, and the service, are offered the same crowd by the same generator over as many kept connections.
//!
//! All requests of a run are due in its first moment, so every connection always has one under way: the rate is what the arm can carry, and
//! latencies would say nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flashsale::ids;
use flashsale::load::{self, Plan, Profile, Schedule};
use serde_json::{Value, json};

use super::bench::{
    Arm, CpuClock, Process, Run, Schema, Servers, check, flashsale, log_field, output_of, role, seconds, setting,
};
use super::buying::{self, Way};
use super::server::HOLD_SECONDS;

/// More than any run sells.
const ENOUGH: i64 = 1_000_000;
/// Tried for each peer; the fastest is taken.
const POOLS: [u32; 5] = [1, 2, 4, 10, 32];
/// What connection pools have if nobody thinks about it.
pub const USUAL_POOL: u32 = 10;
/// Requests of a first trial: a second or so of the slowest. Whoever is fast gets [`LONG_TRIAL`] times as many in a second one.
const TRIAL: u64 = 300;
const LONG_TRIAL: u64 = 5;

/// A way to sell that is ready to be offered a crowd.
struct Selling {
    address: String,
    sku: String,
    watched: Vec<(String, u32)>,
}

/// What the generator saw.
struct Seen {
    report: Value,
    ended: Instant,
}

impl Seen {
    fn number(&self, name: &str) -> u64 {
        self.report[name].as_u64().unwrap_or(0)
    }
    fn rush(&self) -> f64 {
        self.report["seconds"].as_f64().unwrap_or(f64::MAX)
    }
}

/// Offers `count` requests; refuses what the generator calls impossible, and a buyer without an answer.
fn offer(selling: &Selling, count: u64) -> Result<Seen, String> {
    let told = output_of(&mut role(&["crowd", &selling.address, &selling.sku, &count.to_string()]))?;
    let seen = Seen { report: serde_json::from_str(&told).unwrap_or(Value::Null), ended: Instant::now() };
    check(seen.number("offered") == count && seen.number("failed") == 0, || {
        format!("not everybody was answered: {}", seen.report)
    })?;
    Ok(seen)
}

/// The crowd, as a process of its own: the generator of `flashsale load`, which itself offers nobody more than a million a second.
pub fn crowd(address: &str, sku: &str, count: u64) {
    // All are due in the first moment: a run in which they come by and by measures them, not who serves them.
    const MOMENTS_PER_SECOND: u64 = 20;
    let rate = u32::try_from(count * MOMENTS_PER_SECOND).expect("a bounded crowd");
    let duration = Duration::from_millis(1000 / MOMENTS_PER_SECOND);
    let report = load::run(Plan {
        target: address.to_owned(),
        skus: vec![sku.to_owned()],
        zipf: 1.0,
        schedule: Schedule { profile: Profile::Steady, rate, duration },
        connections: setting("BENCH_CONNECTIONS", 512),
        threads: 1,
        patience: Duration::from_secs(120),
        wait: Some(Duration::from_secs(10)),
        batch: None,
        is_keyed: true,
        is_alone: true,
        watched: Vec::new(),
        settings: Vec::new(),
    });
    println!("{}", report.value);
    if !report.violations.is_empty() {
        eprintln!("{}", report.violations.join("; "));
        std::process::exit(1);
    }
}

/// All requests get a unit, and the answers brought that.
fn all_reserved(seen: &Seen) -> Result<(), String> {
    let (reserved, offered, told) =
        (seen.number("reserved"), seen.number("offered"), seen.number("decided_in_the_answer"));
    check(reserved == offered && told == offered, || {
        format!("{reserved} reserved and {told} decided in the answer of {offered}")
    })
}

// ---- peers ----

struct PeerRun {
    process: Process,
    schema: Schema,
    selling: Selling,
}

async fn start_peer(servers: &Servers, way: Way, pool: u32, on_hand: i64) -> PeerRun {
    let mut schema = servers.schema().await;
    schema.run(buying::TABLES).await;
    schema
        .run(&format!("INSERT INTO sku (sku_id, on_hand, hold_seconds) VALUES ('hot', {on_hand}, {HOLD_SECONDS})"))
        .await;
    if way == Way::SkipLocked {
        schema.run(&format!("INSERT INTO free_unit SELECT 'hot', n FROM generate_series(1, {on_hand}) AS n")).await;
    }
    schema.run("VACUUM ANALYZE free_unit").await;
    let prefix = format!("bench-{}:", ids::fresh_token().simple());
    let mut command = role(&["serve", way.name(), &pool.to_string()]);
    command.env("DATABASE_URL", &schema.url).env("REDIS_URL", &servers.redis).env("REDIS_PREFIX", prefix);
    let mut process = Process::start(&mut command);
    let address = process.told(|line| line.strip_prefix("listening on ").map(str::to_owned));
    process.forget_lines();
    let watched = servers.watched(way.servers(), &[("peer", process.pid())]);
    PeerRun { process, schema, selling: Selling { address, sku: "hot".into(), watched } }
}

/// A run of `count` requests: durable decisions a second, once everything adds up.
async fn measure_peer(servers: &Servers, way: Way, pool: u32, count: u64) -> Result<Run, String> {
    let stock = if way == Way::SkipLocked { count as i64 + 1_000 } else { ENOUGH };
    let mut peer = start_peer(servers, way, pool, stock).await;
    let cpu = CpuClock::begin(peer.selling.watched.clone());
    let seen = offer(&peer.selling, count)?;
    all_reserved(&seen)?;
    while way.is_behind() && (peer.schema.number("SELECT count(*) FROM reservation").await as u64) < count {
        check(seen.ended.elapsed().as_secs() < 60, || "rows were not written within a minute".into())?;
    }
    let behind = if way.is_behind() { seen.ended.elapsed().as_secs_f64() } else { 0.0 };
    let mut cpu_us = cpu.per(count);
    cpu_us.insert("generator".into(), seen.report["cpu_us_per_request"]["generator"].as_f64().unwrap_or(0.0));
    let tries: u64 = match way {
        Way::Optimistic => get(&peer.selling.address, "/tries")?.parse().unwrap_or(0),
        _ => count,
    };
    verify_peer(&mut peer, way, count as i64).await?;
    drop(peer.process);
    peer.schema.drop_all().await;
    let details = json!({"requests": count, "answered_in_seconds": seen.rush(), "rows_behind_seconds": behind,
        "tries_per_reservation": tries as f64 / count as f64});
    Ok(Run { per_second: count as f64 / (seen.rush() + behind), cpu_us, details })
}

/// The books, from Postgres.
async fn verify_peer(peer: &mut PeerRun, way: Way, sold: i64) -> Result<(), String> {
    let schema = &mut peer.schema;
    let rows = schema.number("SELECT count(*) FROM reservation").await;
    let units = schema.number("SELECT coalesce(sum(quantity), 0)::bigint FROM reservation WHERE status = 1").await;
    let users = schema.number("SELECT count(DISTINCT user_id) FROM reservation").await;
    let on_hand = schema.number("SELECT on_hand FROM sku").await;
    let counted = match way {
        Way::SkipLocked => on_hand - schema.number("SELECT count(*) FROM free_unit").await,
        Way::RedisRows | Way::RedisBatches => {
            let body: Value = serde_json::from_str(&get(&peer.selling.address, "/v1/skus/hot")?).unwrap_or(Value::Null);
            body["reserved"].as_i64().unwrap_or(-1)
        }
        _ => schema.number("SELECT reserved FROM sku").await,
    };
    check([rows, units, users, counted] == [sold; 4] && units <= on_hand, || {
        format!("{sold} sold, but {rows} rows, {units} units, {users} users, counters say {counted}, of {on_hand}")
    })
}

/// Before a peer is measured: it sells what there is and no more, to each user once, and answers a repeat alike.
async fn examine_peer(servers: &Servers, way: Way) -> Result<(), String> {
    let mut peer = start_peer(servers, way, 4, 100).await;
    examine(&peer.selling, 100)?;
    let since = Instant::now();
    while peer.schema.number("SELECT count(*) FROM reservation").await < 100 && since.elapsed().as_secs() < 5 {}
    verify_peer(&mut peer, way, 100).await?;
    drop(peer.process);
    peer.schema.drop_all().await;
    Ok(())
}

fn examine(selling: &Selling, on_hand: u64) -> Result<(), String> {
    let buy = |user: &str, key: &str| post(&selling.address, &selling.sku, user, key);
    let first = buy("ann", "k1")?;
    let again = buy("ann", "k1")?;
    let id =
        |body: &str| serde_json::from_str::<Value>(body).ok().and_then(|body| body["id"].as_str().map(str::to_owned));
    check(first.0 == 200 && first.1.contains("RESERVED") && again.0 == 200 && id(&first.1) == id(&again.1), || {
        format!("a repeat is not answered alike: {first:?}, {again:?}")
    })?;
    let other = buy("ann", "k2")?;
    check(other.1.contains("USER_LIMIT"), || format!("a user got two: {other:?}"))?;
    let seen = offer(selling, on_hand * 3)?;
    check(seen.number("reserved") == on_hand - 1, || {
        format!("of {} units were sold {}", on_hand - 1, seen.number("reserved"))
    })
}

// ---- the service ----

/// `flashsale api` and `flashsale consumer`, as production has them.
pub struct Service {
    api: Process,
    consumer: Process,
    schema: Schema,
    address: String,
    environment: BTreeMap<&'static str, String>,
    skus: usize,
}

impl Service {
    pub async fn start(servers: &Servers) -> Self {
        let schema = servers.schema().await;
        let name = format!("bench-{}", ids::fresh_token().simple());
        let environment = BTreeMap::from([
            ("DATABASE_URL", schema.url.clone()),
            ("REDIS_URL", servers.redis.clone()),
            ("KAFKA_BROKERS", servers.brokers.clone()),
            ("TOPIC", name.clone()),
            ("EVENTS_TOPIC", format!("{name}-events")),
            ("GROUP", name.clone()),
            ("REDIS_PREFIX", format!("{name}:")),
            ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
            ("ADMIN_ADDR", "127.0.0.1:0".to_owned()),
        ]);
        output_of(&mut flashsale(&environment, &["migrate"])).expect("migrated");
        let mut consumer = Process::start(&mut flashsale(&environment, &["consumer"]));
        consumer.told(|line| log_field(line, "admin.addr"));
        consumer.forget_lines();
        let mut api = Process::start(&mut flashsale(&environment, &["api"]));
        let address = api.told(|line| log_field(line, "http.addr"));
        api.forget_lines();
        Self { api, consumer, schema, address, environment, skus: 0 }
    }

    /// A SKU of its own for each run.
    fn selling(&mut self, servers: &Servers, on_hand: i64) -> Selling {
        self.skus += 1;
        let (sku, on_hand) = (format!("hot-{}", self.skus), on_hand.to_string());
        let words = ["sku", "put", &sku, "--on-hand", &on_hand, "--user-limit", "1", "--hold", "4h"];
        output_of(&mut flashsale(&self.environment, &words)).expect("a new SKU");
        let watched = servers
            .watched(&["postgres", "redis", "kafka"], &[("api", self.api.pid()), ("consumer", self.consumer.pid())]);
        Selling { address: self.address.clone(), sku, watched }
    }

    async fn measure(&mut self, servers: &Servers, count: u64) -> Result<Run, String> {
        let selling = self.selling(servers, ENOUGH);
        let cpu = CpuClock::begin(selling.watched.clone());
        let seen = offer(&selling, count)?;
        all_reserved(&seen)?;
        let mut cpu_us = cpu.per(count);
        cpu_us.insert("generator".into(), seen.report["cpu_us_per_request"]["generator"].as_f64().unwrap_or(0.0));
        self.verify(&selling.sku, count as i64).await?;
        let details = json!({"requests": count, "answered_in_seconds": seen.rush()});
        Ok(Run { per_second: count as f64 / seen.rush(), cpu_us, details })
    }

    async fn verify(&mut self, sku: &str, sold: i64) -> Result<(), String> {
        let schema = &mut self.schema;
        let of = |what: &str| format!("SELECT {what} FROM reservation WHERE sku_id = '{sku}' AND status = 1");
        let rows = schema.number(&of("count(*)")).await;
        let units = schema.number(&of("coalesce(sum(quantity), 0)::bigint")).await;
        let users = schema.number(&of("count(DISTINCT user_id)")).await;
        let counted = schema.number(&format!("SELECT reserved FROM sku WHERE sku_id = '{sku}'")).await;
        let on_hand = schema.number(&format!("SELECT on_hand FROM sku WHERE sku_id = '{sku}'")).await;
        check([rows, units, users, counted] == [sold; 4] && units <= on_hand, || {
            format!("{sold} sold, but {rows} rows, {units} units, {users} users, counters say {counted}, of {on_hand}")
        })
    }

    async fn end(self) {
        self.api.end();
        self.consumer.end();
        self.schema.drop_all().await;
    }
}

// ---- all of them ----

/// How many requests take about the time of a run.
fn sized(per_second: f64) -> u64 {
    ((per_second * seconds()) as u64).clamp(TRIAL, 400_000)
}

struct Candidate {
    way: Way,
    pool: u32,
    count: u64,
    arm: Arm,
}

async fn tried_with(servers: &Servers, way: Way, pool: u32) -> Result<Run, String> {
    let first = measure_peer(servers, way, pool, TRIAL).await?;
    let is_short = first.per_second > TRIAL as f64;
    if is_short { measure_peer(servers, way, pool, LONG_TRIAL * TRIAL).await } else { Ok(first) }
}

/// Finds the best pool of a peer, by one short run each.
async fn candidate(servers: &Servers, way: Way) -> Candidate {
    let mut arm = Arm::new(way.name(), "");
    if let Err(why) = examine_peer(servers, way).await {
        arm.take(Err(why));
    }
    let mut tried: BTreeMap<u32, f64> = BTreeMap::new();
    // Batches have one writer.
    let pools = if way == Way::RedisBatches { &POOLS[..1] } else { &POOLS[..] };
    for pool in pools {
        if !arm.failed.is_empty() {
            break;
        }
        match tried_with(servers, way, *pool).await {
            Ok(run) => drop(tried.insert(*pool, run.per_second.round())),
            Err(why) => arm.take(Err(why)),
        }
    }
    let best = tried.iter().max_by(|a, b| a.1.total_cmp(b.1)).map_or((1, 0.0), |(pool, rate)| (*pool, *rate));
    let usual = tried.get(&USUAL_POOL);
    arm.what = format!("{}; {} connections", way.what(), best.0);
    arm.details = json!({"connections": best.0, "connections_tried": tried, "at_usual_connections": usual});
    eprintln!("{}: decisions a second by connections: {tried:?}", way.name());
    Candidate { way, pool: best.0, count: sized(best.1), arm }
}

/// Every arm in turns; the service first.
pub async fn measure(servers: &Servers, rounds: usize) -> Vec<Arm> {
    let mut service = Service::start(servers).await;
    let mut ours = Arm::new("flashsale", "api and consumer, Kafka between them; 202 after acks=all, 200 after COMMIT");
    let selling = service.selling(servers, 100);
    if let Err(why) = examine(&selling, 100) {
        ours.take(Err(why));
    }
    // The broker's JVM compiles what it runs often: not in the clock.
    let warm_up = setting("BENCH_WARM_UP", 60_000) as u64;
    let mut per_second = 0.0;
    for _ in 0..2 {
        match service.measure(servers, warm_up / 2).await {
            Ok(run) => per_second = run.per_second,
            Err(why) => ours.take(Err(why)),
        }
    }
    let count = sized(per_second);
    // Before others are believed: what is wrong is seen to be wrong.
    match measure_peer(servers, Way::Unlocked, USUAL_POOL, TRIAL).await {
        Ok(_) => ours.take(Err("the check does not see a peer that sells units twice".into())),
        Err(why) => ours.details = json!({"negative_control": why}),
    }
    let mut candidates = Vec::new();
    for way in Way::PEERS {
        candidates.push(candidate(servers, way).await);
    }
    for round in 0..rounds {
        ours.take(service.measure(servers, count).await);
        // Whatever drifts meets them in another order.
        if round % 2 == 1 {
            candidates.reverse();
        }
        for Candidate { way, pool, count, arm } in
            candidates.iter_mut().filter(|candidate| candidate.arm.failed.is_empty())
        {
            let run = measure_peer(servers, *way, *pool, *count).await;
            eprintln!("round {round}: {}: {:?}", way.name(), run.as_ref().map(|run| run.per_second.round()));
            arm.take(run);
        }
        if round % 2 == 1 {
            candidates.reverse();
        }
    }
    service.end().await;
    std::iter::once(ours).chain(candidates.into_iter().map(|candidate| candidate.arm)).collect()
}

// ---- single calls ----

fn post(address: &str, sku: &str, user: &str, key: &str) -> Result<(u16, String), String> {
    let body = format!(r#"{{"user_id":"{user}","sku_id":"{sku}","quantity":1}}"#);
    exchange(
        address,
        &format!(
            "POST /v1/reservations HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\nprefer: wait=10\r\nidempotency-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
}

fn get(address: &str, path: &str) -> Result<String, String> {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"))
        .map(|(_, body)| body)
}

fn exchange(address: &str, request: &str) -> Result<(u16, String), String> {
    use std::io::{Read, Write};
    let exchanged = std::net::TcpStream::connect(address).and_then(|mut stream| {
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    });
    let answer = exchanged.map_err(|error| format!("no answer: {error}"))?;
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    status.zip(body).ok_or_else(|| format!("not an answer: {answer}"))
}
