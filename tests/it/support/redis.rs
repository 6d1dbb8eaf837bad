//! A key prefix of its own for one test on the real Redis.

use std::time::Duration;

use flashsale::cache::Cache;
use redis::aio::MultiplexedConnection;

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

    /// On another server than that of the test run.
    pub async fn at(url: &str) -> Self {
        Self::below(url, format!("{}:", fresh_name("space"))).await
    }

    /// Below a prefix that somebody uses.
    pub async fn below(url: &str, prefix: String) -> Self {
        let client = redis::Client::open(url).expect("a legal URL");
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

    /// Everything below the prefix, as a backup keeps it.
    pub async fn copy(&self) -> Vec<(String, Vec<u8>)> {
        let mut copy = Vec::new();
        for key in self.keys().await {
            let bytes: Vec<u8> = self.ask(&format!("DUMP {{}}{key}")).await;
            copy.push((key, bytes));
        }
        copy
    }

    /// As a server that comes back from that backup: nothing else is there, and the scripts are forgotten.
    pub async fn restore(&self, copy: &[(String, Vec<u8>)]) {
        self.flush().await;
        for (key, bytes) in copy {
            let mut restore = redis::cmd("RESTORE");
            restore.arg(format!("{}{key}", self.prefix)).arg(0).arg(bytes);
            restore.query_async::<()>(&mut self.connection.clone()).await.expect("restored");
        }
    }

    /// Lets Redis' memory of this prefix look older than it is.
    pub async fn age_memory(&self, seconds: i64) {
        let (now, _): (i64, i64) = self.ask("TIME").await;
        let _: String = self.ask(&format!("SET {{}}birth {}", (now - seconds) * 1000)).await;
    }
}
