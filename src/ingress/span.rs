//! The span of one publish: from the lane's door to the delivery report.

use std::time::Instant;

use super::{Delivery, NotSent};
use crate::telemetry::trace_context::TraceContext;
use crate::telemetry::traces::{self, Span, SpanKind, names};
use crate::wire::Sent;

/// Begins it under the span of the call, if that is sampled.
pub(super) fn begin(topic: &str, partition: i32, sent: &Sent, call: TraceContext) -> Option<Span> {
    let mut span = traces::child(call, SpanKind::Producer, format!("send {topic}"), Instant::now())?;
    span.set(names::MESSAGING_SYSTEM, "kafka");
    span.set(names::MESSAGING_OPERATION, "send");
    span.set(names::MESSAGING_OPERATION_TYPE, "send");
    span.set(names::MESSAGING_DESTINATION, topic.to_owned());
    span.set(names::MESSAGING_PARTITION, partition.to_string());
    span.set(names::MESSAGING_KEY, sent.command.sku().as_str().to_owned());
    span.set(names::MESSAGING_MESSAGE_ID, sent.command.id().to_string());
    span.set(names::MESSAGING_CONVERSATION_ID, sent.request_id.clone());
    span.set(names::COMMAND_KIND, sent.command.kind());
    Some(span)
}

/// Ends it with what became of the command.
pub(super) fn end(mut span: Span, delivery: Delivery) {
    match delivery {
        Delivery::Delivered(ticket) => {
            span.set(names::MESSAGING_OFFSET, ticket.place.offset);
            span.set(names::COMMAND_INDEX, i64::from(ticket.place.index));
        }
        Delivery::NotSent(NotSent::Full) => span.fail("full"),
        Delivery::NotSent(NotSent::Unavailable) => span.fail("unavailable"),
        Delivery::Unknown => span.fail("unknown"),
    }
}
