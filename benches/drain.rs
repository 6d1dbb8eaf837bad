//! `cargo bench --bench drain`: what deciding and publishing cost by themselves, without clients: the real binary as `consumer`, `relay` and
//! `audit --watch`, on real Kafka, Postgres and Redis.
//!
//! Needs `DATABASE_URL`, `REDIS_URL` and `KAFKA_BROKERS` (`make bench` starts private servers, fsync on). A topic with one partition is filled
//! with records of `BENCH_PACK` (50) commands, unique users, one SKU; then
//! 1. **decide**: one consumer decides it all, as fast as it can;
//! 2. **publish**: one relay publishes all events of that;
//! 3. **paced**: all three run while `BENCH_RATE` commands a second (25,000) are appended, for `BENCH_SECONDS` (15).
//!
//! Each prints the rate and CPU-us per command of every process, with ordered ids (requests without a key), or with random ones
//! if `BENCH_KEYED=1`. `BENCH_RECORDS` (3,000) is the size of the log; `BENCH_ROWS` (0) reservations are there before.
//! Nothing is printed of a run whose rows don't add up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flashsale::clock::{Clock, SystemClock};
use flashsale::ids::{self, IdempotencyKey, Quantity, SkuId, UserId};
use flashsale::inventory::{self, Configure, Reserve, Settings};
use flashsale::kafka::client;
use flashsale::{limits, wire};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};

const SKU: &str = "hot";
/// Records that warm plans and caches; they are not measured.
const WARM_RECORDS: i64 = 400;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn address(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} names a server; `make bench` starts one"))
}

/// A process of the service, killed with the benchmark.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct World {
    environment: BTreeMap<&'static str, String>,
    topic: String,
    conn: PgConnection,
    producer: BaseProducer,
    is_keyed: bool,
    /// Commands in a record.
    pack: usize,
    /// Records in the log.
    published: i64,
    servers: Vec<(&'static str, u32)>,
}

impl World {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flashsale"));
        command.args(args).envs(&self.environment).stdin(Stdio::null());
        command
    }

    /// Starts a process and reads its log away.
    fn start(&self, args: &[&str]) -> Process {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Process(child)
    }

    fn publish(&mut self, commands: Vec<inventory::Command>) {
        let received_at_us = SystemClock.now() * 1000;
        let request_id = || "0190f1c2d3e47a5b8c6d7e8f90a1b2c3".to_owned();
        let sent: Vec<wire::Sent> = commands
            .into_iter()
            .map(|command| wire::Sent { received_at_us, request_id: request_id(), command })
            .collect();
        let payload = wire::encode(&SkuId::parse(SKU).expect("legal"), sent.iter()).expect("a record");
        let mut record = BaseRecord::to(&self.topic).partition(0).key(SKU).payload(&payload);
        while let Err((error, back)) = self.producer.send(record) {
            assert_eq!(error.rdkafka_error_code(), Some(rdkafka::error::RDKafkaErrorCode::QueueFull), "{error}");
            self.producer.poll(Duration::from_millis(1));
            record = back;
        }
        self.producer.poll(Duration::ZERO);
        self.published += 1;
    }

    /// A record of requests by users who never came before.
    fn publish_requests(&mut self) {
        let sku = SkuId::parse(SKU).expect("legal");
        let request = |n: usize| {
            let user = UserId::parse(&format!("user-{}-{n}", self.published)).expect("legal");
            let key = IdempotencyKey::parse("k").expect("legal");
            let id = if self.is_keyed { ids::keyed_reservation_id(&user, &sku, &key) } else { ids::fresh_id() };
            let quantity = Quantity::new(1).expect("legal");
            inventory::Command::Reserve(Reserve { id, user, sku: sku.clone(), quantity, metadata: None })
        };
        let requests = (0..self.pack).map(request).collect();
        self.publish(requests);
    }

    async fn number(&mut self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.conn).await.expect("a query of this benchmark")
    }

    async fn wait_for_position(&mut self, position: i64) {
        let began = Instant::now();
        while self.number("SELECT position FROM partition_state WHERE partition = 0").await < position {
            assert!(began.elapsed() < Duration::from_secs(120), "the log is never decided");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn wait_until_published(&mut self) {
        let began = Instant::now();
        while self.number("SELECT count(*) FROM outbox").await > 0 {
            assert!(began.elapsed() < Duration::from_secs(120), "the outbox is never empty");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn cpu(&self, processes: &[(&'static str, &Process)]) -> Vec<(&'static str, u64)> {
        let own = processes.iter().map(|(name, process)| (*name, process.0.id()));
        let all = own.chain(self.servers.iter().copied());
        let stats = stats();
        all.map(|(name, pid)| (name, ticks_of_tree(pid, &stats) * 10_000)).collect()
    }

    async fn check(&mut self) {
        let broken = "SELECT count(*) FROM sku s WHERE sku_id = 'hot' AND (reserved + sold > on_hand OR reserved <>
           (SELECT sum(quantity) FROM reservation r WHERE r.sku_id = s.sku_id AND status = 1))";
        assert_eq!(self.number(broken).await, 0, "counters equal the sums of the reservations");
        let decided = self.number("SELECT count(*) FROM reservation WHERE sku_id = 'hot'").await;
        let expected = (self.published - 1) * self.pack as i64;
        assert_eq!(decided, expected, "each command has its row");
    }
}

/// Parent and ticks of user and kernel mode, ended children included, of every process.
fn stats() -> HashMap<u32, (u32, u64)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let stat = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some((pid, (u32::try_from(number(1)?).ok()?, number(11)? + number(12)? + number(13)? + number(14)?)))
    };
    pids.filter_map(stat).collect()
}

fn ticks_of_tree(root: u32, stats: &HashMap<u32, (u32, u64)>) -> u64 {
    let mut tree = HashSet::from([root]);
    loop {
        let more: Vec<u32> = stats
            .iter()
            .filter(|(pid, (parent, _))| tree.contains(parent) && !tree.contains(*pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return tree.iter().filter_map(|pid| stats.get(pid)).map(|(_, ticks)| ticks).sum();
        }
        tree.extend(more);
    }
}

/// The process that listens on the port of an address like `scheme://user@127.0.0.1:1234/name`, over IPv4 or IPv6.
fn listener(address: &str) -> Option<u32> {
    let port = address.rsplit_once(':')?.1.split(['/', '?', ',']).next()?.parse::<u16>().ok()?;
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().flat_map(|table| table.lines()).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&format!(":{port:04X}")) && *fields.get(3)? == "0A";
        is_it.then(|| format!("socket:[{}]", fields[9]))
    })?;
    let holders = stats().into_keys().filter(|pid| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|link| link.as_os_str() == inode.as_str())
    });
    holders.min() // Children inherit it.
}

fn show(what: &str, commands: i64, took: Duration, before: &[(&'static str, u64)], after: &[(&'static str, u64)]) {
    let used: Vec<(&str, f64)> = after
        .iter()
        .zip(before)
        .map(|((name, after), (_, before))| (*name, (after - before) as f64 / commands as f64))
        .collect();
    let shares: Vec<String> = used.iter().map(|(name, us)| format!("{name} {us:.2}")).collect();
    let total: f64 = used.iter().map(|(_, us)| us).sum();
    println!(
        "{what:<10} {:>9.0}/s   CPU-us each: {}, all {total:.1}",
        commands as f64 / took.as_secs_f64(),
        shares.join(", ")
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let name = format!("drain-{}", ids::fresh_token().simple());
    let schema = name.replace('-', "_");
    let server = address("DATABASE_URL");
    let connect = async |url: &str| -> PgConnection {
        url.parse::<PgConnectOptions>().expect("a legal URL").connect().await.expect("the server answers")
    };
    let mut admin = connect(&server).await;
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&mut admin).await.expect("made");
    let url = format!("{server}?options=-csearch_path%3D{schema}");
    let environment = BTreeMap::from([
        ("DATABASE_URL", url.clone()),
        ("REDIS_URL", address("REDIS_URL")),
        ("KAFKA_BROKERS", address("KAFKA_BROKERS")),
        ("TOPIC", name.clone()),
        ("GROUP", name.clone()),
        ("REDIS_PREFIX", format!("{name}:")),
        ("EVENTS_TOPIC", format!("{name}-events")),
        ("ADMIN_ADDR", "127.0.0.1:0".to_owned()),
    ]);
    let servers = [("postgres", "DATABASE_URL"), ("kafka", "KAFKA_BROKERS"), ("redis", "REDIS_URL")];
    let servers = servers.iter().filter_map(|(name, variable)| Some((*name, listener(&address(variable))?)));
    let producer = client::config(&address("KAFKA_BROKERS")).set("acks", "all").create().expect("a producer");
    let mut world = World {
        conn: connect(&url).await,
        topic: name,
        environment,
        producer,
        is_keyed: setting("BENCH_KEYED", 0) == 1,
        pack: setting("BENCH_PACK", limits::RECORD_COMMANDS_MAX).clamp(1, limits::RECORD_COMMANDS_MAX),
        published: 0,
        servers: servers.collect(),
    };
    assert!(world.command(&["migrate", "--partitions", "1"]).status().expect("the binary runs").success(), "migrated");
    let rows = setting("BENCH_ROWS", 0);
    let fill = format!(
        "INSERT INTO reservation SELECT gen_random_uuid(), hashtextextended(n::text, 0), 0, now(), now() + interval '1 day', NULL, 1, 1, NULL, NULL,
           0, 0, 1, NULL, 'old-' || n, 'old', NULL FROM generate_series(1, {rows}) AS n; ANALYZE; CHECKPOINT"
    );
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(&mut world.conn).await.expect("filled");
    measure(&mut world).await;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).execute(&mut admin).await.expect("dropped");
}

async fn measure(world: &mut World) {
    let sku = SkuId::parse(SKU).expect("legal");
    let settings = Settings { hold_seconds: 14_400, ..Settings::default() };
    let on_hand = Some(limits::ON_HAND_MAX);
    let create = Configure { id: ids::fresh_id(), sku, pin: 0, seen_version: 0, on_hand, settings, patch_hash: None };
    world.publish(vec![inventory::Command::Configure(create)]);
    let records = setting("BENCH_RECORDS", 3000) as i64;
    for _ in 0..WARM_RECORDS + records {
        world.publish_requests();
    }
    world.producer.flush(Duration::from_secs(30)).expect("published");
    let pack = world.pack;
    let commands_in = |records: i64| records * pack as i64;
    println!("one SKU, records of {pack}, {} ids, fsync on", if world.is_keyed { "random" } else { "ordered" });

    let consumer = world.start(&["consumer"]);
    world.wait_for_position(WARM_RECORDS).await;
    let from = world.number("SELECT position FROM partition_state WHERE partition = 0").await;
    let (began, before) = (Instant::now(), world.cpu(&[("consumer", &consumer)]));
    world.wait_for_position(world.published).await;
    let (took, after) = (began.elapsed(), world.cpu(&[("consumer", &consumer)]));
    world.check().await;
    show("decide", commands_in(world.published - from), took, &before, &after);

    let relay = world.start(&["relay"]);
    let (began, before) = (Instant::now(), world.cpu(&[("relay", &relay)]));
    world.wait_until_published().await;
    let (took, after) = (began.elapsed(), world.cpu(&[("relay", &relay)]));
    show("publish", commands_in(world.published - 1), took, &before, &after);

    let auditor = world.start(&["audit", "--watch"]);
    let processes = [("consumer", &consumer), ("relay", &relay), ("auditor", &auditor)];
    let (rate, seconds) = (setting("BENCH_RATE", 25_000), setting("BENCH_SECONDS", 15));
    let every = Duration::from_secs_f64(pack as f64 / rate as f64);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let position = "SELECT position FROM partition_state WHERE partition = 0";
    let (mut began, mut before, mut from) = (Instant::now(), Vec::new(), 0);
    let warm = Duration::from_secs(3);
    let mut next = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds as u64) {
        if before.is_empty() && began.elapsed() > warm {
            (began, before, from) = (Instant::now(), world.cpu(&processes), world.number(position).await);
        }
        world.publish_requests();
        next += every;
        tokio::time::sleep(next.saturating_duration_since(Instant::now())).await;
    }
    world.producer.flush(Duration::from_secs(30)).expect("published");
    let sent_in = began.elapsed();
    world.wait_for_position(world.published).await;
    let decided_behind = began.elapsed() - sent_in;
    world.wait_until_published().await;
    let published_behind = began.elapsed() - sent_in;
    let after = world.cpu(&processes);
    // What was decided, not what was sent: the window may begin with a backlog.
    show("paced", commands_in(world.published - from), began.elapsed(), &before, &after);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{:<10} after the last record: decided within {:.0} ms, published within {:.0} ms",
        "",
        ms(decided_behind),
        ms(published_behind)
    );
    world.check().await;
}
