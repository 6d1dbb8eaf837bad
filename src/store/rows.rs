//! Decisions as columns: what one batch writes, laid out for `unnest`. Pure.

use time::OffsetDateTime;
use uuid::Uuid;

use super::catalogue::late_payment_number;
use crate::clock::{Millis, time_of};
use crate::ids::{self, SkuId};
use crate::inventory::{Command, Decision, Logged, Outcome, Refusal, Rejection, SkuChange, Status, Verdict};

/// New rows of `reservation`, column by column.
#[derive(Default)]
pub(super) struct ReservationRows {
    pub ids: Vec<Uuid>,
    pub user_hashes: Vec<i64>,
    pub users: Vec<String>,
    pub skus: Vec<String>,
    pub quantities: Vec<i32>,
    pub statuses: Vec<i16>,
    pub reasons: Vec<Option<&'static str>>,
    pub availables: Vec<Option<i64>>,
    pub holds_pendings: Vec<Option<bool>>,
    pub limits: Vec<Option<i32>>,
    pub remainings: Vec<Option<i32>>,
    pub offsets: Vec<i64>,
    pub indexes: Vec<i16>,
    pub log_times: Vec<OffsetDateTime>,
    pub expires_ats: Vec<Option<OffsetDateTime>>,
}

/// New rows of `command`.
#[derive(Default)]
pub(super) struct CommandRows {
    pub ids: Vec<Uuid>,
    pub requested_ids: Vec<Uuid>,
    pub skus: Vec<String>,
    pub results: Vec<&'static str>,
    pub details: Vec<i64>,
    pub fingerprints: Vec<i64>,
    pub offsets: Vec<i64>,
    pub indexes: Vec<i16>,
    pub log_times: Vec<OffsetDateTime>,
}

/// New rows of `poison`; their bytes are looked up by offset.
#[derive(Default)]
pub(super) struct PoisonRows {
    pub offsets: Vec<i64>,
    pub indexes: Vec<i16>,
    pub ids: Vec<Option<Uuid>>,
    pub reasons: Vec<&'static str>,
    pub log_times: Vec<OffsetDateTime>,
}

/// Changed or new rows of `sku`, and their movements.
#[derive(Default)]
pub(super) struct SkuRows {
    pub skus: Vec<String>,
    pub on_hands: Vec<i64>,
    pub reserveds: Vec<i64>,
    pub solds: Vec<i64>,
    pub user_limits: Vec<i32>,
    pub hold_seconds: Vec<i32>,
    pub starts_ats: Vec<Option<OffsetDateTime>>,
    pub ends_ats: Vec<Option<OffsetDateTime>>,
    pub late_payments: Vec<i16>,
    pub extensions_maxes: Vec<i32>,
    pub extension_seconds_maxes: Vec<i32>,
    pub settings_versions: Vec<i64>,
    pub movement_counts: Vec<i64>,
    pub is_movements: Vec<bool>,
    pub d_on_hands: Vec<i64>,
    pub d_reserveds: Vec<i64>,
    pub d_solds: Vec<i64>,
}

/// Everything that one batch writes, and how many of each kind of decision it made.
#[derive(Default)]
pub(super) struct Rows {
    pub reservations: ReservationRows,
    pub commands: CommandRows,
    pub poison: PoisonRows,
    pub skus: SkuRows,
    /// SKUs whose `configure` was done: the pin that it carries restores a missing one.
    pub configured: Vec<String>,
    pub duplicate_count: i32,
}

impl Rows {
    /// Lays out a batch's decisions.
    ///
    /// # Panics
    /// Unless there is one decision per command, in the same order.
    pub fn of(partition: i32, commands: &[Logged], outcome: &Outcome) -> Self {
        assert_eq!(commands.len(), outcome.decisions.len(), "one decision per command");
        let mut rows = Self::default();
        for (logged, decision) in commands.iter().zip(&outcome.decisions) {
            assert_eq!(logged.place, decision.place, "decisions come in the order of their commands");
            rows.put(partition, logged, decision);
        }
        for (sku, change) in &outcome.changes.skus {
            rows.skus.put(sku, change);
        }
        rows
    }

    /// Decisions that are rows of their own: everything but duplicates and poison.
    pub fn decided_count(&self) -> i32 {
        count(self.reservations.ids.len() + self.commands.ids.len())
    }

    fn put(&mut self, partition: i32, logged: &Logged, decision: &Decision) {
        match (&decision.verdict, &logged.command) {
            (Verdict::Duplicate, _) => self.duplicate_count += 1,
            (Verdict::Poison(reason), command) => {
                let id = command.as_ref().map_or_else(|unfit| unfit.id, |command| Some(command.id()));
                self.poison.put(decision, id, reason.code());
            }
            (verdict, Ok(Command::Reserve(reserve))) => {
                let rows = &mut self.reservations;
                rows.ids.push(reserve.id);
                rows.user_hashes.push(reserve.user.hash64());
                rows.users.push(reserve.user.as_str().to_owned());
                rows.skus.push(reserve.sku.as_str().to_owned());
                rows.quantities.push(count_u32(reserve.quantity.get()));
                rows.put_verdict(verdict);
                rows.offsets.push(decision.place.offset);
                rows.indexes.push(index(decision));
                rows.log_times.push(time_of(decision.at));
            }
            (verdict, Ok(command @ Command::Configure(configure))) => {
                let (id, result, detail) = match verdict {
                    Verdict::Configured { created, settings_version } => {
                        self.configured.push(command.sku().as_str().to_owned());
                        (command.id(), if *created { "CREATED" } else { "CHANGED" }, *settings_version)
                    }
                    Verdict::Refused(refusal) => {
                        (ids::refused_command_id(partition, decision.place), refusal.code(), detail_of(refusal))
                    }
                    other => unreachable!("an operator's command is configured or refused, not {other:?}"),
                };
                let rows = &mut self.commands;
                rows.ids.push(id);
                rows.requested_ids.push(command.id());
                rows.skus.push(command.sku().as_str().to_owned());
                rows.results.push(result);
                rows.details.push(detail);
                rows.fingerprints.push(configure.fingerprint());
                rows.offsets.push(decision.place.offset);
                rows.indexes.push(index(decision));
                rows.log_times.push(time_of(decision.at));
            }
            (verdict, Err(_)) => unreachable!("what can't be decided is poison, not {verdict:?}"),
        }
    }
}

impl ReservationRows {
    fn put_verdict(&mut self, verdict: &Verdict) {
        let mut status = Status::Rejected;
        let (mut reason, mut available, mut holds, mut limit, mut remaining, mut expires) =
            (None, None, None, None, None, None);
        match verdict {
            Verdict::Reserved { expires_at } => {
                status = Status::Reserved;
                expires = Some(*expires_at);
            }
            Verdict::Rejected(rejection) => {
                reason = Some(rejection.code());
                match *rejection {
                    Rejection::SoldOut { available: left, holds_pending } => {
                        (available, holds) = (Some(left), Some(holds_pending))
                    }
                    Rejection::UserLimit { limit: l, remaining: r } => (limit, remaining) = (Some(l), Some(r)),
                    Rejection::SaleNotStarted { .. } | Rejection::SaleEnded { .. } => {}
                }
            }
            other => unreachable!("a reserve command is reserved or rejected, not {other:?}"),
        }
        self.statuses.push(status.number());
        self.reasons.push(reason);
        self.availables.push(available);
        self.holds_pendings.push(holds);
        self.limits.push(limit.map(count_u32));
        self.remainings.push(remaining.map(count_u32));
        self.expires_ats.push(expires.map(time_of));
    }
}

impl PoisonRows {
    fn put(&mut self, decision: &Decision, id: Option<Uuid>, reason: &'static str) {
        self.offsets.push(decision.place.offset);
        self.indexes.push(index(decision));
        self.ids.push(id);
        self.reasons.push(reason);
        self.log_times.push(time_of(decision.at));
    }
}

impl SkuRows {
    fn put(&mut self, id: &SkuId, change: &SkuChange) {
        let (after, settings, deltas) = (&change.after, &change.after.settings, change.deltas());
        let optional = |at: Option<Millis>| at.map(time_of);
        self.skus.push(id.as_str().to_owned());
        self.on_hands.push(after.on_hand);
        self.reserveds.push(after.reserved);
        self.solds.push(after.sold);
        self.user_limits.push(count_u32(settings.user_limit));
        self.hold_seconds.push(count_u32(settings.hold_seconds));
        self.starts_ats.push(optional(settings.starts_at));
        self.ends_ats.push(optional(settings.ends_at));
        self.late_payments.push(late_payment_number(settings.late_payment));
        self.extensions_maxes.push(count_u32(settings.extensions_max));
        self.extension_seconds_maxes.push(count_u32(settings.extension_seconds_max));
        self.settings_versions.push(after.settings_version);
        self.movement_counts.push(after.movement_count);
        self.is_movements.push(change.is_movement());
        self.d_on_hands.push(deltas[0]);
        self.d_reserveds.push(deltas[1]);
        self.d_solds.push(deltas[2]);
    }
}

fn detail_of(refusal: &Refusal) -> i64 {
    match *refusal {
        Refusal::SettingsChanged { settings_version } => settings_version,
        Refusal::StockChanged { on_hand } => on_hand,
    }
}

fn index(decision: &Decision) -> i16 {
    i16::try_from(decision.place.index).expect("a record holds at most RECORD_COMMANDS_MAX commands")
}

/// Bounded far below the column's range by `limits`.
fn count_u32(number: u32) -> i32 {
    i32::try_from(number).expect("bounded by limits.rs")
}

pub(super) fn count(number: usize) -> i32 {
    i32::try_from(number).expect("a batch is bounded by limits.rs")
}
