//! A TCP proxy in front of Postgres that loses one message: the COMMIT itself, or the answer to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What is lost next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Lose {
    /// Nothing.
    Nothing = 0,
    /// The COMMIT never reaches the server; the connection is cut.
    Commit = 1,
    /// The server commits and answers; the answer is lost, the connection is cut.
    Answer = 2,
}

/// The proxy; it ends with the runtime of its test.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    lose: Arc<AtomicU8>,
    lost: Arc<AtomicU32>,
}

/// `COMMIT` as a simple query: type, length, text, terminator.
const COMMIT: &[u8] = b"Q\x00\x00\x00\x0bCOMMIT\x00";

impl Proxy {
    /// Listens on a free port in front of `server` (`host:port`).
    pub async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (lose, lost) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicU32::new(0)));
        let (l, n) = (Arc::clone(&lose), Arc::clone(&lost));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(&server).await {
                    tokio::spawn(relay(client, server, Arc::clone(&l), Arc::clone(&n)));
                }
            }
        });
        Self { port, lose, lost }
    }

    /// Loses this once, at the next COMMIT.
    pub fn lose_once(&self, what: Lose) {
        self.lose.store(what as u8, Ordering::SeqCst);
    }

    /// How often something was lost.
    pub fn lost_count(&self) -> u32 {
        self.lost.load(Ordering::SeqCst)
    }
}

async fn relay(client: TcpStream, server: TcpStream, lose: Arc<AtomicU8>, lost: Arc<AtomicU32>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = tokio::spawn(async move {
        let mut buffer = [0; 16 * 1024];
        loop {
            // Says how much came, so that the other side can lose an answer by ending this task first.
            match from_server.read(&mut buffer).await {
                Ok(count) if count > 0 && to_client.write_all(&buffer[..count]).await.is_ok() => {}
                _ => return,
            }
        }
    });
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
        let bytes = &buffer[..count];
        if bytes.windows(COMMIT.len()).any(|w| w == COMMIT) {
            let what = lose.swap(0, Ordering::SeqCst);
            if what != 0 {
                answers.abort();
                if what == Lose::Answer as u8 {
                    // The server gets it and commits; nobody reads what it says.
                    to_server.write_all(bytes).await.expect("the server takes the COMMIT");
                    to_server.flush().await.expect("the server takes the COMMIT");
                }
                lost.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
        if to_server.write_all(bytes).await.is_err() {
            break;
        }
    }
    answers.abort();
}
