//! Whether a broker can be reached: what the client library says, checked by asking.
//!
//! "All brokers are down" is an event of the library that also comes when an idle connection is closed; that it is over is told by nobody.
//! So one thread asks for the topic's metadata: every second, and at once after such an event. Until it has an answer the link is
//! doubted, and lanes hold their requests back instead of losing sight of them in the library's queue.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};

use rdkafka::producer::Producer as _;
use tokio::sync::watch;

use super::Shared;
use crate::kafka::KafkaError;
use crate::limits;

/// Whether publishing has a chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Not known; the answer comes within [`limits::BROKER_PROBE_DEADLINE`].
    Doubted,
    /// A broker knows the topic, or has just taken a record.
    Up,
    /// No broker answers, or none knows the topic.
    Down,
    /// The producer can't go on, whatever the brokers do.
    Fatal,
}

/// Follows the link into its next state: a fatal error stays, and a doubt says nothing new about a link that is down.
pub(super) fn change(link: &watch::Sender<Link>, to: Link) {
    link.send_if_modified(|now| {
        let next = match (*now, to) {
            (Link::Fatal, _) => Link::Fatal,
            (Link::Down, Link::Doubted) => Link::Down,
            (_, to) => to,
        };
        std::mem::replace(now, next) != next
    });
}

/// Asks the probe to look at once.
pub(super) struct Doubts(SyncSender<()>);

impl Doubts {
    pub(super) fn raise(&self) {
        let _ = self.0.try_send(()); // full = it will look anyway
    }
}

/// A channel for doubts: one that waits is enough.
pub(super) fn doubts() -> (Doubts, Receiver<()>) {
    const ONE_IS_ENOUGH: usize = 1;
    let (raise, raised) = sync_channel(ONE_IS_ENOUGH);
    (Doubts(raise), raised)
}

/// Starts the thread that asks. It ends with the producer.
pub(super) fn start_probe(
    producer: Weak<Shared>,
    link: watch::Sender<Link>,
    doubted: Receiver<()>,
) -> Result<(), KafkaError> {
    std::thread::Builder::new()
        .name("kafka-probe".to_owned())
        .spawn(move || {
            while let Some(found) = producer.upgrade().map(|producer| probe(&producer)) {
                let before = *link.borrow();
                change(&link, found);
                if before != found && matches!(found, Link::Down) {
                    tracing::warn!("no broker can be reached");
                }
                let pause = match found {
                    Link::Up => limits::BROKER_PROBE_EVERY,
                    Link::Doubted | Link::Down | Link::Fatal => limits::BROKER_PROBE_EVERY_DOWN,
                };
                if doubted.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        })
        .map(drop) // it ends by itself when the producer is gone
        .map_err(|_| KafkaError::Busy { attempt: "start the thread that asks for brokers" })
}

/// Asks a broker about the topic.
fn probe(producer: &Shared) -> Link {
    let client = producer.library.client();
    if client.fatal_error().is_some() {
        return Link::Fatal;
    }
    match client.fetch_metadata(Some(&producer.topic), limits::BROKER_PROBE_DEADLINE) {
        Ok(metadata) if metadata.topics().iter().any(|t| t.error().is_none() && !t.partitions().is_empty()) => Link::Up,
        Ok(_) => Link::Down,
        Err(error) => {
            tracing::debug!(%error, "no broker answers");
            Link::Down
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_error_stays_and_a_doubt_does_not_lift_a_link_that_is_down() {
        use Link::{Doubted, Down, Fatal, Up};
        for (now, to, next) in [
            (Doubted, Up, Up),
            (Doubted, Down, Down),
            (Up, Doubted, Doubted),
            (Up, Down, Down),
            (Down, Doubted, Down),
            (Down, Up, Up),
            (Up, Fatal, Fatal),
            (Fatal, Up, Fatal),
            (Fatal, Doubted, Fatal),
        ] {
            let (link, watched) = watch::channel(now);
            change(&link, to);
            assert_eq!(*watched.borrow(), next, "{now:?} -> {to:?}");
        }
    }
}
