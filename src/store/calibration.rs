//! What was measured of ingress' pressure levels, kept across restarts.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::connect::ask;
use super::{Store, StoreError};
use crate::ingress::calibration::Calibrated;
use crate::limits;

impl Store {
    /// The measured settings, by level.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_calibration(&self) -> Result<Vec<Calibrated>, StoreError> {
        let attempt = "read the calibration";
        let rows = ask(
            attempt,
            limits::READ_DEADLINE,
            sqlx::query(
                "/* load_calibration */
                 SELECT level, linger_us, commands_max, in_flight_max, p95_us, records_per_second
                 FROM ingress_calibration ORDER BY level",
            )
            .fetch_all(&self.pool),
        )
        .await?;
        rows.iter()
            .map(calibrated)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| StoreError::Query { attempt, source })
    }

    /// Puts these in the places of what was measured before; other levels keep theirs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn save_calibration(&self, measured: &[Calibrated]) -> Result<(), StoreError> {
        let of = |value: fn(&Calibrated) -> i64| measured.iter().map(value).collect::<Vec<i64>>();
        ask(
            "save the calibration",
            limits::READ_DEADLINE,
            sqlx::query(
                "/* save_calibration */
                 INSERT INTO ingress_calibration (level, linger_us, commands_max, in_flight_max, p95_us, records_per_second)
                 SELECT level, linger_us, commands_max, in_flight_max, p95_us, records_per_second
                 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
                   AS measured (level, linger_us, commands_max, in_flight_max, p95_us, records_per_second)
                 ON CONFLICT (level) DO UPDATE SET
                   linger_us = EXCLUDED.linger_us, commands_max = EXCLUDED.commands_max,
                   in_flight_max = EXCLUDED.in_flight_max, p95_us = EXCLUDED.p95_us,
                   records_per_second = EXCLUDED.records_per_second, measured_at = clock_timestamp()",
            )
            .bind(of(|one| one.level as i64))
            .bind(of(|one| one.linger_us as i64))
            .bind(of(|one| one.commands_max as i64))
            .bind(of(|one| one.in_flight_max as i64))
            .bind(of(|one| one.p95_us as i64))
            .bind(of(|one| one.records_per_second as i64))
            .execute(&self.pool),
        )
        .await
        .map(drop)
    }
}

/// What is stored beyond the bounds of a setting is cut where it is used.
fn calibrated(row: &PgRow) -> Result<Calibrated, sqlx::Error> {
    let positive = |number: i64| u64::try_from(number).unwrap_or_default();
    let small = |number: i64| usize::try_from(number).unwrap_or_default();
    Ok(Calibrated {
        level: small(row.try_get::<i16, _>("level")?.into()),
        linger_us: positive(row.try_get("linger_us")?),
        commands_max: small(row.try_get::<i32, _>("commands_max")?.into()),
        in_flight_max: small(row.try_get::<i16, _>("in_flight_max")?.into()),
        p95_us: positive(row.try_get("p95_us")?),
        records_per_second: positive(row.try_get("records_per_second")?),
    })
}
