//! A listener: accepts connections and serves a router on them, HTTP/1.1 and h2c, until told to stop.
//!
//! axum's own `serve` can't bound headers and the time that they take; hyper's builder bounds the one, `connection` the other.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Patience, Watch, Watched};
use crate::limits;

/// Serves until `stop`, then lets requests in flight finish for at most `drain`. Returns when the last connection is closed or the time
/// is over.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken, drain: Duration) {
    serve_with(listener, router, stop, drain, Patience::default()).await;
}

/// The same with other bounds for waiting clients: tests have less patience.
pub async fn serve_with(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    drain: Duration,
    patience: Patience,
) {
    let connections = TaskTracker::new();
    let free = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let ending = Arc::new(Ending::default());
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &free)).await {
        let (stream, permit) = accepted;
        let connection = serve_connection(stream, router.clone(), Arc::clone(&ending), Watch::new(patience));
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    drop(listener);
    ending.begin(Ending::GRACEFUL);
    connections.close();
    if tokio::time::timeout(drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cut off connections that did not finish in time");
        ending.begin(Ending::CUT_OFF);
        connections.wait().await;
    }
}

/// How connections are told that the listener ends. Each is polled several times per request, so what it asks then is a number, not a lock
/// that all of them share; it registers for the wake-up once.
#[derive(Default)]
struct Ending {
    stage: AtomicU8,
    stages: [CancellationToken; 2],
}

impl Ending {
    /// Requests in flight may finish.
    const GRACEFUL: u8 = 1;
    /// Nothing may.
    const CUT_OFF: u8 = 2;

    fn begin(&self, stage: u8) {
        // First the number: whoever is woken sees it.
        self.stage.store(stage, Ordering::Release);
        self.stages[usize::from(stage) - 1].cancel();
    }

    fn stage(&self) -> u8 {
        self.stage.load(Ordering::Acquire)
    }
}

/// The next connection, as soon as there is room for it. Cancel-safe: nothing is taken from the backlog before it is returned.
async fn accept(listener: &TcpListener, free: &Arc<Semaphore>) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let permit = Arc::clone(free).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                // A connection that was gone before we took it, or no file descriptors left: both pass.
                tracing::warn!(error = %error, "could not accept a connection");
                tokio::time::sleep(limits::ACCEPT_RETRY_WAIT).await;
            }
        }
    }
}

fn serve_connection(stream: TcpStream, router: Router, ending: Arc<Ending>, watch: Watch) -> impl Future<Output = ()> {
    // Answers are small and complete: waiting for more to send would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, "could not switch off Nagle's algorithm");
    }
    async move {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            // The watch does it.
            .header_read_timeout(None)
            .max_buf_size(limits::CONNECTION_BUFFER_BYTES_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(limits::HTTP2_PING_EVERY)
            .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
            .max_header_list_size(u32::try_from(limits::CONNECTION_BUFFER_BYTES_MAX).expect("64 KiB fit"));
        let inner = TowerToHyperService::new(router);
        let (watched, answered) = (watch.clone(), watch.clone());
        let service = service_fn(move |request| {
            let (answering, answer) = (answered.answering(), inner.call(request));
            async move {
                let answer = answer.await;
                drop(answering);
                answer
            }
        });
        let connection = builder.serve_connection(TokioIo::new(Watched { stream, watch: watched }), service);
        let mut connection = std::pin::pin!(connection);
        let mut timer = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let [stopped, cut_off] = &ending.stages;
        let mut wakers = (std::pin::pin!(stopped.cancelled()), std::pin::pin!(cut_off.cancelled()));
        let (mut is_registered, mut seen) = (false, 0);
        let ended = poll_fn(|cx| {
            if !std::mem::replace(&mut is_registered, true) {
                // Only to be woken: the stage says what it is about. A task's waker stays the same.
                let _ = (wakers.0.as_mut().poll(cx), wakers.1.as_mut().poll(cx));
            }
            match std::mem::replace(&mut seen, ending.stage()) {
                _ if seen == Ending::CUT_OFF => return Poll::Ready(None),
                0 if seen == Ending::GRACEFUL => connection.as_mut().graceful_shutdown(),
                _ => {}
            }
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(ended));
            }
            // After the connection, so that this sees what came and went.
            let Some(deadline) = watch.deadline() else { return Poll::Pending };
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            timer.as_mut().poll(cx).map(|()| None)
        });
        match ended.await {
            Some(Ok(())) => {}
            // Clients that vanish, talk nonsense or keep us waiting are no news.
            Some(Err(error)) => tracing::debug!(error = %error, "a connection ended early"),
            None => tracing::debug!("a connection took too long"),
        }
    }
}
