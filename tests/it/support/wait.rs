//! Waiting for a condition instead of sleeping and hoping.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks until `is_so` says yes.
///
/// # Panics
/// After `deadline`, naming `what` was awaited.
pub async fn wait_for<F>(what: &str, deadline: Duration, mut is_so: F)
where
    F: AsyncFnMut() -> bool,
{
    wait_for_value(what, deadline, async || is_so().await.then_some(())).await;
}

/// Looks until `look` finds something, and returns it.
///
/// # Panics
/// After `deadline`, naming `what` was awaited.
pub async fn wait_for_value<T, F>(what: &str, deadline: Duration, mut look: F) -> T
where
    F: AsyncFnMut() -> Option<T>,
{
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
