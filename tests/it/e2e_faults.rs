//! End to end through the binary, while its servers are stopped, emptied and killed. Each test has servers of its own; one at a time,
//! because three of them at once is enough for two cores.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use crate::support::site::{Process, SOON, Site};
use crate::support::wait::{wait_for, wait_for_value};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn private_site() -> (MutexGuard<'static, ()>, Site) {
    let turn = ONE_AT_A_TIME.lock().await;
    (turn, Site::private().await)
}

/// Posts without waiting; the status URL of a 202, else the code of the refusal.
async fn post(site: &Site, api: &Process, user: &str) -> Result<String, String> {
    let answer = site.post(api, user, "s", None, None).await;
    match answer.status {
        202 => Ok(answer.text("status_url").to_owned()),
        503 => Err(format!("{} {}", answer.text("code"), answer.text("outcome"))),
        _ => panic!("neither accepted nor unavailable: {answer:?}"),
    }
}

/// The group notices a dead member after its session timeout; until then intake may refuse, honestly.
async fn post_until_accepted(site: &Site, api: &Process, user: &str) -> String {
    wait_for_value("the request is accepted", SOON, async || match post(site, api, user).await {
        Ok(url) => Some(url),
        Err(refusal) => {
            assert_eq!(refusal, "OVERLOADED none");
            None
        }
    })
    .await
}

async fn run(site: &Site, verb: &'static str, names: &[&str]) {
    site.services.as_ref().expect("private servers").run(verb, names).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_redis_everything_is_slower_and_nothing_is_wrong() {
    let (_turn, site) = private_site().await;
    let all = site.start("all").await;
    site.put_sku("s", 50, 1).await;
    assert_eq!(site.post(&all, "u-0", "s", Some("k"), Some(5)).await.text("status"), "RESERVED");
    run(&site, "kill", &["redis"]).await;
    for n in 1..20 {
        let answer = site.post(&all, &format!("u-{n}"), "s", None, Some(10)).await;
        assert_eq!((answer.status, answer.text("status")), (200, "RESERVED"));
    }
    // The limit is checked by the writer alone now, and a key still names its reservation.
    let again = site.post(&all, "u-3", "s", None, Some(10)).await;
    assert_eq!((again.status, again.text("status"), again.text("reason")), (200, "REJECTED", "USER_LIMIT"));
    let replay = site.post(&all, "u-0", "s", Some("k"), Some(10)).await;
    assert_eq!((replay.status, replay.text("status")), (200, "RESERVED"), "{:?}", replay.body);
    assert_eq!(site.db.number("SELECT reserved FROM sku").await, 20);
    assert!(site.is_ready(&all).await, "redis is not needed to be ready");
    run(&site, "start", &["redis"]).await;
    wait_for("the limit is refused early again", SOON, async || {
        site.post(&all, "u-3", "s", None, Some(5)).await.status == 409
    })
    .await;
    site.finish([all]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flushed_redis_forgets_nothing_that_matters() {
    let (_turn, site) = private_site().await;
    let (api, consumer) = (site.start("api").await, site.start("consumer").await);
    site.put_sku("s", 1000, 1).await;
    let redis =
        redis::Client::open(site.services.as_ref().expect("private servers").address("REDIS_URL")).expect("a URL");
    let mut urls = Vec::new();
    for n in 0..100 {
        urls.push(post(&site, &api, &format!("u-{n}")).await.expect("accepted"));
        if n % 10 == 0 {
            let mut connection = redis.get_connection().expect("redis answers");
            redis::cmd("FLUSHALL").query::<()>(&mut connection).expect("flushed");
            let answer = site.get(&api, urls.last().expect("just pushed")).await;
            assert_eq!(answer.status, 200, "from the instant of the 202 on: {answer:?}");
        }
    }
    for url in &urls {
        assert_eq!(site.follow(&api, url).await["status"], "RESERVED");
    }
    let limited = site.post(&api, "u-7", "s", None, Some(5)).await;
    assert!(limited.status == 409 || limited.text("status") == "REJECTED", "the limit holds: {limited:?}");
    site.finish([api, consumer]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_kafka_requests_are_refused_and_afterwards_taken_again() {
    let (_turn, site) = private_site().await;
    let all = site.start("all").await;
    site.put_sku("s", 100, 1).await;
    let before = post(&site, &all, "before").await.expect("accepted");
    assert_eq!(site.follow(&all, &before).await["status"], "RESERVED");
    run(&site, "kill", &["kafka"]).await;
    let began = std::time::Instant::now();
    let refused = post(&site, &all, "during").await.expect_err("nothing can be queued");
    assert!(["QUEUE_UNAVAILABLE none", "QUEUE_UNAVAILABLE unknown"].contains(&refused.as_str()), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(5), "an answer within two seconds and a little");
    let decided = site.get(&all, &before).await;
    assert_eq!((decided.status, decided.text("status")), (200, "RESERVED"), "what is decided can be read");
    wait_for("the process says that it is not ready", SOON, async || !site.is_ready(&all).await).await;
    run(&site, "start", &["kafka"]).await;
    // A new user each time: an attempt whose outcome is unknown may hold the units of the one before.
    let mut attempt = 0;
    wait_for("requests are taken again", SOON, async || {
        attempt += 1;
        post(&site, &all, &format!("after-{attempt}")).await.is_ok()
    })
    .await;
    let after = site.post(&all, "later", "s", None, Some(20)).await;
    assert_eq!((after.status, after.text("status")), (200, "RESERVED"), "and decided: {:?}", after.body);
    site.finish([all]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_postgres_costs_time_and_no_request() {
    let (_turn, site) = private_site().await;
    let all = site.start("all").await;
    site.put_sku("s", 1000, 1).await;
    let mut urls = Vec::new();
    for n in 0..20 {
        urls.push(post(&site, &all, &format!("a-{n}")).await.expect("accepted"));
    }
    run(&site, "kill", &["postgres"]).await;
    let mut refused = 0;
    for n in 0..20 {
        match post(&site, &all, &format!("b-{n}")).await {
            Ok(url) => {
                let answer = site.get(&all, &url).await;
                assert_eq!(
                    (answer.status, answer.text("code")),
                    (503, "STATUS_UNAVAILABLE"),
                    "never a 404: {answer:?}"
                );
                urls.push(url);
            }
            // Once the oldest request has waited too long, intake says so instead of promising what it can't keep.
            Err(code) => {
                assert_eq!(code, "OVERLOADED none");
                refused += 1;
            }
        }
    }
    assert!(refused < 20, "requests are queued while postgres is away");
    run(&site, "start", &["postgres"]).await;
    for url in &urls {
        assert_eq!(site.follow(&all, url).await["status"], "RESERVED");
    }
    assert_eq!(site.db.number("SELECT reserved FROM sku").await, urls.len() as i64);
    site.finish([all]).await;
}

/// Writers that stand inside their transaction and wait for a row that somebody else has locked.
const WRITERS_WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE application_name LIKE 'flashsale writer%' AND query LIKE '%write_batch%' AND wait_event_type = 'Lock' AND xact_start IS NOT NULL";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_consumer_killed_in_mid_batch_is_replaced_without_a_trace() {
    let (_turn, site) = private_site().await;
    let (api, mut consumer) = (site.start("api").await, site.start("consumer").await);
    site.put_sku("s", 100_000, 1).await;
    let mut urls = Vec::new();
    for round in 0..3 {
        for n in 0..90 {
            urls.push(post_until_accepted(&site, &api, &format!("u-{round}-{n}")).await);
        }
        assert_eq!(site.follow(&api, urls.last().expect("just pushed")).await["status"], "RESERVED");
        // With the SKU's row in our hands, the next batch is fenced, open, and can't end.
        let mut lock = site.db.connect().await;
        sqlx::raw_sql("BEGIN; SELECT * FROM sku FOR UPDATE").execute(&mut lock).await.expect("locked");
        for n in 90..100 {
            urls.push(post(&site, &api, &format!("u-{round}-{n}")).await.expect("accepted: nothing is late yet"));
        }
        wait_for("a batch is open", SOON, async || site.db.number(WRITERS_WAITING).await == 1).await;
        consumer.kill();
        assert_eq!(site.db.number("SELECT count(*) FROM reservation").await, urls.len() as i64 - 10, "none of it");
        sqlx::raw_sql("COMMIT").execute(&mut lock).await.expect("released");
        consumer = site.start("consumer").await;
    }
    for url in &urls {
        assert_eq!(site.follow(&api, url).await["status"], "RESERVED");
    }
    assert_eq!(site.db.number("SELECT reserved FROM sku").await, 300);
    assert!(site.db.number("SELECT max(epoch) FROM partition_state").await >= 4, "each replacement claimed");
    site.finish([api, consumer]).await;
}
