//! The spans of a committed batch, if one of its requests is traced. Told after COMMIT, from moments that were noted on the way: a batch
//! without a traced request pays for those four moments and nothing else.

use std::time::Instant;

use super::super::gather::Batch;
use super::{Decided, Partition};
use crate::inventory::{Decision, Logged, Verdict};
use crate::telemetry::trace_context::TraceContext;
use crate::telemetry::traces::{self, Span, SpanKind, names};

/// Moments of the attempt that was committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stages {
    /// The transaction began.
    pub began: Instant,
    /// The snapshot was there.
    pub loaded: Instant,
    /// Everything was decided.
    pub decided: Instant,
    /// Everything was written; COMMIT was sent.
    pub written: Instant,
}

/// Tells of a batch that **is committed**. `first_began` is when its first attempt began: a batch that was tried again shows it.
pub(super) fn tell(partition: &Partition, batch: &Batch, decided: &Decided, first_began: Instant) {
    if batch.traced.is_empty() {
        return;
    }
    let (topic, ended) = (partition.config.topic.as_str(), Instant::now());
    let contexts = batch.traced.iter().map(|(_, context)| *context);
    let span = traces::linked(contexts, SpanKind::Consumer, format!("process {topic}"), first_began);
    let Some(mut span) = span else { return };
    describe(&mut span, partition, "process");
    span.set(names::MESSAGING_GROUP, partition.config.group.clone());
    span.set(names::MESSAGING_MESSAGE_COUNT, count(batch.records.len()));
    span.set(names::COMMANDS, count(batch.commands.len()));
    if let Some((first, _)) = batch.records.first_key_value() {
        span.set(names::MESSAGING_OFFSET, *first);
    }
    let Stages { began, loaded, decided: decided_at, written } = decided.stages;
    let context = span.context();
    for (name, is_database, from, to) in [
        ("load snapshot", true, began, loaded),
        ("decide batch", false, loaded, decided_at),
        ("write rows", true, decided_at, written),
        ("commit", true, written, ended),
    ] {
        let kind = if is_database { SpanKind::Client } else { SpanKind::Internal };
        let Some(mut stage) = traces::child(context, kind, name, from) else { continue };
        if is_database {
            stage.set(names::DB_SYSTEM, "postgresql");
        }
        stage.end_at(to);
    }
    for (at, request) in &batch.traced {
        if let (Some(logged), Some(decision)) = (batch.commands.get(*at), decided.outcome.decisions.get(*at)) {
            tell_request(partition, context, *request, (logged, decision), first_began, ended);
        }
    }
    tracing::debug!(
        kafka.partition = partition.partition,
        trace.id = format!("{:032x}", context.trace_id),
        traced = batch.traced.len(),
        "traced a batch"
    );
    span.end_at(ended);
}

/// The last span of one request's own trace.
fn tell_request(
    partition: &Partition,
    batch: TraceContext,
    request: TraceContext,
    (logged, decision): (&Logged, &Decision),
    began: Instant,
    ended: Instant,
) {
    let Some(mut span) = traces::child(request, SpanKind::Consumer, "decide", began) else { return };
    span.link(batch);
    describe(&mut span, partition, "decide");
    span.set(names::MESSAGING_OFFSET, decision.place.offset);
    span.set(names::COMMAND_INDEX, i64::from(decision.place.index));
    if let Ok(command) = &logged.command {
        span.set(names::COMMAND_KIND, command.kind());
        span.set(names::MESSAGING_MESSAGE_ID, command.id().to_string());
    }
    span.set(names::OUTCOME, outcome(&decision.verdict));
    span.end_at(ended);
}

fn describe(span: &mut Span, partition: &Partition, operation: &'static str) {
    span.set(names::MESSAGING_SYSTEM, "kafka");
    span.set(names::MESSAGING_OPERATION, operation);
    span.set(names::MESSAGING_OPERATION_TYPE, "process");
    span.set(names::MESSAGING_DESTINATION, partition.config.topic.clone());
    span.set(names::MESSAGING_PARTITION, partition.partition.to_string());
}

/// A word for people: the reason of a refusal where there is one.
fn outcome(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Reserved { .. } => "reserved",
        Verdict::Rejected(rejection) => rejection.code(),
        Verdict::Refused(_) => "refused",
        Verdict::Duplicate => "duplicate",
        Verdict::Poison(reason) => reason.code(),
        _ => "done",
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
