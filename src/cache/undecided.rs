//! Units that one user has asked for and that nobody has decided yet: a hint for people, read from the hashes that admission writes.

use super::connection::within;
use super::{CacheError, Inner};
use crate::ids::{SkuId, UserId};
use crate::limits;

const ATTEMPT: &str = "read undecided units";

pub(super) async fn read(inner: &Inner, user: &UserId, sku: &SkuId, minute: i64) -> Result<u64, CacheError> {
    let mut reads = redis::pipe();
    for minute in minute - limits::PROVISIONAL_MINUTES + 1..=minute {
        reads.cmd("HGET").arg(format!("{}q:{}:{minute}", inner.prefix, sku.as_str())).arg(user.as_str());
    }
    let mut connection = inner.background.clone();
    let asking = reads.query_async::<Vec<Option<i64>>>(&mut connection);
    let units = within(limits::REDIS_BACKGROUND_DEADLINE, ATTEMPT, asking).await?;
    // A repeated effect may take more than was there.
    Ok(units.into_iter().flatten().filter_map(|units| u64::try_from(units).ok()).sum())
}
