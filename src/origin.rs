//! Where a command comes from, for people who look for it in logs and traces. No decision reads it.

use std::sync::Arc;

use crate::telemetry::trace_context::TraceContext;

/// What a command's client was told to find it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The request id, at most [`crate::limits::REQUEST_ID_CHARS_MAX`] characters. It travels in the command, always.
    pub request_id: Arc<str>,
    /// The trace that the call belongs to, if it belongs to one. It travels in the record's headers.
    pub trace: Option<TraceContext>,
}

/// Without a trace: a command of an operator or of a tool.
impl From<String> for Origin {
    fn from(request_id: String) -> Self {
        Self { request_id: request_id.into(), trace: None }
    }
}
