//! The subscription: what other processes decided, as Redis tells it.
//!
//! Each message wakes the waiters of its ids and hands its SKU hints to the catalogue, which ignores those that are older than what it
//! has. After a reconnect nobody knows what was missed: all sold-out flags are dropped; waiters are left to the sweep.

use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admission::{Catalogue, Unheard};
use crate::cache::{Cache, CacheError, Subscription, message};
use crate::limits;
use crate::waiters::Waiters;

/// Listens until `stop`, and subscribes again whenever the connection is lost.
pub async fn run(cache: Cache, waiters: Waiters, catalogue: Catalogue, unheard: Unheard, stop: CancellationToken) {
    // `None` when cancelled; the loop itself never ends.
    let _stopped = stop.run_until_cancelled(listen_for_ever(&cache, &waiters, &catalogue, &unheard)).await;
}

async fn listen_for_ever(cache: &Cache, waiters: &Waiters, catalogue: &Catalogue, unheard: &Unheard) {
    let mut was_lost = false;
    loop {
        match cache.subscribe().await {
            Ok(subscription) => {
                // Only now: flags set by messages before this moment may have been cleared by one that was missed.
                catalogue.drop_flags();
                if was_lost {
                    info!("subscribed to decisions again");
                }
                was_lost = true;
                let lost = listen(subscription, waiters, catalogue, unheard).await;
                warn!(error = lost.as_ref().map(|e| e as &dyn std::error::Error), "lost the subscription to decisions");
            }
            Err(error) => {
                if !was_lost {
                    warn!(error = &error as &dyn std::error::Error, "waiting clients read postgres instead");
                }
                was_lost = true;
            }
        }
        sleep(limits::RESUBSCRIBE_EVERY).await;
    }
}

/// Until the connection is lost; returns the error if there was one.
async fn listen(
    mut subscription: Subscription,
    waiters: &Waiters,
    catalogue: &Catalogue,
    unheard: &Unheard,
) -> Option<CacheError> {
    let mut pings = interval(limits::SUBSCRIPTION_PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Both are cancel-safe: a tick or a message that is not taken now is taken by the next round.
        tokio::select! {
            payload = subscription.next() => hear(&payload?, waiters, catalogue, unheard),
            _ = pings.tick() => {
                if let Err(error) = subscription.ping().await {
                    return Some(error);
                }
            }
        }
    }
}

fn hear(payload: &[u8], waiters: &Waiters, catalogue: &Catalogue, unheard: &Unheard) {
    let Some(message) = message::decode(payload) else {
        warn!(message.size = payload.len(), "ignored a message that is none of this build's");
        return;
    };
    // The catalogue first: whoever is woken may read it.
    catalogue.apply(message.partition, message.epoch, message.position, &message.skus);
    unheard.heard(&message.decided);
    waiters.wake(message.decided);
}
