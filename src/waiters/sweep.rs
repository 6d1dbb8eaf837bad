//! The sweep: what a lost wake-up costs is two intervals at most, not the whole wait.

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Waiters;
use crate::effects::DecidedId;
use crate::limits;
use crate::store::Store;

/// Every [`limits::WAITER_SWEEP_EVERY`] asks Postgres which of the reservations that somebody has waited for at least that long are
/// decided, at most [`limits::STATUS_READ_MAX`] in a query, and wakes those. Ends when `stop` is cancelled.
///
/// Waiters of commands are not found here: whoever waits for a command reads again by itself every [`limits::COMMAND_POLL_EVERY`].
pub async fn sweep(waiters: Waiters, store: Store, stop: CancellationToken) {
    let mut ticks = interval(limits::WAITER_SWEEP_EVERY);
    // A slow database must not be asked faster to make up for it.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let overdue = waiters.ids_older_than(limits::WAITER_SWEEP_EVERY);
        let mut is_failing = false;
        for ids in overdue.chunks(limits::STATUS_READ_MAX) {
            match store.load_statuses(ids).await {
                Ok(read) => waiters.wake(read.reservations.into_keys().map(DecidedId::changed)),
                Err(error) => {
                    // Once per outage: the waiters simply wait longer.
                    if !was_failing {
                        warn!(
                            error = &error as &dyn std::error::Error,
                            waiters.open = overdue.len(),
                            "could not sweep waiters"
                        );
                    }
                    is_failing = true;
                    break;
                }
            }
        }
        was_failing = is_failing;
    }
}
