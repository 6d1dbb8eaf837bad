//! A row of `reservation` as the pure core knows it.

use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::clock::millis_of;
use crate::ids::{Metadata, Note, PaymentRef, Quantity, SkuId, UserId};
use crate::inventory::{Reservation, Status};

/// Reads a row, whichever statement it comes from. The status is the stored one: whoever reads the table itself settles it.
pub(super) fn reservation_of(row: &PgRow) -> Result<(Uuid, Reservation), StoreError> {
    let unreadable = |source| StoreError::Query { attempt: "read a reservation's row", source };
    let id: Uuid = row.try_get("reservation_id").map_err(unreadable)?;
    fields_of(row).map(|reservation| (id, reservation)).map_err(unreadable)
}

fn fields_of(row: &PgRow) -> Result<Reservation, sqlx::Error> {
    let number: i16 = row.try_get("status")?;
    let status = Status::from_number(number).filter(|status| *status != Status::Queued);
    Ok(Reservation {
        user: parsed(row.try_get("user_id")?, UserId::parse)?,
        sku: parsed(row.try_get("sku_id")?, SkuId::parse)?,
        quantity: Quantity::new(unsigned(row, "quantity")?).ok_or_else(|| broken("quantity"))?,
        status: status.ok_or_else(|| broken("status"))?,
        version: row.try_get("version")?,
        expires_at: row.try_get::<Option<OffsetDateTime>, _>("expires_at")?.map(millis_of),
        extensions: u32::try_from(row.try_get::<i16, _>("extensions")?).map_err(|_| broken("extensions"))?,
        extension_seconds: unsigned(row, "extension_seconds")?,
        changed_at: row.try_get::<Option<OffsetDateTime>, _>("changed_at")?.map(millis_of),
        payment_ref: optional(row.try_get("payment_ref")?, PaymentRef::parse)?,
        is_late: row.try_get("is_late")?,
        note: optional(row.try_get("note")?, Note::parse)?,
        metadata: optional(row.try_get("metadata")?, Metadata::parse)?,
    })
}

fn unsigned(row: &PgRow, name: &'static str) -> Result<u32, sqlx::Error> {
    u32::try_from(row.try_get::<i32, _>(name)?).map_err(|_| broken(name))
}

fn parsed<T, E: std::error::Error + Send + Sync + 'static>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, sqlx::Error> {
    parse(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

fn optional<T, E: std::error::Error + Send + Sync + 'static>(
    text: Option<&str>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, sqlx::Error> {
    text.map(|text| parsed(text, parse)).transpose()
}

fn broken(column: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("{column} is out of bounds").into())
}
