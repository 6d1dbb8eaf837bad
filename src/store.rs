//! Postgres: truth, position and fence in one transaction.
//!
//! [`Store`] answers reads from a pool; the writer of a partition owns a plain connection of its own ([`Writer`]), on which each batch is one
//! transaction ([`BatchTransaction`]). SQL stands in the function that runs it, opens with a comment that names that function (so
//! `pg_stat_activity` is readable), and is set-based: a fixed number of statements per batch, whatever its size.

mod audit;
mod batch;
mod calibration;
mod catalogue;
mod connect;
mod dead_letters;
mod last_effects;
mod lists;
mod memory;
mod migrate;
mod outbox;
mod partitions;
mod poison;
mod reads;
mod reservations;
mod rows;
mod user_units;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::PgPool;
use uuid::Uuid;

use crate::clock::Millis;
use crate::ids::{SkuId, Ticket};
use crate::inventory::{Rejection, Sku, Status};

pub use audit::{AuditSession, AuditSnapshot, Halt, HaltedSku};
pub use batch::{BatchError, BatchHead, BatchTransaction, SettledHold};
pub use dead_letters::DeadLetter;
pub use lists::{ReservationFilter, ReservationPage, UserUnits};
pub use migrate::{SchemaMismatch, migrate};
pub use outbox::{OutboxRow, OutboxSession, OutboxState, ParkedRow, UnreadRow};
pub use partitions::SkippedRecord;
pub use poison::{Dealt, PoisonFilter, PoisonRow, Resolution};
pub use user_units::UserOfSku;
pub use writer::{Claim, ClaimError, Standing, Writer, WriterConfig};

/// Why a question to Postgres has no answer. Every caller treats it as "away": tries again, or says so to its client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The server could not be asked, or refused.
    #[error("could not {attempt}")]
    Query {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        #[source]
        source: sqlx::Error,
    },
    /// No answer within the deadline.
    #[error("no answer in time: {attempt}")]
    Deadline {
        /// What was attempted.
        attempt: &'static str,
    },
    /// The database has no tables of ours: `flashsale migrate` has not run, or is running.
    #[error("the database has no tables yet: `flashsale migrate` makes them")]
    NotMigrated,
    /// The database's tables are not for this build.
    #[error(transparent)]
    OtherSchema(#[from] SchemaMismatch),
    /// A row that this build can't read.
    #[error("unreadable row: {what}")]
    Unreadable {
        /// Which.
        what: String,
    },
}

/// Reads, and the one row that HTTP writes itself (`sku_pin`). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    topic: Arc<str>,
}

/// A configured SKU, as last decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// The SKU.
    pub sku_id: SkuId,
    /// The partition whose writer owns it.
    pub partition: i32,
    /// Stock and settings.
    pub sku: Sku,
}

/// How far one partition is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionRow {
    /// Kafka's partition.
    pub partition: i32,
    /// Bumped by every claim.
    pub epoch: i64,
    /// The next offset to decide.
    pub position: i64,
    /// Why nobody decides; absent = healthy.
    pub halted_reason: Option<String>,
}

/// A decided reservation as it is stored (a poisoned one is shown as REJECTED).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationRow {
    /// Its id.
    pub id: Uuid,
    /// Absent only for poison.
    pub user_id: Option<String>,
    /// Absent only for poison.
    pub sku_id: Option<String>,
    /// Absent only for poison.
    pub quantity: Option<u32>,
    /// Its state today; never QUEUED.
    pub status: Status,
    /// Why it was rejected: the public code, with what belongs to it.
    pub rejection: Option<StoredRejection>,
    /// Counts changes from 1.
    pub version: i32,
    /// Log time of the decision.
    pub accepted_at: Millis,
    /// End of the hold, also after it.
    pub expires_at: Option<Millis>,
    /// Log time of the confirm or cancel.
    pub changed_at: Option<Millis>,
    /// Extensions that the SKU's settings still allow; absent only for poison.
    pub extensions_left: Option<u32>,
    /// CONFIRMED: the payment.
    pub payment_ref: Option<String>,
    /// CONFIRMED: its hold had ended.
    pub is_late: bool,
    /// CANCELLED: why.
    pub note: Option<String>,
    /// What the client attached: the text of a JSON object of strings.
    pub metadata: Option<String>,
    /// Where its request stands in the log.
    pub ticket: Ticket,
}

/// The stored reason of a REJECTED reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRejection {
    /// The public code.
    pub reason: String,
    /// `SOLD_OUT`: units that were left.
    pub available: Option<i64>,
    /// `SOLD_OUT`: units were held.
    pub holds_pending: Option<bool>,
    /// `USER_LIMIT`: the limit.
    pub limit: Option<u32>,
    /// `USER_LIMIT`: what the user could still ask for.
    pub remaining: Option<u32>,
}

impl StoredRejection {
    /// As it is stored.
    pub fn of(rejection: &Rejection) -> Self {
        let none = Self {
            reason: rejection.code().to_owned(),
            available: None,
            holds_pending: None,
            limit: None,
            remaining: None,
        };
        match *rejection {
            Rejection::SoldOut { available, holds_pending } => {
                Self { available: Some(available), holds_pending: Some(holds_pending), ..none }
            }
            Rejection::UserLimit { limit, remaining } => {
                Self { limit: Some(limit), remaining: Some(remaining), ..none }
            }
            Rejection::SalePaused | Rejection::SaleNotStarted { .. } | Rejection::SaleEnded { .. } => none,
        }
    }
}

/// One read of the status reader: **first** the positions, **then** the rows, both from the primary. A request whose offset is below
/// its partition's position here and that has no row here has no decision.
#[derive(Clone, Debug, Default)]
pub struct StatusRead {
    /// Every partition of the topic.
    pub partitions: Arc<Vec<PartitionRow>>,
    /// The decided ones of the ids that were asked for.
    pub reservations: HashMap<Uuid, ReservationRow>,
}

/// A decided operator's command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRow {
    /// The id that the command carried.
    pub command_id: Uuid,
    /// What a confirm, cancel or extend was to change.
    pub reservation_id: Option<Uuid>,
    /// See [`crate::inventory::Command::kind`]; empty for poison.
    pub kind: String,
    /// The SKU.
    pub sku_id: String,
    /// `CREATED`, `CHANGED`, `CONFIRMED` ..., or the code of the refusal: see the column's comment.
    pub result: String,
    /// Numbers that belong to the result: see the column's comment.
    pub details: [Option<i64>; 3],
    /// What it asked for, hashed ([`crate::inventory::Configure::fingerprint`]); absent for poison.
    pub fingerprint: Option<i64>,
}
