//! The listening end of the channel `decisions`.

use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};

use super::connection::within;
use super::{CacheError, Inner};
use crate::limits;

/// A subscription on a connection of its own.
pub struct Subscription {
    sink: PubSubSink,
    messages: PubSubStream,
}

pub(super) async fn subscribe(inner: &Inner) -> Result<Subscription, CacheError> {
    let connecting = async {
        let mut pubsub = inner.client.get_async_pubsub().await?;
        pubsub.subscribe(inner.channel()).await?;
        Ok(pubsub.split())
    };
    let (sink, messages) = within(limits::REDIS_BACKGROUND_DEADLINE, "subscribe to decisions", connecting).await?;
    Ok(Subscription { sink, messages })
}

impl Subscription {
    /// The next message, undecoded; `None` when the connection is lost. Cancel-safe.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        self.messages.next().await.map(|message| message.get_payload_bytes().to_vec())
    }

    /// Asks for a sign of life: a listener that only listens would not notice that the other end is gone.
    ///
    /// # Errors
    /// [`CacheError`], within [`limits::REDIS_BACKGROUND_DEADLINE`].
    pub async fn ping(&mut self) -> Result<(), CacheError> {
        let pinging = async { self.sink.ping::<redis::Value>().await.map(|_| ()) };
        within(limits::REDIS_BACKGROUND_DEADLINE, "ping the subscription", pinging).await
    }
}
