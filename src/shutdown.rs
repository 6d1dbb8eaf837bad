//! From the first SIGTERM or Ctrl-C to a clean end.
//!
//! One token says "stop" to every component at once: readiness goes off, listeners stop accepting, requests in flight are finished, the
//! producer has its last records acknowledged, the consumer finishes its batch and leaves the group. All of it is bounded by
//! [`crate::limits::SHUTDOWN_DEADLINE`]; whoever is not done by then is cut off, which loses nothing that was promised.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT. Further signals change nothing: the end is bounded anyway.
///
/// # Errors
/// If the process can't listen for signals.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        // Both arms are cancel-safe.
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        cancelled.cancel();
    });
    Ok(stop)
}
