//! Which commands of a record belong to a trace: its headers.
//!
//! The first command has `traceparent` and `x-request-id`, as any tool expects them of a message; a record carries up to
//! [`limits::RECORD_COMMANDS_MAX`] commands, so that the others have their number behind it (`traceparent-7`). A command without a trace has
//! no header (its request id is in its own bytes), and a record of such commands has none at all.

use std::sync::Arc;

use rdkafka::message::{BorrowedHeaders, Header, Headers, OwnedHeaders};

use crate::limits;
use crate::telemetry::trace_context::{TRACEPARENT, TraceContext};

/// The request id's name, as in HTTP.
const REQUEST_ID: &str = "x-request-id";

/// A command of a record that belongs to a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Its place among the record's commands.
    pub index: u16,
    /// The span that published it.
    pub context: TraceContext,
    /// What its client was told to find it by.
    pub request_id: Arc<str>,
}

/// As headers; `None` where nothing is traced.
pub fn write(traced: &[Traced]) -> Option<OwnedHeaders> {
    if traced.is_empty() {
        return None;
    }
    let mut headers = OwnedHeaders::new_with_capacity(2 * traced.len());
    for Traced { index, context, request_id } in traced {
        let value = context.to_string();
        headers = headers.insert(Header { key: &name(TRACEPARENT, *index), value: Some(&value) });
        headers = headers.insert(Header { key: &name(REQUEST_ID, *index), value: Some(request_id.as_bytes()) });
    }
    Some(headers)
}

/// The traces of a record, by the place of the command; whatever else stands in its headers is somebody else's. Of a foreign record that
/// has a thousand headers, no more are read than a record has commands, twice.
pub fn read(headers: &BorrowedHeaders) -> Vec<(u16, TraceContext)> {
    let ours = headers.iter().take(2 * limits::RECORD_COMMANDS_MAX);
    ours.filter_map(|header| {
        let index = index_of(header.key)?;
        let value = std::str::from_utf8(header.value?).ok()?;
        Some((index, TraceContext::parse(value)?))
    })
    .collect()
}

fn name(of: &str, index: u16) -> String {
    if index == 0 { of.to_owned() } else { format!("{of}-{index}") }
}

fn index_of(key: &str) -> Option<u16> {
    match key.strip_prefix(TRACEPARENT)? {
        "" => Some(0),
        numbered => numbered.strip_prefix('-')?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_foreign_headers_are_passed_over() {
        let traced = [0, 7, 49].map(|index| Traced {
            index,
            context: TraceContext { trace_id: 5 + u128::from(index), span_id: 9, is_sampled: index == 7 },
            request_id: "r-1".into(),
        });
        let written = write(&traced).expect("three are traced");
        let keys: Vec<&str> = written.iter().map(|header| header.key).collect();
        assert_eq!(
            keys,
            ["traceparent", "x-request-id", "traceparent-7", "x-request-id-7", "traceparent-49", "x-request-id-49"]
        );
        let foreign = written
            .insert(Header { key: "traceparent-x", value: Some("nothing") })
            .insert(Header { key: "traceparent-3", value: Some("nothing") })
            .insert(Header::<&str> { key: "traceparent-4", value: None })
            .insert(Header { key: "other", value: Some(&[0xff_u8][..]) });
        let expected: Vec<_> = traced.iter().map(|t| (t.index, t.context)).collect();
        assert_eq!(read(foreign.as_borrowed()), expected);
        assert!(write(&[]).is_none());
    }
}
