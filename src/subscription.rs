//! The subscription: what other processes decided, as Redis tells it.
//!
//! Each message wakes the waiters of its ids and hands its SKU hints to the catalogue, which ignores those that are older than what it
//! has. After a reconnect nobody knows what was missed: all sold-out flags are dropped; waiters are left to the sweep.

use tokio_util::sync::CancellationToken;

use crate::admission::Catalogue;
use crate::cache::Cache;
use crate::waiters::Waiters;

/// Listens until `stop`, and subscribes again whenever the connection is lost.
pub async fn run(cache: Cache, waiters: Waiters, catalogue: Catalogue, stop: CancellationToken) {
    let _ = (cache, waiters, catalogue, stop);
    unimplemented!()
}
