//! The service as its users meet it: the real binary, its real listeners, HTTP from outside.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

use super::database::Database;
use super::kafka::fresh_name;
use super::redis::Space;
use super::services::Services;
use super::wait::{wait_for, wait_for_value};

/// How long anything may take; far beyond what it takes, restarts of servers included.
pub const SOON: Duration = Duration::from_secs(30);

/// One installation: topic, schema, key prefix; on the servers of the test run or on servers of its own.
pub struct Site {
    pub services: Option<Services>,
    pub db: Database,
    pub client: Client,
    environment: HashMap<&'static str, String>,
}

/// A running process of the service; killed when dropped.
pub struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    /// `http://host:port` of the public listener; empty for a consumer.
    pub public: String,
    /// The same of the admin listener.
    pub admin: String,
}

impl Site {
    /// On the servers of the test run.
    pub async fn shared() -> Self {
        Self::on(None).await
    }

    /// On servers of its own, to be stopped and killed.
    pub async fn private() -> Self {
        Self::with_private(&["postgres", "redis", "kafka"]).await
    }

    /// With these servers of its own; the others are those of the test run.
    pub async fn with_private(names: &[&str]) -> Self {
        Self::on(Some(Services::start(names).await)).await
    }

    async fn on(services: Option<Services>) -> Self {
        let topic = fresh_name("site");
        let shared =
            |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} names a server; `make test` sets it"));
        let private = |name: &str| services.as_ref().and_then(|services| services.find_address(name));
        let address = |name: &str| private(name).unwrap_or_else(|| shared(name));
        let db = Database::empty_on(&address("DATABASE_URL"), &topic).await;
        let environment = HashMap::from([
            ("DATABASE_URL", db.url.clone()),
            ("REDIS_URL", address("REDIS_URL")),
            ("KAFKA_BROKERS", address("KAFKA_BROKERS")),
            ("TOPIC", topic.clone()),
            ("EVENTS_TOPIC", format!("{topic}-events")),
            ("GROUP", topic.clone()),
            ("REDIS_PREFIX", format!("{topic}:")),
            ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
            ("ADMIN_ADDR", "127.0.0.1:0".to_owned()),
        ]);
        let client = Client::builder().timeout(Duration::from_secs(45)).build().expect("a client");
        let site = Self { services, db, client, environment };
        let migrated = site.run(&["migrate"]).await;
        assert!(migrated.status.success(), "migrate: {}", String::from_utf8_lossy(&migrated.stderr));
        site
    }

    /// Its topic.
    pub fn topic(&self) -> &str {
        &self.environment["TOPIC"]
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flashsale"));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(&self.environment);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a subcommand to its end.
    pub async fn run(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("the binary runs")
    }

    /// Starts `api`, `consumer`, `relay` or `all` and waits until it is ready.
    pub async fn start(&self, role: &str) -> Process {
        self.start_with(&[role]).await
    }

    /// The same with arguments, the role first; also `audit --watch`.
    pub async fn start_with(&self, args: &[&str]) -> Process {
        let role = args[0];
        let mut process = self.spawn(args);
        process.admin = process.wait_for_address("admin.addr").await;
        if ["api", "all"].contains(&role) {
            process.public = process.wait_for_address("http.addr").await;
        }
        wait_for(&format!("{role} is ready"), SOON, async || self.is_ready(&process).await).await;
        process
    }

    /// Starts a subcommand that goes on until it is told to end, and reads what it prints.
    pub fn spawn(&self, args: &[&str]) -> Process {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let output = child.stdout.take().expect("piped");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "not_json": line }));
                written.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Process { child, lines, public: String::new(), admin: String::new() }
    }

    /// Whether a process says so itself.
    pub async fn is_ready(&self, process: &Process) -> bool {
        let answer = self.client.get(format!("{}/readyz", process.admin)).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    /// The value of a series on a process' admin listener; `None` if it is not there.
    pub async fn metric(&self, process: &Process, series: &str) -> Option<f64> {
        let answer = self.client.get(format!("{}/metrics", process.admin)).send().await.expect("it answers");
        let text = answer.text().await.expect("it is text");
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// Creates a SKU by the command line.
    pub async fn put_sku(&self, sku: &str, on_hand: i64, user_limit: u32) {
        let (on_hand, user_limit) = (on_hand.to_string(), user_limit.to_string());
        let put = self.run(&["sku", "put", sku, "--on-hand", &on_hand, "--user-limit", &user_limit]).await;
        assert!(put.status.success(), "sku put: {}", String::from_utf8_lossy(&put.stderr));
    }

    /// `POST /v1/reservations`.
    pub async fn post(&self, api: &Process, user: &str, sku: &str, key: Option<&str>, wait: Option<u32>) -> Answer {
        let mut request = self.client.post(format!("{}/v1/reservations", api.public));
        request = request.json(&json!({ "user_id": user, "sku_id": sku, "quantity": 1 }));
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        if let Some(wait) = wait {
            request = request.header("Prefer", format!("wait={wait}"));
        }
        Answer::of(request.send().await.expect("the API answers")).await
    }

    /// Its keys in Redis.
    pub async fn space(&self) -> Space {
        Space::below(&self.environment["REDIS_URL"], self.environment["REDIS_PREFIX"].clone()).await
    }

    /// `GET` of a path on the public listener.
    pub async fn get(&self, api: &Process, path: &str) -> Answer {
        Answer::of(self.client.get(format!("{}{path}", api.public)).send().await.expect("the API answers")).await
    }

    /// Follows a `status_url` until the reservation is decided, by long polls; returns its last body.
    ///
    /// # Panics
    /// If it is ever not found: the ticket in the URL must keep that from happening.
    pub async fn follow(&self, api: &Process, status_url: &str) -> Value {
        wait_for_value(&format!("{status_url} is decided"), SOON, async || {
            let request = self.client.get(format!("{}{status_url}", api.public)).header("Prefer", "wait=5");
            let answer = Answer::of(request.send().await.ok()?).await;
            assert_ne!(answer.status, 404, "{status_url}: {}", answer.body);
            (answer.status == 200 && answer.body["status"] != "QUEUED").then_some(answer.body)
        })
        .await
    }

    /// Checks everything that must hold, and that nothing was logged that pages somebody; except, where servers were stopped, that a
    /// partition stands still: an outage that is long enough is told.
    pub async fn finish(self, processes: impl IntoIterator<Item = Process>) {
        for process in processes {
            let is_expected =
                |line: &Value| self.services.is_some() && line["message"] == "no progress, though records wait";
            let errors: Vec<Value> =
                process.lines().into_iter().filter(|line| line["level"] == "ERROR" && !is_expected(line)).collect();
            assert!(errors.is_empty(), "logged at ERROR: {errors:?}");
            assert!(process.stop().await.success(), "a process that is asked to stop ends well");
        }
        self.db.assert_invariants().await;
        self.db.drop().await;
    }
}

/// An HTTP answer, read.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// Reads an answer to its end.
    pub async fn of(response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap_or_default();
        Self { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    /// A member of the body, as text.
    pub fn text(&self, member: &str) -> &str {
        self.body[member].as_str().unwrap_or_else(|| panic!("{member} in {}", self.body))
    }
}

impl Process {
    /// What it logged so far.
    pub fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub async fn wait_for_address(&self, field: &str) -> String {
        let address = wait_for_value(&format!("{field} is logged"), SOON, async || {
            self.lines().iter().find_map(|line| line[field].as_str().map(str::to_owned))
        })
        .await;
        format!("http://{address}")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "the process can be sent a signal");
    }

    /// Asks it to stop and waits for its end.
    pub async fn stop(self) -> ExitStatus {
        self.end_by("TERM").await
    }

    /// Sends it a signal and waits for its end.
    pub async fn end_by(mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        wait_for_value("the process has ended", SOON, async || self.child.try_wait().expect("our child")).await
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; a test that failed must not leave it behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
