//! How long a connection may keep us waiting. hyper has one deadline for both an idle connection and a started header; they differ:
//! load balancers keep idle connections for a minute and expect that we do not close them first, while a header that was begun is
//! either sent at once or by somebody who wants to occupy us.
//!
//! [`Watch`] knows which of the two it is: [`Watched`] tells it of every byte, the service of every request. It is polled by the task of
//! its connection, after the connection, so that it needs no wake-up of its own.
//!
//! HTTP/2 connections are not watched once they have said that they are: they send frames whenever they like, and pings find the dead.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::limits;

/// What a connection may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// From the first byte of a request to the end of its headers.
    pub header: Duration,
    /// Without a byte in either direction between two requests, or before the first.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { header: limits::HEADER_READ_DEADLINE, idle: limits::KEEP_ALIVE_IDLE_MAX }
    }
}

/// How every HTTP/2 connection begins, and no HTTP/1 request: as much of the preface as tells.
const HTTP2_START: &[u8] = b"PRI";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has come since the last answer, or at all.
    Idle { since: Instant },
    /// Some of a request came, its headers are not complete.
    Header { since: Instant },
    /// A request is being answered; its own deadlines count.
    Busy,
    /// HTTP/2.
    Unwatched,
}

/// **PURE**: instants come as arguments.
#[derive(Debug)]
struct State {
    phase: Phase,
    /// How many bytes of [`HTTP2_START`] the connection began with; `None` once that is settled.
    http2_start: Option<usize>,
}

impl State {
    fn accepted(now: Instant) -> Self {
        Self { phase: Phase::Idle { since: now }, http2_start: Some(0) }
    }

    fn received(&mut self, bytes: &[u8], now: Instant) {
        if let Some(known) = self.http2_start {
            let expected = &HTTP2_START[known..];
            let count = bytes.len().min(expected.len());
            let is_so_far = bytes[..count] == expected[..count];
            self.http2_start = (is_so_far && count < expected.len()).then_some(known + count);
            if is_so_far && count == expected.len() {
                self.phase = Phase::Unwatched;
            }
        }
        if let Phase::Idle { .. } = self.phase {
            self.phase = Phase::Header { since: now };
        }
    }

    /// A client that takes its answer slowly, but takes it, is not idle.
    fn sent(&mut self, now: Instant) {
        if let Phase::Idle { since } = &mut self.phase {
            *since = now;
        }
    }

    fn answering(&mut self) {
        if self.phase != Phase::Unwatched {
            self.phase = Phase::Busy;
        }
    }

    fn answered(&mut self, now: Instant) {
        if self.phase == Phase::Busy {
            self.phase = Phase::Idle { since: now };
        }
    }

    fn deadline(&self, patience: Patience) -> Option<Instant> {
        match self.phase {
            Phase::Idle { since } => Some(since + patience.idle),
            Phase::Header { since } => Some(since + patience.header),
            Phase::Busy | Phase::Unwatched => None,
        }
    }
}

/// What one connection is doing; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    state: Arc<Mutex<State>>,
    patience: Patience,
}

/// A request is being answered until this is dropped.
pub(super) struct Answering(Watch);

impl Watch {
    /// A connection that was accepted now.
    pub(super) fn new(patience: Patience) -> Self {
        Self { state: Arc::new(Mutex::new(State::accepted(Instant::now()))), patience }
    }

    /// A request's headers are complete.
    pub(super) fn answering(&self) -> Answering {
        self.state().answering();
        Answering(self.clone())
    }

    /// When the connection is to be cut unless something happens; `None` = not as it is.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.state().deadline(self.patience)
    }

    /// Held for a few instructions, and nothing there panics.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.state().answered(Instant::now());
    }
}

/// A stream that tells its [`Watch`] of every byte.
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) watch: Watch,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(bytes @ [_, ..]) = buf.filled().get(before..) {
            self.watch.state().received(bytes, Instant::now());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    fn note_sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = written {
            self.watch.state().sent(Instant::now());
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.note_sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { header: Duration::from_secs(10), idle: Duration::from_secs(90) };

    #[test]
    fn idle_and_started_headers_have_bounds_of_their_own() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut state = State::accepted(start);
        assert_eq!(state.deadline(PATIENCE), Some(at(90)));
        state.received(b"G", at(80));
        assert_eq!(state.deadline(PATIENCE), Some(at(90)));
        state.received(b"ET / HTTP/1.1\r\n", at(84));
        assert_eq!(state.deadline(PATIENCE), Some(at(90)), "more bytes give no more time");
        state.answering();
        state.received(b"body", at(86));
        state.sent(at(87)); // 100 Continue
        assert_eq!(state.deadline(PATIENCE), None);
        state.answered(at(100));
        assert_eq!(state.deadline(PATIENCE), Some(at(190)));
        state.sent(at(180));
        assert_eq!(state.deadline(PATIENCE), Some(at(270)), "its client still reads");
        state.received(b"PRI", at(200));
        assert_eq!(state.deadline(PATIENCE), Some(at(210)), "HTTP/2 begins at the beginning");
    }

    #[test]
    fn http2_is_known_by_its_first_bytes_however_they_come() {
        let now = Instant::now();
        for (parts, is_http2) in [
            (&["PRI * HTTP/2.0"][..], true),
            (&["P", "R", "I"], true),
            (&["PR", "I *"], true),
            (&["PROPFIND"], false),
            (&["P", "OST", "PRI"], false),
            (&["PR"], false),
            (&["GET"], false),
        ] {
            let mut state = State::accepted(now);
            parts.iter().for_each(|part| state.received(part.as_bytes(), now));
            assert_eq!(state.deadline(PATIENCE).is_none(), is_http2, "{parts:?}");
            state.answering();
            state.answered(now);
            assert_eq!(state.deadline(PATIENCE).is_none(), is_http2, "{parts:?}");
        }
    }
}
