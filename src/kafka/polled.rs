//! A producer of the client library with a thread that takes its reports.
//!
//! The library's own (`ThreadedProducer`) asks in steps of 100 ms, and spends the last millisecond of each step turning in a circle: its
//! timeouts are whole milliseconds. That is a hundredth of a core for every producer, busy or idle; longer steps cost less.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext, PurgeConfig};

use crate::limits;

/// Handle to the producer and its thread. Dropping it gives up what is still on its way; the thread ends by itself, and nobody waits for it.
pub(super) struct PolledProducer<C: ProducerContext + 'static> {
    library: Arc<BaseProducer<C>>,
    is_over: Arc<AtomicBool>,
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    /// Starts the producer and its thread.
    pub fn start(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        let library = Arc::new(BaseProducer::from_config_and_context(config, context)?);
        let (polled, is_over) = (Arc::clone(&library), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&is_over);
        let thread = std::thread::Builder::new().name("kafka-reports".to_owned());
        let started = thread.spawn(move || {
            while !told.load(Ordering::Relaxed) {
                polled.poll(limits::REPORTS_POLL_EVERY);
            }
        });
        started.map_err(|_| KafkaError::ClientCreation("could not start a producer's thread".to_owned()))?;
        Ok(Self { library, is_over })
    }
}

impl<C: ProducerContext + 'static> Deref for PolledProducer<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &Self::Target {
        &self.library
    }
}

impl<C: ProducerContext + 'static> Drop for PolledProducer<C> {
    fn drop(&mut self) {
        self.library.purge(PurgeConfig::default().queue().inflight());
        self.is_over.store(true, Ordering::Relaxed);
    }
}
