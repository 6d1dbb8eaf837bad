//! The program from outside: exit codes, what is told where, and one life of a process from start to SIGTERM.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use flashsale::limits;
use serde_json::Value;

use crate::support::consumer::World;
use crate::support::kafka::{brokers, fresh_name};
use crate::support::wait::wait_for;

/// The program with nothing of our environment but what is given.
fn flashsale(arguments: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flashsale"));
    command.env_clear().args(arguments.split_whitespace()).envs(environment.iter().copied());
    command
}

fn run(arguments: &str, environment: &[(&str, &str)]) -> Output {
    flashsale(arguments, environment).output().expect("the program runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn bad_usage_and_configuration_exit_64_before_anything_is_tried() {
    for arguments in
        ["", "nonsense", "api --nonsense", "sku put", "sku put a/b", "sku put s --hold soon", "migrate --partitions 0"]
    {
        assert_eq!(code(&run(arguments, &[])), 64, "{arguments}");
    }
    let wrong = [("REDIS_URL", "http://canary@x"), ("ADMIN_ADDR", "0.0.0.0:0"), ("BATCH_SIZE_MAX", "many")];
    for arguments in ["api", "consumer", "all"] {
        let output = run(arguments, &wrong);
        let told = text(&output.stderr);
        assert_eq!((code(&output), told.lines().count()), (64, 5), "every problem has its line: {told}");
        assert!(output.stdout.is_empty() && !told.contains("canary"), "{told}");
    }
    let both_ends =
        run("sku put s --on-hand 1 --user-limit 0", &[("DATABASE_URL", "postgres://x/x"), ("KAFKA_BROKERS", "x:1")]);
    assert_eq!(code(&both_ends), 64, "{both_ends:?}");
}

#[test]
fn what_needs_no_server_is_answered_without_one() {
    let version = run("--version", &[]);
    assert_eq!((code(&version), text(&version.stdout).starts_with("flashsale 0.")), (0, true));
    assert_eq!(code(&run("--help", &[("ADMIN_TOKEN", "canary")])), 0);
    let secrets =
        [("DATABASE_URL", "postgres://u:canary@db/x"), ("REDIS_URL", "redis://:canary@r/"), ("ADMIN_TOKEN", "canary")];
    for arguments in ["--help", "api --help", "config"] {
        let output = run(arguments, &secrets);
        assert_eq!(code(&output), 0, "{output:?}");
        assert!(!text(&output.stdout).contains("canary"), "{arguments}");
    }
    for arguments in ["openapi", "openapi --admin"] {
        let document: Value = serde_json::from_slice(&run(arguments, &[]).stdout).expect("it is JSON");
        assert_eq!(document["openapi"], "3.1.0");
    }
}

#[test]
fn services_that_are_away_exit_69() {
    let away = [("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"), ("ADMIN_ADDR", "127.0.0.1:1")];
    for arguments in ["sku list", "partition show", "healthcheck"] {
        let output = run(arguments, &away);
        assert_eq!(code(&output), 69, "{arguments}: {output:?}");
        assert!(text(&output.stderr).starts_with("flashsale: "), "{output:?}");
    }
}

/// A serving process; killed when dropped.
struct Process {
    child: Child,
    http: SocketAddr,
    admin: SocketAddr,
}

impl Process {
    /// Starts `all` on free ports and reads from its log which ones it got.
    fn start(environment: &[(&str, &str)]) -> Self {
        let ports = [("HTTP_ADDR", "127.0.0.1:0"), ("ADMIN_ADDR", "127.0.0.1:0")];
        let mut child = flashsale("all", environment).envs(ports).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut address = |field: &str| {
            let found = lines.by_ref().map_while(Result::ok).find_map(|line| {
                let line: Value = serde_json::from_str(&line).expect("every line is JSON");
                assert!(!line.to_string().contains("canary"), "{line}");
                line[field].as_str().map(|text| text.parse().expect("an address"))
            });
            found.unwrap_or_else(|| panic!("it never said {field}"))
        };
        let (http, admin) = (address("http.addr"), address("admin.addr"));
        // Keep its stdout read, or it would block.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, http, admin }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone if the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_reads_on_until_it_has_so_many() {
    let world = World::fresh(1).await;
    world.db.plant_crowd(2 * limits::LIST_EXAMINED_MAX as u32).await;
    let brokers = brokers();
    let environment = [("DATABASE_URL", world.db.url.as_str()), ("KAFKA_BROKERS", &brokers), ("TOPIC", &world.topic)];
    let listed = |arguments: &str| -> Value {
        let output = run(&format!("reservation list --json {arguments}"), &environment);
        assert_eq!(code(&output), 0, "{output:?}");
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    };
    let paid = listed("--status CONFIRMED");
    assert_eq!((paid["items"].as_array().map(Vec::len), paid.get("next_cursor")), (Some(1), None), "{paid}");
    let some = listed("--user u2 --status REJECTED --limit 2");
    assert_eq!(some["items"].as_array().map(Vec::len), Some(2), "{some}");
    let cursor = some["next_cursor"].as_str().expect("there are more");
    let next = listed(&format!("--user u2 --status REJECTED --limit 1 --cursor {cursor}"));
    assert!(next["items"][0]["id"].as_str() > some["items"][1]["id"].as_str(), "{next}");
    assert_eq!(listed("--user u2")["items"], serde_json::json!([]), "what was refused is asked for by name");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_lives_from_its_start_to_sigterm() {
    let world = World::fresh(2).await;
    let (brokers, group, prefix) = (brokers(), fresh_name("group"), format!("{}:", fresh_name("space")));
    let redis = std::env::var("REDIS_URL").expect("REDIS_URL names the server; `make test` sets it");
    let environment = [
        ("DATABASE_URL", world.db.url.as_str()),
        ("REDIS_URL", &redis),
        ("KAFKA_BROKERS", &brokers),
        ("TOPIC", &world.topic),
        ("GROUP", &group),
        ("REDIS_PREFIX", &prefix),
        ("ADMIN_TOKEN", "canary"),
    ];
    let mut process = Process::start(&environment);
    let admin_addr = process.admin.to_string();
    let ready = || code(&run("healthcheck", &[("ADMIN_ADDR", &admin_addr)])) == 0;
    wait_for("the process is ready", Duration::from_secs(30), async || ready()).await;

    for (arguments, exit) in [
        ("sku put s", 1),
        ("sku put s --on-hand 2 --user-limit 2 --hold 2m --json", 0),
        ("sku put s --on-hand 2 --user-limit 2 --hold 120s", 0),
        ("sku put s --on-hand 3", 1),
        ("sku show s --json", 0),
        ("sku show nope", 1),
        ("partition show", 0),
        ("partition resume 0 --note none", 1),
        ("log tail --max 1", 0),
    ] {
        let output = run(arguments, &environment);
        assert_eq!(code(&output), exit, "{arguments}: {output:?}");
    }
    let client = reqwest::Client::new();
    let reserve = client
        .post(format!("http://{}/v1/reservations", process.http))
        .header("prefer", "wait=20")
        .header("content-type", "application/json")
        .body(r#"{"user_id":"u-1","sku_id":"s","quantity":1}"#);
    let answer: Value = reserve.send().await.expect("it answers").json().await.expect("it is JSON");
    assert_eq!(answer["status"], "RESERVED", "{answer}");
    let metrics = client.get(format!("http://{}/metrics", process.admin)).bearer_auth("canary");
    let metrics = metrics.send().await.expect("it answers").text().await.expect("it is text");
    for series in [
        "flashsale_reservations_decided_total",
        "flashsale_batch_allocation_rate 1\n",
        "http_server_request_duration_seconds_bucket",
        "flashsale_build_info",
    ] {
        assert!(metrics.contains(series), "{series} is missing");
    }

    process.signal("TERM");
    let mut ended = None;
    wait_for("the process ends", Duration::from_secs(26), async || {
        ended = process.child.try_wait().expect("it is ours");
        ended.is_some()
    })
    .await;
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    world.db.assert_invariants().await;
}
