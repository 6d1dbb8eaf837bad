//! One partition of the outbox under this relay's lead: from where to read, and which SKUs are held back.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::SkuId;
use crate::limits;
use crate::outbox::packed::{self, UnpackError};
use crate::outbox::round::{Held, Row};
use crate::store::{OutboxRow, UnreadRow};

pub(super) struct Lane {
    is_flying: bool,
    /// The last look found as many rows as it may take: there are more.
    has_more: bool,
    /// Rows up to this number were looked at since the last retry; what is left of them belongs to SKUs that are held back.
    looked_at: i64,
    held: Held,
    /// When the rows that were left are tried again.
    retry_at: Option<Instant>,
    wait: Duration,
}

/// What to do with loaded rows.
pub(super) enum Next {
    /// Send them.
    Fly(Vec<Row>, Held),
    /// The first can never be read.
    Park(UnreadRow),
    /// The first is for a newer build.
    Hold,
}

impl Lane {
    pub fn new() -> Self {
        let wait = limits::RELAY_RETRY_WAIT_MIN;
        Self { is_flying: false, has_more: false, looked_at: 0, held: Held::default(), retry_at: None, wait }
    }

    /// SKUs that are held back.
    pub fn held(&self) -> &BTreeSet<SkuId> {
        &self.held.skus
    }

    /// Whether events are to be sent alone, one after the other.
    pub fn has_suspects(&self) -> bool {
        !self.held.suspects.is_empty()
    }

    /// The number after which to read; `None` = not now: it is in the air, or nothing is known to wait and it is no time to look (`is_due`).
    pub fn look_from(&mut self, is_due: bool, now: Instant) -> Option<i64> {
        if self.is_flying || !(is_due || self.has_more) {
            return None;
        }
        self.has_more = false;
        if self.retry_at.is_some_and(|at| at <= now) {
            // From the oldest on: whoever was held back comes first.
            self.retry_at = None;
            self.looked_at = 0;
            self.held.skus.clear();
        }
        Some(self.looked_at)
    }

    /// Takes rows that were loaded, in order, at least one.
    pub fn begin(&mut self, rows: Vec<OutboxRow>, now: Instant) -> Next {
        self.has_more = rows.len() as i64 >= limits::RELAY_ROWS_PER_ROUND;
        let mut readable = Vec::with_capacity(rows.len());
        for row in rows {
            match packed::unpack(&row.events) {
                Ok(unpacked) => readable.push(Row { id: row.id, events: unpacked.events }),
                // Its turn comes when it is the first one.
                Err(_) if !readable.is_empty() => break,
                Err(error @ UnpackError::Malformed(_)) => {
                    return Next::Park(UnreadRow { row, reason: error.to_string() });
                }
                Err(error @ UnpackError::UnknownVersion(_)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "left events for a newer relay");
                    self.held.skus.extend(row.skus.iter().filter_map(|sku| SkuId::parse(sku).ok()));
                    self.looked_at = row.id;
                    self.retry_later(now);
                    return Next::Hold;
                }
            }
        }
        self.is_flying = true;
        self.looked_at = readable.last().map_or(self.looked_at, |row| row.id);
        Next::Fly(readable, self.held.clone())
    }

    /// A flight landed.
    pub fn end(&mut self, held: Held, now: Instant) {
        self.is_flying = false;
        self.held = held;
        if self.held.skus.is_empty() {
            // Nothing is left behind: all that can come next is to be looked at.
            self.looked_at = 0;
            self.wait = limits::RELAY_RETRY_WAIT_MIN;
        } else {
            self.retry_later(now);
        }
    }

    fn retry_later(&mut self, now: Instant) {
        if self.retry_at.is_none() {
            self.retry_at = Some(now + self.wait);
            self.wait = super::longer(self.wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Event;

    /// As many readable rows, numbered from 1.
    fn rows(count: i64) -> Vec<OutboxRow> {
        let events = packed::pack(0, &[] as &[Event]);
        (1..=count).map(|id| OutboxRow { partition: 0, id, skus: Vec::new(), events: events.clone() }).collect()
    }

    #[test]
    fn a_lane_that_was_emptied_waits_until_it_is_time_to_look() {
        let (mut lane, now) = (Lane::new(), Instant::now());
        assert_eq!(lane.look_from(false, now), None, "nobody knows of a row");
        assert_eq!(lane.look_from(true, now), Some(0));
        assert!(matches!(lane.begin(rows(limits::RELAY_ROWS_PER_ROUND - 1), now), Next::Fly(..)));
        assert_eq!(lane.look_from(true, now), None, "in the air");
        lane.end(Held::default(), now);
        assert_eq!(lane.look_from(false, now), None, "it took all");
        assert_eq!(lane.look_from(true, now), Some(0));
    }

    #[test]
    fn a_lane_that_found_as_many_as_it_may_take_looks_on_at_once() {
        let (mut lane, now) = (Lane::new(), Instant::now());
        lane.begin(rows(limits::RELAY_ROWS_PER_ROUND), now);
        lane.end(Held::default(), now);
        assert_eq!(lane.look_from(false, now), Some(0));
        assert_eq!(lane.look_from(false, now), None, "that look found nothing");
    }
}
