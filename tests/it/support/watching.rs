//! What watches the service: `monitoring/` read as text, and a real Prometheus and Alertmanager over it.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path as UrlPath, State};
use axum::{Json, Router, routing};
use reqwest::Client;
use serde_json::Value;

use super::kafka::fresh_name;
use super::site::SOON;
use super::wait::wait_for;

/// The rules, as Prometheus loads them.
pub const RULES: &str = "monitoring/prometheus/flashsale.rules.yaml";

/// A file of the repository.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of a folder of the repository, as paths from its root, in order.
pub fn files_in(folder: &str) -> Vec<String> {
    let found = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("a folder");
    let names = found.map(|entry| entry.expect("readable").file_name().into_string().expect("plain names"));
    let mut paths: Vec<_> = names.map(|name| format!("{folder}/{name}")).collect();
    paths.sort();
    paths
}

/// One query of one panel.
#[derive(Debug)]
pub struct PanelQuery {
    /// `dashboard: panel`.
    pub panel: String,
    pub expr: String,
}

/// Every query of every dashboard.
pub fn panel_queries() -> Vec<PanelQuery> {
    let mut queries = Vec::new();
    for path in files_in("monitoring/grafana/dashboards") {
        let dashboard: Value = serde_json::from_str(&read(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        for panel in dashboard["panels"].as_array().expect("panels") {
            let title = panel["title"].as_str().expect("a title");
            let panel_name = format!("{}: {title}", dashboard["title"].as_str().expect("a title"));
            for target in panel["targets"].as_array().expect("targets") {
                let expr = target["expr"].as_str().expect("a query").to_owned();
                queries.push(PanelQuery { panel: panel_name.clone(), expr });
            }
        }
    }
    queries
}

/// `text` with `from`, which must be there, replaced by `to`.
pub fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from} is not in\n{text}");
    text.replace(from, to)
}

/// The same settings or rules with every duration divided by `factor`: what follows `for:`, `interval:`, `wait:` (and whatever ends in
/// these), `[` and `offset`.
pub fn hurried(text: &str, factor: u64) -> String {
    let mut hurried = String::new();
    let mut rest = text;
    while let Some(at) = ["for: ", "interval: ", "wait: ", "[", "offset "]
        .iter()
        .filter_map(|before| rest.find(before).map(|at| at + before.len()))
        .min()
    {
        let (done, after) = rest.split_at(at);
        hurried.push_str(done);
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let unit: String = after[digits..].chars().take_while(char::is_ascii_lowercase).collect();
        let unit_ms = match unit.as_str() {
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        match (after[..digits].parse::<u64>(), unit_ms) {
            (Ok(number), Some(unit_ms)) => {
                hurried.push_str(&format!("{}ms", number * unit_ms / factor));
                rest = &after[digits + unit.len()..];
            }
            _ => rest = after,
        }
    }
    hurried + rest
}

#[test]
fn a_hurried_rule_differs_in_nothing_but_its_durations() {
    let rule = "interval: 5s # each\nfor: 1m\nkeep_firing_for: 10m\nexpr: a[5m] offset 1h > 5 unless [b]\nwait: 0s\nsummary: for: {{ x }}";
    let hurried = hurried(rule, 10);
    assert_eq!(
        hurried,
        "interval: 500ms # each\nfor: 6000ms\nkeep_firing_for: 60000ms\nexpr: a[30000ms] offset 360000ms > 5 unless [b]\nwait: 0ms\nsummary: for: {{ x }}"
    );
}

/// Whom Alertmanager tells: an HTTP server that remembers, per receiver, which alarm began or ended.
#[derive(Clone, Default)]
pub struct Pager(Arc<Mutex<BTreeSet<(String, String, String)>>>);

impl Pager {
    /// Listens until the test's runtime ends; also returns `http://host:port`.
    pub async fn start() -> (Self, String) {
        let pager = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let router = Router::new().route("/{receiver}", routing::post(note)).with_state(pager.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (pager, url)
    }

    /// Whether `receiver` (page, ticket) was told that `alarm` is `status` (firing, resolved).
    pub fn was_told(&self, receiver: &str, alarm: &str, status: &str) -> bool {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.contains(&(receiver.to_owned(), alarm.to_owned(), status.to_owned()))
    }
}

async fn note(State(pager): State<Pager>, UrlPath(receiver): UrlPath<String>, Json(body): Json<Value>) {
    for alert in body["alerts"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told = (receiver.clone(), text(&alert["labels"]["alertname"]), text(&alert["status"]));
        pager.0.lock().unwrap_or_else(PoisonError::into_inner).insert(told);
    }
}

/// A running Prometheus and Alertmanager; killed, and their folder removed, when dropped.
pub struct Monitors {
    folder: PathBuf,
    children: Vec<Child>,
    client: Client,
    prometheus: String,
    alertmanager: String,
}

/// What a test changes in the settings of `monitoring/`.
pub struct Plan<'a> {
    /// `(service of the compose file, host:port)`.
    pub targets: &'a [(&'a str, String)],
    /// The bearer token of all of them.
    pub token: &'a str,
    /// Where pages and tickets go.
    pub pager: &'a str,
    /// See [`hurried`].
    pub factor: u64,
}

impl Monitors {
    /// Starts both on the settings of `monitoring/`, with other addresses, divided durations, and a scrape every 250 ms.
    pub async fn start(plan: &Plan<'_>) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(fresh_name("monitors"));
        std::fs::create_dir_all(&folder).expect("our folder");
        let (prometheus, alertmanager) = (free_address(), free_address());
        let write = |name: &str, text: String| std::fs::write(folder.join(name), text).expect("our folder");
        let mut settings = replaced(&read("monitoring/prometheus/prometheus.yml"), "alertmanager:9093", &alertmanager);
        settings = replaced(&settings, "flashsale.rules.yaml", "rules.yaml");
        settings = replaced(&settings, "/run/flashsale/admin_token", &folder.join("token").display().to_string());
        settings = replaced(&settings, "_interval: 5s", "_interval: 250ms");
        for (service, address) in plan.targets {
            let by_name =
                format!("dns_sd_configs: [{{names: [{service}], type: A, port: 9090, refresh_interval: 250ms}}]");
            settings = replaced(&settings, &by_name, &format!("static_configs: [{{targets: [\"{address}\"]}}]"));
        }
        write("prometheus.yml", settings);
        write("rules.yaml", hurried(&read(RULES), plan.factor));
        write("token", format!("{}\n", plan.token));
        let routes = replaced(&read("monitoring/alertmanager/alertmanager.yml"), "http://pager.invalid", plan.pager);
        write("alertmanager.yml", hurried(&routes, plan.factor));
        let mut monitors = Self {
            folder,
            children: Vec::new(),
            client: Client::new(),
            prometheus: format!("http://{prometheus}"),
            alertmanager: format!("http://{alertmanager}"),
        };
        let listen = format!("--web.listen-address={alertmanager}");
        let alone = "--cluster.listen-address="; // no others of its kind
        monitors.spawn(
            &["prometheus-alertmanager", "alertmanager"],
            "alertmanager.yml",
            "--storage.path",
            &[&listen, alone],
        );
        let listen = format!("--web.listen-address={prometheus}");
        monitors.spawn(
            &["prometheus"],
            "prometheus.yml",
            "--storage.tsdb.path",
            &[&listen, "--rules.alert.resend-delay=1s"],
        );
        for url in [&monitors.prometheus, &monitors.alertmanager] {
            let ready = format!("{url}/-/ready");
            wait_for(&ready, SOON, async || {
                monitors.client.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success())
            })
            .await;
        }
        monitors
    }

    /// Starts the first program of these names that is there; what it says goes to a file in the folder.
    fn spawn(&mut self, names: &[&str], settings: &str, storage: &str, arguments: &[&str]) {
        let log = std::fs::File::create(self.folder.join(format!("{}.log", names[0]))).expect("our folder");
        let started = names.iter().find_map(|name| {
            Command::new(name)
                .arg(format!("--config.file={}", self.folder.join(settings).display()))
                .arg(format!("{storage}={}", self.folder.join(format!("{}-data", names[0])).display()))
                .args(arguments)
                .current_dir(&self.folder)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log.try_clone().expect("a file"))
                .spawn()
                .ok()
        });
        let child = started.unwrap_or_else(|| panic!("{} is not installed; `make test` installs it", names[0]));
        self.children.push(child);
    }

    /// The names of alarms that Alertmanager has as firing, inhibited ones included.
    pub async fn firing(&self) -> BTreeSet<String> {
        let answer = self.client.get(format!("{}/api/v2/alerts", self.alertmanager)).send().await.expect("it answers");
        let alerts: Vec<Value> = answer.json().await.expect("a list");
        alerts.iter().filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned)).collect()
    }

    /// What Prometheus says to a query now: its values, without those that are no number.
    ///
    /// # Panics
    /// If it does not understand the query.
    pub async fn query(&self, expr: &str) -> Vec<f64> {
        let asked = url::Url::parse_with_params(&format!("{}/api/v1/query", self.prometheus), [("query", expr)]);
        let answer = self.client.get(asked.expect("a legal URL")).send().await.expect("it answers");
        let answer: Value = answer.json().await.expect("JSON");
        assert_eq!(answer["status"], "success", "{expr}: {answer}");
        let found = answer["data"]["result"].as_array().expect("a vector");
        let values = found.iter().filter_map(|series| series["value"][1].as_str()?.parse::<f64>().ok());
        values.filter(|value| !value.is_nan()).collect()
    }
}

impl Drop for Monitors {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended already; a test that failed must not leave it behind.
            let _ = child.kill();
            let _ = child.wait();
        }
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.folder).expect("the folder is ours");
        }
    }
}

/// Nobody listens here now.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").to_string()
}
