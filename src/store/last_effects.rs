//! The effects of a partition's last batch, read back: a claim repeats them, because its predecessor may have died before telling anyone.

use uuid::Uuid;

use super::connect::{ask, smallint};
use super::{Store, StoreError};
use crate::effects::{BatchEffects, DecidedId, SkuHint};
use crate::ids::{SkuId, UserId};
use crate::limits;

impl Store {
    /// What the last batch decided and what it left of its SKUs and users. Provisional units are left out: they expire by themselves.
    /// Epoch and position are the caller's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_last_effects(&self, partition: i32) -> Result<BatchEffects, StoreError> {
        let rows: Vec<(Uuid, String, String, i64, i64, i64)> = ask(
            "read the last batch",
            limits::READ_DEADLINE,
            sqlx::query_as(
                "/* load_last_effects */ WITH last AS (
                   SELECT reservation_id, sku_id, user_id, user_hash FROM reservation WHERE reservation_id = ANY((
                     SELECT decided FROM batch WHERE partition = $1 ORDER BY first_offset DESC LIMIT 1)::uuid[]))
                 SELECT last.reservation_id, last.sku_id, last.user_id,
                        (SELECT coalesce(sum(quantity), 0)::bigint FROM reservation u
                         WHERE u.partition = $1 AND u.user_hash = last.user_hash AND u.user_id = last.user_id
                           AND u.sku_id = last.sku_id AND u.status IN (1, 3)
                           AND NOT (u.status = 1 AND u.expires_at <= s.expired_through)),
                        s.on_hand - s.reserved - s.sold, s.reserved
                 FROM last JOIN sku s ON s.sku_id = last.sku_id LIMIT $2",
            )
            .bind(smallint(partition))
            .bind(i64::try_from(limits::BATCH_SIZE_SETTING_MAX).unwrap_or(i64::MAX))
            .fetch_all(&self.pool),
        )
        .await?;
        let mut effects = BatchEffects { partition, ..BatchEffects::default() };
        for (id, sku, user, units, available, reserved) in rows {
            effects.decided.push(DecidedId::changed(id));
            let (Ok(sku), Ok(user)) = (SkuId::parse(&sku), UserId::parse(&user)) else { continue };
            if !effects.skus.iter().any(|hint| hint.sku == sku) {
                // Catalogues read every SKU of the batch again: whether its settings changed is not known here.
                let hint = SkuHint { sku: sku.clone(), available, holds_pending: reserved > 0, is_configured: true };
                effects.skus.push(hint);
            }
            effects.units.push((sku, user, units));
        }
        Ok(effects)
    }
}
