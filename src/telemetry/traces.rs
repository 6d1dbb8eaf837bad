//! Traces: spans of sampled requests, sent to a collector by OTLP over HTTP, if one is configured.
//!
//! A request is sampled **before** any span of it is made: who is not sampled costs one random number. The caller decides if it sends a
//! `traceparent` (its word is taken at most [`limits::TRACES_OF_CALLERS_PER_SECOND`] times a second), else the configured share. From then on
//! the sampled bit travels, and every part asks [`child`] for its span. The names of everything that is sent are in [`names`].
//!
//! | span | kind | parent | made by |
//! |---|---|---|---|
//! | `POST /v1/reservations` | server | the caller's | the HTTP frame |
//! | `send reservation-requests` | producer | the HTTP span | ingress; its context goes into the record's headers |
//! | `process reservation-requests` | consumer | none: a batch has many requests, it **links** to each | the partition's worker, after COMMIT |
//! | `load snapshot`, `decide batch`, `write rows`, `commit` | client, internal | the batch's | the same |
//! | `decide` | consumer | the send span, so that one trace tells the whole way of a request; linked to the batch | the same |
//!
//! Like logs and metrics, traces are the process's: installed once, used everywhere. A collector that is away costs spans, never requests:
//! they wait in a bounded queue and are counted when they are lost.

use std::borrow::Cow;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use metrics::counter;
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter,
};

pub use opentelemetry::trace::SpanKind;

use super::metrics::TRACE_SPANS;
use super::trace_context::TraceContext;
use crate::clock::wall_time_of;
use crate::{ids, limits};

/// What spans and attributes are called: OpenTelemetry's semantic conventions 1.44 (HTTP stable; messaging and database in development,
/// so they are pinned here), and ours under `flashsale.`.
pub mod names {
    #![expect(missing_docs, reason = "each constant is its own text")]
    pub const HTTP_METHOD: &str = "http.request.method";
    pub const HTTP_ROUTE: &str = "http.route";
    pub const HTTP_STATUS: &str = "http.response.status_code";
    pub const URL_PATH: &str = "url.path";
    pub const ERROR_TYPE: &str = "error.type";
    pub const MESSAGING_SYSTEM: &str = "messaging.system";
    pub const MESSAGING_OPERATION: &str = "messaging.operation.name";
    pub const MESSAGING_OPERATION_TYPE: &str = "messaging.operation.type";
    pub const MESSAGING_DESTINATION: &str = "messaging.destination.name";
    pub const MESSAGING_PARTITION: &str = "messaging.destination.partition.id";
    pub const MESSAGING_KEY: &str = "messaging.kafka.message.key";
    pub const MESSAGING_OFFSET: &str = "messaging.kafka.offset";
    pub const MESSAGING_GROUP: &str = "messaging.consumer.group.name";
    pub const MESSAGING_MESSAGE_COUNT: &str = "messaging.batch.message_count";
    pub const MESSAGING_MESSAGE_ID: &str = "messaging.message.id";
    pub const MESSAGING_CONVERSATION_ID: &str = "messaging.message.conversation_id";
    pub const DB_SYSTEM: &str = "db.system.name";
    pub const REQUEST_ID: &str = "flashsale.request.id";
    pub const COMMAND_INDEX: &str = "flashsale.command.index";
    pub const COMMAND_KIND: &str = "flashsale.command.kind";
    pub const COMMANDS: &str = "flashsale.batch.commands";
    pub const OUTCOME: &str = "flashsale.outcome";
}

/// Where spans go, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The collector's base URL; `/v1/traces` is appended.
    pub endpoint: String,
    /// Share of requests, 0 to 1, whose caller does not say whether to trace them.
    pub share: f64,
}

static TRACES: OnceLock<Traces> = OnceLock::new();

struct Traces {
    tracer: SdkTracer,
    share: Share,
    /// Of callers that ask for a trace, this second.
    asked: Mutex<Allowance>,
}

/// Sends what is left when it is told to; see [`Flush::flush`].
pub struct Flush(SdkTracerProvider);

/// Why traces can't be sent.
#[derive(Debug, thiserror::Error)]
#[error("could not start sending traces")]
pub struct InstallError(#[from] opentelemetry_otlp::ExporterBuildError);

/// Starts sending spans as `service` (`OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` add to it, as everywhere). Once per process; a second
/// call changes nothing.
///
/// # Errors
/// If the exporter can't be made of these settings. A collector that is away is no error.
pub fn install(settings: &Settings, service: &'static str) -> Result<Flush, InstallError> {
    let endpoint = format!("{}/v1/traces", settings.endpoint.trim_end_matches('/'));
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .with_timeout(limits::TRACE_EXPORT_DEADLINE)
        .build()?;
    let bounds = BatchConfigBuilder::default()
        .with_max_queue_size(limits::TRACE_QUEUE_SPANS_MAX)
        .with_max_export_batch_size(limits::TRACE_EXPORT_SPANS_MAX)
        .with_scheduled_delay(limits::TRACE_EXPORT_EVERY)
        .build();
    let mut resource = Resource::builder().with_attribute(KeyValue::new("service.version", super::VERSION));
    if std::env::var_os("OTEL_SERVICE_NAME").is_none_or(|name| name.is_empty()) {
        resource = resource.with_service_name(service);
    }
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(Counted(exporter)).with_batch_config(bounds).build())
        // Who is not sampled makes no span.
        .with_sampler(Sampler::AlwaysOn)
        .with_max_links_per_span(limits::TRACE_LINKS_MAX)
        .with_resource(resource.build())
        .build();
    let traces =
        Traces { tracer: provider.tracer("flashsale"), share: Share::of(settings.share), asked: Mutex::default() };
    drop(TRACES.set(traces)); // the first one stands
    Ok(Flush(provider))
}

impl Flush {
    /// Sends what is left, at most [`limits::TRACE_FLUSH_DEADLINE`]. Blocks; afterwards spans go nowhere.
    pub fn flush(self) {
        if let Err(error) = self.0.shutdown_with_timeout(limits::TRACE_FLUSH_DEADLINE) {
            tracing::warn!(%error, "gave up sending the last spans");
        }
    }
}

/// Counts what is sent and what is lost, and says once that a collector is away: the library says nothing.
#[derive(Debug)]
struct Counted(opentelemetry_otlp::SpanExporter);

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        static IS_FAILING: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        let count = batch.len() as u64;
        let exported = self.0.export(batch).await;
        let outcome = if exported.is_ok() { "exported" } else { "failed" };
        counter!(TRACE_SPANS, "outcome" => outcome).increment(count);
        let was_failing = IS_FAILING.swap(exported.is_err(), std::sync::atomic::Ordering::Relaxed);
        if let (Err(error), false) = (&exported, was_failing) {
            tracing::warn!(%error, "the collector takes no spans; they are lost until it does");
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// Which requests are sampled, of those whose callers say nothing. **PURE**.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    /// Numbers below it are sampled; `None` = all.
    below: Option<u64>,
}

impl Share {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "0 <= share < 1"
    )]
    fn of(share: f64) -> Self {
        Self { below: (share < 1.0).then(|| (share.max(0.0) * u64::MAX as f64) as u64) }
    }

    fn takes(self, random: u64) -> bool {
        self.below.is_none_or(|below| random < below)
    }
}

/// So many a second, of a caller's choice: who may buy may not make us work at will. **PURE**.
#[derive(Clone, Copy, Debug, Default)]
struct Allowance {
    second: Option<Instant>,
    taken: u32,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        if self.second.is_none_or(|began| now.duration_since(began) >= limits::TRACES_OF_CALLERS_WINDOW) {
            *self = Self { second: Some(now), taken: 0 };
        }
        self.taken += 1;
        self.taken <= limits::TRACES_OF_CALLERS_PER_SECOND
    }
}

impl Traces {
    fn samples(&self, caller: Option<TraceContext>) -> bool {
        match caller {
            None => self.share.takes(ids::random_u64()),
            Some(caller) => {
                // Two numbers: whatever a panicking holder left is whole.
                caller.is_sampled && self.asked.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
            }
        }
    }
}

/// The first span of a request, if the request is sampled. Without a caller's context it begins a trace of its own.
pub fn root(caller: Option<TraceContext>, kind: SpanKind, name: impl FnOnce() -> String) -> Option<Span> {
    let traces = TRACES.get()?;
    traces.samples(caller).then(|| Span::start(traces, caller, kind, name().into(), Instant::now()))
}

/// A span under `parent`, if that is sampled.
pub fn child(parent: TraceContext, kind: SpanKind, name: impl Into<Cow<'static, str>>, began: Instant) -> Option<Span> {
    let traces = TRACES.get().filter(|_| parent.is_sampled)?;
    Some(Span::start(traces, Some(parent), kind, name.into(), began))
}

/// A span that begins a trace and is linked to others, of which at least one is sampled; of those, [`limits::TRACE_LINKS_MAX`] are kept.
pub fn linked(
    to: impl Iterator<Item = TraceContext>,
    kind: SpanKind,
    name: impl Into<Cow<'static, str>>,
    began: Instant,
) -> Option<Span> {
    let traces = TRACES.get()?;
    let mut to = to.filter(|context| context.is_sampled).peekable();
    to.peek()?;
    let mut span = Span::start(traces, None, kind, name.into(), began);
    to.for_each(|context| span.link(context));
    Some(span)
}

/// A span that is recorded. Ends when it is dropped, or as [`Span::end_at`] says.
#[derive(Debug)]
pub struct Span(opentelemetry_sdk::trace::Span);

impl Span {
    fn start(
        traces: &Traces,
        parent: Option<TraceContext>,
        kind: SpanKind,
        name: Cow<'static, str>,
        began: Instant,
    ) -> Self {
        let parent = parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(remote(parent)));
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(wall_time_of(began));
        Self(traces.tracer.build_with_context(builder, &parent))
    }

    /// What its children and their processes are told.
    pub fn context(&self) -> TraceContext {
        let context = self.0.span_context();
        TraceContext {
            trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
            span_id: u64::from_be_bytes(context.span_id().to_bytes()),
            is_sampled: true,
        }
    }

    /// Adds what is known of it; `key` is of [`names`].
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    /// Points to a span of another trace.
    pub fn link(&mut self, to: TraceContext) {
        let Link { span_context, attributes, .. } = Link::with_context(remote(to));
        self.0.add_link(span_context, attributes);
    }

    /// It did not come to a good end; `why` is one of few words.
    pub fn fail(&mut self, why: &'static str) {
        self.set(names::ERROR_TYPE, why);
        self.0.set_status(Status::error(why));
    }

    /// Ends at a moment that has passed.
    pub fn end_at(mut self, at: Instant) {
        self.0.end_with_timestamp(wall_time_of(at));
    }
}

fn remote(context: TraceContext) -> SpanContext {
    let TraceContext { trace_id, span_id, is_sampled } = context;
    let flags = TraceFlags::default().with_sampled(is_sampled);
    let (trace_id, span_id) = (TraceId::from(trace_id), SpanId::from(span_id));
    SpanContext::new(trace_id, span_id, flags, true, TraceState::NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_numbers_is_taken() {
        assert!(!Share::of(0.0).takes(0) && !Share::of(-1.0).takes(0), "none");
        assert!(Share::of(1.0).takes(u64::MAX), "all");
        let one_percent = Share::of(0.01);
        assert!(one_percent.takes(u64::MAX / 101) && !one_percent.takes(u64::MAX / 99));
    }

    #[test]
    fn callers_get_so_many_traces_a_second() {
        let mut asked = Allowance::default();
        let begin = Instant::now();
        let second = |n: u64| begin + Duration::from_millis(1000 * n);
        for round in 0..3 {
            let taken = (0..1000).filter(|_| asked.take(second(round))).count();
            assert_eq!(taken, limits::TRACES_OF_CALLERS_PER_SECOND as usize, "second {round}");
        }
    }

    #[test]
    fn without_a_collector_nothing_is_sampled() {
        let caller = TraceContext { trace_id: 1, span_id: 1, is_sampled: true };
        assert!(root(Some(caller), SpanKind::Server, || unreachable!("nobody asks for a name")).is_none());
        assert!(child(caller, SpanKind::Producer, "send", Instant::now()).is_none());
        assert!(linked([caller].into_iter(), SpanKind::Consumer, "process", Instant::now()).is_none());
    }
}
