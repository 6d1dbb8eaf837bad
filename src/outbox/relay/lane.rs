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
        Self { is_flying: false, looked_at: 0, held: Held::default(), retry_at: None, wait }
    }

    /// SKUs that are held back.
    pub fn held(&self) -> &BTreeSet<SkuId> {
        &self.held.skus
    }

    /// The number after which to read; `None` = it is in the air.
    pub fn look_from(&mut self, now: Instant) -> Option<i64> {
        if self.is_flying {
            return None;
        }
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
