//! Connections: one pool for reads, plain ones for writers; every question with a deadline of our own.

use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgConnection};

use super::{Store, StoreError};
use crate::limits;

impl Store {
    /// A pool of [`limits::READ_CONNECTIONS_MAX`] connections for `topic`'s tables. Opens nothing yet.
    ///
    /// Sequential scans are off, as for writers: a plan that was made when the tables were small is kept until somebody analyses them, and a
    /// sale begins with small tables.
    ///
    /// # Errors
    /// If the URL is not one.
    pub fn new(database_url: &str, topic: &str) -> Result<Self, StoreError> {
        let options = read_options(database_url)?.options([
            // A caller who has gone must not leave the server looking.
            ("statement_timeout", limits::READ_DEADLINE.as_millis().to_string()),
            ("enable_seqscan", "off".to_owned()),
            ("jit", "off".to_owned()),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(limits::READ_CONNECTIONS_MAX)
            .acquire_timeout(limits::READ_DEADLINE)
            .connect_lazy_with(options);
        Ok(Self { pool, topic: Arc::from(topic) })
    }
}

/// Options of a connection that reads.
pub(super) fn read_options(database_url: &str) -> Result<PgConnectOptions, StoreError> {
    let options = PgConnectOptions::from_str(database_url)
        .map_err(|source| StoreError::Query { attempt: "read DATABASE_URL", source })?;
    Ok(options.application_name("flashsale"))
}

/// Options of a writer's connection. `name` is how a successor recognises the backend that it may terminate.
///
/// Sequential scans are off: the plan of a batch must not depend on whether the tables were small when it was first made. The timeouts
/// make a frozen client's transaction let go; they are the second line, the first is [`ask`]'s deadline on our side.
pub(super) fn writer_options(database_url: &str, name: &str) -> Result<PgConnectOptions, StoreError> {
    let millis = |d: Duration| d.as_millis().to_string();
    Ok(read_options(database_url)?.application_name(name).options([
        ("lock_timeout", millis(limits::LOCK_TIMEOUT)),
        ("idle_in_transaction_session_timeout", millis(limits::IDLE_IN_TRANSACTION_TIMEOUT)),
        ("statement_timeout", millis(limits::STATEMENT_DEADLINE)),
        ("enable_seqscan", "off".to_owned()),
        // Arrays of 250 as constants would be planned anew for every batch.
        ("plan_cache_mode", "force_generic_plan".to_owned()),
        ("jit", "off".to_owned()),
    ]))
}

/// Opens a plain connection within [`limits::CONNECT_DEADLINE`].
pub(super) async fn open(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    match tokio::time::timeout(limits::CONNECT_DEADLINE, options.connect()).await {
        Ok(connected) => connected.map_err(|source| StoreError::Query { attempt: "connect to Postgres", source }),
        Err(_) => Err(StoreError::Deadline { attempt: "connect to Postgres" }),
    }
}

/// Runs one question with a deadline on our side: a frozen backend ignores `statement_timeout`. After a deadline the connection is in an
/// unknown state and must be dropped.
pub(super) async fn ask<T>(
    attempt: &'static str,
    deadline: Duration,
    question: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(deadline, question).await {
        Ok(answer) => answer.map_err(|source| StoreError::Query { attempt, source }),
        Err(_) => Err(StoreError::Deadline { attempt }),
    }
}

impl StoreError {
    /// The server's five-character code, if it was the server that refused.
    pub fn sqlstate(&self) -> Option<String> {
        match self {
            Self::Query { source: sqlx::Error::Database(refusal), .. } => refusal.code().map(|c| c.into_owned()),
            _ => None,
        }
    }

    /// The name of the violated constraint, if that is what it is.
    pub fn constraint(&self) -> Option<String> {
        match self {
            Self::Query { source: sqlx::Error::Database(refusal), .. } => refusal.constraint().map(str::to_owned),
            _ => None,
        }
    }
}

/// A partition as its column holds it.
pub(super) fn smallint(partition: i32) -> i16 {
    i16::try_from(partition).expect("partitions are below PARTITIONS_MAX")
}
