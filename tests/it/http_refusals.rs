//! Every refusal that needs no server, whole: status, headers, body. Postgres, Redis and Kafka are away all the time, so these cases
//! also show that a mistake of a client is told before anything is asked.

use axum::body::Body;
use axum::http::Request;
use flashsale::limits;
use serde_json::{Value, json};

use crate::support::app::{Http, request};

const GOOD: &str = r#"{"user_id":"u-1","sku_id":"sneaker-42","quantity":1}"#;
const POST: &str = "POST /v1/reservations";
const ID: &str = "/v1/reservations/0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000";
const TOKEN: (&str, &str) = ("authorization", "Bearer t0ken");

async fn answers(cases: Vec<(&str, Request<Body>)>, is_admin: bool) -> Value {
    let http = Http::away();
    let mut told = Vec::new();
    for (name, request) in cases {
        let answer = if is_admin { http.ask_admin(request).await } else { http.ask(request).await };
        told.push(json!({"case": name, "answer": answer.whole()}));
    }
    told.into()
}

#[tokio::test]
async fn buyers_mistakes_are_told_whole() {
    let deep = format!("{{\"user_id\":{}1{}}}", "[".repeat(20), "]".repeat(20));
    let large = format!("{{\"user_id\":\"{}\"}}", "x".repeat(limits::BODY_BYTES_MAX));
    let key = |value| request(POST, &[("idempotency-key", value)], Some(GOOD));
    let declared_as = |value| request(POST, &[("content-type", value)], Some(GOOD));
    let ids = vec!["0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000"; 250].join(",");
    let cases = vec![
        ("not JSON", request(POST, &[], Some("{"))),
        ("empty body", request(POST, &[], Some(""))),
        ("duplicate keys", request(POST, &[], Some(r#"{"user_id":"a","user_id":"b"}"#))),
        ("nested too deep", request(POST, &[], Some(&deep))),
        ("missing fields", request(POST, &[], Some("{}"))),
        ("all mistakes at once", request(POST, &[], Some(r#"{"user_id":"a b","quantity":1001,"price":1}"#))),
        ("not an object", request(POST, &[], Some("[]"))),
        ("no content type", declared_as("(none)")),
        ("wrong content type", declared_as("text/plain")),
        ("body too large", request(POST, &[], Some(&large))),
        ("empty key", key("")),
        ("key too long", key(&"k".repeat(256))),
        ("key broken quotation", key("\"k")),
        ("key twice", request(POST, &[("idempotency-key", "k"), ("idempotency-key", "k")], Some(GOOD))),
        ("unknown parameter", request("POST /v1/reservations?wait=5", &[], Some(GOOD))),
        ("unknown path", request("GET /v2", &[], None)),
        ("wrong method", request("DELETE /v1/reservations", &[], None)),
        ("wrong method with an id", request(&format!("PUT {ID}"), &[], Some("{}"))),
        ("malformed id", request("GET /v1/reservations/17", &[], None)),
        ("id that is no text", request("GET /v1/reservations/%ff", &[], None)),
        ("malformed ticket", request(&format!("GET {ID}?ticket=3.x.0"), &[], None)),
        ("malformed SKU", request("GET /v1/skus/a%20b", &[], None)),
        ("headers too large", request("GET /v1/skus/a", &[("x-large", &"x".repeat(limits::HEADER_BYTES_MAX))], None)),
        ("250 ids in a query are not too large", request(&format!("GET {ID}?ids={ids}"), &[], None)),
    ];
    insta::assert_json_snapshot!(answers(cases, false).await);
}

#[tokio::test]
async fn mistakes_of_calls_about_many_are_told_whole() {
    const MANY: &str = "POST /v1/reservations/batch";
    let with = |count: usize| format!(r#"{{"items":[{}]}}"#, vec![GOOD; count].join(","));
    let post = |body: &str| request(MANY, &[], Some(body));
    let get = |query: String| request(&format!("GET /v1/reservations{query}"), &[], None);
    let id = &ID["/v1/reservations/".len()..];
    let large = format!(r#"{{"items":["{}"]}}"#, "x".repeat(limits::RESERVATIONS_BODY_BYTES_MAX));
    let cases = vec![
        ("not JSON", post("{")),
        ("duplicate keys in an item", post(r#"{"items":[{"user_id":"a","user_id":"b"}]}"#)),
        ("no content type", request(MANY, &[("content-type", "(none)")], Some(&with(1)))),
        ("body too large", post(&large)),
        ("no items", post("{}")),
        ("empty items", post(&with(0))),
        ("too many items", post(&with(limits::RESERVATIONS_PER_CALL_MAX + 1))),
        ("items that are no array, and another field", post(r#"{"items":{},"wait":5}"#)),
        ("not an object", post("[]")),
        ("a key for all", request(MANY, &[("idempotency-key", "k")], Some(&with(1)))),
        ("unknown parameter", request("POST /v1/reservations/batch?wait=5", &[], Some(&with(1)))),
        ("wrong method", request("GET /v1/reservations/batch", &[], None)),
        ("no ids", get(String::new())),
        ("empty ids", get("?ids=".to_owned())),
        ("a malformed id", get(format!("?ids={id},17"))),
        ("too many ids", get(format!("?ids={}", vec![id; limits::RESERVATIONS_PER_CALL_MAX + 1].join(",")))),
        ("ids twice", get(format!("?ids={id}&ids={id}"))),
        ("unknown parameter beside ids", get(format!("?ids={id}&ticket=0.0.0"))),
    ];
    insta::assert_json_snapshot!(answers(cases, false).await);
}

#[tokio::test]
async fn a_call_of_many_that_is_large_is_read_to_its_end() {
    let http = Http::away();
    let item = json!({"user_id": "u".repeat(64), "sku_id": "s".repeat(64), "quantity": 1000, "idempotency_key": "k".repeat(255)});
    let body = json!({"items": vec![item; limits::RESERVATIONS_PER_CALL_MAX]}).to_string();
    assert!((100_000..limits::RESERVATIONS_BODY_BYTES_MAX).contains(&body.len()), "{}", body.len());
    let answer = http.ask(request("POST /v1/reservations/batch", &[], Some(&body))).await;
    let items = answer.body["items"].as_array().expect("items");
    assert!(
        answer.status == 200 && items.len() == 250 && items.iter().all(|item| item["http_status"] == 503),
        "{answer:?}"
    );
    // No other call takes as much.
    assert_eq!(http.ask(request(POST, &[], Some(&body))).await.code(), "BODY_TOO_LARGE");
}

#[tokio::test]
async fn one_bad_item_fails_no_other() {
    let items = [
        r#"{"user_id":"u","sku_id":"s","quantity":1,"idempotency_key":"k"}"#,
        r#"{"user_id":"a b","quantity":1001,"idempotency_key":"","price":1}"#,
        "17",
        r#"{"user_id":"u","sku_id":"s","quantity":1,"metadata":{"a":1}}"#,
        GOOD,
    ];
    let body = format!(r#"{{"items":[{}]}}"#, items.join(","));
    insta::assert_json_snapshot!(
        Http::away().ask(request("POST /v1/reservations/batch", &[], Some(&body))).await.whole()
    );
}

#[tokio::test]
async fn calls_about_many_have_places_of_their_own() {
    let http = Http::away();
    let post = |body: Body| {
        let request = Request::post("/v1/reservations/batch").header("content-type", "application/json");
        http.ask(request.body(body).expect("a legal request"))
    };
    let never = || Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let full = futures_util::future::join_all((0..limits::RESERVATIONS_CALLS_MAX).map(|_| post(never())));
    let (slow, refused) = tokio::join!(full, async {
        tokio::task::yield_now().await;
        post(Body::from("{}")).await
    });
    assert_eq!((refused.status, refused.code(), &refused.body["outcome"]), (503, "OVERLOADED", &json!("none")));
    assert!(slow.iter().all(|answer| (answer.status, answer.code()) == (408, "REQUEST_TIMEOUT")), "{slow:?}");
    assert_eq!(post(Body::from("{}")).await.status, 422, "the places are free again");
}

#[tokio::test]
async fn buyers_hear_what_is_away() {
    let cases = vec![
        ("reserve", request(POST, &[], Some(GOOD))),
        ("follow", request(&format!("GET {ID}"), &[], None)),
        ("read many", request(&format!("GET /v1/reservations?ids={}", &ID["/v1/reservations/".len()..]), &[], None)),
        ("follow with a ticket", request(&format!("GET {ID}?ticket=0.1.0"), &[], None)),
        ("look", request("GET /v1/skus/sneaker-42", &[], None)),
    ];
    insta::assert_json_snapshot!(answers(cases, false).await);
}

#[tokio::test]
async fn operators_mistakes_are_told_whole() {
    let put = |body| request("PUT /v1/admin/skus/s-1", &[TOKEN], Some(body));
    let command = "/v1/admin/skus/s-1/commands/0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000";
    let get = |path: &str| request(&format!("GET {path}"), &[TOKEN], None);
    let cases = vec![
        ("no token", request("GET /v1/admin/skus", &[], None)),
        ("wrong token", request("GET /v1/admin/skus", &[("authorization", "Bearer t0ke")], None)),
        ("other scheme", request("GET /metrics", &[("authorization", "Basic t0ken")], None)),
        ("probes need no token", request("GET /livez", &[], None)),
        ("malformed SKU", request("PUT /v1/admin/skus/a%20b", &[TOKEN], Some("{}"))),
        ("all mistakes at once", put(r#"{"on_hand":-1,"user_limit":0,"late_payment":"never","color":"red"}"#)),
        ("ends before it starts", put(r#"{"starts_at":"2026-11-21T10:00:00Z","ends_at":"2026-11-21T09:00:00Z"}"#)),
        ("wrong method", request("DELETE /v1/admin/skus/s-1", &[TOKEN], None)),
        ("limit out of range", get("/v1/admin/skus?limit=501")),
        ("malformed cursor", get("/v1/admin/skus?cursor=a%20b")),
        ("command without a ticket", get(command)),
        ("command with a malformed ticket", get(&format!("{command}?ticket=1"))),
        ("malformed command id", get("/v1/admin/skus/s-1/commands/17?ticket=0.0.0")),
        ("Postgres is away", put(r#"{"on_hand":1}"#)),
        ("not ready", request("GET /readyz", &[], None)),
    ];
    insta::assert_json_snapshot!(answers(cases, true).await);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_gets_408() {
    let http = Http::away();
    let never = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let slow =
        Request::post("/v1/reservations").header("content-type", "application/json").header("x-request-id", "r-1");
    let answer = http.ask(slow.body(never).expect("a legal request")).await;
    insta::assert_json_snapshot!(answer.whole());
}

#[tokio::test]
async fn a_streamed_body_that_is_too_large_gets_413() {
    let http = Http::away();
    let chunk = || Ok::<_, std::io::Error>(vec![b' '; 4096]);
    let endless = Body::from_stream(futures_util::stream::iter(std::iter::repeat_with(chunk).take(100)));
    let large = Request::post("/v1/reservations").header("content-type", "application/json");
    let answer = http.ask(large.body(endless).expect("a legal request")).await;
    assert_eq!((answer.status, answer.code()), (413, "BODY_TOO_LARGE"));
}

#[tokio::test]
async fn request_ids_are_kept_or_made() {
    let http = Http::away();
    assert_eq!(http.ask(request("GET /nope", &[], None)).await.header("x-request-id"), Some("r-1"));
    let nameless = Request::get("/nope").body(Body::empty()).expect("a legal request");
    let answer = http.ask(nameless).await;
    assert_eq!(answer.header("x-request-id"), answer.body["request_id"].as_str());
    assert_eq!(answer.header("x-request-id").map(str::len), Some(36));
}

#[tokio::test]
async fn both_listeners_show_their_document_offline() {
    let http = Http::away();
    let document = http.ask(request("GET /openapi.json", &[], None)).await;
    assert_eq!(document.body["openapi"], "3.1.0");
    assert!(document.body["paths"]["/v1/reservations"]["post"].is_object());
    let admin = http.ask_admin(request("GET /openapi.json", &[TOKEN], None)).await;
    assert!(admin.body["paths"]["/v1/admin/skus/{sku}"]["put"].is_object());
    let page = http.ask(request("GET /docs/", &[], None)).await;
    assert!(page.body.as_str().is_some_and(|html| html.contains("swagger")), "{page:?}");
    let errors = http.ask(request("GET /errors", &[], None)).await;
    assert!(errors.body.as_str().is_some_and(|html| html.contains("id=\"sold-out\"")), "{errors:?}");
}
