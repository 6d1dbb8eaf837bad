//! End to end through the binary, on healthy servers: what a buyer and an operator see.

use std::collections::HashSet;
use std::sync::Arc;

use crate::support::commands::{create, record};
use crate::support::kafka::publish_raw;
use crate::support::site::{SOON, Site};
use crate::support::wait::wait_for;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_queued_and_then_reserved() {
    let site = Site::shared().await;
    let all = site.start("all").await;
    site.put_sku("sneaker-42", 2, 1).await;
    let queued = site.post(&all, "u-1", "sneaker-42", None, None).await;
    assert_eq!((queued.status, queued.text("status")), (202, "QUEUED"));
    assert_eq!(queued.headers["location"], queued.text("status_url"));
    let reserved = site.follow(&all, queued.text("status_url")).await;
    assert_eq!(reserved["status"], "RESERVED");
    assert_eq!(
        (&reserved["user_id"], &reserved["quantity"], &reserved["version"]),
        (&"u-1".into(), &1.into(), &1.into())
    );
    assert!(reserved["expires_in_seconds"].as_i64().is_some_and(|s| (110..=120).contains(&s)), "{reserved}");
    // With a wait: one exchange. Then the units are gone.
    let waited = site.post(&all, "u-2", "sneaker-42", None, Some(5)).await;
    assert_eq!((waited.status, waited.text("status")), (200, "RESERVED"));
    assert_eq!(waited.headers["preference-applied"], "wait=5");
    let sold_out = site.post(&all, "u-3", "sneaker-42", None, Some(5)).await;
    assert_eq!((sold_out.status, sold_out.text("code")), (409, "SOLD_OUT"), "refused from memory: {}", sold_out.body);
    assert_eq!(sold_out.body["holds_pending"], true);
    let sku = site.get(&all, "/v1/skus/sneaker-42").await;
    assert_eq!((sku.text("status"), &sku.body["available"], &sku.body["reserved"]), ("SOLD_OUT", &0.into(), &2.into()));
    // As a set-up that is run again: neither the other stock nor the other limit matters.
    let again = ["sku", "put", "sneaker-42", "--unless-exists", "--on-hand", "7", "--user-limit", "9"];
    let kept = site.run(&again).await;
    assert!(kept.status.success(), "{}", String::from_utf8_lossy(&kept.stderr));
    let shown = site.run(&["sku", "show", "sneaker-42", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("it is JSON");
    assert_eq!((&shown["on_hand"], &shown["user_limit"]), (&2.into(), &1.into()), "{shown}");
    let listed = site.run(&["sku", "list"]).await;
    assert!(String::from_utf8_lossy(&listed.stdout).contains("sneaker-42"));
    let tail = site.run(&["log", "tail", "--from", "0"]).await;
    let printed = String::from_utf8_lossy(&tail.stdout).into_owned();
    assert!(
        printed.contains("u-1") && printed.contains("u-2") && !printed.contains("u-3"),
        "the log, readable: {printed}"
    );
    site.finish([all]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_buyers_of_a_hundred_units_sell_out_at_the_last_unit() {
    let site = Arc::new(Site::shared().await);
    let all = Arc::new(site.start("all").await);
    site.put_sku("hot", 100, 1).await;
    let buyers = (0..1000).map(|n| {
        let (site, all) = (Arc::clone(&site), Arc::clone(&all));
        tokio::spawn(async move {
            let answer = site.post(&all, &format!("u-{n}"), "hot", None, Some(30)).await;
            match (answer.status, &answer.body) {
                (200, body) if body["status"] == "RESERVED" => 'r',
                (200, body) if body["status"] == "REJECTED" && body["reason"] == "SOLD_OUT" => 'n',
                (409, body) if body["code"] == "SOLD_OUT" => 'n',
                _ => panic!("neither reserved nor sold out: {answer:?}"),
            }
        })
    });
    let mut reserved = 0;
    for buyer in buyers.collect::<Vec<_>>() {
        reserved += i32::from(buyer.await.expect("a clear answer") == 'r');
    }
    assert_eq!(reserved, 100);
    assert_eq!(site.db.number("SELECT reserved FROM sku").await, 100);
    assert_eq!(site.db.number("SELECT count(*) FROM reservation WHERE status = 1").await, 100);
    let site = Arc::into_inner(site).expect("all buyers are done");
    site.finish(Arc::into_inner(all)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_posts_with_one_key_make_one_reservation() {
    let site = Arc::new(Site::shared().await);
    let all = Arc::new(site.start("all").await);
    site.put_sku("s", 100, 5).await;
    let posts = (0..50).map(|n| {
        let (site, all) = (Arc::clone(&site), Arc::clone(&all));
        let wait = (n % 2 == 0).then_some(5);
        tokio::spawn(async move { site.post(&all, "u-1", "s", Some("\"k-1\""), wait).await })
    });
    let mut ids = HashSet::new();
    for post in posts.collect::<Vec<_>>() {
        let answer = post.await.expect("no panic");
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        ids.insert(answer.text("id").to_owned());
    }
    assert_eq!(ids.len(), 1, "one key, one reservation");
    let replayed = site.post(&all, "u-1", "s", Some("k-1"), Some(5)).await;
    assert_eq!((replayed.status, replayed.text("status")), (200, "RESERVED"), "quoted or bare, it is one key");
    assert_eq!(replayed.headers["idempotent-replayed"], "true");
    assert_eq!(site.db.number("SELECT reserved FROM sku").await, 1);
    let site = Arc::into_inner(site).expect("all posts are done");
    site.finish(Arc::into_inner(all)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_gets_no_more_than_the_limit() {
    let site = Site::shared().await;
    let all = site.start("all").await;
    site.put_sku("s", 100, 2).await;
    for _ in 0..2 {
        assert_eq!(site.post(&all, "u", "s", None, Some(5)).await.text("status"), "RESERVED");
    }
    let refused = site.post(&all, "u", "s", None, Some(5)).await;
    assert_eq!((refused.status, refused.text("code")), (409, "USER_LIMIT"));
    assert_eq!((&refused.body["limit"], &refused.body["remaining"]), (&2.into(), &0.into()));
    assert_eq!(site.post(&all, "v", "s", None, Some(5)).await.text("status"), "RESERVED", "another buyer is not meant");
    site.finish([all]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_consumers_share_ten_partitions_and_one_is_killed() {
    let site = Site::shared().await;
    let (api, first) = (site.start("api").await, site.start("consumer").await);
    let second = site.start("consumer").await;
    for n in 0..10 {
        site.put_sku(&format!("s{n}"), 1000, 1).await;
    }
    let partitions = site.db.number("SELECT count(DISTINCT partition) FROM sku").await;
    assert_eq!(partitions, 10, "ten SKUs, ten partitions");
    wait_for_owners(&site, 2).await;
    let mut urls = Vec::new();
    for round in 0..20 {
        for n in 0..10 {
            let answer = site.post(&api, &format!("u-{round}"), &format!("s{n}"), None, None).await;
            assert_eq!(answer.status, 202, "{answer:?}");
            urls.push(answer.text("status_url").to_owned());
        }
        if round == 10 {
            first.kill(); // Whatever it was deciding.
            break;
        }
    }
    for url in &urls {
        assert_eq!(site.follow(&api, url).await["status"], "RESERVED");
    }
    assert_eq!(site.db.number("SELECT sum(reserved)::bigint FROM sku").await, urls.len() as i64);
    site.finish([api, second]).await;
}

async fn wait_for_owners(site: &Site, count: i64) {
    crate::support::wait::wait_for("both consumers own partitions", crate::support::site::SOON, async || {
        site.db.number("SELECT count(DISTINCT owner) FROM partition_state WHERE owner <> ''").await == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_alone_shows_its_lag_and_its_halts() {
    let site = Site::shared().await;
    site.db.run("UPDATE partition_state SET halted_reason = 'planted' WHERE partition = 3").await;
    let undecided = record(&[create("s", 3, 9, 5)]);
    publish_raw(&site.db.topic, 3, "s", &[&undecided, &undecided]);
    let consumer = site.start("consumer").await;
    let topic = &site.db.topic;
    let expected = [
        format!("flashsale_kafka_consumer_lag{{topic=\"{topic}\",partition=\"2\"}} 0"),
        format!("flashsale_kafka_consumer_lag{{topic=\"{topic}\",partition=\"3\"}} 2"),
        "flashsale_halted{partition=\"3\"} 1".to_owned(),
    ];
    wait_for("the gauges show the halted partition", SOON, async || {
        let answer = site.client.get(format!("{}/metrics", consumer.admin)).send().await.expect("it answers");
        let text = answer.text().await.expect("it is text");
        let age = format!("flashsale_kafka_lag_seconds{{topic=\"{topic}\"}} ");
        let age = text.lines().find_map(|line| line.strip_prefix(&age)).and_then(|age| age.parse::<f64>().ok());
        age.is_some_and(|age| age > 0.0) && expected.iter().all(|line| text.lines().any(|found| found == line))
    })
    .await;
    assert!(consumer.stop().await.success());
    site.db.drop().await;
}
