//! What every Kafka client of this program has in common.

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;

use crate::limits;

/// Settings of every client. `brokers` is the usual comma-separated list of `host:port`.
///
/// The library's defaults differ from Java's: without this it would create a missing topic with one partition, and take up to 10 s to
/// look for a broker that is back.
pub fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "flashsale")
        .set("allow.auto.create.topics", "false")
        .set("reconnect.backoff.ms", limits::BROKER_RECONNECT_WAIT_MIN.as_millis().to_string())
        .set("reconnect.backoff.max.ms", limits::BROKER_RECONNECT_WAIT_MAX.as_millis().to_string())
        .set("socket.keepalive.enable", "true")
        .set("socket.nagle.disable", "true")
        // Connections that do not answer are replaced after this; the library's default is a minute.
        .set("socket.timeout.ms", limits::BROKER_SOCKET_TIMEOUT.as_millis().to_string());
    config
}

/// Takes the library's log lines and events where a client needs nothing else from them.
#[derive(Clone, Copy, Debug, Default)]
pub struct LibraryLog;

impl ClientContext for LibraryLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        log_event(&error, reason);
    }
}

/// Writes a line of the client library to our log. Nothing there is ERROR: a broker that is away is told by readiness and metrics.
pub fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!(target: "librdkafka", facility, line, "client library reports an error");
        }
        RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            tracing::debug!(target: "librdkafka", facility, line, "client library reports");
        }
    }
}

/// Writes an error event of the client library to our log. It repeats itself while a broker is away, hence debug.
pub fn log_event(error: &KafkaError, reason: &str) {
    tracing::debug!(target: "librdkafka", %error, reason, "client library event");
}
