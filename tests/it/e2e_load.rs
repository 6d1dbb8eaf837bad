//! `flashsale load` against the real service: a crowd that outnumbers the stock, while the process that decides is killed.

use serde_json::Value;

use crate::support::site::Site;

#[tokio::test]
async fn a_crowd_in_calls_of_many_is_followed_to_its_decisions_through_a_crash() {
    let site = Site::shared().await;
    let (api, consumer) = (site.start("api").await, site.start("consumer").await);
    for sku in ["s", "t"] {
        site.put_sku(sku, 300, 1).await;
    }
    // 1,010 requests in calls of 50, the last one of 10; a wait that is over before the next consumer has its partitions.
    let args = "--sku s,t --zipf 0 --rate 505 --seconds 2 --batch 50 --connections 8 --wait 2 --patience 40";
    let args: Vec<&str> = ["load", "--url", &api.public].into_iter().chain(args.split(' ')).collect();
    let (loaded, next) = tokio::join!(site.run(&args), async {
        let decided = async || site.db.number("SELECT count(*) FROM reservation").await;
        crate::support::wait::wait_for("some are decided", crate::support::site::SOON, async || decided().await > 50)
            .await;
        consumer.kill();
        site.start("consumer").await
    });
    let told = String::from_utf8_lossy(&loaded.stdout).into_owned();
    let report: Value = serde_json::from_str(&told).unwrap_or_else(|_| panic!("a report: {loaded:?}"));
    assert_eq!(loaded.status.code(), Some(0), "{report:#}");
    let numbers = ["offered", "reserved", "lost", "failed", "batch"].map(|name| report[name].as_i64());
    assert_eq!(numbers, [1010, 600, 0, 0, 50].map(Some), "{report:#}");
    assert_eq!(site.db.number("SELECT count(*) FROM reservation WHERE status = 1").await, 600);
    assert_eq!(report["accepted"], site.db.number("SELECT count(*) FROM reservation").await, "{report:#}");
    // Many in one record: they came together.
    let packed = "SELECT count(*) FROM reservation WHERE log_index > 0";
    assert!(site.db.number(packed).await > 500, "one record each");
    site.finish([api, next]).await;
}

#[tokio::test]
async fn a_made_crowd_is_followed_to_its_decisions_through_a_crash() {
    let site = Site::shared().await;
    let (api, consumer) = (site.start("api").await, site.start("consumer").await);
    site.put_sku("s", 150, 1).await;
    let args = ["load", "--url", &api.public, "--sku", "s", "--rate", "100", "--seconds", "4", "--patience", "40"];
    let (loaded, next) = tokio::join!(site.run(&args), async {
        // In the middle of it: the first are decided, the last are not sent.
        let decided = async || site.db.number("SELECT count(*) FROM reservation").await;
        crate::support::wait::wait_for("some are decided", crate::support::site::SOON, async || decided().await > 50)
            .await;
        consumer.kill();
        site.start("consumer").await
    });
    let told = String::from_utf8_lossy(&loaded.stdout).into_owned();
    let report: Value = serde_json::from_str(&told).unwrap_or_else(|_| panic!("a report: {loaded:?}"));
    assert_eq!(loaded.status.code(), Some(0), "{report:#}");
    assert_eq!(
        (&report["offered"], &report["reserved"], &report["lost"]),
        (&400.into(), &150.into(), &0.into()),
        "{report:#}"
    );
    assert_eq!(report["failed"], 0, "{report:#}");
    // And so it is, counted from outside; what was decided before the crash and after it together.
    assert_eq!(site.db.number("SELECT count(*) FROM reservation WHERE status = 1").await, 150);
    assert_eq!(report["accepted"], site.db.number("SELECT count(*) FROM reservation").await, "{report:#}");
    let epochs = "SELECT count(DISTINCT epoch) FROM batch JOIN reservation r USING (partition)
                  WHERE r.log_offset >= first_offset AND r.log_offset < position";
    assert!(site.db.number(epochs).await >= 2, "one decided all of it");
    let away =
        site.run(&["load", "--url", "http://127.0.0.1:1", "--sku", "s", "--seconds", "1", "--patience", "1"]).await;
    assert_eq!(away.status.code(), Some(1), "nobody can say that the stock is right");
    site.finish([api, next]).await;
}
