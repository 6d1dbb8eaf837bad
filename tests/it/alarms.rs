//! Alarms and dashboards on a real Prometheus and Alertmanager, over the service that they are about: faults are planted, alarms come and go,
//! the right people are told, and no panel is empty.

use serde_json::json;

use crate::support::kafka::publish_raw;
use crate::support::site::{Process, SOON, Site};
use crate::support::wait::wait_for;
use crate::support::watching::{Monitors, Pager, Plan, panel_queries};

/// A minute of the rules and routes takes two seconds here.
const FACTOR: u64 = 30;
const TOKEN: &str = "a-token-that-prometheus-brings";

/// What the test brings about.
const PLANTED: &[&str] = &["ConsumerLagHigh", "OversellDetected", "PoisonFound", "TelemetryMissing"];

/// Queries that rightly find nothing: their counters have labels, so they exist from their first event on, and nothing here makes one.
const EMPTY: &[(&str, &str)] = &[
    ("flashsale_commit_ambiguous_total", "no answer to a COMMIT is lost"),
    ("flashsale_effects_dropped_total", "Redis takes every hint"),
];

/// The service in its four roles, as it is deployed, and a crowd that never ends.
struct Fleet {
    site: Site,
    api: Process,
    consumer: Process,
    relay: Process,
    auditor: Process,
    crowd: Process,
}

impl Fleet {
    async fn start() -> Self {
        let site = Site::shared().await;
        let token = format!("--admin-token={TOKEN}");
        let start = async |args: &[&str]| site.start_with(&[args, &[&token]].concat()).await;
        let (api, consumer) = (start(&["api"]).await, start(&["consumer"]).await);
        let (relay, auditor) = (start(&["relay"]).await, start(&["audit", "--watch"]).await);
        for (sku, on_hand) in [("crowd", "300"), ("quiet", "10"), ("oversold", "10")] {
            let args = ["sku", "put", sku, "--on-hand", on_hand, "--user-limit", "1", "--hold", "10s"];
            let put = site.run(&args).await;
            assert!(put.status.success(), "{put:?}");
        }
        let args =
            ["load", "--url", &api.public, "--sku", "crowd", "--rate", "20", "--seconds", "3600", "--connections", "8"];
        let crowd = site.spawn(&args);
        Self { site, api, consumer, relay, auditor, crowd }
    }

    /// With Prometheus and Alertmanager over it.
    async fn watch(&self, pager: &str) -> Monitors {
        let address = |process: &Process| process.admin.trim_start_matches("http://").to_owned();
        let (api, consumer) = (address(&self.api), address(&self.consumer));
        let (relay, audit) = (address(&self.relay), address(&self.auditor));
        let targets = [("api", api), ("consumer", consumer), ("relay", relay), ("audit", audit)];
        Monitors::start(&Plan { targets: &targets, token: TOKEN, pager, factor: FACTOR }).await
    }

    /// What a crowd for one SKU does not do: a hold that nothing else of its SKU ends, a user at the limit, a record that is none.
    /// Returns that hold's URL.
    async fn make_rare_things_happen(&self) -> String {
        let (site, api) = (&self.site, &self.api);
        let queued = site.post(api, "u", "quiet", None, None).await;
        let url = queued.text("status_url").to_owned();
        assert_eq!(site.follow(api, &url).await["status"], "RESERVED");
        wait_for("Redis has the units, Postgres confirms them", SOON, async || {
            let refused = site.post(api, "u", "quiet", None, Some(20)).await;
            refused.status == 409 && refused.text("code") == "USER_LIMIT"
        })
        .await;
        let unknown = site.get(api, "/v1/skus/nobody-sells-this").await;
        assert_eq!(unknown.status, 404);
        let pin = site.db.number("SELECT partition::bigint FROM sku WHERE sku_id = 'quiet'").await;
        publish_raw(&site.db.topic, i32::try_from(pin).expect("small"), "quiet", &[b"no record"]);
        url
    }

    async fn end(self) {
        self.crowd.kill();
        for process in [self.api, self.consumer, self.relay, self.auditor] {
            assert!(process.stop().await.success(), "it ends well");
        }
        self.site.db.assert_invariants().await;
        self.site.db.drop().await;
    }
}

async fn wait_until_told(pager: &Pager, monitors: &Monitors, receiver: &str, alarm: &str) {
    wait_for(&format!("{alarm} fires"), SOON, async || monitors.firing().await.contains(alarm)).await;
    wait_for(&format!("{receiver} hears of {alarm}"), SOON, async || pager.was_told(receiver, alarm, "firing")).await;
}

async fn wait_until_over(pager: &Pager, monitors: &Monitors, receiver: &str, alarm: &str) {
    // keep_firing_for, and what `increase` looks back to, are 15 minutes together; then Alertmanager waits for its group.
    wait_for(&format!("{alarm} clears"), 3 * SOON, async || !monitors.firing().await.contains(alarm)).await;
    wait_for(&format!("{receiver} hears that {alarm} is over"), 2 * SOON, async || {
        pager.was_told(receiver, alarm, "resolved")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn planted_faults_page_and_clear_and_no_panel_is_empty() {
    let fleet = Fleet::start().await;
    let (pager, pager_url) = Pager::start().await;
    let monitors = fleet.watch(&pager_url).await;
    let up = async || monitors.query("up{job=~\"flashsale-.*\"}").await;
    wait_for("all four are scraped, with the token", SOON, async || up().await == [1.0; 4]).await;
    let decided = async || monitors.query("sum(flashsale_reservations_decided_total)").await;
    wait_for("the crowd is decided", SOON, async || decided().await.first().is_some_and(|n| *n > 50.0)).await;
    // On a slow machine one of the alarms about speed may be right.
    let firing = monitors.firing().await;
    assert!(!PLANTED.iter().any(|alarm| firing.contains(*alarm)), "nothing is wrong yet: {firing:?}");

    let held = fleet.make_rare_things_happen().await;
    wait_until_told(&pager, &monitors, "page", "PoisonFound").await;

    // An oversell. No request for that SKU until it is mended: its writer would meet the changed row.
    let site = &fleet.site;
    site.db.run("ALTER TABLE sku DROP CONSTRAINT sku_no_oversell").await;
    site.db.run("UPDATE sku SET sold = 12 WHERE sku_id = 'oversold'").await;
    wait_until_told(&pager, &monitors, "page", "OversellDetected").await;
    let oversold = monitors.query("max by (sku) (flashsale_inventory_oversell{sku=\"oversold\"})").await;
    assert_eq!(oversold, [2.0], "12 sold of 10");
    for query in panel_queries() {
        let expr = query.expr.replace("$__rate_interval", "1m");
        if EMPTY.iter().any(|(metric, _)| expr.contains(metric)) {
            continue;
        }
        let what = format!("{} has data: {expr}", query.panel);
        wait_for(&what, SOON, async || {
            // The crowd waits for its answers and reads nothing afterwards.
            let read = site.get(&fleet.api, &held).await;
            read.status == 200 && !monitors.query(&expr).await.is_empty()
        })
        .await;
    }

    // A consumer that stands still while requests come.
    fleet.consumer.signal("STOP");
    wait_until_told(&pager, &monitors, "page", "ConsumerLagHigh").await;
    wait_until_told(&pager, &monitors, "page", "TelemetryMissing").await;
    let refused = site.post(&fleet.api, "late", "quiet", None, None).await;
    assert!([202, 503].contains(&refused.status), "{refused:?}");

    // Both are mended.
    fleet.consumer.signal("CONT");
    site.db.run("UPDATE sku SET sold = 0 WHERE sku_id = 'oversold'").await;
    let resumed = site.run(&["audit", "resume", "oversold", "--note", "planted by a test"]).await;
    assert_eq!(resumed.status.code(), Some(0), "{resumed:?}");
    for alarm in PLANTED {
        wait_until_over(&pager, &monitors, "page", alarm).await;
    }
    assert_eq!(site.get(&fleet.api, "/v1/skus/oversold").await.body["available"], json!(10));
    drop(monitors);
    fleet.end().await;
}
