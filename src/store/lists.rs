//! Lists of reservations in the order of their ids, page by page, and what one user has of one SKU.
//!
//! Only a user's live reservations have an index (`reservation_user_units`): every other index would cost each batch a millisecond. All
//! other lists walk the table, so the server itself ends those that take too long, and `status` lets only a few run at once.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::connect::{ask, smallint};
use super::reads::{reservation_columns, reservation_of};
use super::{CatalogueEntry, ReservationRow, Store, StoreError};
use crate::clock::{Millis, time_of};
use crate::ids::{SkuId, UserId};
use crate::inventory::Status;
use crate::limits;

/// Which reservations. What is absent does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationFilter {
    /// Of this user.
    pub user: Option<UserId>,
    /// Of this SKU.
    pub sku: Option<SkuId>,
    /// In this state now.
    pub status: Option<Status>,
    /// Whose hold ends, or ended, before this.
    pub expires_before: Option<Millis>,
    /// Only what comes after this one.
    pub after: Option<Uuid>,
    /// At most so many.
    pub limit: usize,
}

impl ReservationFilter {
    /// Whether the index over users' live units answers it.
    pub fn is_indexed(&self) -> bool {
        self.user.is_some() && matches!(self.status, Some(Status::Reserved | Status::Confirmed))
    }
}

/// What one user has of one SKU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserUnits {
    /// Units held.
    pub reserved: i64,
    /// Units owned.
    pub sold: i64,
}

impl Store {
    /// Decided reservations in the order of their ids.
    ///
    /// # Errors
    /// [`StoreError`]; also if it takes longer than [`limits::READ_DEADLINE`], the server then stops looking.
    pub async fn list_reservations(&self, filter: &ReservationFilter) -> Result<Vec<ReservationRow>, StoreError> {
        let attempt = "list reservations";
        let rows = if filter.is_indexed() {
            ask(attempt, limits::READ_DEADLINE, self.list_live(filter)).await?
        } else {
            let (store, filter) = (self.clone(), filter.clone());
            // In a task of its own: a `begin()` that is cancelled leaves an open transaction in the pool (sqlx#4385).
            let walking = tokio::spawn(async move { store.walk(&filter).await });
            match tokio::time::timeout(limits::READ_DEADLINE, walking).await {
                Ok(Ok(rows)) => rows.map_err(|source| StoreError::Query { attempt, source })?,
                Ok(Err(_)) | Err(_) => return Err(StoreError::Deadline { attempt }),
            }
        };
        rows.iter().map(reservation_of).collect()
    }

    async fn list_live(&self, filter: &ReservationFilter) -> Result<Vec<PgRow>, sqlx::Error> {
        let user = filter.user.as_ref();
        let statement = concat!(
            "/* list_live */ SELECT ",
            reservation_columns!(),
            " FROM reservation_now
             WHERE reservation_id IN (
                 SELECT reservation_id FROM reservation
                 WHERE partition IN (SELECT partition FROM partition_state WHERE topic = $1) AND user_hash = $2 AND status IN (1, 3))
               AND user_id = $3 AND status = $4 AND ($5::text IS NULL OR sku_id = $5)
               AND ($6::timestamptz IS NULL OR expires_at < $6) AND ($7::uuid IS NULL OR reservation_id > $7)
             ORDER BY reservation_id LIMIT $8"
        );
        sqlx::query(statement)
            .bind(&*self.topic)
            .bind(user.map(UserId::hash64))
            .bind(user.map(UserId::as_str))
            .bind(filter.status.map(Status::number))
            .bind(filter.sku.as_ref().map(SkuId::as_str))
            .bind(filter.expires_before.map(time_of))
            .bind(filter.after)
            .bind(limit_of(filter))
            .fetch_all(&self.pool)
            .await
    }

    async fn walk(&self, filter: &ReservationFilter) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        // A caller who has gone must not leave the server walking on.
        sqlx::query("/* list_reservations */ SELECT set_config('statement_timeout', $1, true)")
            .bind(limits::READ_DEADLINE.as_millis().to_string())
            .execute(&mut *tx)
            .await?;
        let statement = concat!(
            "/* list_reservations */ SELECT ",
            reservation_columns!(),
            " FROM reservation_now
             WHERE ($1::bigint IS NULL OR user_hash = $1) AND ($2::text IS NULL OR user_id = $2) AND ($3::text IS NULL OR sku_id = $3)
               AND ($4::smallint IS NULL OR status = $4) AND ($5::timestamptz IS NULL OR expires_at < $5)
               AND ($6::uuid IS NULL OR reservation_id > $6)
             ORDER BY reservation_id LIMIT $7"
        );
        let rows = sqlx::query(statement)
            .bind(filter.user.as_ref().map(UserId::hash64))
            .bind(filter.user.as_ref().map(UserId::as_str))
            .bind(filter.sku.as_ref().map(SkuId::as_str))
            .bind(filter.status.map(Status::number))
            .bind(filter.expires_before.map(time_of))
            .bind(filter.after)
            .bind(limit_of(filter))
            // The values decide the plan: one user's list and one SKU's have nothing in common.
            .persistent(false)
            .fetch_all(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(rows)
    }

    /// Units that `user` holds and owns of a SKU, as last decided.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_user_units(&self, user: &UserId, entry: &CatalogueEntry) -> Result<UserUnits, StoreError> {
        let row = ask(
            "read a user's units",
            limits::READ_DEADLINE,
            sqlx::query(
                "/* load_user_units */
                 SELECT coalesce(sum(r.quantity) FILTER (WHERE r.status = 1 AND r.expires_at > s.expired_through), 0)::bigint AS reserved,
                        coalesce(sum(r.quantity) FILTER (WHERE r.status = 3), 0)::bigint AS sold
                 FROM reservation r JOIN sku s ON s.sku_id = r.sku_id
                 WHERE r.partition = $1 AND r.user_hash = $2 AND r.status IN (1, 3) AND r.user_id = $3 AND r.sku_id = $4",
            )
            .bind(smallint(entry.partition))
            .bind(user.hash64())
            .bind(user.as_str())
            .bind(entry.sku_id.as_str())
            .fetch_one(&self.pool),
        )
        .await?;
        let read = || -> Result<UserUnits, sqlx::Error> {
            Ok(UserUnits { reserved: row.try_get("reserved")?, sold: row.try_get("sold")? })
        };
        read().map_err(|source| StoreError::Query { attempt: "read a user's units", source })
    }
}

fn limit_of(filter: &ReservationFilter) -> i64 {
    i64::try_from(filter.limit).expect("pages are bounded")
}
