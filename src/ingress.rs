//! Ingress: requests in flight are collected per partition and published by natural batching.
//!
//! One lane per partition: whatever gathered while its last publish was in flight makes the next one, paced (see `limits`), grouped into
//! records of one SKU. A full lane refuses at once. Nothing is lost and nothing is said twice: every request gets exactly one
//! [`Delivery`], and one failing request never fails its neighbours.

use crate::ids::Ticket;
use crate::wire::Sent;

/// What became of one request on its way into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The broker's delivery report says that it is in the log.
    Delivered(Ticket),
    /// It is definitely not in the log and never will be.
    NotSent(NotSent),
    /// It may be in the log, now or soon: no report within [`crate::limits::DELIVERY_WAIT`], or a report that leaves it open.
    Unknown,
}

/// Why a request was definitely not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// The lane or the client library's queue is full: 503 `OVERLOADED`.
    Full,
    /// The broker can't be reached or refuses, or the process stops: 503 `QUEUE_UNAVAILABLE`.
    Unavailable,
}

/// Handle to the lanes; cheap to clone.
#[derive(Clone)]
pub struct Ingress {}

impl Ingress {
    /// Publishes one command to its SKU's pinned partition, together with whatever else is on its way there, and waits for the report.
    ///
    /// Dropping the future does not take the command back: whoever needs the outcome runs this in a task of its own.
    pub async fn submit(&self, partition: i32, sent: Sent) -> Delivery {
        let _ = (partition, sent);
        unimplemented!()
    }

    /// Whether a publish would have a chance: the producer has no fatal error and has lately reached a broker. For readiness.
    pub fn is_available(&self) -> bool {
        unimplemented!()
    }
}
