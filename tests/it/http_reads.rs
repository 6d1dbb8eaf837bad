//! Reading over HTTP with real servers: streams, lists, limits, and what an operator sees of a SKU.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flashsale::limits;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::app::{Answer, request, whole};
use crate::support::sale::{Sale, WAIT};

/// The events of a whole stream: name, id, and the reservation.
fn events_of(stream: &Value) -> Vec<(String, String, Value)> {
    let text = stream.as_str().expect("a stream is a text");
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or_default().to_owned()
    };
    let events = text.split("\n\n").filter(|event| event.contains("event:"));
    let read = |event: &str| {
        let data = serde_json::from_str(&field(event, "data")).expect("data is JSON");
        (field(event, "event"), field(event, "id"), data)
    };
    events.map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_every_change_and_ends_with_the_last() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 9, "user_limit": 9})).await.status, 201);
    consumer.stop().await;
    let body = json!({"user_id": "u", "sku_id": "s", "quantity": 1, "metadata": {"order": "o-1"}}).to_string();
    let queued = sale.http.ask(request("POST /v1/reservations", &[], Some(&body))).await;
    let (id, ticket) = (queued.body["id"].as_str().expect("an id"), queued.body["ticket"].as_str().expect("a ticket"));
    let stream = format!("/v1/reservations/{id}/events?ticket={ticket}");
    let changes = async {
        // Long polls are woken by the changes, the stream like them.
        let consumer = sale.world.consume();
        let poll = format!("GET /v1/reservations/{id}?ticket={ticket}");
        let reserved = sale.http.ask(request(&poll, &[WAIT], None)).await;
        assert_eq!(reserved.body["status"], "RESERVED");
        assert_eq!(sale.change(id, "extend", json!({"seconds": 60})).await.status, 200);
        assert_eq!(sale.change(id, "confirm", json!({"payment_ref": "pay-9"})).await.status, 200);
        consumer
    };
    let (answer, consumer) = tokio::join!(sale.get(&stream), changes);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
    let events = events_of(&answer.body);
    // A stream tells states, not their history: one that passed quickly may be left out, the order never changes.
    let versions: Vec<&str> = events.iter().map(|(_, version, _)| version.as_str()).collect();
    assert!(versions.is_sorted() && versions.first() == Some(&"0") && versions.last() == Some(&"3"), "{versions:?}");
    let words: Vec<&str> = events.iter().filter_map(|(_, _, data)| data["status"].as_str()).collect();
    assert_eq!((words.first(), words.last()), (Some(&"QUEUED"), Some(&"CONFIRMED")));
    assert!(events.iter().all(|(name, ..)| name == "status"));
    assert_eq!(events.last().expect("some").2["metadata"], json!({"order": "o-1"}));
    // What does not change any more is told once; what does not exist is a problem.
    assert_eq!(events_of(&sale.get(&format!("/v1/reservations/{id}/events")).await.body).len(), 1);
    let nobody = sale.get("/v1/reservations/0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000/events").await;
    assert_eq!((nobody.status, nobody.code()), (404, "UNKNOWN_RESERVATION"));
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_is_told_only_what_it_missed() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 9, "user_limit": 9})).await.status, 201);
    let id = sale.reserve("u", "s").await;
    let follow = async |last_seen: &[&str]| {
        let lines: Vec<_> = last_seen.iter().map(|id| ("last-event-id", *id)).collect();
        sale.http.ask(request(&format!("GET /v1/reservations/{id}/events"), &lines, None)).await
    };
    let versions = |answer: &Answer| -> Vec<String> {
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")), "{answer:?}");
        events_of(&answer.body).into_iter().map(|(_, version, _)| version).collect()
    };
    // It has RESERVED and waits for what follows. The head of the answer comes when the state was read.
    let stream = request(&format!("GET /v1/reservations/{id}/events"), &[("last-event-id", "1")], None);
    let stream = sale.http.public.clone().oneshot(stream).await.expect("routers are infallible");
    assert_eq!(sale.change(&id, "confirm", json!({"payment_ref": "pay-9"})).await.status, 200);
    assert_eq!(versions(&whole(stream).await), ["2"]);
    // It was away when the last change came.
    assert_eq!(versions(&follow(&["1"]).await), ["2"]);
    // It has seen the last one: 204 is how an EventSource is told not to come again.
    let over = follow(&["2"]).await;
    assert_eq!((over.status, &over.body, over.header("content-type")), (204, &json!(""), None));
    // What can't be one of our versions is as good as none.
    for ignored in [&[""][..], &["x"], &["-2"], &["+2"], &["2.0"], &["2,2"], &["99999999999"], &["3"], &["2", "2"]] {
        assert_eq!(versions(&follow(ignored).await), ["2"], "{ignored:?}");
    }
    let nobody = "GET /v1/reservations/0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000/events";
    let nobody = sale.http.ask(request(nobody, &[("last-event-id", "2")], None)).await;
    assert_eq!((nobody.status, nobody.code()), (404, "UNKNOWN_RESERVATION"));
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_gives_its_place_back() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 9})).await.status, 201);
    let id = sale.reserve("u", "s").await;
    let taken = || limits::EVENT_STREAMS_MAX - sale.http.event_streams.available_permits();
    let path = format!("/v1/reservations/{id}/events");
    let open = async || {
        let asked = sale.http.public.clone().oneshot(request(&format!("GET {path}"), &[], None)).await;
        asked.expect("routers are infallible")
    };
    let streams = [open().await, open().await];
    assert_eq!(taken(), 2);
    // A client that leaves drops the body, read or not.
    drop(streams);
    assert_eq!(taken(), 0);
    assert_eq!(sale.get("/v1/reservations/0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000/events").await.status, 404);
    assert_eq!(sale.change(&id, "cancel", json!({})).await.status, 200);
    assert_eq!(sale.get(&path).await.status, 200);
    assert_eq!(sale.http.ask(request(&format!("GET {path}"), &[("last-event-id", "2")], None)).await.status, 204);
    assert_eq!(taken(), 0);
    // With none left, nobody else is kept waiting.
    let all = u32::try_from(limits::EVENT_STREAMS_MAX).expect("it fits");
    let places = Arc::clone(&sale.http.event_streams).acquire_many_owned(all).await.expect("never closed");
    let full = sale.get(&path).await;
    assert_eq!((full.status, full.code()), (503, "OVERLOADED"));
    drop(places);
    assert_eq!(sale.get(&path).await.status, 200);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_the_process_stops() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 9})).await.status, 201);
    let id = sale.reserve("u", "s").await;
    let started = Instant::now();
    let path = format!("/v1/reservations/{id}/events");
    let (answer, ()) = tokio::join!(sale.get(&path), async {
        crate::support::wait::wait_for("the stream is open", crate::support::consumer::SOON, async || {
            sale.get("/v1/skus/s").await.status == 200
        })
        .await;
        sale.http.stop_waiting();
    });
    assert_eq!(events_of(&answer.body).len(), 1);
    assert!(started.elapsed() < Duration::from_secs(14), "not by the next heartbeat");
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_who_holds_what_page_by_page() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    for sku in ["a", "b"] {
        assert_eq!(sale.put(sku, json!({"on_hand": 4, "user_limit": 4})).await.status, 201);
    }
    let mut of_u = Vec::new();
    for sku in ["a", "a", "b", "b"] {
        of_u.push(sale.reserve("u", sku).await);
        sale.reserve("v", sku).await;
    }
    assert_eq!(sale.change(&of_u[0], "confirm", json!({"payment_ref": "pay-9"})).await.status, 200);
    assert_eq!(sale.change(&of_u[1], "cancel", json!({})).await.status, 200);
    let ids = |answer: &Answer| -> Vec<String> {
        assert_eq!(answer.status, 200, "{answer:?}");
        let items = answer.body["items"].as_array().expect("items").iter();
        items.map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
    };
    let mut expected = of_u.clone();
    expected.sort();
    assert_eq!(ids(&sale.get("/v1/users/u/reservations").await), expected);
    // Page by page the same, and no page is empty.
    let (mut paged, mut path) = (Vec::new(), "/v1/users/u/reservations?limit=3".to_owned());
    let pages = loop {
        let page = sale.get(&path).await;
        paged.extend(ids(&page));
        match page.body["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/users/u/reservations?limit=3&cursor={cursor}"),
            None => break page,
        }
    };
    assert_eq!((paged, ids(&pages).len()), (expected, 1));
    let of = async |query: &str| ids(&sale.get(&format!("/v1/users/u/reservations?{query}")).await);
    assert_eq!(of("status=CONFIRMED").await, of_u[..1]);
    assert_eq!(of("status=CANCELLED").await, of_u[1..2]);
    assert_eq!(of("status=RESERVED&sku_id=b").await.len(), 2);
    assert_eq!(of("status=RESERVED&sku_id=a").await, Vec::<String>::new());
    assert_eq!(ids(&sale.get("/v1/users/nobody/reservations").await), Vec::<String>::new());
    let all = async |query: &str| ids(&sale.get_admin(&format!("/v1/admin/reservations?{query}")).await).len();
    assert_eq!((all("").await, all("user_id=v").await, all("sku_id=a&status=RESERVED").await), (8, 4, 2));
    assert_eq!(all("expires_before=2001-01-01T00:00:00Z").await, 0);
    assert_eq!(all("expires_before=2999-01-01T00:00:00Z&status=RESERVED").await, 6);
    let mut refusals = Vec::new();
    for path in [
        "/v1/users/u/reservations?status=QUEUED",
        "/v1/users/u/reservations?limit=501",
        "/v1/users/u/reservations?cursor=7",
        "/v1/users/u/reservations?user_id=v",
        "/v1/users/a%20b/reservations",
        "/v1/users/u/limits",
        "/v1/users/u/limits?sku_id=a%20b",
        "/v1/users/u/limits?sku_id=nope",
    ] {
        refusals.push(json!({"path": path, "answer": sale.get(path).await.whole()}));
    }
    refusals.push(json!({"path": "expires_before",
        "answer": sale.get_admin("/v1/admin/reservations?expires_before=soon").await.whole()}));
    insta::assert_json_snapshot!("refused_lists", refusals);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_refused_requests_makes_pages_short_and_no_list_fail() {
    let sale = Sale::fresh().await;
    sale.world.db.plant_crowd(3 * limits::LIST_EXAMINED_MAX as u32).await;
    let users = sale.get("/v1/users/u1/reservations").await;
    assert_eq!((users.status, users.body["items"][0]["status"].as_str()), (200, Some("CONFIRMED")));
    assert_eq!((users.body["items"][1].clone(), users.body.get("next_cursor")), (Value::Null, None), "nothing refused");
    let refused = sale.get("/v1/users/u1/reservations?status=REJECTED&limit=3").await;
    let items = refused.body["items"].as_array().expect("items");
    assert!(items.len() == 3 && items.iter().all(|item| item["status"] == "REJECTED"), "{refused:?}");
    assert!(refused.body["next_cursor"].is_string());
    let of_operator = sale.get_admin("/v1/admin/reservations?user_id=u1").await;
    assert_eq!(of_operator.body["items"], users.body["items"], "the same list");
    // Whoever goes on until there is no cursor finds the only one.
    let (mut found, mut pages, mut path) = (Vec::new(), 0, "/v1/admin/reservations?status=CONFIRMED".to_owned());
    loop {
        let page = sale.get_admin(&path).await;
        assert_eq!(page.status, 200, "{page:?}");
        pages += 1;
        found.extend(page.body["items"].as_array().expect("items").clone());
        let Some(cursor) = page.body["next_cursor"].as_str() else { break };
        path = format!("/v1/admin/reservations?status=CONFIRMED&cursor={cursor}");
    }
    assert_eq!(found, users.body["items"].as_array().expect("items")[..]);
    assert!(pages >= 4, "{pages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_a_ledger() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 9, "user_limit": 4})).await.status, 201);
    let (bought, held, given_back) =
        (sale.reserve("u", "s").await, sale.reserve("u", "s").await, sale.reserve("u", "s").await);
    assert_eq!(sale.change(&bought, "confirm", json!({"payment_ref": "pay-9"})).await.status, 200);
    assert_eq!(sale.change(&given_back, "cancel", json!({})).await.status, 200);
    assert_eq!(sale.change(&held, "extend", json!({"seconds": 60})).await.status, 200);
    let limits = sale.get("/v1/users/u/limits?sku_id=s").await;
    let mut body = limits.body.clone();
    // The hint lives in another Redis than the one that is told of decisions: only here.
    let queued = body["queued"].take();
    assert!(queued.is_u64(), "{limits:?}");
    body["remaining"] = "(remaining)".into();
    let expected = json!({"user_id": "u", "sku_id": "s", "limit": 4, "reserved": 1, "sold": 1,
        "queued": null, "remaining": "(remaining)"});
    assert_eq!(body, expected);
    let nobody = sale.get("/v1/users/nobody/limits?sku_id=s").await;
    assert_eq!(
        nobody.body,
        json!({"user_id": "nobody", "sku_id": "s", "limit": 4, "reserved": 0, "sold": 0, "queued": 0, "remaining": 4})
    );
    consumer.stop().await;
    // A hold that has ended counts no more, also while its row does not say so yet.
    sale.world.db.run("UPDATE sku SET expired_through = now() + interval '1 day'").await;
    let ended = sale.get("/v1/users/u/limits?sku_id=s").await;
    assert_eq!((&ended.body["reserved"], &ended.body["sold"]), (&json!(0), &json!(1)), "{ended:?}");
    let list = sale.get("/v1/users/u/reservations?status=RESERVED").await;
    assert_eq!(list.body["items"], json!([]), "it is EXPIRED: {list:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_waits() {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    assert_eq!(sale.put("s", json!({"on_hand": 9, "user_limit": 9})).await.status, 201);
    consumer.stop().await;
    for _ in 0..3 {
        assert_eq!(sale.ask_for("u", "s", &[]).await.status, 202);
    }
    let shown = sale.get_admin("/v1/admin/skus/s").await;
    let numbers = ["queued", "position", "lag_records", "pinned_partition"].map(|name| shown.body[name].clone());
    assert_eq!(numbers, [json!(3), json!(1), json!(3), json!(0)], "{shown:?}");
    assert!(shown.body["lag_seconds"].is_number() && shown.body["epoch"].is_number());
    assert!(shown.body.get("halted_reason").is_none());
    sale.world.db.run("UPDATE partition_state SET halted_reason = 'planted' WHERE partition = 0").await;
    let halted = sale.get_admin("/v1/admin/skus/s").await;
    assert_eq!((&halted.body["halted_reason"], &halted.body["status"]), (&json!("planted"), &json!("HALTED")));
}
