//! One kept HTTP/1.1 connection, opened again after every failure. Buffers are kept: an exchange allocates nothing.

use std::io;
use std::ops::Range;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::{Head, head_of};
use crate::limits;

/// A connection to one host.
pub(super) struct Connection {
    target: String,
    stream: Option<TcpStream>,
    received: Vec<u8>,
    /// What is sent next; filled by the caller.
    pub request: Vec<u8>,
}

/// What an answer tells; its body stays in the connection until the next exchange.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub status: u16,
    /// Seconds.
    pub retry_after: Option<u64>,
    body: Range<usize>,
}

impl Connection {
    /// Opens nothing yet.
    pub fn to(target: &str) -> Self {
        let (received, request) = (Vec::with_capacity(limits::LOAD_BUFFER_BYTES), Vec::new());
        Self { target: target.to_owned(), stream: None, received, request }
    }

    /// Opens it, if it is closed: a crowd that has to connect first would measure that.
    pub async fn open(&mut self) -> io::Result<()> {
        if self.stream.is_none() {
            let stream = timeout(limits::CONNECT_DEADLINE, TcpStream::connect(&self.target)).await??;
            stream.set_nodelay(true)?;
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends `self.request` and reads the answer, which is due at `deadline`. A connection that failed, or did not answer in time, is closed.
    pub async fn exchange(&mut self, deadline: Instant) -> io::Result<Answer> {
        let answer = match timeout_at(deadline, self.try_exchange()).await {
            Ok(answer) => answer,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
        };
        if !matches!(answer, Ok((_, false))) {
            self.stream = None;
        }
        answer.map(|(answer, _)| answer)
    }

    /// `GET`, for what is not measured.
    pub async fn get(&mut self, path: &str, wait: Option<Duration>) -> io::Result<Answer> {
        let prefer = wait.map_or(String::new(), |wait| format!("prefer: wait={}\r\n", wait.as_secs()));
        self.request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{prefer}\r\n", self.target).into_bytes();
        self.exchange(Instant::now() + limits::LOAD_ANSWER_DEADLINE + wait.unwrap_or_default()).await
    }

    /// The body of the last answer.
    pub fn body(&self, answer: &Answer) -> &[u8] {
        &self.received[answer.body.clone()]
    }

    /// The answer, and whether the server closes the connection behind it.
    async fn try_exchange(&mut self) -> io::Result<(Answer, bool)> {
        self.open().await?;
        let Self { stream: Some(stream), received, request, .. } = self else { unreachable!("just opened") };
        stream.write_all(request).await?;
        received.clear();
        let mut known: Option<Head> = None;
        loop {
            if stream.read_buf(received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if known.is_none() {
                known = head_of(received).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))?;
            }
            if let Some(Head { status, head_bytes, body_bytes, retry_after, is_last }) = known
                && received.len() >= head_bytes + body_bytes
            {
                return Ok((Answer { status, retry_after, body: head_bytes..head_bytes + body_bytes }, is_last));
            }
        }
    }
}
