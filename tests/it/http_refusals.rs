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
async fn buyers_hear_what_is_away() {
    let cases = vec![
        ("reserve", request(POST, &[], Some(GOOD))),
        ("follow", request(&format!("GET {ID}"), &[], None)),
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
