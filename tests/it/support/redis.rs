//! A key prefix of its own for one test on the real Redis, and a gate in front of the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flashsale::cache::Cache;
use redis::aio::MultiplexedConnection;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::kafka::fresh_name;

/// The server of this test run.
pub fn server_url() -> String {
    std::env::var("REDIS_URL").expect("REDIS_URL names the server; `make test` sets it")
}

const PATIENCE: Duration = Duration::from_secs(10);

/// A prefix that no other test uses.
pub struct Space {
    pub prefix: String,
    pub cache: Cache,
    connection: MultiplexedConnection,
}

impl Space {
    pub async fn fresh() -> Self {
        Self::at(&server_url()).await
    }

    /// The cache goes through `url`, the test's own look into the keys does not.
    pub async fn at(url: &str) -> Self {
        let prefix = format!("{}:", fresh_name("space"));
        let client = redis::Client::open(server_url()).expect("a legal URL");
        let connection = client.get_multiplexed_async_connection().await.expect("the server answers");
        // Patient: a busy machine is no failure of a test that is not about the deadline.
        let cache = Cache::with_deadline(url, &prefix, PATIENCE).expect("a legal URL");
        Self { cache, prefix, connection }
    }

    /// Runs one command; `{}` in an argument stands for the prefix.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut asked = redis::cmd(words.next().expect("a command"));
        words.for_each(|word| {
            asked.arg(word.replace("{}", &self.prefix));
        });
        asked.query_async(&mut self.connection.clone()).await.unwrap_or_else(|e| panic!("{command}: {e}"))
    }

    /// The keys below the prefix, without it.
    pub async fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.ask("KEYS {}*").await;
        keys.iter_mut().for_each(|key| *key = key[self.prefix.len()..].to_owned());
        keys.sort();
        keys
    }

    /// As FLUSHALL would, for this prefix; the server forgets its scripts as well.
    pub async fn flush(&self) {
        for key in self.keys().await {
            let _: i64 = self.ask(&format!("DEL {{}}{key}")).await;
        }
        let _: String = self.ask("SCRIPT FLUSH").await;
    }

    /// Lets Redis' memory of this prefix look older than it is.
    pub async fn age_memory(&self, seconds: i64) {
        let (now, _): (i64, i64) = self.ask("TIME").await;
        let _: String = self.ask(&format!("SET {{}}birth {}", (now - seconds) * 1000)).await;
    }
}

/// What the gate does with connections and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// Connections stay, nothing passes: a frozen server.
    Frozen,
    /// Connections are cut and new ones refused: a server that is gone.
    Closed,
}

/// A TCP proxy in front of the server; ends with the runtime of its test.
pub struct Gated {
    pub url: String,
    gate: Arc<watch::Sender<Gate>>,
}

impl Gated {
    pub async fn start() -> Self {
        let server = server_url();
        let server = server.strip_prefix("redis://").expect("a plain URL").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let gate = Arc::new(watch::Sender::new(Gate::Open));
        tokio::spawn(keep(listener, address, server, gate.subscribe()));
        Self { url: format!("redis://{address}"), gate }
    }

    pub fn set(&self, gate: Gate) {
        self.gate.send_replace(gate);
    }
}

async fn keep(listener: TcpListener, address: SocketAddr, server: String, mut gate: watch::Receiver<Gate>) {
    let mut listening = Some(listener);
    loop {
        if *gate.borrow_and_update() == Gate::Closed {
            listening = None;
        } else if listening.is_none() {
            // Somebody else may have taken the port in between; none of our tests does.
            listening = TcpListener::bind(address).await.ok();
        }
        tokio::select! {
            changed = gate.changed() => if changed.is_err() { return },
            accepted = accept(listening.as_ref()) => {
                if let Some(client) = accepted {
                    tokio::spawn(relay(client, server.clone(), gate.clone()));
                }
            }
        }
    }
}

async fn accept(listening: Option<&TcpListener>) -> Option<TcpStream> {
    match listening {
        Some(listener) => listener.accept().await.ok().map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

async fn relay(mut client: TcpStream, server: String, mut gate: watch::Receiver<Gate>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    loop {
        let now = *gate.borrow_and_update();
        match now {
            Gate::Closed => return,
            Gate::Frozen => {
                if gate.changed().await.is_err() {
                    return;
                }
            }
            // A copy that is cut may lose bytes that it had read: after a freeze the connection is good for nothing.
            Gate::Open => tokio::select! {
                _ = copy_bidirectional(&mut client, &mut server) => return,
                changed = gate.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            },
        }
    }
}
