//! A listener: accepts connections and serves a router on them, HTTP/1.1 and h2c, until told to stop.
//!
//! axum's own `serve` can't bound headers and the time that they take; hyper's builder can.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::limits;

/// Serves until `stop`, then lets requests in flight finish for at most `drain`. Returns when the last connection is closed or the time
/// is over.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken, drain: Duration) {
    let connections = TaskTracker::new();
    let free = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let cut_off = CancellationToken::new();
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &free)).await {
        let (stream, permit) = accepted;
        let connection = serve_connection(stream, router.clone(), stop.clone());
        let cut_off = cut_off.clone();
        connections.spawn(async move {
            cut_off.run_until_cancelled(connection).await;
            drop(permit);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "cut off connections that did not finish in time");
        cut_off.cancel();
        connections.wait().await;
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

fn serve_connection(stream: TcpStream, router: Router, stop: CancellationToken) -> impl Future<Output = ()> {
    // Answers are small and complete: waiting for more to send would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, "could not switch off Nagle's algorithm");
    }
    async move {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HEADER_READ_DEADLINE)
            .max_buf_size(limits::CONNECTION_BUFFER_BYTES_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(limits::HEADER_READ_DEADLINE)
            .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
            .max_header_list_size(u32::try_from(limits::CONNECTION_BUFFER_BYTES_MAX).expect("64 KiB fit"));
        let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            // Clients that vanish or talk nonsense are no news.
            tracing::debug!(error = %error, "a connection ended early");
        }
    }
}
