//! `cargo bench --bench peers`: the same work done in other ways, on the same machine, in the same run, with the same durability.
//!
//! Needs `DATABASE_URL`, `REDIS_URL` and `KAFKA_BROKERS` (`make bench ARGS=peers` starts private servers with fsync on). Three tables: selling
//! over HTTP, deciding a log that is there, writing one. Every run is checked from outside, and an arm that once did not add up has no number.
//! `BENCH_PEERS` (http consumers producers) chooses, `BENCH_ROUNDS` (3), `BENCH_SECONDS` (4), `BENCH_CONNECTIONS` (512), `BENCH_COMMANDS` and
//! `BENCH_WARM_UP` size. Writes `load-tests/results/peers.json`, or the file that `BENCH_REPORT` names.

mod bench;
mod buying;
mod commands;
mod http_arms;
mod log_arms;
mod readers;
mod server;
mod writers;

use std::time::Instant;

use flashsale::clock::{Clock, SystemClock, rfc3339};
use flashsale::telemetry;
use serde_json::{Value, json};

use bench::{Arm, Servers, setting};

/// What is to be reached: our arm, the other one, and how many times its rate.
const GOALS: [(&str, &str, f64); 12] = [
    ("flashsale", "optimistic locking", 50.0),
    ("flashsale", "conditional UPDATE", 15.0),
    ("flashsale", "SELECT FOR UPDATE", 15.0),
    ("flashsale", "Redis first, rows", 3.0),
    ("flashsale", "Redis first, batches", 3.0),
    ("flashsale consumer, packed", "one message, one transaction", 100.0),
    ("flashsale consumer, packed", "one message, one statement", 100.0),
    ("flashsale consumer, singles", "one message, one transaction", 100.0),
    ("flashsale consumer, singles", "one message, one statement", 100.0),
    ("flashsale consumer, packed", "250 a batch, checked one by one", 20.0),
    ("flashsale consumer, singles", "250 a batch, checked one by one", 20.0),
    ("flashsale consumer, singles", "flashsale consumer, batches of one", 20.0),
];

fn main() {
    let words: Vec<String> = std::env::args().skip_while(|word| word != "--role").skip(1).collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok()).expect("the parent says which");
    match words.first().map(String::as_str) {
        // What is measured gets all threads that the machine has.
        Some("serve") => many_threads(server::serve(
            buying::Way::from_name(&words[1]).expect("one of them"),
            u32::try_from(number(2)).expect("a small pool"),
        )),
        Some("crowd") => http_arms::crowd(&words[1], &words[2], number(3) as u64),
        Some("write") => many_threads(writers::write(writers::Way::ALL[number(1)], &words[2])),
        Some("read") => one_thread(readers::read(readers::Way::ALL[number(1)], &words[2])),
        _ => one_thread(compare()),
    }
}

fn many_threads(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads").block_on(work);
}

fn one_thread(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a reactor").block_on(work);
}

async fn compare() {
    let (servers, rounds, began) = (Servers::of_environment(), setting("BENCH_ROUNDS", 3), Instant::now());
    let chosen = std::env::var("BENCH_PEERS").unwrap_or_else(|_| "http consumers producers".to_owned());
    let settings = settings_of(&servers).await;
    println!("{settings}");
    let mut tables = Vec::new();
    for (name, unit) in [
        ("http", "reservations answered and durable a second"),
        ("consumers", "decisions a second, of a log that is there"),
        ("producers", "commands published a second"),
    ] {
        if !chosen.split_whitespace().any(|word| word == name) {
            continue;
        }
        let arms = match name {
            "http" => http_arms::measure(&servers, rounds).await,
            "consumers" => log_arms::measure_consumers(&servers, rounds).await,
            _ => log_arms::measure_producers(&servers, rounds).await,
        };
        println!(
            "\n| {name} | what | {unit}: median (least to most of {rounds}) | CPU-us each | of which |\n|---|---|---|---|---|"
        );
        arms.iter().for_each(|arm| println!("{}", arm.row()));
        tables.push((name, unit, arms));
    }
    let all: Vec<&Arm> = tables.iter().flat_map(|(_, _, arms)| arms).collect();
    let goals: Vec<Value> = GOALS.iter().filter_map(|goal| judged(&all, goal)).collect();
    println!("\n| ours | against | times its rate | goal | | times less CPU each |\n|---|---|---|---|---|---|");
    goals.iter().for_each(|goal| println!("{}", goal_row(goal)));
    let tables: Vec<Value> = tables
        .iter()
        .map(|(name, unit, arms)| json!({"name": name, "unit": unit, "arms": arms.iter().map(Arm::report).collect::<Vec<_>>()}))
        .collect();
    let report = json!({
        "at": rfc3339(SystemClock.now()), "version": telemetry::VERSION, "commit": commit(), "machine": machine(),
        "settings": settings, "rounds": rounds, "seconds_each": bench::seconds(), "seconds_in_all": began.elapsed().as_secs(),
        "tables": tables, "goals": goals,
    });
    let file = std::env::var("BENCH_REPORT")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/load-tests/results/peers.json").to_owned());
    let text = serde_json::to_string_pretty(&report).expect("plain values") + "\n";
    std::fs::write(&file, text).expect("the report's folder is there");
    println!("\n{} s in all; report: {file}", began.elapsed().as_secs());
    // A wrong arm is a wrong benchmark, whatever the others say.
    std::process::exit(i32::from(all.iter().any(|arm| arm.rates().is_none())));
}

/// `None` for arms that were not chosen.
fn judged(all: &[&Arm], (ours, peer, goal): &(&str, &str, f64)) -> Option<Value> {
    let find = |name: &str| all.iter().find(|arm| arm.name == name).copied();
    let (ours_arm, peer_arm) = (find(ours)?, find(peer)?);
    let round = |ratio: f64| (ratio * 10.0).round() / 10.0;
    let ratio = ours_arm.rates().zip(peer_arm.rates()).map(|(ours, peer)| ours[0] / peer[0]);
    let cpu = |arm: &Arm| arm.cpu_us().values().sum::<f64>();
    let less_cpu = ratio.map(|_| round(cpu(peer_arm) / cpu(ours_arm)));
    let usual = peer_arm.details["at_usual_connections"].as_f64();
    let at_usual = ours_arm.rates().zip(usual).map(|(ours, usual)| round(ours[0] / usual));
    Some(
        json!({"ours": ours, "peer": peer, "goal": goal, "times": ratio.map(round), "times_at_usual_connections": at_usual,
        "times_less_cpu": less_cpu, "reached": ratio.is_some_and(|ratio| ratio >= *goal)}),
    )
}

fn goal_row(goal: &Value) -> String {
    let times = goal["times"].as_f64().map_or("none".to_owned(), |times| format!("**{times:.1}**"));
    let usual = goal["times_at_usual_connections"].as_f64();
    let usual =
        usual.map_or(String::new(), |times| format!(" ({times:.1} with {} connections)", http_arms::USUAL_POOL));
    let word = if goal["reached"] == true { "reached" } else { "**not reached**" };
    let text = |name: &str| goal[name].as_str().unwrap_or_default().to_owned();
    let less_cpu = goal["times_less_cpu"].as_f64().map_or("none".to_owned(), |times| format!("{times:.1}"));
    let aim = goal["goal"].as_f64().unwrap_or(0.0);
    format!("| {} | {} | {times}{usual} | {aim:.0} | {word} | {less_cpu} |", text("ours"), text("peer"))
}

/// What durability means here.
async fn settings_of(servers: &Servers) -> Value {
    let mut conn = bench::connect(&servers.database).await;
    let mut asked = serde_json::Map::new();
    for name in
        ["server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "wal_compression"]
    {
        let value: Result<String, sqlx::Error> =
            sqlx::query_scalar("/* settings_of */ SELECT current_setting($1)").bind(name).fetch_one(&mut conn).await;
        asked.insert(name.to_owned(), value.expect("a setting").into());
    }
    json!({"postgres": asked, "kafka": {"acks": "all", "idempotence": true, "replication": 1}, "connections": setting("BENCH_CONNECTIONS", 512),
        "redis": {"persistence": "none"}})
}

/// The commit of the working tree, and whether something is changed in it.
fn commit() -> Value {
    let git = |words: &[&str]| {
        let output =
            std::process::Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no", "--", "src", "benches", "migrations", "Cargo.lock"]);
    json!({"id": git(&["rev-parse", "--short", "HEAD"]), "changed": changed.map(|files| !files.is_empty())})
}

fn machine() -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':').map(|v| v.trim().to_owned()))
    };
    json!({"cpu": after(&read("/proc/cpuinfo"), "model name"), "memory": after(&read("/proc/meminfo"), "MemTotal"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from), "kernel": read("/proc/sys/kernel/osrelease").trim()})
}
