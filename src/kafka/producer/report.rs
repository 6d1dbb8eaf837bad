//! What a publish's result proves: in the log, never in the log, or open.
//!
//! "Never in the log" is said only if no attempt can have landed. The library tries again by itself, so a refusal of the last attempt
//! proves nothing about an earlier one whose answer was lost, unless the refusal is about the record's own bytes.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

/// What became of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// In the log, at this offset.
    At(i64),
    /// Never handed over, because the client library's queue is full.
    Full,
    /// Not in the log, and it never will be.
    Refused,
    /// It may be in the log, or get there for as long as the library tries.
    Open,
}

/// The report of a record that the broker acknowledged.
pub(super) fn of_delivery(offset: i64) -> Report {
    // A retry that the broker recognised as a duplicate long ago is acknowledged without an offset: in the log, but who knows where.
    if offset >= 0 { Report::At(offset) } else { Report::Open }
}

/// The report of a record that the client library did not even take.
pub(super) fn of_refused_send(error: &KafkaError) -> Report {
    match error.rdkafka_error_code() {
        Some(Code::QueueFull) => Report::Full,
        _ => Report::Refused,
    }
}

/// The report of a record that the library took and gave up.
pub(in crate::kafka) fn of_failed_delivery(error: &KafkaError) -> Report {
    error.rdkafka_error_code().map_or(Report::Open, of_code)
}

fn of_code(code: Code) -> Report {
    match code {
        // About the bytes: every attempt was refused for the same reason.
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::InvalidRequiredAcks => Report::Refused,
        // All others leave an earlier attempt open: timeouts and lost connections (sent, answer lost), too few replicas after the append,
        // a topic that seems gone, rights taken away, a purge at shutdown (also hits records that wait to be tried again), a fatal error.
        _ => Report::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_definite_only_if_it_is_about_the_bytes() {
        for (code, report) in [
            (Code::MessageSizeTooLarge, Report::Refused),
            (Code::MessageBatchTooLarge, Report::Refused),
            (Code::InvalidRecord, Report::Refused),
            (Code::MessageTimedOut, Report::Open),
            (Code::BrokerTransportFailure, Report::Open),
            (Code::OperationTimedOut, Report::Open),
            (Code::RequestTimedOut, Report::Open),
            (Code::NotEnoughReplicas, Report::Open),
            (Code::NotEnoughReplicasAfterAppend, Report::Open),
            (Code::NotLeaderForPartition, Report::Open),
            (Code::UnknownTopicOrPartition, Report::Open),
            (Code::UnknownTopic, Report::Open),
            (Code::UnknownPartition, Report::Open),
            (Code::TopicAuthorizationFailed, Report::Open),
            (Code::OutOfOrderSequenceNumber, Report::Open),
            (Code::UnknownProducerId, Report::Open),
            (Code::PurgeQueue, Report::Open),
            (Code::PurgeInflight, Report::Open),
            (Code::Fatal, Report::Open),
            (Code::Unknown, Report::Open),
        ] {
            assert_eq!(of_failed_delivery(&KafkaError::MessageProduction(code)), report, "{code:?}");
        }
        assert_eq!(of_failed_delivery(&KafkaError::Canceled), Report::Open, "no code at all");
    }

    #[test]
    fn what_was_never_taken_is_never_in_the_log() {
        for (code, report) in [
            (Code::QueueFull, Report::Full),
            (Code::MessageSizeTooLarge, Report::Refused),
            (Code::UnknownTopic, Report::Refused),
            (Code::UnknownPartition, Report::Refused),
            (Code::Fatal, Report::Refused),
        ] {
            assert_eq!(of_refused_send(&KafkaError::MessageProduction(code)), report, "{code:?}");
        }
    }

    #[test]
    fn an_acknowledgement_without_an_offset_gives_no_place() {
        assert_eq!(of_delivery(0), Report::At(0));
        assert_eq!(of_delivery(-1001), Report::Open);
    }
}
