//! Kafka, as this service uses it.
