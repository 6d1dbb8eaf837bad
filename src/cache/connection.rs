//! Connections that wait for nobody, and scripts by their hash.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{
    Arg, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, RedisResult, Script, ServerErrorKind,
};

use super::CacheError;
use crate::limits;

/// The scripts, hashed once.
pub(super) struct Scripts {
    pub(super) admit: HashedScript,
    pub(super) settle: HashedScript,
    pub(super) effects: HashedScript,
}

/// A script and the name that the server gives it.
pub(super) struct HashedScript {
    source: &'static str,
    hash: String,
}

impl HashedScript {
    fn new(source: &'static str) -> Self {
        Self { source, hash: Script::new(source).get_hash().to_owned() }
    }
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            admit: HashedScript::new(include_str!("admit.lua")),
            settle: HashedScript::new(include_str!("settle.lua")),
            effects: HashedScript::new(include_str!("effects.lua")),
        }
    }
}

/// Where to connect, and how the sockets behave.
pub(super) fn client(redis_url: &str) -> Result<redis::Client, CacheError> {
    // Small commands must leave at once, and a peer that is gone without a word must be noticed long before the kernel's 15 minutes.
    let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(limits::REDIS_UNACKNOWLEDGED_MAX);
    let info = redis_url.into_connection_info().map_err(|source| CacheError::Url { source })?;
    redis::Client::open(info.set_tcp_settings(tcp)).map_err(|source| CacheError::Url { source })
}

/// A connection that is made when first used, and again after it was lost: one bounded attempt per failed call, never a queue of calls
/// behind a series of attempts.
pub(super) fn lazy(client: &redis::Client) -> Result<ConnectionManager, CacheError> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0)
        .set_connection_timeout(Some(limits::REDIS_BACKGROUND_DEADLINE))
        // Every call has a deadline of its own; two of them would race for what the error is called.
        .set_response_timeout(None)
        .set_pipeline_buffer_size(limits::REDIS_PIPELINE_MAX);
    ConnectionManager::new_lazy_with_config(client.clone(), config).map_err(|source| CacheError::Url { source })
}

/// Arguments of a script call, written straight into the command's buffer.
pub(super) struct ScriptCall<'a> {
    script: &'a HashedScript,
    command: Cmd,
}

impl<'a> ScriptCall<'a> {
    /// A call without keys: our scripts build their keys from the prefix, which is their first argument.
    pub(super) fn new(script: &'a HashedScript, prefix: &str) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&script.hash).arg(0).arg(prefix);
        Self { script, command }
    }

    pub(super) fn arg(&mut self, arg: impl redis::ToRedisArgs) -> &mut Self {
        self.command.arg(arg);
        self
    }

    /// Runs the script by its hash; a server that does not know it (new, or its scripts were flushed) gets the source in the same call
    /// as the arguments, so that another flush in between can't lose it again.
    pub(super) async fn run<T: FromRedisValue>(&self, mut connection: ConnectionManager) -> RedisResult<T> {
        match self.command.query_async(&mut connection).await {
            Err(error) if is_unknown_script(&error) => self.with_source().query_async(&mut connection).await,
            answered => answered,
        }
    }

    fn with_source(&self) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(self.script.source);
        for argument in self.command.args_iter().skip(2) {
            match argument {
                Arg::Simple(bytes) => command.arg(bytes),
                other => unreachable!("script calls have plain arguments: {other:?}"),
            };
        }
        command
    }
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// The answer of `asking`, or an error once `deadline` has passed.
pub(super) async fn within<T>(
    deadline: Duration,
    attempt: &'static str,
    asking: impl Future<Output = RedisResult<T>>,
) -> Result<T, CacheError> {
    match tokio::time::timeout(deadline, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(CacheError::Query { attempt, source }),
        Err(_) => Err(CacheError::Deadline { attempt }),
    }
}
