//! A listener, by raw bytes: what axum's own server can't do, and how it ends.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use flashsale::http::{Patience, serve_with};
use flashsale::limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::app::Http;
use crate::support::wait::wait_for;

struct Server {
    address: std::net::SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(router: Router, drain: Duration) -> Self {
        Self::with(router, drain, Patience::default()).await
    }

    async fn with(router: Router, drain: Duration, patience: Patience) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve_with(listener, router, stop.clone(), drain, patience));
        Self { address, stop, serving }
    }

    /// Sends bytes on a connection of their own and reads until the server closes it.
    async fn say(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("it listens");
        stream.write_all(bytes.as_bytes()).await.expect("it reads");
        read_all(&mut stream).await
    }
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut told = Vec::new();
    // A reset after the answer is an end as well: the server had unread bytes of ours.
    let _ = stream.read_to_end(&mut told).await;
    String::from_utf8_lossy(&told).into_owned()
}

fn request(path: &str, header: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n")
}

#[tokio::test]
async fn headers_are_bounded_in_our_form_and_far_beyond_in_the_librarys() {
    let http = Http::away();
    let server = Server::start(http.public.clone(), Duration::ZERO).await;
    let large = |bytes: usize| request("/nope", &format!("X-Large: {}\r\n", "x".repeat(bytes)));
    let answer = server.say(&large(limits::HEADER_BYTES_MAX - 200)).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let answer = server.say(&large(limits::HEADER_BYTES_MAX)).await;
    assert!(answer.starts_with("HTTP/1.1 431") && answer.contains("HEADERS_TOO_LARGE"), "{answer}");
    let answer = server.say(&large(2 * limits::CONNECTION_BUFFER_BYTES_MAX)).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn http2_is_spoken_without_tls() {
    let http = Http::away();
    let server = Server::start(http.public.clone(), Duration::ZERO).await;
    let mut stream = TcpStream::connect(server.address).await.expect("it listens");
    // The preface and an empty SETTINGS frame; the answer begins with the server's SETTINGS (type 4).
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("it reads");
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.expect("it answers");
    assert_eq!(head[3], 4, "{head:?}");
}

#[tokio::test]
async fn stopping_finishes_what_is_in_flight_and_accepts_no_more() {
    let (entered, mut inside) = tokio::sync::mpsc::channel(1);
    let (finish, finished) = oneshot::channel::<()>();
    let finished = std::sync::Arc::new(tokio::sync::Mutex::new(Some(finished)));
    let slow = move || async move {
        entered.send(()).await.expect("the test listens");
        let finished = finished.lock().await.take().expect("asked once");
        finished.await.expect("the test says so");
        "done"
    };
    let server = Server::start(Router::new().route("/slow", get(slow)), Duration::from_secs(20)).await;
    let mut stream = TcpStream::connect(server.address).await.expect("it listens");
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it reads");
    inside.recv().await.expect("the handler runs");
    server.stop.cancel();
    // An idle kept-alive connection must not hold the end up, and new ones are refused.
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    finish.send(()).expect("the handler waits");
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
    server.serving.await.expect("it ends");
}

#[tokio::test]
async fn a_drain_ends_in_time_whatever_is_in_flight() {
    let (entered, mut inside) = tokio::sync::mpsc::channel(1);
    let forever = move || async move {
        entered.send(()).await.expect("the test listens");
        std::future::pending::<&'static str>().await
    };
    let server = Server::start(Router::new().route("/forever", get(forever)), Duration::from_millis(10)).await;
    let mut stream = TcpStream::connect(server.address).await.expect("it listens");
    stream.write_all(b"GET /forever HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it reads");
    inside.recv().await.expect("the handler runs");
    server.stop.cancel();
    server.serving.await.expect("it ends");
    assert_eq!(read_all(&mut stream).await, "");
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);
const PING: &[u8] = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n";

async fn impatient(header: Duration, idle: Duration) -> Server {
    let router = Router::new().route("/ping", get(async || "pong"));
    Server::with(router, Duration::ZERO, Patience { header, idle }).await
}

/// Sends a request on a kept connection and reads its answer to the end.
async fn ping(stream: &mut TcpStream) {
    stream.write_all(PING).await.expect("it reads");
    let mut told = Vec::new();
    while !told.ends_with(b"pong") {
        assert_ne!(stream.read_buf(&mut told).await.expect("it answers"), 0, "{}", String::from_utf8_lossy(&told));
    }
}

#[tokio::test]
async fn an_idle_connection_outlives_the_time_for_headers() {
    let server = impatient(SHORT, LONG).await;
    let mut kept = TcpStream::connect(server.address).await.expect("it listens");
    let mut silent = TcpStream::connect(server.address).await.expect("it listens");
    ping(&mut kept).await;
    // As long as others are given for their headers, twice: a started one is cut without an answer.
    for _ in 0..2 {
        assert_eq!(server.say("GET /ping HTTP/1.1\r\nHost:").await, "");
    }
    ping(&mut kept).await;
    ping(&mut silent).await;
    // Also on a connection that has served before.
    kept.write_all(&PING[..5]).await.expect("it reads");
    assert_eq!(read_all(&mut kept).await, "");
}

#[tokio::test]
async fn headers_that_drip_are_cut_off() {
    let server = impatient(SHORT, LONG).await;
    let (mut answers, mut drip) = TcpStream::connect(server.address).await.expect("it listens").into_split();
    drip.write_all(b"GET /ping HTTP/1.1\r\nX-Slow: ").await.expect("it reads");
    let dripping = wait_for("the server closes", LONG, async || drip.write_all(b"x").await.is_err());
    let mut told = Vec::new();
    let (_, ()) = tokio::join!(answers.read_to_end(&mut told), dripping);
    assert_eq!(told, b"");
}

#[tokio::test]
async fn an_idle_connection_ends_at_last() {
    let server = impatient(LONG, SHORT).await;
    let mut kept = TcpStream::connect(server.address).await.expect("it listens");
    ping(&mut kept).await;
    assert_eq!(read_all(&mut kept).await, "");
    // One that never says anything, too.
    assert_eq!(server.say("").await, "");
}

#[tokio::test]
async fn a_request_that_is_being_answered_and_http2_have_other_bounds() {
    let (entered, mut inside) = tokio::sync::mpsc::channel(1);
    let (finish, finished) = oneshot::channel::<()>();
    let finished = std::sync::Arc::new(tokio::sync::Mutex::new(Some(finished)));
    let slow = move || async move {
        entered.send(()).await.expect("the test listens");
        let finished = finished.lock().await.take().expect("asked once");
        finished.await.expect("the test says so");
        "pong"
    };
    let patience = Patience { header: SHORT, idle: SHORT };
    let server = Server::with(Router::new().route("/slow", get(slow)), Duration::ZERO, patience).await;
    let mut http2 = TcpStream::connect(server.address).await.expect("it listens");
    http2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("it reads");
    let mut slow = TcpStream::connect(server.address).await.expect("it listens");
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("it reads");
    inside.recv().await.expect("the handler runs");
    for _ in 0..2 {
        assert_eq!(server.say("G").await, "", "their time passes");
    }
    finish.send(()).expect("the handler waits");
    assert!(read_all(&mut slow).await.ends_with("pong"));
    // A PING (type 6) is answered by one with the flag ACK.
    http2.write_all(b"\0\0\x08\x06\0\0\0\0\0pingpong").await.expect("it reads");
    let mut told = Vec::new();
    while !told.ends_with(b"\0\0\x08\x06\x01\0\0\0\0pingpong") {
        assert_ne!(http2.read_buf(&mut told).await.expect("it answers"), 0, "{told:?}");
    }
}
