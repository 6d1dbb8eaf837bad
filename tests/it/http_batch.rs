//! Many requests in one call, with real servers and a real consumer: each is answered as the call for one would have answered it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flashsale::limits;
use futures_util::future::poll_immediate;
use serde_json::{Value, json};

use crate::support::app::{Answer, Http};
use crate::support::consumer::World;
use crate::support::kafka::fresh_name;
use crate::support::sale::{Sale, WAIT};
use crate::support::wait::wait_for;

const SOON: Duration = Duration::from_secs(20);

fn item(user: &str, sku: &str, quantity: u32) -> Value {
    json!({"user_id": user, "sku_id": sku, "quantity": quantity})
}

fn keyed(user: &str, sku: &str, quantity: u32, key: &str) -> Value {
    json!({"user_id": user, "sku_id": sku, "quantity": quantity, "idempotency_key": key})
}

/// The items of a 200.
fn items(answer: &Answer) -> &[Value] {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["items"].as_array().expect("items")
}

/// `status`, or `code` of a refusal, of each item.
fn words(answer: &Answer) -> Vec<&str> {
    let word = |item: &Value| match item["reservation"]["status"].as_str() {
        Some("REJECTED") => item["reservation"]["reason"].clone(),
        Some(status) => json!(status),
        None => item["problem"]["code"].clone(),
    };
    let known =
        ["QUEUED", "RESERVED", "SOLD_OUT", "USER_LIMIT", "UNKNOWN_SKU", "IDEMPOTENCY_KEY_REUSED", "QUEUE_UNAVAILABLE"];
    items(answer)
        .iter()
        .map(|item| known.into_iter().find(|known| word(item) == *known).unwrap_or_else(|| panic!("{item}")))
        .collect()
}

/// A reservation without the seconds that go by.
fn timeless(reservation: &Value) -> Value {
    let mut reservation = reservation.clone();
    reservation.as_object_mut().expect("a reservation").remove("expires_in_seconds");
    reservation
}

/// Redis is told of keys beside everything else.
async fn wait_until_known(sale: &Sale, asks: &[Value]) {
    for asked in asks {
        wait_for("a key is known", SOON, async || asked_alone(sale, asked, &[]).await["replayed"] == true).await;
    }
}

fn ids(answer: &Answer) -> Vec<String> {
    let id = |item: &Value| item["reservation"]["id"].as_str().unwrap_or_else(|| panic!("{item}")).to_owned();
    items(answer).iter().map(id).collect()
}

/// What the call for one answers, in the form of an item.
async fn asked_alone(sale: &Sale, asked: &Value, headers: &[(&str, &str)]) -> Value {
    let mut body = asked.clone();
    let key = body.as_object_mut().expect("an object").remove("idempotency_key");
    let mut headers = headers.to_vec();
    headers.extend(key.as_ref().and_then(Value::as_str).map(|key| ("idempotency-key", key)));
    let answer =
        sale.http.ask(crate::support::app::request("POST /v1/reservations", &headers, Some(&body.to_string()))).await;
    let mut item = json!({"http_status": answer.status});
    if answer.header("idempotent-replayed").is_some() {
        item["replayed"] = true.into();
    }
    if answer.header("content-type") == Some("application/problem+json") {
        answer
            .header("retry-after")
            .into_iter()
            .for_each(|s| item["retry_after"] = s.parse::<u64>().expect("seconds").into());
        item["problem"] = answer.body;
        for whole in ["instance", "request_id"] {
            item["problem"].as_object_mut().expect("a problem").remove(whole).expect("every problem has one");
        }
    } else {
        item["reservation"] = answer.body;
    }
    item
}

/// Without what differs from one request to the next.
fn without_what_differs(item: &Value) -> Value {
    let mut item = item.clone();
    let differ =
        ["id", "ticket", "status_url", "eta_seconds", "accepted_at", "expires_at", "expires_in_seconds", "user_id"];
    for part in ["/reservation", "/problem"] {
        for (name, value) in item.pointer_mut(part).and_then(Value::as_object_mut).into_iter().flatten() {
            if differ.contains(&name.as_str()) {
                *value = json!("(differs)");
            }
        }
    }
    if item["problem"]["code"] == "SALE_NOT_STARTED" {
        assert!(item["retry_after"].is_u64(), "{item}");
        item["retry_after"] = json!("(jitter)");
    }
    item
}

async fn open_sale(skus: &[(&str, Value)]) -> (Sale, crate::support::consumer::Running) {
    let sale = Sale::fresh().await;
    let consumer = sale.world.consume();
    for (sku, body) in skus {
        assert_eq!(sale.put(sku, body.clone()).await.status, 201, "{sku}");
    }
    (sale, consumer)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_item_is_answered_as_the_call_for_one() {
    let (sale, consumer) = open_sale(&[
        ("open", json!({"on_hand": 1000, "user_limit": 2})),
        ("other", json!({"on_hand": 1000, "user_limit": 2})),
        ("gone", json!({"on_hand": 0, "user_limit": 2})),
        ("later", json!({"on_hand": 5, "starts_at": "2999-01-01T00:00:00Z"})),
        ("over", json!({"on_hand": 5, "ends_at": "2001-01-01T00:00:00Z"})),
        ("paused", json!({"on_hand": 5})),
    ])
    .await;
    assert_eq!(sale.admin("POST /v1/admin/skus/paused/pause", json!({})).await.status, 200);
    wait_for("the pause and the empty stock are known", SOON, async || {
        sale.ask_for("x", "paused", &[]).await.code() == "SALE_PAUSED"
            && sale.ask_for("x", "gone", &[]).await.code() == "SOLD_OUT"
    })
    .await;
    let asks = |crowd: &str| {
        let user = |n: usize| format!("{crowd}-{n}");
        let mut with_metadata = item(&user(0), "open", 1);
        with_metadata["metadata"] = json!({"order": "o-1", "z": "\"{"});
        vec![
            with_metadata,
            item(&user(1), "open", 2),
            item(&user(2), "open", 3),
            item(&user(3), "nope", 1),
            item(&user(4), "gone", 1),
            item(&user(5), "later", 1),
            item(&user(6), "over", 1),
            item(&user(7), "paused", 1),
            item(&user(8), "other", 1),
            keyed(&user(9), "open", 1, "k"),
            keyed(&user(9), "open", 2, "k"),
            keyed(&user(9), "other", 1, "k"),
            keyed(&user(10), "paused", 1, "\"k\""),
            item(&user(1), "open", 1),
            json!({"user_id": "", "sku_id": "open", "quantity": 0}),
        ]
    };
    for (crowd, headers) in [("waits", &[WAIT][..]), ("leaves", &[])] {
        let told = sale.ask_for_many(&asks(&format!("{crowd}-together")), headers).await;
        assert_eq!(told.header("preference-applied"), headers.first().map(|(_, wait)| *wait));
        let told = items(&told);
        let alone = asks(&format!("{crowd}-alone"));
        assert_eq!(told.len(), alone.len());
        for (at, (told, asked)) in told.iter().zip(&alone).enumerate() {
            let mut alone = asked_alone(&sale, asked, headers).await;
            // Pointers are relative to the whole body.
            for error in alone.pointer_mut("/problem/errors").and_then(Value::as_array_mut).into_iter().flatten() {
                error["pointer"] = format!("/items/{at}{}", error["pointer"].as_str().expect("a pointer")).into();
            }
            let [told, alone] = [told, &alone].map(without_what_differs);
            assert_eq!(told, alone, "{crowd}: item {at}");
        }
    }
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_call_is_decided_in_its_answer_over_all_partitions() {
    let limit = json!({"on_hand": 200, "user_limit": 1});
    let (sale, consumer) = open_sale(&[("a", limit.clone()), ("b", limit)]).await;
    let asks: Vec<Value> = (0..250).map(|n| item(&format!("u-{n}"), if n % 2 == 0 { "a" } else { "b" }, 1)).collect();
    let started = Instant::now();
    let told = sale.ask_for_many(&asks, &[WAIT]).await;
    assert!(started.elapsed() < Duration::from_secs(15), "woken, not timed out");
    assert_eq!(words(&told), ["RESERVED"; 250]);
    for (asked, told) in asks.iter().zip(items(&told)) {
        let told = &told["reservation"];
        assert_eq!((&told["user_id"], &told["sku_id"]), (&asked["user_id"], &asked["sku_id"]), "in its place");
    }
    let partitions = sale.world.db.number("SELECT count(DISTINCT partition) FROM reservation").await;
    assert_eq!(partitions, 2, "each SKU has its own");
    // Together, one SKU after the other.
    let records = sale.world.db.number("SELECT count(DISTINCT (partition, log_offset)) FROM reservation").await;
    assert!(records <= 2 * 250 / limits::RECORD_COMMANDS_MAX as i64, "{records} records");
    // All of them, and only once.
    let all = ids(&told);
    let unknown = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000";
    let listed = sale.get(&format!("/v1/reservations?ids={},{unknown},{}", all[..248].join(","), all[0])).await;
    let listed: Vec<&Value> = listed.body["items"].as_array().expect("items").iter().map(|item| &item["id"]).collect();
    assert_eq!(listed, all[..248].iter().collect::<Vec<_>>());
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_one_reservation_within_a_call_and_between_calls() {
    let (sale, consumer) = open_sale(&[("s", json!({"on_hand": 100, "user_limit": 9}))]).await;
    let alone = sale.ask_for("u", "s", &[WAIT, ("idempotency-key", "alone")]).await;
    wait_until_known(&sale, &[keyed("u", "s", 1, "alone")]).await;
    let asks = [
        keyed("u", "s", 1, "alone"),
        keyed("u", "s", 1, "twice"),
        keyed("u", "s", 1, "\"twice\""),
        keyed("u", "s", 2, "twice"),
        keyed("v", "s", 1, "twice"),
        item("u", "s", 1),
    ];
    let told = sale.ask_for_many(&asks, &[WAIT]).await;
    let word = "IDEMPOTENCY_KEY_REUSED";
    assert_eq!(words(&told), ["RESERVED", "RESERVED", "RESERVED", word, "RESERVED", "RESERVED"]);
    let told = items(&told);
    assert_eq!(timeless(&told[0]["reservation"]), timeless(&alone.body), "what was bought alone");
    assert_eq!(told[0]["replayed"], true);
    assert_eq!(timeless(&told[1]["reservation"]), timeless(&told[2]["reservation"]), "one reservation");
    assert_ne!(told[1]["reservation"]["id"], told[4]["reservation"]["id"], "a key is one user's");
    let count = "SELECT count(*) FROM reservation";
    assert_eq!(sale.world.db.number(count).await, 4, "alone, twice of u, twice of v, and the one without a key");
    wait_until_known(&sale, &[asks[1].clone(), asks[4].clone()]).await;
    // The whole call again: what has a key is replayed, what has none is bought again.
    let again = sale.ask_for_many(&asks, &[WAIT]).await;
    for (at, (again, told)) in items(&again).iter().zip(told).enumerate() {
        assert_eq!(again["reservation"]["id"] == told["reservation"]["id"], at != 5, "item {at}");
        assert_eq!(again["replayed"] == true, ![3, 5].contains(&at), "item {at}: {again}");
    }
    assert_eq!(sale.world.db.number(count).await, 5);
    assert_eq!(sale.world.db.number("SELECT reserved FROM sku").await, 5);
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_at_the_limit_is_refused_in_the_order_of_the_items() {
    let (sale, consumer) = open_sale(&[("s", json!({"on_hand": 100, "user_limit": 2}))]).await;
    let asks = [item("u", "s", 1), item("v", "s", 2), item("u", "s", 2), item("u", "s", 1), item("u", "s", 1)];
    let told = sale.ask_for_many(&asks, &[WAIT]).await;
    assert_eq!(words(&told), ["RESERVED", "RESERVED", "USER_LIMIT", "RESERVED", "USER_LIMIT"]);
    let remaining = [2, 4].map(|at| (&items(&told)[at]["http_status"], &items(&told)[at]["problem"]["remaining"]));
    assert_eq!(remaining, [(&json!(409), &json!(1)), (&json!(409), &json!(0))], "before the log");
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_decides_is_queued_and_can_be_followed() {
    let (sale, consumer) = open_sale(&[("s", json!({"on_hand": 2, "user_limit": 1}))]).await;
    consumer.stop().await;
    let asks: Vec<Value> = (0..4).map(|n| keyed(&format!("u-{n}"), "s", 1, "k")).collect();
    let started = Instant::now();
    let told = sale.ask_for_many(&asks, &[("prefer", "wait=1")]).await;
    assert!(started.elapsed() >= Duration::from_secs(1), "it waits");
    assert_eq!(words(&told), ["QUEUED"; 4]);
    for (index, item) in items(&told).iter().enumerate() {
        let told = &item["reservation"];
        let (id, ticket) = (told["id"].as_str().expect("an id"), told["ticket"].as_str().expect("a ticket"));
        assert!(ticket.ends_with(&format!(".{index}")), "one record, in the order of the items: {ticket}");
        assert_eq!(told["status_url"], format!("/v1/reservations/{id}?ticket={ticket}"));
    }
    // Nobody can say that they are not there, nor what became of them.
    let list = format!("/v1/reservations?ids={}", ids(&told).join(","));
    let undecided = sale.get(&list).await;
    assert_eq!((undecided.status, undecided.code()), (503, "STATUS_UNAVAILABLE"));
    wait_until_known(&sale, &asks).await;
    let replayed = sale.ask_for_many(&asks, &[]).await;
    assert_eq!(ids(&replayed), ids(&told));
    assert!(items(&replayed).iter().all(|item| item["replayed"] == true && item["http_status"] == 202), "{replayed:?}");
    // Whoever waits is woken when somebody decides.
    let (decided, consumer) = tokio::join!(sale.ask_for_many(&asks, &[WAIT]), async { sale.world.consume() });
    assert_eq!(words(&decided), ["RESERVED", "RESERVED", "SOLD_OUT", "SOLD_OUT"], "first come, first served");
    let listed = sale.get(&list).await;
    let statuses: Vec<&Value> =
        listed.body["items"].as_array().expect("items").iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, ["RESERVED", "RESERVED", "REJECTED", "REJECTED"]);
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_leaves_nothing_half_way() {
    let (sale, consumer) = open_sale(&[("s", json!({"on_hand": 300, "user_limit": 1}))]).await;
    let asks: Vec<Value> = (0..250).map(|n| keyed(&format!("u-{n}"), "s", 1, "k")).collect();
    // It has sent its call and is gone before anything was answered.
    {
        let mut call = Box::pin(sale.ask_for_many(&asks, &[WAIT]));
        assert!(poll_immediate(&mut call).await.is_none(), "it takes a call to redis at least");
    }
    wait_for("all are decided", SOON, async || {
        sale.world.db.number("SELECT count(*) FROM reservation WHERE status = 1").await == 250
    })
    .await;
    // What became of them was told to Redis: every key is known, none is only pending.
    wait_for("all keys are known", SOON, async || {
        let again = sale.ask_for_many(&asks, &[]).await;
        items(&again).iter().all(|item| item["replayed"] == true)
    })
    .await;
    assert_eq!(sale.world.db.number("SELECT count(*) FROM reservation").await, 250);
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_the_writer_says() {
    let (mut sale, consumer) = open_sale(&[("s", json!({"on_hand": 100, "user_limit": 2}))]).await;
    sale.http = Http::without_redis(&sale.world);
    let asks = [
        item("u", "s", 1),
        item("u", "s", 2),
        item("u", "s", 3),
        keyed("v", "s", 1, "k"),
        keyed("v", "s", 1, "k"),
        item("w", "nope", 1),
    ];
    let told = sale.ask_for_many(&asks, &[WAIT]).await;
    let at_once = "USER_LIMIT";
    assert_eq!(words(&told), ["RESERVED", "USER_LIMIT", at_once, "RESERVED", "RESERVED", "UNKNOWN_SKU"]);
    let statuses: Vec<&Value> = items(&told).iter().map(|item| &item["http_status"]).collect();
    assert_eq!(statuses, [200, 200, 409, 200, 200, 404], "the writer refuses the second, its quantity the third");
    let [one, other] = [3, 4].map(|at| timeless(&items(&told)[at]["reservation"]));
    assert_eq!(one, other, "one reservation");
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_every_item_is_told_and_nothing_is_taken() {
    let (mut sale, consumer) = open_sale(&[("s", json!({"on_hand": 100, "user_limit": 1}))]).await;
    let with_kafka = std::mem::replace(&mut sale.http, Http::without_kafka(&sale.world));
    let asks = [item("u", "s", 1), keyed("v", "s", 1, "k"), item("w", "nope", 1)];
    let told = sale.ask_for_many(&asks, &[WAIT]).await;
    assert_eq!(words(&told), ["QUEUE_UNAVAILABLE", "QUEUE_UNAVAILABLE", "UNKNOWN_SKU"]);
    let told = items(&told);
    assert_eq!((&told[0]["problem"]["outcome"], &told[0]["retry_after"]), (&json!("none"), &json!(1)));
    // The memory of this Redis is too young to say that the key was never used.
    assert_eq!(told[1]["problem"]["outcome"], "unknown", "{}", told[1]);
    assert!(told[1]["problem"]["status_url"].is_string(), "{}", told[1]);
    // The units went back: the same user may ask again, at the limit.
    wait_for("units are given back", SOON, async || {
        let limits = sale.get("/v1/users/u/limits?sku_id=s").await;
        (&limits.body["queued"], &limits.body["remaining"]) == (&json!(0), &json!(1))
    })
    .await;
    sale.http = with_kafka;
    assert_eq!(words(&sale.ask_for_many(&asks, &[WAIT]).await)[..2], ["RESERVED", "RESERVED"]);
    assert_eq!(sale.world.db.number("SELECT count(*) FROM reservation").await, 2);
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sold_out_key_that_must_be_looked_up_holds_nobody_up() {
    let (sale, consumer) =
        open_sale(&[("gone", json!({"on_hand": 0})), ("open", json!({"on_hand": 100, "user_limit": 1}))]).await;
    wait_for("the empty stock is known", SOON, async || sale.ask_for("x", "gone", &[]).await.code() == "SOLD_OUT")
        .await;
    // Keys are looked for in Postgres before they are refused; nothing of this is in Redis.
    let mut asks: Vec<Value> = (0..100).map(|n| keyed(&format!("u-{n}"), "gone", 1, "k")).collect();
    asks.extend((0..100).map(|n| item(&format!("u-{n}"), "open", 1)));
    let told = sale.ask_for_many(&asks, &[WAIT]).await;
    assert_eq!(words(&told)[..100], ["SOLD_OUT"; 100]);
    assert_eq!(words(&told)[100..], ["RESERVED"; 100]);
    let users: BTreeSet<&str> =
        items(&told)[100..].iter().filter_map(|item| item["reservation"]["user_id"].as_str()).collect();
    assert_eq!(users.len(), 100);
    consumer.stop().await;
    sale.world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_come_with_their_batch_and_nothing_is_read() {
    let world = World::fresh(2).await;
    let prefix = fresh_name("prefix");
    let telling = Http::over_world_without_reads(&world, &prefix);
    let waiters = telling.waiters.clone();
    let consumer = world.consume_changed(|deps| deps.waiters = waiters);
    let mut sale = Sale { http: Http::over_world(&world), world };
    assert_eq!(sale.put("s", json!({"on_hand": 200, "user_limit": 1})).await.status, 201);
    let asks: Vec<Value> = (0..250)
        .map(|n| {
            let mut ask = item(&format!("u-{n}"), "s", 1);
            ask["metadata"] = json!({"n": n.to_string()});
            ask
        })
        .collect();
    let reading = std::mem::replace(&mut sale.http, telling);
    let told = sale.ask_for_many(&asks, &[WAIT]).await;
    sale.http = reading;
    assert_eq!(words(&told)[..200], ["RESERVED"; 200]);
    assert_eq!(words(&told)[200..], ["SOLD_OUT"; 50]);
    let listed = sale.get(&format!("/v1/reservations?ids={}", ids(&told).join(","))).await;
    let stored = listed.body["items"].as_array().expect("items");
    assert_eq!(stored.len(), 250);
    for (told, stored) in items(&told).iter().zip(stored) {
        assert_eq!(timeless(&told["reservation"]), timeless(stored), "what was told is what was stored");
    }
    consumer.stop().await;
    sale.world.finish().await;
}
