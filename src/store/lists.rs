//! Lists of reservations in the order of their ids, page by page, and what one user has of one SKU.
//!
//! What a user holds or had has indexes (`reservation_user_units`, `reservation_user_ended`), the second one touched only when a hold ends:
//! an index on refused requests would cost each batch a millisecond. All other lists walk the table. Either way one page looks at a bounded
//! number of reservations, a chunk at a time, and says where it stopped: however large the table is, a list goes on instead of failing.

use sqlx::Row;
use sqlx::postgres::{PgArguments, PgConnection, PgRow, Postgres};
use sqlx::query::Query;
use tokio::time::Instant;
use uuid::Uuid;

use super::connect::{ask, smallint};
use super::reads::{reservation_columns, reservation_of};
use super::{CatalogueEntry, ReservationRow, Store, StoreError};
use crate::clock::{Millis, time_of};
use crate::ids::{SkuId, UserId};
use crate::inventory::Status;
use crate::limits;

/// Which reservations. What is absent does not matter, but a user's list without a state leaves refused requests out: it is what the user
/// holds or had.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Whether the indexes over what users hold or had answer it.
    pub fn is_indexed(&self) -> bool {
        self.user.is_some() && self.status != Some(Status::Rejected)
    }

    /// Rows that say RESERVED or CONFIRMED are among them. (One that says RESERVED may have expired.)
    fn has_live(&self) -> bool {
        self.status != Some(Status::Cancelled)
    }

    /// Rows that say CANCELLED or EXPIRED are among them.
    fn has_ended(&self) -> bool {
        !matches!(self.status, Some(Status::Reserved | Status::Confirmed))
    }
}

/// Some of a list, in the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationPage {
    /// At most as many as were asked for; fewer, or none, say nothing about what comes later.
    pub rows: Vec<ReservationRow>,
    /// Go on after this id; absent = that was all.
    pub next: Option<Uuid>,
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
    /// A page of decided reservations in the order of their ids. Looks at no more than `examined_max` of them, at least one, and begins no
    /// further chunk after [`limits::LIST_TIME`]: then the page ends early, and the next one goes on there.
    ///
    /// # Errors
    /// [`StoreError`]; also if the first chunk can't be read within [`limits::READ_DEADLINE`].
    pub async fn list_reservations(
        &self,
        filter: &ReservationFilter,
        examined_max: usize,
    ) -> Result<ReservationPage, StoreError> {
        assert!(examined_max > 0, "a page that looks at nothing would never end");
        let looking = self.look(filter, examined_max);
        match tokio::time::timeout(limits::READ_DEADLINE, looking).await {
            Ok(page) => page,
            Err(_) => Err(StoreError::Deadline { attempt: ATTEMPT }),
        }
    }

    async fn look(&self, filter: &ReservationFilter, examined_max: usize) -> Result<ReservationPage, StoreError> {
        let started = Instant::now();
        let mut conn = self.pool.acquire().await.map_err(unread)?;
        let mut page = ReservationPage { rows: Vec::new(), next: filter.after };
        let mut left = examined_max;
        loop {
            // One more than the page holds tells that there is a next one.
            let (size, wanted) = (left.min(limits::LIST_CHUNK), filter.limit + 1 - page.rows.len());
            let chunk = Chunk { filter, after: page.next, size, wanted };
            let rows = if filter.is_indexed() {
                chunk.of_user(&mut conn, &self.topic).await
            } else {
                chunk.of_all(&mut conn).await
            };
            page.next = chunk.read(&rows.map_err(unread)?, &mut page.rows)?;
            if page.rows.len() > filter.limit {
                page.rows.truncate(filter.limit);
                page.next = page.rows.last().map(|row| row.id);
                return Ok(page);
            }
            left -= size;
            if page.next.is_none() || left == 0 || started.elapsed() >= limits::LIST_TIME {
                return Ok(page);
            }
        }
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

const ATTEMPT: &str = "list reservations";

fn unread(source: sqlx::Error) -> StoreError {
    StoreError::Query { attempt: ATTEMPT, source }
}

/// Whether a row of `reservation_now` is asked for. The parameters are those of [`Chunk::query`].
macro_rules! is_match {
    () => {
        "(($1::text IS NULL OR user_id = $1) AND ($2::text IS NULL OR sku_id = $2) AND ($3::smallint IS NULL OR status = $3) \
          AND ($4::timestamptz IS NULL OR expires_at < $4)) IS TRUE"
    };
}

/// Reservations that are looked at together: the next `size` ones after an id, until `wanted` of them match.
struct Chunk<'q> {
    filter: &'q ReservationFilter,
    after: Option<Uuid>,
    size: usize,
    wanted: usize,
}

impl<'q> Chunk<'q> {
    /// Of what the filter's user holds or had. Each is looked up by its id, one after the other: no plan of this can read the whole table.
    async fn of_user(&self, conn: &mut PgConnection, topic: &'q str) -> Result<Vec<PgRow>, sqlx::Error> {
        let statement = concat!(
            "/* of_user */ SELECT ",
            reservation_columns!(),
            ", number, ",
            is_match!(),
            " AS is_match
             FROM (SELECT id, row_number() OVER (ORDER BY id) AS number
                   FROM (SELECT reservation_id AS id FROM reservation
                         WHERE $8 AND partition IN (SELECT partition FROM partition_state WHERE topic = $10) AND user_hash = $11
                           AND status IN (1, 3) AND reservation_id > $5
                         UNION ALL
                         (SELECT reservation_id FROM reservation
                          WHERE $9 AND user_hash = $11 AND status IN (4, 5) AND reservation_id > $5 ORDER BY reservation_id LIMIT $6)) ids
                   ORDER BY id LIMIT $6) chunk
             CROSS JOIN LATERAL (SELECT * FROM reservation_now WHERE reservation_id = id OFFSET 0) r
             WHERE number = $6 OR ",
            is_match!(),
            " ORDER BY id LIMIT $7"
        );
        let user = self.filter.user.as_ref().expect("only a user's list is indexed");
        self.query(statement)
            .bind(self.filter.has_live())
            .bind(self.filter.has_ended())
            .bind(topic)
            .bind(user.hash64())
            .fetch_all(conn)
            .await
    }

    /// Of all reservations, in the order of the primary key.
    async fn of_all(&self, conn: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        let statement = concat!(
            "/* of_all */ SELECT ",
            reservation_columns!(),
            ", number, ",
            is_match!(),
            " AS is_match
             FROM (SELECT *, row_number() OVER (ORDER BY reservation_id) AS number
                   FROM reservation_now WHERE reservation_id > $5 ORDER BY reservation_id LIMIT $6) chunk
             WHERE number = $6 OR ",
            is_match!(),
            " ORDER BY reservation_id LIMIT $7"
        );
        // Planned anew each time: a plan for any number of rows, and not for a chunk, might begin with reading all SKUs.
        self.query(statement).persistent(false).fetch_all(conn).await
    }

    /// The last one of the chunk is asked for whether it matches or not: it says where the chunk ended.
    fn query(&self, statement: &'static str) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(statement)
            .bind(self.filter.user.as_ref().map(UserId::as_str))
            .bind(self.filter.sku.as_ref().map(SkuId::as_str))
            .bind(self.filter.status.map(Status::number))
            .bind(self.filter.expires_before.map(time_of))
            // No reservation has this id: they are made of a time or of a hash.
            .bind(self.after.unwrap_or(Uuid::nil()))
            .bind(count(self.size))
            .bind(count(self.wanted))
    }

    /// Adds the matches to `found`; returns where the chunk ended, nothing if it was the last one.
    fn read(&self, rows: &[PgRow], found: &mut Vec<ReservationRow>) -> Result<Option<Uuid>, StoreError> {
        let mut last = None;
        for row in rows {
            let reservation = reservation_of(row)?;
            if row.try_get::<i64, _>("number").map_err(unread)? == count(self.size) {
                last = Some(reservation.id);
            }
            if row.try_get("is_match").map_err(unread)? {
                found.push(reservation);
            }
        }
        Ok(last)
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).expect("pages are bounded")
}
