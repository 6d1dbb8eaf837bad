//! End to end through the binary: what becomes of a hold, for buyers who pay, change their mind, come late or all at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::site::{Answer, Process, SOON, Site};
use crate::support::wait::{wait_for, wait_for_value};

const SKU: &str = "sneaker-42";

/// One installation with one process that does everything.
struct Shop {
    site: Site,
    all: Process,
}

impl Shop {
    async fn with(settings: Value) -> Self {
        let site = Site::shared().await;
        let all = site.start("all").await;
        let shop = Self { site, all };
        let created = shop.admin(reqwest::Method::PUT, "", settings).await;
        assert_eq!(created.status, 201, "{created:?}");
        shop
    }

    async fn admin(&self, method: reqwest::Method, path: &str, body: Value) -> Answer {
        let url = format!("{}/v1/admin/skus/{SKU}{path}", self.all.admin);
        Answer::of(self.site.client.request(method, url).json(&body).send().await.expect("it answers")).await
    }

    async fn buy(&self, user: &str, key: Option<&str>) -> Answer {
        self.site.post(&self.all, user, SKU, key, Some(20)).await
    }

    /// A hold's id.
    async fn hold(&self, user: &str) -> String {
        let answer = self.buy(user, None).await;
        assert_eq!((answer.status, answer.text("status")), (200, "RESERVED"), "{answer:?}");
        answer.text("id").to_owned()
    }

    async fn change(&self, id: &str, verb: &str, body: Value) -> Answer {
        let url = format!("{}/v1/reservations/{id}/{verb}", self.all.public);
        Answer::of(self.site.client.post(url).json(&body).send().await.expect("it answers")).await
    }

    async fn confirm(&self, id: &str, payment_ref: &str) -> Answer {
        self.change(id, "confirm", json!({"payment_ref": payment_ref})).await
    }

    async fn cancel(&self, id: &str) -> Answer {
        self.change(id, "cancel", json!({})).await
    }

    async fn shown(&self, id: &str) -> Answer {
        self.site.get(&self.all, &format!("/v1/reservations/{id}")).await
    }

    /// On hand, reserved, sold.
    async fn stock(&self) -> [i64; 3] {
        let sku = self.site.get(&self.all, &format!("/v1/skus/{SKU}")).await;
        ["on_hand", "reserved", "sold"].map(|name| sku.body[name].as_i64().expect("a number"))
    }

    /// Waits for the end of a hold; nobody else asks for anything meanwhile.
    async fn wait_for_expiry(&self, id: &str) {
        wait_for("the hold has expired", SOON, async || self.shown(id).await.text("status") == "EXPIRED").await;
    }

    async fn finish(self) {
        self.site.finish([self.all]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_is_paid_for_and_stays_sold() {
    let shop = Shop::with(json!({"on_hand": 2, "user_limit": 2})).await;
    let id = shop.hold("u-1").await;
    let paid = shop.confirm(&id, "pay-9").await;
    assert_eq!((paid.status, paid.text("status"), paid.text("payment_ref")), (200, "CONFIRMED", "pay-9"));
    assert_eq!((paid.body["late"].as_bool(), &paid.headers["etag"]), (Some(false), &"\"2\"".parse().unwrap()));
    assert_eq!(shop.confirm(&id, "pay-9").await.body, paid.body, "the same payment, the same answer");
    assert_eq!(shop.confirm(&id, "pay-10").await.text("code"), "ALREADY_CONFIRMED");
    assert_eq!(shop.cancel(&id).await.text("code"), "ALREADY_CONFIRMED");
    assert_eq!(shop.stock().await, [2, 0, 1], "the sold count moves");
    let limits = shop.site.get(&shop.all, &format!("/v1/users/u-1/limits?sku_id={SKU}")).await;
    assert_eq!((&limits.body["sold"], &limits.body["remaining"]), (&json!(1), &json!(1)), "{limits:?}");
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_unit_goes_to_the_next_buyer_and_the_limit_comes_back() {
    let shop = Shop::with(json!({"on_hand": 1, "user_limit": 1})).await;
    let id = shop.hold("u-1").await;
    assert_eq!(shop.buy("u-2", None).await.text("code"), "SOLD_OUT");
    let limits = format!("/v1/users/u-1/limits?sku_id={SKU}");
    assert_eq!(shop.site.get(&shop.all, &limits).await.body["remaining"], 0);
    assert_eq!(shop.cancel(&id).await.text("status"), "CANCELLED");
    assert_eq!(shop.site.get(&shop.all, &limits).await.body["remaining"], 1);
    assert_eq!(shop.cancel(&id).await.status, 200, "cancelling again changes nothing");
    let next = shop.hold("u-2").await;
    assert_eq!(shop.cancel(&next).await.status, 200);
    shop.hold("u-1").await;
    assert_eq!(shop.stock().await, [1, 1, 0]);
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extended_hold_outlives_the_others() {
    let shop = Shop::with(json!({"on_hand": 2, "user_limit": 2, "hold_seconds": 10, "extensions_max": 1})).await;
    let (short, long) = (shop.hold("u-1").await, shop.hold("u-1").await);
    let extended = shop.change(&long, "extend", json!({"seconds": 60})).await;
    assert_eq!((extended.status, extended.body["extensions_left"].as_i64()), (200, Some(0)), "{extended:?}");
    assert!(extended.body["expires_in_seconds"].as_i64().is_some_and(|left| left > 55), "{extended:?}");
    assert_eq!(shop.change(&long, "extend", json!({"seconds": 1})).await.text("code"), "EXTENSION_LIMIT");
    shop.wait_for_expiry(&short).await;
    assert_eq!(shop.shown(&long).await.text("status"), "RESERVED");
    assert_eq!(shop.stock().await, [2, 1, 0], "the unit is back");
    assert_eq!(shop.change(&short, "extend", json!({"seconds": 1})).await.text("code"), "HOLD_EXPIRED");
    assert_eq!(shop.cancel(&short).await.text("code"), "HOLD_EXPIRED");
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_payment_gets_the_units_if_they_are_still_there() {
    let shop = Shop::with(json!({"on_hand": 1, "user_limit": 1, "hold_seconds": 10})).await;
    let (first, started) = (shop.hold("u-1").await, Instant::now());
    shop.wait_for_expiry(&first).await;
    assert!(started.elapsed() >= Duration::from_millis(9_500), "never early");
    let late = shop.confirm(&first, "pay-1").await;
    assert_eq!((late.status, late.text("status"), &late.body["late"]), (200, "CONFIRMED", &json!(true)), "{late:?}");
    assert_eq!(shop.stock().await, [1, 0, 1]);
    // Another one comes too late for it: it is told so, and told the same for ever.
    let restock = json!({"delta": 1, "note": "one more", "reference": "po-1"});
    assert_eq!(shop.admin(reqwest::Method::POST, "/adjustments", restock).await.status, 200);
    let second = wait_for_value("the sold-out flag is gone", SOON, async || {
        let answer = shop.buy("u-2", None).await;
        (answer.body["status"] == "RESERVED").then(|| answer.text("id").to_owned())
    })
    .await;
    shop.wait_for_expiry(&second).await;
    let third = shop.hold("u-3").await;
    for _ in 0..2 {
        let refused = shop.confirm(&second, "pay-2").await;
        assert_eq!((refused.status, refused.text("code")), (409, "PAID_UNFULFILLED"), "{refused:?}");
    }
    assert_eq!(shop.cancel(&third).await.status, 200);
    assert_eq!(shop.confirm(&second, "pay-2").await.text("code"), "PAID_UNFULFILLED", "also when units come back");
    assert_eq!(shop.confirm(&second, "pay-3").await.text("status"), "CONFIRMED", "another payment is another try");
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_payment_is_refused_where_the_sale_says_so() {
    let shop = Shop::with(json!({"on_hand": 1, "hold_seconds": 10, "late_payment": "reject"})).await;
    let id = shop.hold("u-1").await;
    shop.wait_for_expiry(&id).await;
    assert_eq!(shop.confirm(&id, "pay-1").await.text("code"), "HOLD_EXPIRED");
    assert_eq!(shop.stock().await, [1, 0, 0]);
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_cancels_of_one_hold_give_its_unit_back_once() {
    let shop = Arc::new(Shop::with(json!({"on_hand": 5, "user_limit": 5})).await);
    let id = shop.hold("u-1").await;
    shop.hold("u-1").await;
    let cancels = (0..20).map(|_| {
        let (shop, id) = (Arc::clone(&shop), id.clone());
        tokio::spawn(async move { shop.cancel(&id).await })
    });
    for cancel in cancels.collect::<Vec<_>>() {
        let answer = cancel.await.expect("no panic");
        assert_eq!((answer.status, answer.text("status")), (200, "CANCELLED"), "{answer:?}");
    }
    assert_eq!(shop.stock().await, [5, 1, 0]);
    assert_eq!(shop.shown(&id).await.body["version"], 2, "one change");
    Arc::into_inner(shop).expect("all are done").finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_cancel_and_a_confirm_exactly_one_wins() {
    let shop = Arc::new(Shop::with(json!({"on_hand": 100, "user_limit": 1})).await);
    let pairs = (0..100).map(|n| {
        let shop = Arc::clone(&shop);
        tokio::spawn(async move {
            let id = shop.hold(&format!("u-{n}")).await;
            let payment_ref = format!("pay-{n}");
            let (paid, cancelled) = if n % 2 == 0 {
                tokio::join!(shop.confirm(&id, &payment_ref), shop.cancel(&id))
            } else {
                let (cancelled, paid) = tokio::join!(shop.cancel(&id), shop.confirm(&id, &payment_ref));
                (paid, cancelled)
            };
            match (paid.status, cancelled.status) {
                (200, 409) => assert_eq!(cancelled.text("code"), "ALREADY_CONFIRMED"),
                (409, 200) => assert_eq!(paid.text("code"), "ALREADY_CANCELLED"),
                _ => panic!("not exactly one: {paid:?} {cancelled:?}"),
            }
            i64::from(paid.status == 200)
        })
    });
    let mut sold = 0;
    for pair in pairs.collect::<Vec<_>>() {
        sold += pair.await.expect("exactly one wins");
    }
    assert_eq!(shop.stock().await, [100, 0, sold]);
    Arc::into_inner(shop).expect("all are done").finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyed_retry_finds_its_hold_whatever_became_of_the_sale() {
    let shop = Shop::with(json!({"on_hand": 1})).await;
    let first = shop.buy("u-1", Some("k")).await;
    assert_eq!(first.text("status"), "RESERVED");
    assert_eq!(shop.buy("u-2", None).await.text("code"), "SOLD_OUT");
    let retry = async |when: &str| {
        let again = shop.buy("u-1", Some("k")).await;
        assert_eq!((again.status, again.text("id")), (200, first.text("id")), "{when}: {again:?}");
        assert_eq!(again.headers["idempotent-replayed"], "true", "{when}");
    };
    retry("after the sell-out").await;
    assert_eq!(shop.admin(reqwest::Method::POST, "/pause", json!({"note": "why"})).await.status, 200);
    let refused = shop.buy("u-2", None).await;
    assert_eq!((refused.status, refused.text("code"), refused.text("outcome")), (503, "SALE_PAUSED", "none"));
    retry("while paused").await;
    let ended = json!({"ends_at": "2001-01-01T00:00:00Z"});
    assert_eq!(shop.admin(reqwest::Method::POST, "/resume", json!({})).await.status, 200);
    assert_eq!(shop.admin(reqwest::Method::PATCH, "", ended).await.status, 200);
    assert_eq!(shop.buy("u-2", None).await.text("code"), "SALE_ENDED");
    retry("after the end").await;
    shop.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restock_is_for_sale_within_a_second_in_every_process() {
    let shop = Shop::with(json!({"on_hand": 1})).await;
    let other = shop.site.start("api").await;
    shop.hold("u-1").await;
    let is_sold_out = async |api: &Process, user: &str| {
        let answer = shop.site.post(api, user, SKU, None, Some(20)).await;
        assert!(answer.status == 409 || answer.status == 200, "{answer:?}");
        answer.body["code"] == "SOLD_OUT"
    };
    for api in [&shop.all, &other] {
        wait_for("refused from memory", SOON, async || is_sold_out(api, "u-2").await).await;
    }
    let restock = json!({"delta": 2, "note": "two more"});
    assert_eq!(shop.admin(reqwest::Method::POST, "/adjustments", restock).await.status, 200);
    let restocked = Instant::now();
    for (api, user) in [(&shop.all, "u-3"), (&other, "u-4")] {
        wait_for("for sale again", SOON, async || !is_sold_out(api, user).await).await;
    }
    assert!(restocked.elapsed() < Duration::from_secs(1), "{:?}", restocked.elapsed());
    assert_eq!(shop.stock().await, [3, 3, 0]);
    shop.site.finish([shop.all, other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_do_the_same_on_the_command_line() {
    let shop = Shop::with(json!({"on_hand": 3, "user_limit": 3})).await;
    let (bought, given_back, kept) = (shop.hold("u-1").await, shop.hold("u-1").await, shop.hold("u-1").await);
    let run = async |args: &[&str]| {
        let output = shop.site.run(args).await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default(), told)
    };
    let (code, paid, _) = run(&["--json", "reservation", "confirm", &bought, "--payment-ref", "pay-9"]).await;
    assert_eq!((code, &paid["status"]), (Some(0), &json!("CONFIRMED")), "{paid}");
    let (code, cancelled, _) = run(&["--json", "reservation", "cancel", &given_back, "--note", "by phone"]).await;
    assert_eq!((code, &cancelled["cancel_note"]), (Some(0), &json!("by phone")), "{cancelled}");
    let (code, extended, _) = run(&["--json", "reservation", "extend", &kept, "--by", "1m"]).await;
    assert_eq!((code, &extended["extensions_left"]), (Some(0), &json!(2)), "{extended}");
    let (code, _, told) = run(&["reservation", "cancel", &bought]).await;
    assert_eq!((code, told.contains("ALREADY_CONFIRMED")), (Some(1), true), "{told}");
    let (code, shown, _) = run(&["--json", "reservation", "show", &bought]).await;
    assert_eq!((code, shown["payment_ref"].as_str()), (Some(0), Some("pay-9")));
    let (code, list, _) = run(&["--json", "reservation", "list", "--user", "u-1", "--status", "RESERVED"]).await;
    assert_eq!((code, list["items"].as_array().map(Vec::len)), (Some(0), Some(1)), "{list}");
    let (code, stock, _) = run(&["--json", "sku", "adjust", SKU, "--delta", "-1", "--note", "broken"]).await;
    assert_eq!((code, &stock["on_hand"]), (Some(0), &json!(2)), "{stock}");
    let (code, _, told) = run(&["sku", "adjust", SKU, "--on-hand", "1", "--compare-on-hand", "3", "--note", "n"]).await;
    assert_eq!((code, told.contains("STOCK_CHANGED")), (Some(1), true), "{told}");
    let (code, paused, _) = run(&["--json", "sku", "pause", SKU, "--note", "why"]).await;
    assert_eq!((code, &paused["status"]), (Some(0), &json!("PAUSED")), "{paused}");
    let (code, resumed, _) = run(&["--json", "sku", "resume", SKU]).await;
    assert_eq!((code, &resumed["status"]), (Some(0), &json!("SOLD_OUT")), "{resumed}");
    let nobody = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000";
    assert_eq!(run(&["reservation", "show", nobody]).await.0, Some(1));
    assert_eq!(run(&["reservation", "extend", &kept, "--by", "0s"]).await.0, Some(64));
    assert_eq!(run(&["sku", "adjust", SKU, "--note", "n"]).await.0, Some(64));
    shop.finish().await;
}
