//! Connections that wait for nobody, and scripts by their hash.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, RedisResult, Script, ServerErrorKind};

use super::CacheError;
use crate::limits;

/// The scripts, hashed once.
pub(super) struct Scripts {
    pub(super) admit: Script,
    pub(super) settle: Script,
    pub(super) effects: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            admit: Script::new(include_str!("admit.lua")),
            settle: Script::new(include_str!("settle.lua")),
            effects: Script::new(include_str!("effects.lua")),
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
        .set_response_timeout(Some(limits::REDIS_BACKGROUND_DEADLINE))
        .set_pipeline_buffer_size(limits::REDIS_PIPELINE_MAX);
    ConnectionManager::new_lazy_with_config(client.clone(), config).map_err(|source| CacheError::Url { source })
}

/// Arguments of a script call, written straight into the command's buffer.
pub(super) struct ScriptCall<'a> {
    script: &'a Script,
    command: Cmd,
}

impl<'a> ScriptCall<'a> {
    /// A call without keys: our scripts build their keys from the prefix, which is their first argument.
    pub(super) fn new(script: &'a Script, prefix: &str) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(0).arg(prefix);
        Self { script, command }
    }

    pub(super) fn arg(&mut self, arg: impl redis::ToRedisArgs) -> &mut Self {
        self.command.arg(arg);
        self
    }

    /// Runs the script; a server that does not know it (new, or flushed with its scripts) is told first.
    pub(super) async fn run<T: FromRedisValue>(&self, mut connection: ConnectionManager) -> RedisResult<T> {
        match self.command.query_async(&mut connection).await {
            Err(error) if is_unknown_script(&error) => {
                self.script.load_async(&mut connection).await?;
                self.command.query_async(&mut connection).await
            }
            answered => answered,
        }
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
