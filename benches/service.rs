//! `cargo bench --bench service`: the whole service through its binary, on real Kafka, Postgres and Redis.
//!
//! Needs `DATABASE_URL`, `REDIS_URL` and `KAFKA_BROKERS` (`make bench` starts private servers, fsync on). Starts `flashsale api` and
//! `flashsale consumer` as two processes on a topic and a schema of their own, then
//! 1. **idle**: one buyer after the other, `POST` with `Prefer: wait`, from the first byte sent to the decision read;
//! 2. **memory**: `BENCH_REQUESTS` (1,000,000) posts over 512 kept connections, ten SKUs, every user once; then resident memory of both
//!    processes, CPU per request per process, and a count from outside: every 202 has its decision, and nothing was oversold.
//!
//! The generator is closed-loop (each connection sends when it has its answer), so its rate is what two cores shared by everything give, and
//! its latencies are not quoted.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flashsale::ids;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONNECTIONS: usize = 512;
const SKUS: usize = 10;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A process of the service, killed with the benchmark.
struct Process {
    child: Child,
    addresses: BTreeMap<String, String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn flashsale(environment: &BTreeMap<&str, String>, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flashsale"));
    command.args(args).envs(environment).stdin(Stdio::null());
    command
}

/// Starts a process and waits until it logged its addresses.
fn start(environment: &BTreeMap<&str, String>, role: &str, fields: &[&str]) -> Process {
    let mut child = flashsale(environment, &[role]).stdout(Stdio::piped()).spawn().expect("the binary starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut addresses = BTreeMap::new();
    while addresses.len() < fields.len() {
        let line = lines.next().expect("it goes on logging").expect("text");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON lines");
        for field in fields {
            if let Some(address) = line[*field].as_str() {
                addresses.insert((*field).to_owned(), address.to_owned());
            }
        }
    }
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    Process { child, addresses }
}

fn run(environment: &BTreeMap<&str, String>, args: &[&str]) {
    let output = flashsale(environment, args).output().expect("the binary runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A kept connection that speaks just enough HTTP/1.1.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("the API listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Self { stream, buffer: Vec::with_capacity(4096) }
    }

    /// Posts a reservation; the status and the body.
    async fn reserve(&mut self, user: &str, sku: &str, wait: &str) -> (u16, String) {
        let body = format!(r#"{{"user_id":"{user}","sku_id":"{sku}","quantity":1}}"#);
        let request = format!(
            "POST /v1/reservations HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{wait}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await.expect("written");
        self.read_answer().await
    }

    async fn read_answer(&mut self) -> (u16, String) {
        self.buffer.clear();
        let mut chunk = [0; 4096];
        loop {
            let count = self.stream.read(&mut chunk).await.expect("an answer");
            assert!(count > 0, "the API hung up");
            self.buffer.extend_from_slice(&chunk[..count]);
            let text = String::from_utf8_lossy(&self.buffer);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: "))
                .map_or(0, |l| l.parse().expect("a number"));
            if body.len() >= length {
                return (head[9..12].parse().expect("a status"), body.to_owned());
            }
        }
    }
}

fn cpu_us(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Clock ticks are hundredths of a second on Linux.
    let ticks = |n: usize| fields.get(n).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10_000
}

fn resident_mib(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) / 1024.0
}

async fn connect(url: &str) -> PgConnection {
    url.parse::<PgConnectOptions>().expect("a legal URL").connect().await.expect("the server answers")
}

async fn number(conn: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(conn).await.expect("a query of this benchmark")
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let address =
        |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} names a server; `make bench` starts one"));
    let name = format!("bench-{}", ids::fresh_token().simple());
    let schema = name.replace('-', "_");
    let mut admin = connect(&address("DATABASE_URL")).await;
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&mut admin).await.expect("made");
    let url = format!("{}?options=-csearch_path%3D{schema}", address("DATABASE_URL"));
    let environment = BTreeMap::from([
        ("DATABASE_URL", url.clone()),
        ("REDIS_URL", address("REDIS_URL")),
        ("KAFKA_BROKERS", address("KAFKA_BROKERS")),
        ("TOPIC", name.clone()),
        ("GROUP", name.clone()),
        ("REDIS_PREFIX", format!("{name}:")),
        ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
        ("ADMIN_ADDR", "127.0.0.1:0".to_owned()),
    ]);
    run(&environment, &["migrate"]);
    let consumer = start(&environment, "consumer", &["admin.addr"]);
    for n in 0..SKUS {
        run(&environment, &["sku", "put", &format!("s{n}"), "--on-hand", "1000000000", "--user-limit", "1"]);
    }
    let api = start(&environment, "api", &["http.addr", "admin.addr"]);
    let mut conn = connect(&url).await;
    let target = api.addresses["http.addr"].clone();
    idle(&target, setting("BENCH_IDLE", 500)).await;
    load(&target, setting("BENCH_REQUESTS", 1_000_000), &api, &consumer, &mut conn).await;
    drop((api, consumer));
    sqlx::raw_sql(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).execute(&mut admin).await.expect("dropped");
}

async fn idle(target: &str, count: usize) {
    let mut connection = Connection::open(target).await;
    let mut times = Vec::with_capacity(count);
    for n in 0..count + 20 {
        let began = Instant::now();
        let (status, body) =
            connection.reserve(&format!("idle-{n}"), &format!("s{}", n % SKUS), "Prefer: wait=5\r\n").await;
        assert!(status == 200 && body.contains("RESERVED"), "{status} {body}");
        times.push(began.elapsed());
    }
    let times = &mut times[20..]; // The first ones warm connections and plans.
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "idle: POST to decision over loopback, {count} in turn: p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms",
        at(0.5),
        at(0.95),
        at(0.99)
    );
}

async fn load(target: &str, count: usize, api: &Process, consumer: &Process, conn: &mut PgConnection) {
    let decided_before = number(conn, "SELECT count(*) FROM reservation").await;
    let (next, accepted, refused) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let pids = [("api", api.child.id()), ("consumer", consumer.child.id()), ("generator", std::process::id())];
    let cpu_before = pids.map(|(_, pid)| cpu_us(pid));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (target, next, accepted, refused) =
            (target.to_owned(), Arc::clone(&next), Arc::clone(&accepted), Arc::clone(&refused));
        tasks.spawn(async move {
            let mut connection = Connection::open(&target).await;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                match connection.reserve(&format!("u-{n}"), &format!("s{}", n % SKUS), "").await {
                    (202, _) => accepted.fetch_add(1, Ordering::Relaxed),
                    (503, _) => refused.fetch_add(1, Ordering::Relaxed),
                    (status, body) => panic!("{status} {body}"),
                };
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no connection failed");
    }
    let took = began.elapsed().as_secs_f64();
    let accepted = accepted.load(Ordering::Relaxed);
    while number(conn, "SELECT count(*) FROM reservation").await - decided_before < accepted as i64 {
        assert!(began.elapsed().as_secs_f64() < took + 120.0, "some 202 was never decided");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let cpu = pids.map(|(_, pid)| cpu_us(pid));
    let broken = number(
        conn,
        "SELECT count(*) FROM sku s WHERE reserved + sold > on_hand OR reserved <>
           (SELECT sum(quantity) FROM reservation r WHERE r.sku_id = s.sku_id AND status = 1)",
    )
    .await;
    assert_eq!(broken, 0, "counters equal the sums of the reservations");
    println!(
        "load: {count} posts over {CONNECTIONS} connections in {took:.0} s = {:.0}/s; {accepted} accepted, all decided, {} refused with 503",
        count as f64 / took,
        refused.load(Ordering::Relaxed)
    );
    for ((name, pid), (before, after)) in pids.iter().zip(cpu_before.iter().zip(&cpu)) {
        println!(
            "  {name:<10} resident {:>6.1} MiB (peak {:>6.1}), {:>6.1} CPU-us per request",
            resident_mib(*pid, "VmRSS:"),
            resident_mib(*pid, "VmHWM:"),
            (after - before) as f64 / count as f64
        );
    }
}
