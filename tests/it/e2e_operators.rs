//! End to end through the binary: what an operator does when a partition has halted, and watching the log.

use crate::support::commands::{create, record};
use crate::support::kafka::publish_raw;
use crate::support::site::{SOON, Site};
use crate::support::wait::{wait_for, wait_for_value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_partition_is_said_and_goes_on_after_resume() {
    let site = Site::shared().await;
    let all = site.start("all").await;
    site.put_sku("s", 5, 1).await;
    let partition = site.db.number("SELECT partition::bigint FROM sku").await.to_string();
    site.db.run("ALTER TABLE reservation ADD CONSTRAINT planted_check CHECK (user_id <> 'bad')").await;
    let queued = site.post(&all, "bad", "s", Some("k"), None).await;
    assert_eq!(queued.status, 202, "{queued:?}");
    let refused = wait_for_value("the halt is said", SOON, async || {
        let answer = site.post(&all, "u-1", "s", None, None).await;
        // On a slow machine the lag is seen before the halt.
        (answer.status == 503 && answer.text("code") == "HALTED").then_some(answer)
    })
    .await;
    assert_eq!(refused.headers["content-type"], "application/problem+json");
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    assert_eq!(
        (refused.text("code"), refused.text("outcome"), &refused.body["status"]),
        ("HALTED", "none", &503.into())
    );
    assert_eq!(site.get(&all, "/v1/skus/s").await.text("status"), "HALTED");
    // What was accepted stays accepted.
    let replay = site.post(&all, "bad", "s", Some("k"), None).await;
    assert_eq!((replay.status, replay.text("id")), (202, queued.text("id")));
    let shown = site.run(&["partition", "show", &partition]).await;
    assert_eq!(shown.status.code(), Some(1), "{shown:?}");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("HALTED: ") && site.is_ready(&all).await, "{shown:?}");

    // The cause is removed; a note is needed, and kept.
    site.db.run("ALTER TABLE reservation DROP CONSTRAINT planted_check").await;
    let resume = ["partition", "resume", partition.as_str()];
    assert_eq!(site.run(&resume).await.status.code(), Some(64), "without a note");
    let resume = [&resume[..], &["--note", "dropped a check that was planted"]].concat();
    let resumed = site.run(&resume).await;
    assert_eq!(resumed.status.code(), Some(0), "{resumed:?}");
    assert_eq!(site.run(&resume).await.status.code(), Some(1), "it is not halted any more");
    let note = site.db.text("SELECT note FROM partition_resume WHERE halted_reason LIKE '%planted_check%'").await;
    assert_eq!(note.as_deref(), Some("dropped a check that was planted"));
    assert_eq!(site.follow(&all, queued.text("status_url")).await["status"], "RESERVED");
    wait_for("buyers are served again", SOON, async || {
        site.post(&all, "u-2", "s", Some("k"), Some(5)).await.status == 200
    })
    .await;
    assert_eq!(site.run(&["partition", "show", &partition]).await.status.code(), Some(0));
    assert!(all.stop().await.success());
    site.db.assert_invariants().await;
    site.db.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_followed_until_a_signal() {
    for signal in ["INT", "TERM"] {
        let site = Site::shared().await;
        let (payload, topic) = (record(&[create("s", 0, 5, 1)]), site.db.topic.clone());
        let tail = site.spawn(&["log", "tail", "--follow"]);
        // It begins at the end, wherever that is when it has connected.
        wait_for("it follows", SOON, async || {
            publish_raw(&topic, 0, "s", &[&payload]);
            !tail.lines().is_empty()
        })
        .await;
        publish_raw(&topic, 3, "s", &[b"not a record"]);
        let line = wait_for_value("a record is printed as it comes", SOON, async || {
            tail.lines().into_iter().find(|line| line["partition"] == 3)
        })
        .await;
        assert_eq!((&line["offset"], &line["payload_hex"]), (&0.into(), &"6e6f742061207265636f7264".into()), "{line}");
        let commands = tail.lines()[0]["commands"].clone();
        assert_eq!(commands[0]["kind"], "configure", "{commands}");
        assert_eq!(tail.end_by(signal).await.code(), Some(0), "SIG{signal}");
        site.db.drop().await;
    }
}
