//! End to end through the binary: what operators do when nothing is on fire. Draining, dead letters, starting before the tables are there.

use std::process::Output;

use serde_json::Value;

use crate::support::commands::{record, reserve};
use crate::support::kafka::publish_raw;
use crate::support::site::Site;

/// Exit status, what was printed, what was told on stderr.
fn ended(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it was not killed"), text(&output.stdout), text(&output.stderr))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A site whose SKUs are decided, and on which nothing runs.
async fn site_with_skus(skus: &[&str]) -> Site {
    let site = Site::shared().await;
    let all = site.start("all").await;
    for sku in skus {
        site.put_sku(sku, 50, 50).await;
    }
    assert!(all.stop().await.success());
    site
}

async fn partition_of(site: &Site, sku: &str) -> i32 {
    let sql = format!("SELECT partition::bigint FROM sku WHERE sku_id = '{sku}'");
    i32::try_from(site.db.number(&sql).await).expect("a partition")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_decides_what_is_in_the_log_and_ends() {
    let site = site_with_skus(&["a", "b"]).await;
    for name in ["a", "b"] {
        let waiting: Vec<Vec<u8>> = (0..40).map(|n| record(&[reserve(name, &format!("u-{n}"), 1)])).collect();
        let payloads: Vec<&[u8]> = waiting.iter().map(Vec::as_slice).collect();
        publish_raw(&site.db.topic, partition_of(&site, name).await, name, &payloads);
    }
    let (exit, printed, told) = ended(&site.run(&["drain"]).await);
    assert_eq!(exit, 0, "{told}");
    assert_eq!(printed.lines().count(), 1 + 10, "a line for each partition: {printed}");
    assert_eq!(site.db.number("SELECT count(*) FROM reservation WHERE status = 1").await, 80);

    // The second finds nothing to do, claims nothing, and says the same.
    let epochs = site.db.number("SELECT sum(epoch)::bigint FROM partition_state").await;
    let again = site.run(&["drain", "--json"]).await;
    assert_eq!(ended(&again).0, 0, "{again:?}");
    assert!(json(&again).as_array().expect("partitions").iter().all(|p| p["state"] == "decided"), "{again:?}");
    assert_eq!(site.db.number("SELECT sum(epoch)::bigint FROM partition_state").await, epochs);
    site.finish([]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_what_others_decide_and_leaves_them_alone() {
    let site = site_with_skus(&["a"]).await;
    let consumer = site.start("consumer").await;
    let waiting = record(&[reserve("a", "u-1", 1), reserve("a", "u-2", 1)]);
    publish_raw(&site.db.topic, partition_of(&site, "a").await, "a", &[&waiting]);
    assert_eq!(ended(&site.run(&["drain"]).await).0, 0);
    assert_eq!(site.db.number("SELECT count(*) FROM reservation").await, 2);
    site.finish([consumer]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_decides_all_but_what_is_halted_and_says_so() {
    let site = site_with_skus(&["a", "b"]).await;
    site.db.run("ALTER TABLE reservation ADD CONSTRAINT planted_check CHECK (user_id <> 'bad')").await;
    for (name, user) in [("a", "bad"), ("b", "good")] {
        let waiting = record(&[reserve(name, user, 1)]);
        publish_raw(&site.db.topic, partition_of(&site, name).await, name, &[&waiting]);
    }
    let halted = partition_of(&site, "a").await;
    for _ in 0..2 {
        let output = site.run(&["drain", "--json"]).await;
        let (exit, _, told) = ended(&output);
        assert_eq!(exit, 1, "{told}");
        assert!(
            told.lines().any(|line| line.starts_with(&format!("flashsale: partition {halted} is halted: "))),
            "{told}"
        );
        let states = json(&output);
        let state = |p: &Value| (p["state"] == "halted") == (p["partition"] == halted);
        assert!(states.as_array().expect("partitions").iter().all(state), "{states}");
        assert_eq!(site.db.number("SELECT count(*) FROM reservation WHERE user_id = 'good'").await, 1);
    }
    site.db.run("ALTER TABLE reservation DROP CONSTRAINT planted_check").await;
    let resumed = site.run(&["partition", "resume", &halted.to_string(), "--note", "dropped a planted check"]).await;
    assert_eq!(ended(&resumed).0, 0, "{resumed:?}");
    assert_eq!(ended(&site.run(&["drain"]).await).0, 0);
    assert_eq!(site.db.number("SELECT count(*) FROM reservation WHERE status = 1").await, 2);
    site.finish([]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_gives_up_on_servers_that_are_away() {
    let site = Site::shared().await;
    for away in [["--kafka-brokers", "127.0.0.1:1"], ["--database-url", "postgres://nobody@127.0.0.1:1/none"]] {
        let (exit, printed, told) = ended(&site.run(&[&["drain", "--within", "1"][..], &away].concat()).await);
        assert_eq!((exit, printed.as_str()), (69, ""), "{told}");
        assert!(told.contains("flashsale: gave up after 1 s without progress: "), "{told}");
    }
    site.finish([]).await;
}
