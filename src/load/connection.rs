//! One kept HTTP/1.1 connection, opened again after every failure.

use axum::body::Bytes;
use axum::http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::limits;

/// A connection to one host.
pub(super) struct Connection {
    target: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// What an answer tells.
pub(super) struct Answer {
    pub status: u16,
    /// Seconds.
    pub retry_after: Option<u64>,
    pub body: String,
}

impl Connection {
    /// Opens nothing yet.
    pub fn to(target: &str) -> Self {
        Self { target: target.to_owned(), sender: None }
    }

    /// The next request opens a new one.
    pub fn close(&mut self) {
        self.sender = None;
    }

    pub async fn post(&mut self, path: &str, key: &str, body: &str) -> anyhow::Result<Answer> {
        let request = Request::post(path)
            .header(header::HOST, &self.target)
            .header(header::CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", key)
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))?;
        self.send(request).await
    }

    pub async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        let request = Request::get(path).header(header::HOST, &self.target).body(Full::default())?;
        self.send(request).await
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let answer = timeout(limits::LOAD_ANSWER_DEADLINE, self.exchange(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time")));
        if answer.is_err() {
            self.close();
        }
        answer
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let is_open = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !is_open {
            self.sender = Some(open(&self.target).await?);
        }
        let sender = self.sender.as_mut().expect("it is open");
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let header = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = header.and_then(|text| text.parse().ok());
        let body = answer.into_body().collect().await?.to_bytes();
        Ok(Answer { status, retry_after, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

async fn open(target: &str) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = timeout(limits::CONNECT_DEADLINE, TcpStream::connect(target)).await??;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with the connection; what went wrong is told to whoever sends.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
