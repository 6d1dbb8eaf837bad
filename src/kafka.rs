//! Kafka: the log that carries every command from the API to its single writer.
//!
//! Between ingress and consumer in the flow. [`topics`] makes and checks the topics, [`producer`] publishes records, [`event_producer`] events,
//! [`log_ends`] answers
//! questions about the log (where it ends, what stands at an offset) for status reads, lag and the check of a claim.
//!
//! All clients here start from [`client::config`]: no client ever creates a topic by accident, and the client library's own lines go
//! to our log, none of them as ERROR.

pub mod client;
pub mod compression;
pub mod event_producer;
pub mod log_ends;
mod polled;
pub mod producer;
pub mod topics;
pub mod trace_headers;

pub use compression::Compression;
pub use event_producer::EventProducer;
pub use log_ends::{LogEnds, LogRecord};
pub use producer::Producer;

/// Why a question to Kafka has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KafkaError {
    /// The client library or a broker refused.
    #[error("could not {attempt}")]
    Client {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        #[source]
        source: rdkafka::error::KafkaError,
    },
    /// No answer within the deadline.
    #[error("no answer in time: {attempt}")]
    Deadline {
        /// What was attempted.
        attempt: &'static str,
    },
    /// Too many questions are waiting, or the thread that asks them has ended.
    #[error("can't take another question: {attempt}")]
    Busy {
        /// What was attempted.
        attempt: &'static str,
    },
}

impl KafkaError {
    /// Names the attempt that an error of the client library belongs to.
    pub(crate) fn because(attempt: &'static str) -> impl FnOnce(rdkafka::error::KafkaError) -> Self {
        move |source| Self::Client { attempt, source }
    }
}
