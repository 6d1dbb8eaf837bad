//! The HTTP interface with real servers and a real consumer: what buyers and operators see of one sale.

use std::time::{Duration, Instant};

use flashsale::limits;
use serde_json::{Value, json};

use crate::support::app::{Answer, Http, cache_at, request};
use crate::support::consumer::{SOON, World};
use crate::support::kafka::fresh_name;
use crate::support::sale::{Sale, WAIT};
use crate::support::wait::wait_for;

/// Ids, times and lengths differ from run to run; their form is checked here, their value is not.
fn stable(answer: &Answer) -> Value {
    let mut whole = answer.whole();
    for (name, value) in whole["body"].as_object_mut().into_iter().flatten() {
        let is_time = name.ends_with("_at") || name == "as_of";
        if is_time {
            let text = value.as_str().expect("a time is a text");
            assert!(text.len() == 24 && text.ends_with('Z'), "RFC 3339 with milliseconds: {text}");
            *value = "(time)".into();
        } else if ["id", "command_id"].contains(&name.as_str()) {
            *value = "(id)".into();
        } else if ["status_url", "eta_seconds", "expires_in_seconds", "lag_seconds"].contains(&name.as_str()) {
            *value = format!("({name})").into();
        }
    }
    let headers = whole["headers"].as_object_mut().expect("headers are an object");
    headers.remove("content-length");
    for name in ["location", "x-request-id"] {
        headers.entry(name).and_modify(|value| *value = format!("({name})").into());
    }
    whole
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sale_from_its_creation_to_its_last_unit() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    let created = sale.put("s", json!({"on_hand": 3, "user_limit": 2})).await;
    insta::assert_json_snapshot!("created", stable(&created));
    let changed = sale.put("s", json!({"on_hand": 3, "user_limit": 2, "hold_seconds": 60})).await;
    assert_eq!((changed.status, &changed.body["settings_version"]), (200, &json!(2)));

    let reserved = sale.ask_for_units("u-1", "s", 2, &[WAIT]).await;
    insta::assert_json_snapshot!("reserved", stable(&reserved));
    let limited = sale.ask_for("u-1", "s", &[]).await;
    insta::assert_json_snapshot!("user_limit", stable(&limited));
    let rejected = sale.ask_for_units("u-2", "s", 2, &[WAIT]).await;
    insta::assert_json_snapshot!("rejected", stable(&rejected));
    let last = sale.ask_for("u-3", "s", &[WAIT]).await;
    assert_eq!(last.body["status"], "RESERVED");

    insta::assert_json_snapshot!("sku", stable(&sale.get("/v1/skus/s").await));
    let sold_out = sale.ask_for("u-4", "s", &[WAIT]).await;
    // Known here by the message of the last batch, or decided by the writer: both are right.
    let reason = if sold_out.status == 409 { sold_out.code() } else { sold_out.body["reason"].as_str().unwrap_or("") };
    assert_eq!(reason, "SOLD_OUT", "{sold_out:?}");
    consumer.stop().await;
    sale.world.db.assert_invariants().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_a_reservation_that_need_a_catalogue() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("open", json!({"on_hand": 5})).await.status, 201);
    assert_eq!(sale.put("later", json!({"on_hand": 5, "starts_at": "2999-01-01T00:00:00Z"})).await.status, 201);
    assert_eq!(sale.put("over", json!({"on_hand": 5, "ends_at": "2001-01-01T00:00:00Z"})).await.status, 201);
    assert_eq!(sale.ask_for("u-1", "open", &[WAIT, ("idempotency-key", "k")]).await.status, 200);
    let mut later = sale.ask_for("u-1", "later", &[]).await;
    later.headers.insert("retry-after".into(), "(seconds)".into());
    let refusals = json!({
        "unknown SKU": stable(&sale.ask_for("u-1", "nope", &[]).await),
        "not started": stable(&later),
        "ended": stable(&sale.ask_for("u-1", "over", &[]).await),
        "above the limit alone": stable(&sale.ask_for_units("u-2", "open", 2, &[]).await),
        "key reused": stable(&sale.ask_for_units("u-1", "open", 2, &[("idempotency-key", "k")]).await),
        "unknown SKU to look at": stable(&sale.get("/v1/skus/nope").await),
        "unknown reservation": stable(&sale.get("/v1/reservations/0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000").await),
        "ticket beyond the log":
            stable(&sale.get("/v1/reservations/0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000?ticket=0.999.0").await),
    });
    insta::assert_json_snapshot!(refusals);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_a_change() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    let without_stock = sale.put("s", json!({"user_limit": 2})).await;
    assert_eq!(sale.put("s", json!({"on_hand": 3})).await.status, 201);
    let refusals = json!({
        "no stock at creation": stable(&without_stock),
        "other stock": stable(&sale.put("s", json!({"on_hand": 4})).await),
        "unknown SKU": stable(&sale.http.ask_admin(request("GET /v1/admin/skus/nope", &[], None)).await),
        "unknown command": stable(&sale.http.ask_admin(request(
            "GET /v1/admin/skus/s/commands/0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000?ticket=0.0.0", &[], None)).await),
    });
    insta::assert_json_snapshot!(refusals);
    // A refusal changes nothing; leaving the stock out is no statement about it.
    let changed = sale.put("s", json!({"late_payment": "reject"})).await;
    assert_eq!(
        (changed.status, &changed.body["late_payment"], &changed.body["on_hand"]),
        (200, &json!("reject"), &json!(3))
    );
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_names_one_change() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 3})).await.status, 201);
    let put = async |body: Value| {
        let request = request("PUT /v1/admin/skus/s", &[("idempotency-key", "k")], Some(&body.to_string()));
        let answer = sale.http.ask_admin(request).await;
        (answer.status, answer.code().to_owned(), answer.body["user_limit"].clone())
    };
    let done = (200, "no code".to_owned(), json!(2));
    assert_eq!(put(json!({"user_limit": 2})).await, done);
    assert_eq!(put(json!({"user_limit": 2})).await, done, "a repeat");
    let reused = put(json!({"user_limit": 5})).await;
    assert_eq!(reused, (422, "IDEMPOTENCY_KEY_REUSED".to_owned(), Value::Null), "another body was not applied");
    assert_eq!(put(json!({"user_limit": 2})).await, done);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_wait_ends_when_the_process_stops() {
    let sale = Sale::fresh().await;
    sale.http.stop_waiting();
    let started = Instant::now();
    let change = sale.put("s", json!({"on_hand": 3})).await;
    assert_eq!((change.status, &change.body["status"]), (202, &json!("QUEUED")), "nobody decides here");
    assert!(started.elapsed() < limits::ADMIN_DECISION_WAIT, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_consumer_everything_is_queued_and_then_decided() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 3})).await.status, 201);
    consumer.stop().await;

    let accepted = sale.ask_for("u-1", "s", &[("idempotency-key", "k")]).await;
    insta::assert_json_snapshot!("accepted", stable(&accepted));
    let url = accepted.body["status_url"].as_str().expect("a URL").to_owned();
    assert_eq!(accepted.header("location"), Some(url.as_str()));
    insta::assert_json_snapshot!("queued", stable(&sale.get(&url).await));
    // The same request again: the same answer.
    let again = sale.ask_for("u-1", "s", &[("idempotency-key", "\"k\"")]).await;
    assert_eq!((again.status, &again.body["id"]), (202, &accepted.body["id"]));
    // A short wait ends without a decision: the 202, and no applied preference.
    let waited = sale.ask_for("u-2", "s", &[("prefer", "wait=1")]).await;
    assert_eq!((waited.status, waited.header("preference-applied")), (202, None));
    let change = sale.put("s", json!({"user_limit": 2})).await;
    insta::assert_json_snapshot!("undecided_change", stable(&change));
    let command_url = change.body["status_url"].as_str().expect("a URL").to_owned();
    let command = sale.http.ask_admin(request(&format!("GET {command_url}"), &[], None)).await;
    assert_eq!((command.status, &command.body["status"]), (200, &json!("QUEUED")));

    // A long poll is woken by the decision, long before its time is over.
    let started = Instant::now();
    let (decided, consumer) = tokio::join!(sale.get_with(&url, &[WAIT]), async { sale.world.consume() });
    assert_eq!((decided.status, &decided.body["status"]), (200, &json!("RESERVED")), "{decided:?}");
    assert!(started.elapsed() < Duration::from_secs(15), "woken, not timed out");
    assert_eq!(decided.header("preference-applied"), Some("wait=20"));
    let done = sale.http.ask_admin(request(&format!("GET {command_url}"), &[], None)).await;
    assert_eq!((&done.body["status"], &done.body["sku"]["user_limit"]), (&json!("DONE"), &json!(2)), "{done:?}");
    // With a wait the replay tells today's state.
    let replay = sale.ask_for("u-1", "s", &[("idempotency-key", "k"), WAIT]).await;
    assert_eq!((replay.status, replay.header("idempotent-replayed")), (200, Some("true")));
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_spare_answers() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 3})).await.status, 201);
    let reserved = sale.ask_for("u-1", "s", &[WAIT]).await;
    let url = format!("/v1/reservations/{}", reserved.body["id"].as_str().expect("an id"));
    for (has, status) in
        [("\"1\"", 304), ("W/\"1\"", 304), ("\"7\", \"1\"", 304), ("*", 304), ("\"2\"", 200), ("1", 200)]
    {
        let answer = sale.get_with(&url, &[("if-none-match", has)]).await;
        assert_eq!((answer.status, answer.header("etag")), (status, Some("\"1\"")), "{has}");
        assert_eq!(answer.body == json!(""), status == 304, "{answer:?}");
    }
    let started = Instant::now();
    let waited = sale.get_with(&url, &[("if-none-match", "\"1\""), ("prefer", "wait=1")]).await;
    assert_eq!((waited.status, waited.header("preference-applied")), (304, Some("wait=1")));
    assert!(started.elapsed() >= Duration::from_secs(1), "waits for another version");
    consumer.stop().await;
}

/// One answer of each kind, waited for where nobody can read, beside what its row says where everybody can.
async fn compare_what_is_told_with_what_is_stored(sale: &Sale, telling: &Http, told_by: &str) {
    let post = async |user: &str, quantity: u32, key: &str| {
        let body =
            json!({"user_id": user, "sku_id": "s", "quantity": quantity, "metadata": {"cart": user}}).to_string();
        let headers = [("idempotency-key", key), WAIT];
        telling.ask(request("POST /v1/reservations", &headers, Some(&body))).await
    };
    // Until the subscription stands, messages go nowhere; nobody else is refused for this one.
    wait_for("a decision that is told", SOON, async || {
        let key = fresh_name("key");
        post(&fresh_name("early"), 1, &key).await.status == 200
    })
    .await;
    let mut seen = Vec::new();
    for (user, quantity) in [("u-1", 2), ("u-1", 2), ("u-2", 90), ("u-3", 1)] {
        let told = post(user, quantity, &fresh_name("key")).await;
        if told.status != 200 {
            // Refused before the log: there is nothing to compare.
            continue;
        }
        let mut stored = sale.get(&format!("/v1/reservations/{}", told.body["id"].as_str().expect("an id"))).await;
        assert_eq!(told.header("etag"), stored.header("etag"));
        let mut told = told.body;
        for body in [&mut told, &mut stored.body] {
            // The time that is left goes by between the two.
            body.as_object_mut().expect("an object").remove("expires_in_seconds");
        }
        assert_eq!(told, stored.body, "told {told_by}");
        seen.push(format!("{} {}", told["status"].as_str().expect("a word"), told["reason"].as_str().unwrap_or("")));
    }
    assert!(seen.contains(&"RESERVED ".to_owned()) && seen.len() >= 2, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_told_with_its_batch_and_is_what_its_row_says() {
    for told_by in ["redis", "this process"] {
        let world = World::fresh(2).await;
        let prefix = fresh_name("prefix");
        let telling = Http::over_world_without_reads(&world, &prefix);
        let (cache, waiters) = (cache_at(&prefix), telling.waiters.clone());
        let consumer = world.consume_changed(|deps| match told_by {
            "redis" => deps.cache = cache,
            _ => deps.waiters = waiters,
        });
        let sale = Sale { http: Http::over_world(&world), world };
        assert_eq!(sale.put("s", json!({"on_hand": 60, "user_limit": 100})).await.status, 201);
        compare_what_is_told_with_what_is_stored(&sale, &telling, told_by).await;
        consumer.stop().await;
        sale.world.db.assert_invariants().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_in_another_process_is_told_what_was_decided_first() {
    let world = World::fresh(2).await;
    let prefix = fresh_name("prefix");
    let (one, other) = (Http::over_world_at(&world, &prefix), Http::over_world_at(&world, &prefix));
    let sale = Sale { http: Http::over_world_at(&world, &prefix), world };
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 10})).await.status, 201);
    consumer.stop().await;
    let post = async |http: &Http, cart: &str| {
        let body = json!({"user_id": "u", "sku_id": "s", "quantity": 1, "metadata": {"cart": cart}}).to_string();
        http.ask(request("POST /v1/reservations", &[("idempotency-key", "k"), WAIT], Some(&body))).await
    };
    // Neither process knows of the other's report: so both publish, and are told by one batch, each of its own place in the log.
    let (first, second, consumer) = tokio::join!(post(&one, "one"), post(&other, "other"), async {
        wait_for("one is in the log", SOON, async || {
            let skus = sale.get_admin("/v1/admin/skus/s").await;
            skus.body["lag_records"].as_i64().is_some_and(|records| records >= 1)
        })
        .await;
        sale.world.consume_changed(|deps| deps.cache = cache_at(&prefix))
    });
    assert_eq!([first.status, second.status], [200, 200], "{first:?} {second:?}");
    let told = [&first, &second].map(|answer| ["id", "metadata", "version"].map(|name| answer.body[name].clone()));
    assert_eq!(told[0], told[1], "whichever was decided first");
    assert_eq!(sale.world.db.number("SELECT count(*) FROM reservation").await, 1);
    consumer.stop().await;
    sale.world.db.assert_invariants().await;
}
