//! The components of a serving process: started in groups, watched together, ended group by group.
//!
//! A component that ends by itself ends the process: half a service that looks alive is worse than a restart.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Failure;
use crate::limits;

/// Hears of every component that ended without being told to.
pub(super) struct Supervisor {
    ended: mpsc::Sender<Failure>,
    endings: mpsc::Receiver<Failure>,
}

impl Supervisor {
    pub(super) fn new() -> Self {
        let (ended, endings) = mpsc::channel(limits::COMPONENTS_MAX);
        Self { ended, endings }
    }

    /// An empty group of components that end together.
    pub(super) fn group(&self) -> Group {
        Group { ended: self.ended.clone(), stop: CancellationToken::new(), running: TaskTracker::new() }
    }

    /// Waits for `stop`, or for the first component that ends by itself.
    pub(super) async fn watch(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        // Both arms are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(failure) = self.endings.recv() => Err(failure),
        }
    }
}

/// Components that are stopped by one token.
pub(super) struct Group {
    ended: mpsc::Sender<Failure>,
    stop: CancellationToken,
    running: TaskTracker,
}

impl Group {
    /// The token by which its components are told to stop.
    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a component until the group is ended.
    pub(super) fn spawn<E>(&self, name: &'static str, component: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: std::error::Error + 'static,
    {
        let (ended, stop) = (self.ended.clone(), self.stop.clone());
        self.running.spawn(async move {
            let failure = match AssertUnwindSafe(component).catch_unwind().await {
                Ok(Ok(())) => Failure::bug(format!("{name} ended by itself")),
                Ok(Err(error)) => Failure::unavailable_because(format!("{name} ended: {}", super::chain(&error))),
                Err(_) => Failure::bug(format!("{name} panicked")),
            };
            if !stop.is_cancelled() {
                tracing::error!(component = name, error = failure.message, "a component ended, so the process ends");
                // Full only if many end at once: one is enough to end the process.
                let _ = ended.try_send(failure);
            }
        });
    }

    /// As [`Group::spawn`], for components that can't fail.
    pub(super) fn spawn_infallible(&self, name: &'static str, component: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, component.map(Ok::<(), std::convert::Infallible>));
    }

    /// Tells all components to stop and waits for them, at most so long.
    pub(super) async fn end(&self, name: &'static str, within: Duration) {
        self.stop.cancel();
        self.running.close();
        if tokio::time::timeout(within, self.running.wait()).await.is_err() {
            tracing::warn!(
                group = name,
                running = self.running.len(),
                "left components behind that did not stop in time"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_component_that_ends_by_itself_ends_the_process() {
        let never = CancellationToken::new();
        let mut supervisor = Supervisor::new();
        supervisor.group().spawn_infallible("quitter", async {});
        assert_eq!(supervisor.watch(&never).await.expect_err("it ended").exit, Failure::BUG);
        supervisor.group().spawn_infallible("panicker", async { panic!("a bug") });
        assert_eq!(supervisor.watch(&never).await.expect_err("it ended").exit, Failure::BUG);
        supervisor.group().spawn("failure", async { Err(std::io::Error::other("away")) });
        let failure = supervisor.watch(&never).await.expect_err("it ended");
        assert_eq!((failure.exit, failure.message.as_str()), (Failure::UNAVAILABLE, "failure ended: away"));
    }

    #[tokio::test]
    async fn components_that_were_told_to_stop_are_no_news() {
        let mut supervisor = Supervisor::new();
        let group = supervisor.group();
        let stop = group.stop();
        group.spawn_infallible("obedient", async move { stop.cancelled().await });
        group.spawn_infallible("deaf", std::future::pending());
        group.end("both", Duration::from_millis(10)).await;
        let stopped = CancellationToken::new();
        stopped.cancel();
        supervisor.watch(&stopped).await.expect("nothing failed");
        assert!(supervisor.endings.try_recv().is_err());
    }
}
