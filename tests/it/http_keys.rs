//! The same key with another body is told so by every call on a reservation or a SKU, and an honest repeat never is: over HTTP, with real
//! servers and a real consumer.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::app::Answer;
use crate::support::sale::Sale;

const ADJUST: &str = "POST /v1/admin/skus/s/adjustments";
const PATCH: &str = "PATCH /v1/admin/skus/s";
const REUSED: &str = "IDEMPOTENCY_KEY_REUSED";

async fn confirm(sale: &Sale, id: &str, key: &str, payment: &str) -> Answer {
    sale.change_keyed(id, "confirm", json!({"payment_ref": payment}), &[("idempotency-key", key)]).await
}

async fn patch(sale: &Sale, key: &str, body: Value) -> Answer {
    sale.admin_keyed(PATCH, key, body).await
}

/// The code of a refusal, with its status.
fn refusal(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_confirms_with_one_payment() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 9, "user_limit": 9})).await.status, 201);
    let (id, other) = (sale.reserve("u", "s").await, sale.reserve("u", "s").await);
    let first = confirm(&sale, &id, "k", "A").await;
    assert_eq!((first.status, &first.body["payment_ref"]), (200, &json!("A")), "{first:?}");
    let check = async || {
        assert_eq!(refusal(&confirm(&sale, &id, "k", "B").await), (422, REUSED));
        for key in ["k", "k2"] {
            let again = confirm(&sale, &id, key, "A").await;
            assert_eq!((again.status, &again.body), (200, &first.body), "the same payment, with {key}");
        }
        assert_eq!(refusal(&confirm(&sale, &id, "l", "C").await), (409, "ALREADY_CONFIRMED"));
        assert_eq!(refusal(&confirm(&sale, &id, "l", "D").await), (422, REUSED), "that answer stands, so does its key");
        let shown = sale.get(&format!("/v1/reservations/{id}")).await;
        assert_eq!((&shown.body["payment_ref"], &shown.body["version"]), (&json!("A"), &json!(2)));
    };
    check().await;
    // The next owner of the partition remembers nothing and knows it all.
    consumer.stop().await;
    let consumer = sale.world.consume();
    check().await;
    assert_eq!(confirm(&sale, &other, "k", "B").await.status, 200, "a key is one reservation's");
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_adjusts_once_with_a_reference_or_without() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 10})).await.status, 201);
    let adjust = async |key: &str, delta: i64, note: &str, reference: Option<&str>| {
        let mut body = json!({"delta": delta, "note": note});
        reference.into_iter().for_each(|reference| body["reference"] = reference.into());
        sale.admin_keyed(ADJUST, key, body).await
    };
    let named = adjust("k", 5, "n", Some("r1")).await;
    let keyed = adjust("j", 1, "n", None).await;
    assert_eq!((&named.body["on_hand"], &keyed.body["on_hand"]), (&json!(15), &json!(16)), "{named:?} {keyed:?}");
    let check = async || {
        for (key, delta, note, reference, why) in [
            ("k", 5, "n", Some("r2"), "another reference"),
            ("k", 6, "n", Some("r1"), "another delta"),
            ("l", 6, "n", Some("r1"), "another delta under a reference"),
            ("k", 5, "n", None, "no reference"),
            ("j", 1, "n", Some("r3"), "a reference"),
            ("j", 2, "n", None, "another delta, no reference"),
            ("j", 1, "m", None, "another note"),
        ] {
            let answer = adjust(key, delta, note, reference).await;
            assert_eq!(refusal(&answer), (422, REUSED), "{why}");
        }
        for (key, reference, first) in [("k", Some("r1"), &named), ("k2", Some("r1"), &named), ("j", None, &keyed)] {
            let delta = if key == "j" { 1 } else { 5 };
            let again = adjust(key, delta, "n", reference).await;
            assert_eq!((again.status, &again.body), (200, &first.body), "{key} again");
        }
        let sku = sale.get("/v1/skus/s").await;
        assert_eq!(sku.body["on_hand"], json!(16));
    };
    check().await;
    consumer.stop().await;
    let consumer = sale.world.consume();
    check().await;
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_patch_is_told_from_another_whatever_happened_in_between() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 10})).await.status, 201);
    assert_eq!(patch(&sale, "k", json!({"hold_seconds": 60})).await.status, 200);
    assert_eq!(refusal(&patch(&sale, "k", json!({"hold_seconds": 61})).await), (422, REUSED), "at once");
    assert_eq!(patch(&sale, "other", json!({"user_limit": 5, "hold_seconds": 90})).await.status, 200);
    for (body, why) in [
        (json!({"hold_seconds": 61}), "another value"),
        (json!({"hold_seconds": 60, "user_limit": 5}), "one more"),
        (json!({}), "nothing"),
        // What is in force by now: done, but not by this one.
        (json!({"hold_seconds": 90}), "what somebody else did"),
    ] {
        assert_eq!(refusal(&patch(&sale, "k", body).await), (422, REUSED), "{why}");
    }
    let again = patch(&sale, "k", json!({"hold_seconds": 60})).await;
    let now = [&again.body["settings_version"], &again.body["hold_seconds"], &again.body["user_limit"]];
    assert_eq!((again.status, now), (200, [&json!(3), &json!(90), &json!(5)]), "the SKU as it is now: {again:?}");
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_that_would_be_out_of_bounds_by_now_is_still_the_one_that_was_done() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 10})).await.status, 201);
    let ends = |year: u16| json!({"ends_at": format!("{year}-01-01T00:00:00Z")});
    assert_eq!(patch(&sale, "k", ends(2900)).await.status, 200);
    let later = json!({"starts_at": "2950-01-01T00:00:00Z", "ends_at": null});
    assert_eq!(patch(&sale, "other", later).await.status, 200);
    let again = patch(&sale, "k", ends(2900)).await;
    assert_eq!((again.status, &again.body["ends_at"]), (200, &Value::Null), "{again:?}");
    assert_eq!(refusal(&patch(&sale, "k", ends(2901)).await), (422, REUSED));
    assert_eq!(refusal(&patch(&sale, "new", ends(2900)).await), (422, "INVALID_FIELD"));
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_repeat_is_answered_after_somebody_elses_change() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 10})).await.status, 201);
    let calls = [
        ("PUT /v1/admin/skus/s", json!({"user_limit": 3}), json!({"user_limit": 4})),
        ("POST /v1/admin/skus/s/pause", json!({"note": "why"}), json!({"note": "for another reason"})),
        ("POST /v1/admin/skus/s/resume", json!({}), json!({"note": "go"})),
    ];
    for (line, body, _) in &calls {
        assert_eq!(sale.admin_keyed(line, "k", body.clone()).await.status, 200, "{line}");
    }
    assert_eq!(patch(&sale, "other", json!({"user_limit": 7})).await.status, 200);
    for (line, body, other) in &calls {
        let again = sale.admin_keyed(line, "k", body.clone()).await;
        let now = [&again.body["settings_version"], &again.body["user_limit"], &again.body["status"]];
        assert_eq!((again.status, now), (200, [&json!(5), &json!(7), &json!("OPEN")]), "{line}: {again:?}");
        assert_eq!(refusal(&sale.admin_keyed(line, "k", other.clone()).await), (422, REUSED), "{line}");
    }
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_bodies_under_one_key_at_once_one_is_done() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 10, "user_limit": 9})).await.status, 201);
    let id = sale.reserve("u", "s").await;
    // While nobody decides, all of them come into the log, and then into one batch.
    consumer.stop().await;
    let payments = join_all((0..12).map(|n| {
        let (sale, id) = (&sale, &id);
        async move { confirm(sale, id, "k", &format!("pay-{n}")).await }
    }));
    let adjustments = join_all((0..12).map(|n| {
        let sale = &sale;
        async move {
            let body = match n % 3 {
                0 => json!({"delta": 1, "note": "n"}),
                _ => json!({"delta": 1, "note": "n", "reference": format!("po-{n}")}),
            };
            sale.admin_keyed(ADJUST, "k", body).await
        }
    }));
    let (payments, adjustments, consumer) = tokio::join!(payments, adjustments, async { sale.world.consume() });
    let (won, lost): (Vec<Answer>, Vec<Answer>) = payments.into_iter().partition(|answer| answer.status == 200);
    assert!(won.len() == 1 && lost.iter().all(|answer| refusal(answer) == (422, REUSED)), "{won:?} {lost:?}");
    // Those without a reference are one adjustment.
    let (won, lost): (Vec<Answer>, Vec<Answer>) = adjustments.into_iter().partition(|answer| answer.status == 200);
    assert!(
        [1, 4].contains(&won.len()) && lost.iter().all(|answer| refusal(answer) == (422, REUSED)),
        "{won:?} {lost:?}"
    );
    let sku = sale.get("/v1/skus/s").await;
    assert_eq!((&sku.body["on_hand"], &sku.body["sold"]), (&json!(11), &json!(1)));
    consumer.stop().await;
    sale.world.finish().await;
}
