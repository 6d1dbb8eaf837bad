//! One request on its way through a lane.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

use super::Delivery;
use crate::telemetry::trace_context::TraceContext;
use crate::wire::Sent;

/// Decides once and for all who answers a request: the lane that publishes it, or the submitter that takes it back.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim(Arc<AtomicBool>);

impl Claim {
    /// True for the first who asks, false for all others.
    pub(super) fn take(&self) -> bool {
        // Only this one flag is agreed on; what the winner does next needs no other memory of the loser.
        !self.0.swap(true, Ordering::Relaxed)
    }
}

/// A command with the way back to its submitter.
pub(super) struct Request {
    /// The command.
    pub(super) sent: Sent,
    /// The trace that it belongs to.
    pub(super) trace: Option<TraceContext>,
    claim: Claim,
    answer: oneshot::Sender<Delivery>,
}

impl Request {
    /// The request, and where its answer arrives.
    pub(super) fn new(sent: Sent, trace: Option<TraceContext>, claim: Claim) -> (Self, oneshot::Receiver<Delivery>) {
        let (answer, answered) = oneshot::channel();
        (Self { sent, trace, claim, answer }, answered)
    }

    /// Takes the request for publishing; false = its submitter has taken it back.
    pub(super) fn is_taken_for_publishing(&self) -> bool {
        self.claim.take()
    }

    /// Answers without publishing. Says nothing if the submitter has taken the request back.
    pub(super) fn refuse(self, delivery: Delivery) {
        if self.claim.take() {
            let _ = self.answer.send(delivery); // its future was dropped
        }
    }

    /// The way back, when the command is in its record.
    pub(super) fn into_answer(self) -> oneshot::Sender<Delivery> {
        self.answer
    }
}
