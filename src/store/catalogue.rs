//! SKUs as last decided, and the pins that are made before a SKU exists.

use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::connect::ask;
use super::{CatalogueEntry, Store, StoreError};
use crate::clock::millis_of;
use crate::ids::SkuId;
use crate::inventory::{LatePayment, Settings, Sku};
use crate::limits;

/// The columns of `sku` that [`entry_of`] reads. By name, here as everywhere: a prepared `SELECT *` fails once a newer build adds a column.
macro_rules! sku_columns {
    () => {
        "sku_id, partition, on_hand, reserved, sold, expired_through, is_paused, user_limit, hold_seconds, starts_at, ends_at, late_payment, \
         extensions_max, extension_seconds_max, settings_version, movement_count"
    };
}
pub(super) use sku_columns;

impl Store {
    /// Every configured SKU.
    ///
    /// # Errors
    /// [`StoreError`], as all methods here.
    pub async fn load_catalogue(&self) -> Result<Vec<CatalogueEntry>, StoreError> {
        let rows = ask(
            "read the catalogue",
            limits::READ_DEADLINE,
            sqlx::query(concat!("/* load_catalogue */ SELECT ", sku_columns!(), " FROM sku ORDER BY sku_id"))
                .fetch_all(&self.pool),
        )
        .await?;
        rows.iter().map(entry_of).collect()
    }

    /// The configured ones of `sku_ids`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_skus(&self, sku_ids: &[SkuId]) -> Result<Vec<CatalogueEntry>, StoreError> {
        let names: Vec<&str> = sku_ids.iter().map(SkuId::as_str).collect();
        let rows = ask(
            "read SKUs",
            limits::READ_DEADLINE,
            sqlx::query(concat!(
                "/* load_skus */ SELECT ",
                sku_columns!(),
                " FROM sku WHERE sku_id = ANY($1) ORDER BY sku_id"
            ))
            .bind(names)
            .fetch_all(&self.pool),
        )
        .await?;
        rows.iter().map(entry_of).collect()
    }

    /// The partition that `sku` is pinned to, `None` if it was never named.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pin_of(&self, sku: &SkuId) -> Result<Option<i32>, StoreError> {
        let pin: Option<i16> = ask(
            "read a pin",
            limits::READ_DEADLINE,
            sqlx::query_scalar("/* pin_of */ SELECT partition FROM sku_pin WHERE sku_id = $1")
                .bind(sku.as_str())
                .fetch_optional(&self.pool),
        )
        .await?;
        Ok(pin.map(i32::from))
    }

    /// Pins `sku` to the partition with the fewest SKUs, once and for ever; returns the pin, old or new.
    ///
    /// # Errors
    /// [`StoreError`], also when `flashsale migrate` has made no partitions.
    pub async fn pin_sku(&self, sku: &SkuId) -> Result<i32, StoreError> {
        let (store, sku_id) = (self.clone(), sku.as_str().to_owned());
        // In a task of its own: a `begin()` that is cancelled leaves an open transaction in the pool (sqlx#4385).
        let pinning = tokio::spawn(async move { store.insert_pin(&sku_id).await });
        let attempt = "pin a SKU";
        match tokio::time::timeout(limits::READ_DEADLINE, pinning).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(source))) => return Err(StoreError::Query { attempt, source }),
            Ok(Err(_)) | Err(_) => return Err(StoreError::Deadline { attempt }),
        }
        let unmade =
            || StoreError::Unreadable { what: "the topic has no partitions: run `flashsale migrate`".to_owned() };
        self.pin_of(sku).await?.ok_or_else(unmade)
    }

    /// One at a time over all processes, so that ten SKUs created at once get ten partitions.
    async fn insert_pin(&self, sku_id: &str) -> Result<(), sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("/* pin_sku */ SELECT pg_advisory_xact_lock(hashtext('flashsale sku_pin'))")
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "/* pin_sku */ INSERT INTO sku_pin (sku_id, partition)
             SELECT $1, p.partition FROM partition_state p LEFT JOIN sku_pin s ON s.partition = p.partition
             WHERE p.topic = $2 GROUP BY p.partition ORDER BY count(s.sku_id), p.partition LIMIT 1
             ON CONFLICT (sku_id) DO NOTHING",
        )
        .bind(sku_id)
        .bind(&*self.topic)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }
}

/// Reads a row of `sku`, whichever statement it comes from.
pub(super) fn entry_of(row: &PgRow) -> Result<CatalogueEntry, StoreError> {
    let unreadable = |source| StoreError::Query { attempt: "read a SKU's row", source };
    let sku_id: String = row.try_get("sku_id").map_err(unreadable)?;
    let sku_id = SkuId::parse(&sku_id).map_err(|_| StoreError::Unreadable { what: format!("sku_id {sku_id:?}") })?;
    let partition = i32::from(row.try_get::<i16, _>("partition").map_err(unreadable)?);
    Ok(CatalogueEntry { sku_id, partition, sku: sku_of(row).map_err(unreadable)? })
}

fn sku_of(row: &PgRow) -> Result<Sku, sqlx::Error> {
    let count = |name: &str| -> Result<u32, sqlx::Error> {
        u32::try_from(row.try_get::<i32, _>(name)?).map_err(|e| sqlx::Error::Decode(e.into()))
    };
    let time = |name: &str| -> Result<Option<i64>, sqlx::Error> {
        Ok(row.try_get::<Option<OffsetDateTime>, _>(name)?.map(millis_of))
    };
    Ok(Sku {
        on_hand: row.try_get("on_hand")?,
        reserved: row.try_get("reserved")?,
        sold: row.try_get("sold")?,
        expired_through: millis_of(row.try_get::<OffsetDateTime, _>("expired_through")?),
        is_paused: row.try_get("is_paused")?,
        settings: Settings {
            user_limit: count("user_limit")?,
            hold_seconds: count("hold_seconds")?,
            starts_at: time("starts_at")?,
            ends_at: time("ends_at")?,
            late_payment: late_payment_of(row.try_get("late_payment")?),
            extensions_max: count("extensions_max")?,
            extension_seconds_max: count("extension_seconds_max")?,
        },
        settings_version: row.try_get("settings_version")?,
        movement_count: row.try_get("movement_count")?,
    })
}

/// As the column's comment says; a CHECK keeps it to these two.
fn late_payment_of(number: i16) -> LatePayment {
    if number == 0 { LatePayment::Rereserve } else { LatePayment::Reject }
}

pub(super) fn late_payment_number(policy: LatePayment) -> i16 {
    match policy {
        LatePayment::Rereserve => 0,
        LatePayment::Reject => 1,
    }
}
