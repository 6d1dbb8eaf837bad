//! The life of a hold over HTTP, with real servers and a real consumer: confirm, cancel, extend, and what operators do to a sale.

use std::time::{Duration, Instant};

use flashsale::limits;
use serde_json::{Value, json};

use crate::support::app::{Answer, Http, request};
use crate::support::sale::{Sale, WAIT};

/// Ids, times and lengths differ from run to run; their form is checked here, their value is not.
fn stable(answer: &Answer) -> Value {
    let mut whole = answer.whole();
    blank(&mut whole["body"]);
    let headers = whole["headers"].as_object_mut().expect("headers are an object");
    headers.remove("content-length");
    for name in ["location", "x-request-id"] {
        headers.entry(name).and_modify(|value| *value = format!("({name})").into());
    }
    whole
}

fn blank(value: &mut Value) {
    for (name, value) in value.as_object_mut().into_iter().flatten() {
        if name.ends_with("_at") || name == "as_of" {
            let text = value.as_str().expect("a time is a text");
            assert!(text.len() == 24 && text.ends_with('Z'), "RFC 3339 with milliseconds: {text}");
            *value = "(time)".into();
        } else if [
            "id",
            "command_id",
            "instance",
            "status_url",
            "expires_in_seconds",
            "lag_seconds",
            "epoch",
            "position",
        ]
        .contains(&name.as_str())
        {
            *value = format!("({name})").into();
        } else {
            blank(value);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_shows_the_reservation_as_it_is_then() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 9, "user_limit": 9})).await.status, 201);
    let (bought, given_back, kept) =
        (sale.reserve("u", "s").await, sale.reserve("u", "s").await, sale.reserve("u", "s").await);
    let note = json!({"note": "changed my mind"});
    let told = json!({
        "confirmed": stable(&sale.change(&bought, "confirm", json!({"payment_ref": "pay-9"})).await),
        "cancelled": stable(&sale.change(&given_back, "cancel", note).await),
        "extended": stable(&sale.change(&kept, "extend", json!({"seconds": 60})).await),
    });
    insta::assert_json_snapshot!(told);
    // Many at once, read together: each gets its own answer.
    let many = futures_util::future::join_all((0..30).map(|n| {
        let (sale, kept) = (&sale, &kept);
        async move { sale.change(kept, "confirm", json!({"payment_ref": format!("pay-{n}")})).await }
    }));
    let (won, lost): (Vec<_>, Vec<_>) = many.await.into_iter().partition(|answer| answer.status == 200);
    assert!(won.len() == 1 && lost.iter().all(|answer| answer.code() == "ALREADY_CONFIRMED"), "{won:?} {lost:?}");
    // The same again: the same answer, without a second effect.
    let again = sale.change(&bought, "confirm", json!({"payment_ref": "pay-9"})).await;
    assert_eq!((again.status, &again.body["version"]), (200, &json!(2)));
    let bodyless = request(&format!("POST /v1/reservations/{given_back}/cancel"), &[], None);
    let again = sale.http.ask(bodyless).await;
    assert_eq!((again.status, &again.body["cancel_note"]), (200, &json!("changed my mind")), "{again:?}");
    let shown = sale.get(&format!("/v1/reservations/{bought}")).await;
    assert_eq!((shown.header("etag"), &shown.body["status"]), (Some("\"2\""), &json!("CONFIRMED")));
    let sku = sale.get("/v1/skus/s").await;
    assert_eq!((&sku.body["sold"], &sku.body["reserved"], &sku.body["available"]), (&json!(2), &json!(0), &json!(7)));
    consumer.stop().await;
    sale.world.db.assert_invariants().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_a_change_say_why() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    let settings = json!({"on_hand": 3, "user_limit": 9, "extensions_max": 1, "extension_seconds_max": 30});
    assert_eq!(sale.put("s", settings).await.status, 201);
    let (bought, given_back, kept) =
        (sale.reserve("u", "s").await, sale.reserve("u", "s").await, sale.reserve("u", "s").await);
    let rejected = sale.ask_for("v", "s", &[WAIT, ("idempotency-key", "k")]).await;
    // A key, because nobody can vouch yet that it was not tried before: the writer says no, not the API.
    let rejected = rejected.body["id"].as_str().expect("an id").to_owned();
    let pay = |name: &str| json!({"payment_ref": name});
    assert_eq!(sale.change(&bought, "confirm", pay("pay-1")).await.status, 200);
    assert_eq!(sale.change(&given_back, "cancel", json!({})).await.status, 200);
    let key = [("idempotency-key", "k")];
    assert_eq!(sale.change_keyed(&kept, "extend", json!({"seconds": 10}), &key).await.status, 200);
    let nobody = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000";
    let told = json!({
        "another payment": stable(&sale.change(&bought, "confirm", pay("pay-2")).await),
        "cancel what is confirmed": stable(&sale.change(&bought, "cancel", json!({})).await),
        "extend what is confirmed": stable(&sale.change(&bought, "extend", json!({"seconds": 1})).await),
        "confirm what is cancelled": stable(&sale.change(&given_back, "confirm", pay("pay-3")).await),
        "extend too often": stable(&sale.change(&kept, "extend", json!({"seconds": 1})).await),
        "a key for another extension": stable(&sale.change_keyed(&kept, "extend", json!({"seconds": 11}), &key).await),
        "rejected": stable(&sale.change(&rejected, "confirm", pay("pay-4")).await),
        "nobody": stable(&sale.change(nobody, "cancel", json!({})).await),
        "a ticket beyond the log": stable(&sale.http.ask(request(&format!("POST /v1/reservations/{nobody}/cancel?ticket=0.999.0"), &[], None)).await),
    });
    insta::assert_json_snapshot!(told);
    // With the same key the extension was made once.
    let again = sale.change_keyed(&kept, "extend", json!({"seconds": 10}), &key).await;
    assert_eq!((again.status, &again.body["version"]), (200, &json!(2)), "{again:?}");
    consumer.stop().await;
    sale.world.db.assert_invariants().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_a_change_are_told_before_anything_is_asked() {
    let http = Http::away();
    let id = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000";
    let post = |path: &str, body: Option<&str>| request(&format!("POST /v1/reservations/{path}"), &[], body);
    let cases = vec![
        ("no payment", post(&format!("{id}/confirm"), Some("{}"))),
        ("no body", post(&format!("{id}/confirm"), None)),
        ("empty payment", post(&format!("{id}/confirm"), Some(r#"{"payment_ref":"","note":"n"}"#))),
        ("note with a line break", post(&format!("{id}/cancel"), Some(r#"{"note":"a\nb"}"#))),
        ("too long an extension", post(&format!("{id}/extend"), Some(r#"{"seconds":14401}"#))),
        ("malformed id", post("17/cancel", None)),
        ("malformed ticket", post(&format!("{id}/cancel?ticket=1"), None)),
        ("unknown parameter", post(&format!("{id}/cancel?tiket=1.1.1"), None)),
        ("command without a ticket", request(&format!("GET /v1/reservations/{id}/commands/{id}"), &[], None)),
        ("malformed command id", request(&format!("GET /v1/reservations/{id}/commands/17?ticket=1.1.1"), &[], None)),
        ("everything is away", post(&format!("{id}/cancel"), None)),
    ];
    let mut told = Vec::new();
    for (name, request) in cases {
        told.push(json!({"case": name, "answer": http.ask(request).await.whole()}));
    }
    insta::assert_json_snapshot!(told);
}

/// Each of them has to be looked up in the log, by the one thread that also tells the lag.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_cancels_what_is_queued_is_bounded_and_told_so() {
    const CROWD: usize = 1000;
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 3})).await.status, 201);
    consumer.stop().await;
    let queued = sale.ask_for("u", "s", &[]).await;
    let (id, ticket) = (queued.body["id"].as_str().expect("an id"), queued.body["ticket"].as_str().expect("a ticket"));
    let cancel = || request(&format!("POST /v1/reservations/{id}/cancel?ticket={ticket}"), &[], None);
    let answers = futures_util::future::join_all((0..CROWD).map(|_| sale.http.ask(cancel()))).await;
    let (refused, taken): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 503);
    assert!(!refused.is_empty() && taken.len() >= limits::LOG_RECORDS_READ_AT_ONCE, "{} taken", taken.len());
    assert!(taken.iter().all(|answer| answer.status == 202), "{taken:?}");
    for answer in &refused {
        assert_eq!((answer.code(), &answer.body["outcome"]), ("OVERLOADED", &json!("none")), "{answer:?}");
    }
    assert_eq!(sale.http.ask(cancel()).await.status, 202, "every place is free again");
    sale.world.db.assert_invariants().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_taken_while_nobody_decides() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 3})).await.status, 201);
    consumer.stop().await;
    let queued = sale.ask_for("u", "s", &[]).await;
    let (id, ticket) = (queued.body["id"].as_str().expect("an id"), queued.body["ticket"].as_str().expect("a ticket"));
    // Its SKU stands in the log, at the ticket; without one nobody knows it.
    let started = Instant::now();
    let cancel = sale.http.ask(request(&format!("POST /v1/reservations/{id}/cancel?ticket={ticket}"), &[], None)).await;
    assert!(started.elapsed() >= Duration::from_secs(2), "waits for a decision");
    insta::assert_json_snapshot!("undecided_cancel", stable(&cancel));
    let url = cancel.body["status_url"].as_str().expect("a URL").to_owned();
    assert_eq!(cancel.header("location"), Some(&*url));
    insta::assert_json_snapshot!("queued_cancel", stable(&sale.get(&url).await));
    let blind = sale.change(id, "cancel", json!({})).await;
    insta::assert_json_snapshot!("unknown_sku_of_a_queued_reservation", stable(&blind));
    let others = sale.http.ask(request(
        &format!("POST /v1/reservations/0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000/cancel?ticket={ticket}"),
        &[],
        None,
    ));
    assert_eq!(others.await.code(), "UNKNOWN_RESERVATION", "a ticket of another request");
    let stranger = url.replace(id, "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000");
    assert_eq!(sale.get(&stranger).await.code(), "UNKNOWN_COMMAND", "another reservation's command");

    let poll = format!("/v1/reservations/{id}?ticket={ticket}");
    let (has, wait) = (("if-none-match", "\"1\""), WAIT);
    let headers = [has, wait];
    let (decided, consumer) = tokio::join!(sale.get_with(&poll, &headers), async { sale.world.consume() });
    assert_eq!((decided.status, &decided.body["status"]), (200, &json!("CANCELLED")), "{decided:?}");
    let done = sale.get(&url).await;
    insta::assert_json_snapshot!("done_cancel", stable(&done));
    let sku = sale.get("/v1/skus/s").await;
    assert_eq!((&sku.body["reserved"], &sku.body["available"]), (&json!(0), &json!(3)));
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_moves_by_adjustments_alone() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 10, "user_limit": 9})).await.status, 201);
    sale.reserve("u", "s").await;
    let adjust = async |body: Value| sale.admin("POST /v1/admin/skus/s/adjustments", body).await;
    let restock = json!({"delta": 5, "note": "restock", "reference": "po-77"});
    let told = json!({
        "restock": stable(&adjust(restock.clone()).await),
        "the same again": stable(&adjust(restock).await),
        "the same reference for another delta":
            stable(&adjust(json!({"delta": 6, "note": "restock", "reference": "po-77"})).await),
        "recount": stable(&adjust(json!({"compare_on_hand": 15, "on_hand": 12, "note": "recount"})).await),
        "recount of another stock": stable(&adjust(json!({"compare_on_hand": 15, "on_hand": 12, "note": "n"})).await),
        "below what is promised": stable(&adjust(json!({"delta": -12, "note": "n", "reference": "r"})).await),
        "above the maximum": stable(&adjust(json!({"delta": 1_000_000_000, "note": "n"})).await),
        "unknown SKU": stable(&sale.admin("POST /v1/admin/skus/nope/adjustments", json!({"delta": 1, "note": "n"})).await),
    });
    insta::assert_json_snapshot!(told);
    // A refusal does not burn its reference.
    let smaller = adjust(json!({"delta": -1, "note": "n", "reference": "r"})).await;
    assert_eq!((smaller.status, &smaller.body["on_hand"]), (200, &json!(11)), "{smaller:?}");
    consumer.stop().await;
    sale.world.db.assert_invariants().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_refuses_reserves_and_nothing_else() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 10, "user_limit": 9})).await.status, 201);
    let (bought, given_back) = (sale.reserve("u", "s").await, sale.reserve("u", "s").await);
    let keyed = sale.ask_for("u", "s", &[WAIT, ("idempotency-key", "k")]).await;
    let paused = sale.admin("POST /v1/admin/skus/s/pause", json!({"note": "a mistake in the price"})).await;
    insta::assert_json_snapshot!("paused", stable(&paused));
    insta::assert_json_snapshot!("refused_while_paused", stable(&sale.ask_for("u", "s", &[WAIT]).await));
    // The pause comes before the window, as the writer has it.
    let later = sale.admin("PATCH /v1/admin/skus/s", json!({"starts_at": "2999-01-01T00:00:00Z"})).await;
    assert_eq!((later.status, &later.body["status"]), (200, &json!("PAUSED")));
    assert_eq!(sale.ask_for("u", "s", &[WAIT]).await.code(), "SALE_PAUSED");
    // Nobody can vouch yet that this key was not tried before: it is refused for now, and told where to look.
    let keyed_anew = sale.ask_for("v", "s", &[WAIT, ("idempotency-key", "k-2")]).await;
    assert_eq!((keyed_anew.code(), &keyed_anew.body["outcome"]), ("SALE_PAUSED", &json!("unknown")), "{keyed_anew:?}");
    assert!(keyed_anew.body["status_url"].is_string());
    // A key that holds units is never refused.
    let replay = sale.ask_for("u", "s", &[WAIT, ("idempotency-key", "k")]).await;
    assert_eq!((replay.status, &replay.body["id"]), (200, &keyed.body["id"]), "{replay:?}");
    assert_eq!(sale.change(&bought, "confirm", json!({"payment_ref": "p"})).await.status, 200);
    assert_eq!(sale.change(&given_back, "cancel", json!({})).await.status, 200);
    assert_eq!(sale.admin("PATCH /v1/admin/skus/s", json!({"starts_at": null})).await.status, 200);
    let resumed = sale.http.ask_admin(request("POST /v1/admin/skus/s/resume", &[], None)).await;
    assert_eq!((resumed.status, &resumed.body["status"]), (200, &json!("OPEN")), "{resumed:?}");
    sale.reserve("u", "s").await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_changes_what_it_names() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    let all = json!({"on_hand": 10, "user_limit": 9, "ends_at": "2999-01-01T00:00:00Z", "late_payment": "reject"});
    assert_eq!(sale.put("s", all).await.status, 201);
    let patch = async |body: Value, headers: &[(&str, &str)]| {
        let body = body.to_string();
        sale.http.ask_admin(request("PATCH /v1/admin/skus/s", headers, Some(&body))).await
    };
    let merge = ("content-type", "application/merge-patch+json");
    let key = ("idempotency-key", "k");
    let patched = patch(json!({"hold_seconds": 60, "ends_at": null}), &[merge, key]).await;
    insta::assert_json_snapshot!("patched", stable(&patched));
    // The same key after somebody else's change: the repeat, with no effect.
    assert_eq!(patch(json!({"user_limit": 5}), &[]).await.status, 200);
    let again = patch(json!({"hold_seconds": 60, "ends_at": null}), &[key]).await;
    assert_eq!((again.status, &again.body["settings_version"]), (200, &json!(3)), "{again:?}");
    let told = json!({
        "together out of bounds": stable(&patch(json!({"starts_at": "2999-01-01T00:00:00Z", "ends_at": "2998-01-01T00:00:00Z"}), &[]).await),
        "other stock": stable(&patch(json!({"on_hand": 11}), &[]).await),
        "wrong type": stable(&patch(json!({}), &[("content-type", "text/plain")]).await),
        "unknown SKU": stable(&sale.admin("PATCH /v1/admin/skus/nope", json!({})).await),
    });
    insta::assert_json_snapshot!("refused_patches", told);
    consumer.stop().await;
}
