//! What many users have of some SKUs, in one query.

use super::connect::{ask, smallint};
use super::{Store, StoreError};
use crate::ids::{SkuId, UserId};
use crate::limits;

/// One user and one SKU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserOfSku {
    /// The partition that the SKU is pinned to.
    pub partition: i32,
    /// The user.
    pub user: UserId,
    /// The SKU.
    pub sku: SkuId,
}

impl Store {
    /// Units that each of these users holds and owns, as last decided; same order. At most [`limits::OVER_LIMIT_READ_MAX`] of them.
    ///
    /// # Errors
    /// [`StoreError`] within [`limits::READ_DEADLINE`].
    pub async fn load_units_of_users(&self, users: &[UserOfSku]) -> Result<Vec<u64>, StoreError> {
        assert!(users.len() <= limits::OVER_LIMIT_READ_MAX, "one query must not take long");
        let partitions: Vec<i16> = users.iter().map(|of| smallint(of.partition)).collect();
        let hashes: Vec<i64> = users.iter().map(|of| of.user.hash64()).collect();
        let names: Vec<&str> = users.iter().map(|of| of.user.as_str()).collect();
        let skus: Vec<&str> = users.iter().map(|of| of.sku.as_str()).collect();
        let query = sqlx::query_scalar(
            "/* load_units_of_users */ SELECT h.units
             FROM unnest($1::smallint[], $2::bigint[], $3::text[], $4::text[]) WITH ORDINALITY
               AS a (partition, user_hash, user_id, sku_id, n) CROSS JOIN LATERAL (
                 SELECT coalesce(sum(r.quantity), 0)::bigint AS units FROM reservation r JOIN sku s ON s.sku_id = r.sku_id
                 WHERE r.partition = a.partition AND r.user_hash = a.user_hash AND r.status IN (1, 3) AND r.user_id = a.user_id
                   AND r.sku_id = a.sku_id AND NOT (r.status = 1 AND r.expires_at <= s.expired_through)) h
             ORDER BY a.n",
        )
        .bind(partitions)
        .bind(hashes)
        .bind(names)
        .bind(skus);
        let units: Vec<i64> = ask("read users' units", limits::READ_DEADLINE, query.fetch_all(&self.pool)).await?;
        let unreadable = |_| StoreError::Unreadable { what: "a sum of units below zero".to_owned() };
        units.into_iter().map(|units| u64::try_from(units).map_err(unreadable)).collect()
    }
}
