//! The forget call: units that Postgres says are fewer.
//!
//! The fence of effects does not guard it, because what is wrong may stand behind a fence that nobody reaches: Postgres was restored, and its
//! epochs are lower than what Redis was told. Nor is it compared with what was read: a batch may tell newer, right units in between, and they
//! are forgotten as well. Units that are too low cost a request that the writer refuses, and its decision tells them again.

use super::connection::within;
use super::{CacheError, Inner};
use crate::ids::{SkuId, UserId};
use crate::limits;

const ATTEMPT: &str = "forget units";

pub(super) async fn call(inner: &Inner, users: &[(&UserId, &SkuId)]) -> Result<(), CacheError> {
    assert!(users.len() <= limits::OVER_LIMIT_READ_MAX, "one call must not keep redis busy for long");
    if users.is_empty() {
        return Ok(());
    }
    let mut commands = redis::pipe();
    for (user, sku) in users {
        commands.cmd("HDEL").arg(format!("{}u:{}", inner.prefix, sku.as_str())).arg(user.as_str()).ignore();
    }
    let mut connection = inner.background.clone();
    within(limits::REDIS_BACKGROUND_DEADLINE, ATTEMPT, commands.query_async(&mut connection)).await
}
