//! What surrounds every request of a listener: its id and its trace, the caps on headers and requests in flight, the deadline, the last resort for a
//! panic, the form of every error, `Cache-Control`, and the request's metrics.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use metrics::{Gauge, Histogram};
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::headers::{RequestId, X_REQUEST_ID};
use super::problem::{Code, Effect, Problem};
use super::reserve::unknown;
use crate::limits;
use crate::origin::Origin;
use crate::telemetry::metrics::{HTTP_DURATION, HTTP_IN_FLIGHT};
use crate::telemetry::trace_context::{TRACEPARENT, TraceContext};
use crate::telemetry::traces::{self, Span, SpanKind, names};

/// What is to be said of a request that is cut off at its deadline: its handler tells, the frame says it. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Fate(Arc<Mutex<CutOff>>);

#[derive(Clone, Copy, Default)]
enum CutOff {
    /// The handler did not speak.
    #[default]
    Unknown,
    NothingSent,
    MaybeSent(Uuid),
}

impl Fate {
    /// Nothing of the request is in the log, nor on its way there.
    pub(super) fn nothing_sent(&self) {
        self.tell(CutOff::NothingSent);
    }

    /// From now on the request may be in the log, as the reservation `id`.
    pub(super) fn maybe_sent(&self, id: Uuid) {
        self.tell(CutOff::MaybeSent(id));
    }

    fn tell(&self, cut_off: CutOff) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = cut_off;
    }

    fn problem(&self, method: &Method) -> Problem {
        const DETAIL: &str = "no answer was found in time";
        if method.is_safe() {
            return Problem::unavailable(Code::StatusUnavailable, Effect::Unknown, DETAIL);
        }
        let cut_off = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match cut_off {
            CutOff::Unknown => Problem::unavailable(Code::QueueUnavailable, Effect::Unknown, DETAIL),
            CutOff::NothingSent => Problem::unavailable(Code::QueueUnavailable, Effect::None, DETAIL),
            CutOff::MaybeSent(id) => unknown(Code::QueueUnavailable, id),
        }
    }
}

/// What the frame gave a request on its way: where it comes from, and where its handler tells what is to be said if it is cut off.
pub(super) fn of_request(parts: &Parts) -> (Origin, Fate) {
    let origin = parts.extensions.get::<Origin>().cloned();
    let origin = origin.unwrap_or_else(|| Call::untraced(&parts.headers).origin());
    (origin, parts.extensions.get::<Fate>().cloned().unwrap_or_default())
}

/// One call: what it is called in logs, and its trace.
struct Call {
    request_id: RequestId,
    /// Of our span, if the call is sampled; else the caller's, which goes on as it came.
    trace: Option<TraceContext>,
    span: Option<Span>,
}

impl Call {
    fn untraced(headers: &HeaderMap) -> Self {
        let trace = headers.get(TRACEPARENT).and_then(|v| v.to_str().ok()).and_then(TraceContext::parse);
        Self { request_id: RequestId::of(headers), trace, span: None }
    }

    /// Begins the call's span, if it is sampled.
    fn begin(request: &Request, method: &Method, route: &str) -> Self {
        let Self { request_id, trace: caller, .. } = Self::untraced(request.headers());
        let mut span = traces::root(caller, SpanKind::Server, || format!("{method} {route}"));
        if let Some(span) = &mut span {
            span.set(names::HTTP_METHOD, method.to_string());
            span.set(names::HTTP_ROUTE, route.to_owned());
            span.set(names::URL_PATH, request.uri().path().to_owned());
            span.set(names::REQUEST_ID, request_id.as_str().to_owned());
        }
        Self { trace: span.as_ref().map(Span::context).or(caller), request_id, span }
    }

    fn origin(&self) -> Origin {
        Origin { request_id: self.request_id.shared(), trace: self.trace }
    }

    /// Hex, as log lines show it; empty without a trace.
    fn trace_id(&self) -> String {
        self.trace.map(|trace| format!("{:032x}", trace.trace_id)).unwrap_or_default()
    }

    fn end(self, route: &str, status: StatusCode, took: Duration) {
        let trace_id = self.trace_id();
        let Some(mut span) = self.span else { return };
        span.set(names::HTTP_STATUS, i64::from(status.as_u16()));
        if status.is_server_error() {
            span.fail("5xx");
        }
        tracing::info!(
            request.id = self.request_id.as_str(),
            trace.id = trace_id,
            http.route = route,
            http.status = status.as_u16(),
            duration_ms = took.as_secs_f64() * 1e3,
            "answered a traced request"
        );
    }
}

/// The frame of one listener; cheap to clone.
#[derive(Clone)]
pub struct Frame(Arc<Inner>);

struct Inner {
    in_flight: Semaphore,
    in_flight_gauge: Gauge,
    /// By route.
    durations: Mutex<HashMap<String, Durations>>,
}

/// One route's histograms by method and status.
type Durations = HashMap<(Method, u16), Histogram>;

impl Frame {
    /// For a listener of this name (`public`, `admin`) that answers so many requests at once.
    pub fn new(listener: &'static str, in_flight_max: usize) -> Self {
        Self(Arc::new(Inner {
            in_flight: Semaphore::new(in_flight_max),
            in_flight_gauge: metrics::gauge!(HTTP_IN_FLIGHT, "listener" => listener),
            durations: Mutex::default(),
        }))
    }

    fn enter(&self, request: &Request) -> Result<InFlight<'_>, Problem> {
        if header_bytes(request) > limits::HEADER_BYTES_MAX {
            let detail = format!("request line and headers must be at most {} bytes", limits::HEADER_BYTES_MAX);
            return Err(Problem::new(Code::HeadersTooLarge, detail));
        }
        let permit = self.0.in_flight.try_acquire().map_err(|_| {
            Problem::unavailable(Code::Overloaded, Effect::None, "too many requests are being answered at once")
        })?;
        self.0.in_flight_gauge.increment(1.0);
        Ok(InFlight { _permit: permit, gauge: &self.0.in_flight_gauge })
    }

    /// The histogram of this route, method and status; kept, because looking one up by its labels costs more than recording.
    fn duration_of(&self, route: &str, method: &Method, status: u16) -> Histogram {
        let make = || {
            metrics::histogram!(HTTP_DURATION,
                "method" => method.to_string(), "route" => route.to_owned(), "status" => status.to_string())
        };
        // The map holds handles only: whatever a panicking holder left is whole.
        let mut durations = self.0.durations.lock().unwrap_or_else(PoisonError::into_inner);
        match durations.get_mut(route) {
            Some(route) => route.entry((method.clone(), status)).or_insert_with(make).clone(),
            None => {
                let made = make();
                durations.insert(route.to_owned(), HashMap::from([((method.clone(), status), made.clone())]));
                made
            }
        }
    }
}

/// One request inside the process.
struct InFlight<'a> {
    _permit: SemaphorePermit<'a>,
    gauge: &'a Gauge,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

/// The layer: wraps every route and both fallbacks of a listener's router.
pub async fn frame(State(frame): State<Frame>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known_method(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let instance = request.uri().path().to_owned();
    let call = Call::begin(&request, &method, route);
    request.extensions_mut().insert(call.origin());
    let fate = Fate::default();
    request.extensions_mut().insert(fate.clone());
    let response = match frame.enter(&request) {
        Ok(_in_flight) => answer(&method, &call, &fate, next.run(request)).await,
        Err(problem) => problem.into_response(),
    };
    let response = finish(response, &instance, &call);
    let took = started.elapsed();
    frame.duration_of(route, &method, response.status().as_u16()).record(took);
    call.end(route, response.status(), took);
    response
}

/// Runs the handler; whatever happens there, there is an answer in time.
async fn answer(method: &Method, call: &Call, fate: &Fate, handler: impl Future<Output = Response>) -> Response {
    let guarded = AssertUnwindSafe(handler).catch_unwind();
    match tokio::time::timeout(limits::REQUEST_DEADLINE, guarded).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            tracing::error!(request.id = call.request_id.as_str(), trace.id = call.trace_id(), "a handler panicked");
            Problem::new(Code::Internal, "an internal error; its request id finds it in our logs").into_response()
        }
        Err(_) => {
            let trace_id = call.trace_id();
            tracing::warn!(
                request.id = call.request_id.as_str(),
                trace.id = trace_id,
                "a request outlived its deadline"
            );
            fate.problem(method).into_response()
        }
    }
}

/// Gives problems their body and every answer its common headers.
fn finish(mut response: Response, instance: &str, call: &Call) -> Response {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let mut rendered = problem.render(instance, call.request_id.as_str());
        // `Allow` of a 405, set by the router.
        if let Some(allow) = response.headers_mut().remove(header::ALLOW) {
            rendered.headers_mut().insert(header::ALLOW, allow);
        }
        response = rendered;
    }
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, call.request_id.to_header());
    if let Some(trace) = call.trace {
        headers.insert(TRACEPARENT, HeaderValue::from_str(&trace.to_string()).expect("digits and dashes"));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Methods are a label: an invented one must not make a new series.
fn known_method(method: &Method) -> Method {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    if known.contains(method) { method.clone() } else { Method::from_bytes(b"other").expect("a legal token") }
}

/// Request line and headers as HTTP/1.1 writes them.
fn header_bytes(request: &Request) -> usize {
    let uri = request.uri().path_and_query().map_or(1, |p| p.as_str().len());
    let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    request.method().as_str().len() + uri + 12 + headers
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    async fn get_framed(frame_of: Frame, path: &str) -> (u16, Value) {
        async fn panics() -> &'static str {
            panic!("a bug")
        }
        let router = Router::new()
            .route("/panics", get(panics))
            .route("/good", get(|| async { "good" }))
            .layer(from_fn_with_state(frame_of, frame));
        let request = Request::get(path).header("x-request-id", "r-1").body(Body::empty()).expect("a legal request");
        let response = router.oneshot(request).await.expect("routers are infallible");
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("bodies are complete").to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    #[test]
    fn a_request_that_is_cut_off_says_what_its_handler_told() {
        let fate = Fate::default();
        let said = |method: Method| {
            let body = fate.problem(&method).nested_body();
            ["code", "outcome", "id", "status_url"].map(|name| body[name].as_str().unwrap_or("-").to_owned())
        };
        assert_eq!(said(Method::GET), ["STATUS_UNAVAILABLE", "unknown", "-", "-"]);
        assert_eq!(said(Method::PUT), ["QUEUE_UNAVAILABLE", "unknown", "-", "-"], "nobody spoke");
        fate.nothing_sent();
        assert_eq!(said(Method::POST), ["QUEUE_UNAVAILABLE", "none", "-", "-"]);
        let id = Uuid::from_u128(7);
        fate.maybe_sent(id);
        let (id, url) = (id.to_string(), format!("/v1/reservations/{id}"));
        assert_eq!(said(Method::POST), ["QUEUE_UNAVAILABLE", "unknown", &id, &url]);
    }

    #[tokio::test]
    async fn a_panic_is_answered_and_leaves_its_place() {
        let frame = Frame::new("test", 1);
        let (status, body) = get_framed(frame.clone(), "/panics").await;
        assert_eq!(status, 500);
        insta::assert_json_snapshot!(body);
        assert_eq!(get_framed(frame, "/good").await.0, 200, "the only place is free again");
    }

    #[tokio::test]
    async fn beyond_the_cap_requests_are_refused_at_once() {
        let (status, body) = get_framed(Frame::new("test", 0), "/good").await;
        assert_eq!(status, 503);
        insta::assert_json_snapshot!(body);
    }
}
