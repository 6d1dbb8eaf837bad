//! What all arms share: the servers, schemas of one run, child processes, CPU time, and how numbers are kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flashsale::ids;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};

/// A size that the environment may change.
pub fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How long one run of an arm should take.
pub fn seconds() -> f64 {
    setting("BENCH_SECONDS", 4) as f64
}

/// An address of the environment.
///
/// # Panics
/// Without it.
pub fn address(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} names a server; `make bench` starts one"))
}

/// The private servers, and the process of each.
pub struct Servers {
    pub database: String,
    pub redis: String,
    pub brokers: String,
    watched: Vec<(String, u32)>,
}

impl Servers {
    pub fn of_environment() -> Self {
        let watched = std::env::var("BENCH_WATCH").unwrap_or_default();
        let watched = watched.split_whitespace().filter_map(|word| {
            let (name, pid) = word.split_once('=')?;
            Some((name.to_owned(), pid.parse().ok()?))
        });
        let [database, redis, brokers] = ["DATABASE_URL", "REDIS_URL", "KAFKA_BROKERS"].map(address);
        Self { database, redis, brokers, watched: watched.collect() }
    }

    /// The servers that an arm uses and a process of its own, to be timed: what idles beside it is not its cost.
    pub fn watched(&self, used: &[&str], more: &[(&str, u32)]) -> Vec<(String, u32)> {
        let used = self.watched.iter().filter(|(name, _)| used.contains(&name.as_str())).cloned();
        used.chain(more.iter().map(|(name, pid)| ((*name).to_owned(), *pid))).collect()
    }

    /// A schema of its own, dropped by [`Schema::drop_all`].
    pub async fn schema(&self) -> Schema {
        let name = format!("bench_{}", ids::fresh_token().simple());
        let mut admin = connect(&self.database).await;
        run(&mut admin, &format!("CREATE SCHEMA {name}")).await;
        let url = format!("{}?options=-csearch_path%3D{name}", self.database);
        let conn = connect(&url).await;
        Schema { name, url, conn, admin }
    }
}

/// Where one run writes.
pub struct Schema {
    name: String,
    pub url: String,
    pub conn: PgConnection,
    admin: PgConnection,
}

impl Schema {
    pub async fn number(&mut self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.conn).await.expect("a query of this benchmark")
    }

    pub async fn run(&mut self, sql: &str) {
        run(&mut self.conn, sql).await;
    }

    pub async fn drop_all(mut self) {
        run(&mut self.admin, &format!("DROP SCHEMA {} CASCADE; CHECKPOINT", self.name)).await;
    }
}

pub async fn connect(url: &str) -> PgConnection {
    url.parse::<PgConnectOptions>().expect("a legal URL").connect().await.expect("the server answers")
}

async fn run(conn: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.expect("a statement of this benchmark");
}

// ---- processes ----

/// A child, killed with the benchmark.
pub struct Process {
    child: Child,
    lines: Option<std::io::Lines<BufReader<std::process::ChildStdout>>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let lines = Some(BufReader::new(child.stdout.take().expect("piped")).lines());
        Self { child, lines }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads lines until one tells what is asked for.
    pub fn told<T>(&mut self, tells: impl Fn(&str) -> Option<T>) -> T {
        let lines = self.lines.as_mut().expect("not read to its end yet");
        lines.by_ref().map_while(Result::ok).find_map(|line| tells(&line)).expect("the process tells it before it ends")
    }

    /// Nobody reads what it goes on to say, and it must not wait for a reader.
    pub fn forget_lines(&mut self) {
        let lines = self.lines.take().expect("not forgotten twice");
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    }

    /// Asks it to end, and waits for that.
    pub fn end(mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
        assert!(asked.is_ok_and(|status| status.success()), "a running process takes a signal");
        let until = Instant::now() + Duration::from_secs(30);
        while self.child.try_wait().expect("our child").is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// This program again, in another role.
pub fn role(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("Linux tells"));
    command.arg("--role").args(words);
    command
}

/// The service's own program.
pub fn flashsale(environment: &BTreeMap<&str, String>, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flashsale"));
    command.args(words).envs(environment);
    command
}

/// Runs a program to its end.
pub fn output_of(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))
}

/// A field of a JSON log line.
pub fn log_field(line: &str, field: &str) -> Option<String> {
    serde_json::from_str::<Value>(line).ok()?.get(field)?.as_str().map(str::to_owned)
}

// ---- CPU ----

/// CPU time of processes with all their children since it was begun.
pub struct CpuClock {
    watched: Vec<(String, u32)>,
    before: Vec<u64>,
}

impl CpuClock {
    pub fn begin(watched: Vec<(String, u32)>) -> Self {
        let before = ticks(&watched);
        Self { watched, before }
    }

    /// Microseconds of each per operation.
    pub fn per(&self, count: u64) -> BTreeMap<String, f64> {
        let names = self.watched.iter().map(|(name, _)| name.clone());
        // Clock ticks are hundredths of a second on Linux.
        let spent = ticks(&self.watched).into_iter().zip(&self.before).map(|(after, before)| (after - before) * 10_000);
        names.zip(spent.map(|us| us as f64 / count.max(1) as f64)).collect()
    }
}

/// User and system time of each and of its children, also of those that have ended.
fn ticks(watched: &[(String, u32)]) -> Vec<u64> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let processes: HashMap<u32, (u32, u64)> = pids.filter_map(|pid| Some((pid, stat(pid)?))).collect();
    watched.iter().map(|(_, root)| of_tree(*root, &processes)).collect()
}

fn of_tree(root: u32, processes: &HashMap<u32, (u32, u64)>) -> u64 {
    let mut tree = HashSet::from([root]);
    loop {
        let is_new = |(pid, (parent, _)): &(&u32, &(u32, u64))| tree.contains(parent) && !tree.contains(*pid);
        let children: Vec<u32> = processes.iter().filter(is_new).map(|(pid, _)| *pid).collect();
        if children.is_empty() {
            return tree.iter().filter_map(|pid| processes.get(pid)).map(|(_, ticks)| ticks).sum();
        }
        tree.extend(children);
    }
}

/// Parent and ticks, as proc(5) says.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<u64> =
        stat.rsplit_once(')')?.1.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    Some((u32::try_from(*fields.get(1)?).ok()?, fields.get(11..15)?.iter().sum()))
}

// ---- numbers ----

/// One verified run.
pub struct Run {
    pub per_second: f64,
    /// Microseconds for each operation, by process.
    pub cpu_us: BTreeMap<String, f64>,
    /// What else is worth telling.
    pub details: Value,
}

/// All runs of one arm.
pub struct Arm {
    pub name: &'static str,
    pub what: String,
    pub details: Value,
    pub runs: Vec<Run>,
    /// Why runs have no number.
    pub failed: Vec<String>,
}

impl Arm {
    pub fn new(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, what: what.into(), details: json!({}), runs: Vec::new(), failed: Vec::new() }
    }

    pub fn take(&mut self, run: Result<Run, String>) {
        match run {
            Ok(run) => self.runs.push(run),
            Err(why) => {
                eprintln!("{}: no number: {why}", self.name);
                self.failed.push(why);
            }
        }
    }

    /// Median, least, most; `None` if any run failed: an arm that is wrong once has no number.
    pub fn rates(&self) -> Option<[f64; 3]> {
        if self.runs.is_empty() || !self.failed.is_empty() {
            return None;
        }
        let rates = sorted(self.runs.iter().map(|run| run.per_second));
        Some([median(&rates), rates[0], rates[rates.len() - 1]])
    }

    /// Medians, by process.
    pub fn cpu_us(&self) -> BTreeMap<String, f64> {
        let names: HashSet<&String> = self.runs.iter().flat_map(|run| run.cpu_us.keys()).collect();
        let of = |name: &String| median(&sorted(self.runs.iter().filter_map(|run| run.cpu_us.get(name).copied())));
        names.into_iter().map(|name| (name.clone(), of(name))).collect()
    }

    pub fn report(&self) -> Value {
        let round = |us: f64| (us * 100.0).round() / 100.0;
        let cpu: BTreeMap<String, f64> = self.cpu_us().into_iter().map(|(name, us)| (name, round(us))).collect();
        let runs: Vec<Value> = self.runs.iter().map(|run| json!([run.per_second.round(), run.details])).collect();
        let mut report = json!({"name": self.name, "what": self.what, "details": self.details, "cpu_us_per_operation": cpu,
            "runs": runs, "failed": self.failed, "median": null, "least": null, "most": null});
        if let Some(rates) = self.rates() {
            for (name, rate) in ["median", "least", "most"].into_iter().zip(rates) {
                report[name] = rate.round().into();
            }
        }
        report
    }

    /// A row of the table.
    pub fn row(&self) -> String {
        let cpu = self.cpu_us();
        let all = if cpu.is_empty() { String::new() } else { format!("{:.1}", cpu.values().sum::<f64>()) };
        let of: Vec<String> =
            cpu.iter().filter(|(_, us)| **us >= 0.05).map(|(name, us)| format!("{name} {us:.1}")).collect();
        let rates = match self.rates() {
            Some([median, least, most]) => format!("**{median:.0}** ({least:.0} to {most:.0})"),
            None => format!("none: {}", self.failed.join("; ")),
        };
        format!("| {} | {} | {rates} | {all} | {} |", self.name, self.what, of.join(", "))
    }
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Refuses a run whose check fails.
pub fn check(is_so: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(otherwise()) }
}
