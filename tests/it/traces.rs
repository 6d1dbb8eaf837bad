//! Traces through the real binary: a collector in the test's process sees one request's way through two processes and the log between them.

use std::collections::HashMap;
use std::time::Duration;

use flashsale::kafka::client;
use futures_util::future::join_all;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use reqwest::RequestBuilder;
use serde_json::json;

use crate::support::collector::{Collector, Taken};
use crate::support::site::{Answer, Process, SOON, Site};
use crate::support::wait::wait_for;
use crate::support::{kafka, site};

const CALLER: &str = "00f067aa0ba902b7";

fn trace_id(n: usize) -> String {
    format!("4bf92f3577b34da6a3ce929d0e0e{n:04x}")
}

fn traceparent(n: usize, flags: &str) -> String {
    format!("00-{}-{CALLER}-{flags}", trace_id(n))
}

fn post(site: &Site, api: &Process, user: &str) -> RequestBuilder {
    let body = json!({ "user_id": user, "sku_id": "s", "quantity": 1 });
    site.client.post(format!("{}/v1/reservations", api.public)).json(&body).header("Prefer", "wait=20")
}

async fn answer(request: RequestBuilder) -> Answer {
    Answer::of(request.send().await.expect("the API answers")).await
}

async fn start(site: &Site, role: &str, collector: &Collector, share: &str) -> Process {
    let endpoint = ["--otel-exporter-otlp-endpoint", &collector.url];
    site.start_with(&[&[role], &endpoint[..], &["--otel-traces-sampler-arg", share]].concat()).await
}

/// The headers of the record at a span's place in the log.
fn headers_of(site: &Site, sent: &Taken) -> HashMap<String, String> {
    let number = |key: &str| sent.attribute(key).parse::<i64>().unwrap_or_else(|_| panic!("{key}: {sent:?}"));
    let partition = number("messaging.destination.partition.id") as i32;
    let mut config = client::config(&kafka::brokers());
    let consumer: BaseConsumer = config.set("group.id", "test-headers").create().expect("legal settings");
    let mut place = TopicPartitionList::new();
    place
        .add_partition_offset(site.topic(), partition, Offset::Offset(number("messaging.kafka.offset")))
        .expect("a legal offset");
    consumer.assign(&place).expect("assigned");
    let message = consumer.poll(site::SOON).expect("in time").expect("the record is there");
    let headers = message.headers().map(|headers| {
        let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
    });
    headers.unwrap_or_default()
}

#[tokio::test]
async fn one_trace_tells_the_whole_way_of_a_request_through_two_processes() {
    let site = Site::shared().await;
    let collector = Collector::start().await;
    let api = start(&site, "api", &collector, "0").await;
    let consumer = start(&site, "consumer", &collector, "0").await;
    site.put_sku("s", 10, 5).await;

    let request = post(&site, &api, "u").header("traceparent", traceparent(1, "01")).header("X-Request-Id", "r-1");
    let told = answer(request).await;
    assert_eq!((told.status, told.text("status")), (200, "RESERVED"), "{}", told.body);
    let (trace, reservation) = (trace_id(1), told.text("id").to_owned());
    let decided = collector.wait_for(&trace, "decide").await;
    let asked = collector.wait_for(&trace, "POST /v1/reservations").await;
    let sent = collector.wait_for(&trace, &format!("send {}", site.topic())).await;
    assert_eq!(told.headers["traceparent"].to_str().ok(), Some(format!("00-{trace}-{}-01", asked.id()).as_str()));
    assert_eq!(told.headers["x-request-id"], "r-1");

    let line = [&asked, &sent, &decided].map(|taken| (taken.service.as_str(), taken.parent()));
    let expected =
        [("flashsale-api", CALLER.to_owned()), ("flashsale-api", asked.id()), ("flashsale-consumer", sent.id())];
    assert_eq!(line, expected, "caller > HTTP > send > decide");
    assert_eq!(asked.attribute("http.response.status_code"), "200");
    assert_eq!(asked.attribute("flashsale.request.id"), "r-1");
    assert_eq!([&sent, &decided].map(|taken| taken.attribute("messaging.message.id")), [&*reservation; 2]);
    assert_eq!(decided.attribute("flashsale.outcome"), "reserved");

    // The batch has a trace of its own, linked to the request and back.
    let [(batch_trace, batch_id)] = &decided.links()[..] else { panic!("one link: {decided:?}") };
    let batch = collector.wait_for(batch_trace, &format!("process {}", site.topic())).await;
    assert_eq!((batch.id(), batch.parent()), (batch_id.clone(), String::new()));
    assert_eq!(batch.links(), [(trace.clone(), sent.id())]);
    for stage in ["load snapshot", "decide batch", "write rows", "commit"] {
        let stage = collector.wait_for(batch_trace, stage).await;
        assert_eq!(stage.parent(), *batch_id);
        let (began, ended) = (batch.span.start_time_unix_nano, batch.span.end_time_unix_nano);
        // Each moment is told by the wall clock of a moment of its own: a millisecond apart is the same.
        let is_within = |at: u64| at + 1_000_000 >= began && at <= ended + 1_000_000;
        assert!(is_within(stage.span.start_time_unix_nano) && is_within(stage.span.end_time_unix_nano), "{stage:?}");
    }
    let headers = headers_of(&site, &sent);
    assert_eq!(headers["traceparent"], format!("00-{trace}-{}-01", sent.id()));
    assert_eq!((headers["x-request-id"].as_str(), headers.len()), ("r-1", 2));
    let logged = |line: &serde_json::Value| line["trace.id"] == trace.as_str() && line["request.id"] == "r-1";
    assert!(api.lines().iter().any(logged), "a log line names both: {:?}", api.lines());

    // A change of the reservation goes the same way.
    let confirm = site.client.post(format!("{}/v1/reservations/{reservation}/confirm", api.public));
    let confirm = confirm.json(&json!({ "payment_ref": "p-1" })).header("traceparent", traceparent(2, "01"));
    assert_eq!(answer(confirm).await.status, 200);
    let confirmed = collector.wait_for(&trace_id(2), "decide").await;
    assert_eq!(
        ["flashsale.command.kind", "flashsale.outcome"].map(|key| confirmed.attribute(key)),
        ["confirm", "done"]
    );
    site.finish([api, consumer]).await;
}

#[tokio::test]
async fn commands_that_share_a_record_keep_their_traces_apart() {
    const BUYERS: usize = 60;
    let site = Site::shared().await;
    let collector = Collector::start().await;
    let all = start(&site, "all", &collector, "0").await;
    site.put_sku("s", 20, 1).await;
    let requests = (0..BUYERS).map(|n| {
        let request = post(&site, &all, &format!("u{n}"));
        // Every third has no trace.
        answer(if n % 3 == 0 { request } else { request.header("traceparent", traceparent(n, "01")) })
    });
    let told = join_all(requests).await;
    for (n, told) in told.iter().enumerate().filter(|(n, _)| n % 3 != 0) {
        let decided = collector.wait_for(&trace_id(n), "decide").await;
        // Refused at the door at the end: then there is no reservation, and no such span was waited for.
        assert_eq!(decided.attribute("messaging.message.id"), told.text("id"), "buyer {n}");
        let outcome = if told.text("status") == "RESERVED" { "reserved" } else { "SOLD_OUT" };
        assert_eq!(decided.attribute("flashsale.outcome"), outcome, "buyer {n}");
    }
    assert!(told.iter().enumerate().all(|(n, told)| told.headers.contains_key("traceparent") == (n % 3 != 0)));
    site.finish([all]).await;
}

#[tokio::test]
async fn who_is_not_sampled_leaves_no_span_but_keeps_the_callers_trace() {
    let site = Site::shared().await;
    let collector = Collector::start().await;
    let all = start(&site, "all", &collector, "0").await;
    site.put_sku("s", 10, 5).await;
    let unsaid = answer(post(&site, &all, "u1")).await;
    assert!(!unsaid.headers.contains_key("traceparent"), "there is no trace to speak of");
    let not_sampled = answer(post(&site, &all, "u2").header("traceparent", traceparent(7, "00"))).await;
    assert_eq!(not_sampled.headers["traceparent"].to_str().ok(), Some(traceparent(7, "00").as_str()));
    let nonsense = answer(post(&site, &all, "u3").header("traceparent", "nonsense")).await;
    assert_eq!((nonsense.status, nonsense.headers.contains_key("traceparent")), (200, false));
    // Whatever the others left would have come before or with the last span of this one.
    answer(post(&site, &all, "u4").header("traceparent", traceparent(8, "01"))).await;
    let decided = collector.wait_for(&trace_id(8), "decide").await;
    let [(batch_trace, _)] = &decided.links()[..] else { panic!("one link: {decided:?}") };
    collector.wait_for(batch_trace, &format!("process {}", site.topic())).await;
    let strangers: Vec<Taken> = collector
        .taken()
        .into_iter()
        .filter(|taken| taken.trace_id() != trace_id(8) && taken.trace_id() != *batch_trace)
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    site.finish([all]).await;
}

#[tokio::test]
async fn a_share_of_1_traces_all_and_what_the_collector_does_not_take_is_counted() {
    let site = Site::shared().await;
    // Nobody listens there.
    let away = Collector::away();
    let all = start(&site, "all", &away, "1").await;
    site.put_sku("s", 10, 5).await;
    let told = answer(post(&site, &all, "u")).await;
    assert_eq!(told.text("status"), "RESERVED", "a collector that is away costs no request");
    assert!(told.headers.contains_key("traceparent"), "it was sampled");
    let series = "flashsale_trace_spans_total{outcome=\"failed\"}";
    wait_for("lost spans are counted", SOON, async || site.metric(&all, series).await.is_some_and(|n| n >= 4.0)).await;
    let told = |line: &serde_json::Value| {
        line["level"] == "WARN"
            && line["message"].as_str().is_some_and(|m| m.starts_with("the collector takes no spans"))
    };
    assert_eq!(all.lines().into_iter().filter(told).count(), 1, "said once, not for ever");
    let began = std::time::Instant::now();
    site.finish([all]).await;
    assert!(began.elapsed() < Duration::from_secs(30), "the end waits for no collector");
}

#[tokio::test]
async fn what_can_not_be_a_collector_or_a_share_is_told_before_anything_starts() {
    let site = Site::shared().await;
    for (args, variable) in [
        (["--otel-exporter-otlp-endpoint", "https://collector:4318"], "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (["--otel-exporter-otlp-endpoint", "collector"], "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (["--otel-traces-sampler-arg", "2"], "OTEL_TRACES_SAMPLER_ARG"),
        (["--otel-traces-sampler-arg", "NaN"], "OTEL_TRACES_SAMPLER_ARG"),
    ] {
        let refused = site.run(&[&["config"], &args[..]].concat()).await;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!((refused.status.code(), told.contains(variable)), (Some(64), true), "{args:?}: {told}");
    }
    site.finish([]).await;
}
