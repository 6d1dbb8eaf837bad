//! A collector of traces: takes OTLP over HTTP as a real one does, and remembers.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::site::SOON;
use super::wait::wait_for_value;

/// The collector; it ends with the runtime of its test.
pub struct Collector {
    /// What a process is told to send to.
    pub url: String,
    taken: Arc<Mutex<Vec<Taken>>>,
}

/// One span, with the service that sent it.
#[derive(Clone, Debug)]
pub struct Taken {
    pub service: String,
    pub span: Span,
}

impl Taken {
    pub fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// Empty for the first of a trace.
    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// As text; empty where it is not set.
    pub fn attribute(&self, key: &str) -> String {
        text(&self.span.attributes, key)
    }

    /// The spans that it is linked to: trace and span.
    pub fn links(&self) -> Vec<(String, String)> {
        self.span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect()
    }
}

impl Collector {
    pub async fn start() -> Self {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&taken));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, taken }
    }

    /// One that nobody reaches.
    pub fn away() -> Self {
        Self { url: "http://127.0.0.1:1".to_owned(), taken: Arc::default() }
    }

    pub fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Of one trace, what has come so far.
    pub fn of_trace(&self, trace_id: &str) -> Vec<Taken> {
        self.taken().into_iter().filter(|taken| taken.trace_id() == trace_id).collect()
    }

    /// Waits for a span of this name in a trace.
    pub async fn wait_for(&self, trace_id: &str, name: &str) -> Taken {
        let what = format!("{name} in {trace_id}");
        wait_for_value(&what, SOON, async || self.of_trace(trace_id).into_iter().find(|taken| taken.span.name == name))
            .await
    }
}

async fn take(State(taken): State<Arc<Mutex<Vec<Taken>>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let is_protobuf = headers.get("content-type").is_some_and(|t| t == "application/x-protobuf");
    let Some(request) = ExportTraceServiceRequest::decode(body).ok().filter(|_| is_protobuf) else {
        return StatusCode::BAD_REQUEST;
    };
    for resource in request.resource_spans {
        let service = resource.resource.as_ref().map(|r| text(&r.attributes, "service.name")).unwrap_or_default();
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        let spans = spans.map(|span| Taken { service: service.clone(), span });
        taken.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
    }
    StatusCode::OK
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()).and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
