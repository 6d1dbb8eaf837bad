//! What `flashsale calibrate` measures on a real broker, and where it is kept.

use std::process::{Command, Output};

use flashsale::ingress::calibration::{self, Calibrated};
use flashsale::ingress::levels::Table;
use flashsale::kafka::topics;

use crate::support::database::Database;
use crate::support::kafka::{brokers, fresh_name};

fn calibrated(level: usize, linger_us: u64) -> Calibrated {
    Calibrated { level, linger_us, commands_max: 100, in_flight_max: 2, p95_us: 900, records_per_second: 800 }
}

/// One level of a few requests a second: fifteen cells of half a second each.
fn calibrate(topic: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flashsale"));
    let arguments = ["calibrate", "--rate-max", "60", "--json", "--topic", topic];
    command.env_clear().args(arguments).env("KAFKA_BROKERS", brokers()).envs(environment.iter().copied());
    command.output().expect("the program runs")
}

/// The levels that it printed.
fn printed(output: &Output) -> Vec<Calibrated> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    serde_json::from_value(told["levels"].clone()).expect("as a file has them")
}

#[tokio::test]
async fn measured_levels_are_kept_and_replaced_one_by_one() {
    let db = Database::fresh("t", 1).await;
    let store = db.store();
    assert_eq!(store.load_calibration().await.expect("asked"), []);
    store.save_calibration(&[calibrated(7, 2_000), calibrated(3, 0)]).await.expect("kept");
    assert_eq!(store.load_calibration().await.expect("asked"), [calibrated(3, 0), calibrated(7, 2_000)]);
    store.save_calibration(&[calibrated(7, 4_000), calibrated(1, 1_000)]).await.expect("kept");
    let expected = [calibrated(1, 1_000), calibrated(3, 0), calibrated(7, 4_000)];
    assert_eq!(store.load_calibration().await.expect("asked"), expected);
    let refused = store.save_calibration(&[calibrated(11, 0)]).await.expect_err("there is no such level");
    assert!(format!("{refused:?}").contains("ingress_calibration_level"), "{refused:?}");
    db.drop().await;
}

#[tokio::test]
async fn what_is_measured_is_printed_and_kept_in_postgres() {
    let db = Database::fresh("t", 1).await;
    let (topic, url) = (fresh_name("calibrated"), db.url.clone());
    let measuring = {
        let topic = topic.clone();
        move || calibrate(&topic, &[("DATABASE_URL", &url)])
    };
    let output = tokio::task::spawn_blocking(measuring).await.expect("no panic");
    let levels = printed(&output);
    assert_eq!(levels.iter().map(|one| one.level).collect::<Vec<_>>(), [1]);
    assert!(levels[0].p95_us > 0 && levels[0].records_per_second > 0, "{levels:?}");
    assert_eq!(db.store().load_calibration().await.expect("asked"), levels);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let scratch = told.split('"').find(|word| word.starts_with(&format!("{topic}-calibration-")));
    let scratch = scratch.expect("it says on which topic it measured");
    topics::facts(&brokers(), scratch).await.expect_err("the topic that it measured on is gone");
    db.drop().await;
}

#[tokio::test]
async fn a_file_is_kept_where_it_is_said_and_asks_for_no_database() {
    let path = std::env::temp_dir().join(format!("{}.json", fresh_name("calibration")));
    let file = path.to_str().expect("a plain path").to_owned();
    let measuring = move || calibrate(&fresh_name("calibrated"), &[("INGRESS_CALIBRATION_FILE", &file)]);
    let output = tokio::task::spawn_blocking(measuring).await.expect("no panic");
    let levels = printed(&output);
    let kept = calibration::read(&path).expect("written");
    assert_eq!(kept, levels);
    assert_eq!(calibration::table(&kept).setting(1), levels[0].setting());
    assert_eq!(calibration::table(&kept).setting(2), Table::default().setting(2));
    std::fs::remove_file(path).expect("it was there");
}
