//! Decisions as columns: what one batch writes, laid out for `unnest`. Pure.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo};
use sqlx::{Encode, Postgres};
use time::OffsetDateTime;
use uuid::Uuid;

use super::catalogue::late_payment_number;
use super::outbox;
use crate::clock::{EARLIEST, LATEST, Millis, time_of};
use crate::ids::{self, Metadata, SkuId};
use crate::inventory::{
    Command, Decision, Logged, Outcome, Refusal, Rejection, ReservationChange, Reserve, SkuChange, Status, Verdict,
};
use crate::outbox::packed;

/// A new row of `reservation`, as the type `new_reservation` has it: **the order of the fields is the type's**.
pub(super) struct NewReservation<'b> {
    pub reservation_id: Uuid,
    pub user_hash: i64,
    pub log_offset: i64,
    pub log_time: Millis,
    pub expires_at: Option<Millis>,
    pub available: Option<i64>,
    pub quantity: i32,
    pub user_limit: Option<i32>,
    pub remaining: Option<i32>,
    pub log_index: i16,
    pub status: i16,
    pub holds_pending: Option<bool>,
    pub user_id: &'b str,
    pub sku_id: &'b str,
    pub reason: Option<&'b str>,
    pub metadata: Option<&'b str>,
}

/// The binary form of a composite value, written here because the general way, field by field through the library's types, takes five times as
/// long: for each field its type's number in `pg_type` (those of built-in types never change), its length, -1 for NULL, and its bytes.
impl Encode<'_, Postgres> for NewReservation<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let mut row = Composite(buffer);
        row.0.extend_from_slice(&16_i32.to_be_bytes()); // fields
        row.put(UUID, Some(self.reservation_id.as_bytes()));
        row.put(INT8, Some(&self.user_hash.to_be_bytes()));
        row.put(INT8, Some(&self.log_offset.to_be_bytes()));
        row.put(TIMESTAMPTZ, Some(&timestamp(self.log_time)));
        row.put(TIMESTAMPTZ, self.expires_at.map(timestamp).as_ref());
        row.put(INT8, self.available.map(i64::to_be_bytes).as_ref());
        row.put(INT4, Some(&self.quantity.to_be_bytes()));
        row.put(INT4, self.user_limit.map(i32::to_be_bytes).as_ref());
        row.put(INT4, self.remaining.map(i32::to_be_bytes).as_ref());
        row.put(INT2, Some(&self.log_index.to_be_bytes()));
        row.put(INT2, Some(&self.status.to_be_bytes()));
        row.put(BOOL, self.holds_pending.map(|is_pending| [u8::from(is_pending)]).as_ref());
        row.put(TEXT, Some(self.user_id.as_bytes()));
        row.put(TEXT, Some(self.sku_id.as_bytes()));
        row.put(TEXT, self.reason.map(str::as_bytes));
        row.put(TEXT, self.metadata.map(str::as_bytes));
        Ok(IsNull::No)
    }
}

// `SELECT oid FROM pg_type`.
const BOOL: u32 = 16;
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const TIMESTAMPTZ: u32 = 1184;
const UUID: u32 = 2950;

struct Composite<'b>(&'b mut PgArgumentBuffer);

impl Composite<'_> {
    fn put<T: AsRef<[u8]> + ?Sized>(&mut self, of_type: u32, value: Option<&T>) {
        self.0.extend_from_slice(&of_type.to_be_bytes());
        match value.map(AsRef::as_ref) {
            None => self.0.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(bytes) => {
                let length = i32::try_from(bytes.len()).expect("ids and metadata are bounded");
                self.0.extend_from_slice(&length.to_be_bytes());
                self.0.extend_from_slice(bytes);
            }
        }
    }
}

/// Postgres counts microseconds from 2000-01-01 UTC.
fn timestamp(at: Millis) -> [u8; 8] {
    const YEAR_2000: Millis = 946_684_800_000;
    ((at.clamp(EARLIEST, LATEST) - YEAR_2000) * 1000).to_be_bytes()
}

impl sqlx::Type<Postgres> for NewReservation<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("new_reservation")
    }
}

impl PgHasArrayType for NewReservation<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of("new_reservation")
    }
}

/// Changed rows of `reservation`.
#[derive(Default)]
pub(super) struct ReservationChanges {
    pub ids: Vec<Uuid>,
    /// As stored: the row must still be that one.
    pub versions_before: Vec<i32>,
    pub versions: Vec<i32>,
    pub statuses: Vec<i16>,
    pub expires_ats: Vec<Option<OffsetDateTime>>,
    pub extensions: Vec<i16>,
    pub extension_seconds: Vec<i32>,
    pub changed_ats: Vec<Option<OffsetDateTime>>,
    pub payment_refs: Vec<Option<String>>,
    pub are_late: Vec<bool>,
    pub notes: Vec<Option<String>>,
}

/// New rows of `command`.
#[derive(Default)]
pub(super) struct CommandRows {
    pub ids: Vec<Uuid>,
    pub requested_ids: Vec<Uuid>,
    /// Absent for one that burns no id.
    pub key_ids: Vec<Option<Uuid>>,
    pub reservations: Vec<Option<Uuid>>,
    pub kinds: Vec<&'static str>,
    pub skus: Vec<String>,
    pub results: Vec<&'static str>,
    pub details: [Vec<Option<i64>>; 3],
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
    pub expired_throughs: Vec<OffsetDateTime>,
    pub are_paused: Vec<bool>,
    pub user_limits: Vec<i32>,
    pub hold_seconds: Vec<i32>,
    pub starts_ats: Vec<Option<OffsetDateTime>>,
    pub ends_ats: Vec<Option<OffsetDateTime>>,
    pub late_payments: Vec<i16>,
    pub extensions_maxes: Vec<i32>,
    pub extension_seconds_maxes: Vec<i32>,
    pub settings_versions: Vec<i64>,
    /// 0 for a new SKU.
    pub settings_versions_before: Vec<i64>,
    pub movement_counts: Vec<i64>,
    pub is_movements: Vec<bool>,
    pub d_on_hands: Vec<i64>,
    pub d_reserveds: Vec<i64>,
    pub d_solds: Vec<i64>,
}

/// Everything that one batch writes, and how many of each kind of decision it made.
#[derive(Default)]
pub(super) struct Rows<'b> {
    pub reservations: Vec<NewReservation<'b>>,
    pub changes: ReservationChanges,
    pub commands: CommandRows,
    pub poison: PoisonRows,
    pub skus: SkuRows,
    /// SKUs whose `configure` was done: the pin that it carries restores a missing one.
    pub configured: Vec<String>,
    pub duplicate_count: i32,
    pub tick_count: i32,
    pub event_skus: Vec<String>,
    /// What happened, packed; absent if nothing did.
    pub events: Option<Vec<u8>>,
}

impl<'b> Rows<'b> {
    /// Lays out a batch's decisions. `user_hashes` = those of the users of reserve commands, by command.
    ///
    /// # Panics
    /// Unless there is one decision per command, in the same order.
    pub fn of(partition: i32, commands: &'b [Logged], user_hashes: &[i64], outcome: &Outcome) -> Self {
        assert_eq!(commands.len(), outcome.decisions.len(), "one decision per command");
        assert_eq!(commands.len(), user_hashes.len(), "one hash per command");
        let mut rows = Self { reservations: Vec::with_capacity(commands.len()), ..Self::default() };
        for ((logged, user_hash), decision) in commands.iter().zip(user_hashes).zip(&outcome.decisions) {
            assert_eq!(logged.place, decision.place, "decisions come in the order of their commands");
            rows.put(partition, logged, *user_hash, decision);
        }
        // Two partitions' batches that share ids insert them in the same order: one waits for the other, never both.
        rows.reservations.sort_unstable_by_key(|row| row.reservation_id);
        for (id, change) in &outcome.changes.reservations {
            rows.changes.put(*id, change);
        }
        for (sku, change) in &outcome.changes.skus {
            rows.skus.put(sku, change);
        }
        if !outcome.events.is_empty() {
            rows.event_skus = outbox::sku_texts(&outcome.events);
            rows.events = Some(packed::pack(partition, &outcome.events));
        }
        rows
    }

    /// Decisions that are rows of their own: everything but duplicates and poison.
    pub fn decided_count(&self) -> i32 {
        count(self.reservations.len() + self.commands.ids.len())
    }

    fn put(&mut self, partition: i32, logged: &'b Logged, user_hash: i64, decision: &Decision) {
        match (&decision.verdict, &logged.command) {
            (Verdict::Duplicate, _) => self.duplicate_count += 1,
            (Verdict::Poison(reason), command) => {
                let id = command.as_ref().map_or_else(|unfit| unfit.id, |command| Some(command.id()));
                self.poison.put(decision, id, reason.code());
            }
            (verdict, Ok(Command::Reserve(reserve))) => {
                self.reservations.push(new_reservation(reserve, user_hash, decision, verdict));
            }
            (Verdict::Ticked { .. }, _) => self.tick_count += 1,
            (verdict, Ok(command)) => {
                if matches!((verdict, command), (Verdict::Configured { .. }, Command::Configure(_))) {
                    self.configured.push(command.sku().as_str().to_owned());
                }
                self.commands.put(partition, command, decision);
            }
            (verdict, Err(_)) => unreachable!("what can't be decided is poison, not {verdict:?}"),
        }
    }
}

impl CommandRows {
    fn put(&mut self, partition: i32, command: &Command, decision: &Decision) {
        let (result, details) = result_of(&decision.verdict);
        let is_forgotten = matches!(&decision.verdict, Verdict::Refused(refusal) if !refusal.is_remembered());
        let own_id = if is_forgotten { ids::refused_command_id(partition, decision.place) } else { command.id() };
        self.ids.push(own_id);
        self.requested_ids.push(command.id());
        self.key_ids.push(command.key_id().filter(|_| !is_forgotten));
        self.reservations.push(command.target());
        self.kinds.push(command.kind());
        self.skus.push(command.sku().as_str().to_owned());
        self.results.push(result);
        self.details.iter_mut().zip(details).for_each(|(column, detail)| column.push(detail));
        self.fingerprints.push(command.fingerprint());
        self.offsets.push(decision.place.offset);
        self.indexes.push(index(decision));
        self.log_times.push(time_of(decision.at));
    }
}

impl ReservationChanges {
    /// A row that the batch itself inserts stands as it was first decided; what came later in the batch is a change of it.
    fn put(&mut self, id: Uuid, change: &ReservationChange) {
        let version_before = change.before.as_ref().map_or(1, |before| before.version);
        let after = &change.after;
        if after.version == version_before {
            return;
        }
        self.ids.push(id);
        self.versions_before.push(version_before);
        self.versions.push(after.version);
        self.statuses.push(after.status.number());
        self.expires_ats.push(after.expires_at.map(time_of));
        self.extensions.push(i16::try_from(after.extensions).expect("bounded by EXTENSIONS_MAX"));
        self.extension_seconds.push(count_u32(after.extension_seconds));
        self.changed_ats.push(after.changed_at.map(time_of));
        self.payment_refs.push(after.payment_ref.as_ref().map(|text| text.as_str().to_owned()));
        self.are_late.push(after.is_late);
        self.notes.push(after.note.as_ref().map(|text| text.as_str().to_owned()));
    }
}

/// What a decided command's row says, with its numbers (see the column's comment).
fn result_of(verdict: &Verdict) -> (&'static str, [Option<i64>; 3]) {
    let one = |number: i64| [Some(number), None, None];
    match *verdict {
        Verdict::Configured { created, settings_version } => {
            (if created { "CREATED" } else { "CHANGED" }, one(settings_version))
        }
        Verdict::Adjusted { on_hand, reserved, sold } => ("ADJUSTED", [Some(on_hand), Some(reserved), Some(sold)]),
        Verdict::Confirmed { .. } => ("CONFIRMED", [None; 3]),
        Verdict::Cancelled => ("CANCELLED", [None; 3]),
        Verdict::Extended { .. } => ("EXTENDED", [None; 3]),
        Verdict::Refused(refusal) => {
            let details = match refusal {
                Refusal::SettingsChanged { settings_version } => one(settings_version),
                Refusal::StockChanged { on_hand } | Refusal::AboveMaximum { on_hand } => one(on_hand),
                Refusal::BelowCommitted { minimum } => one(minimum),
                Refusal::ExtensionLimit { extensions_left, seconds_left } => {
                    [Some(extensions_left.into()), Some(seconds_left.into()), None]
                }
                _ => [None; 3],
            };
            (refusal.code(), details)
        }
        ref other => unreachable!("a command is done or refused, not {other:?}"),
    }
}

fn new_reservation<'b>(
    reserve: &'b Reserve,
    user_hash: i64,
    decision: &Decision,
    verdict: &Verdict,
) -> NewReservation<'b> {
    let mut row = NewReservation {
        reservation_id: reserve.id,
        user_hash,
        log_offset: decision.place.offset,
        log_time: decision.at,
        expires_at: None,
        available: None,
        quantity: count_u32(reserve.quantity.get()),
        user_limit: None,
        remaining: None,
        log_index: index(decision),
        status: Status::Rejected.number(),
        holds_pending: None,
        user_id: reserve.user.as_str(),
        sku_id: reserve.sku.as_str(),
        reason: None,
        metadata: reserve.metadata.as_ref().map(Metadata::as_str),
    };
    match verdict {
        Verdict::Reserved { expires_at } => {
            row.status = Status::Reserved.number();
            row.expires_at = Some(*expires_at);
        }
        Verdict::Rejected(rejection) => {
            row.reason = Some(rejection.code());
            match *rejection {
                Rejection::SoldOut { available, holds_pending } => {
                    (row.available, row.holds_pending) = (Some(available), Some(holds_pending));
                }
                Rejection::UserLimit { limit, remaining } => {
                    (row.user_limit, row.remaining) = (Some(count_u32(limit)), Some(count_u32(remaining)));
                }
                Rejection::SalePaused | Rejection::SaleNotStarted { .. } | Rejection::SaleEnded { .. } => {}
            }
        }
        other => unreachable!("a reserve command is reserved or rejected, not {other:?}"),
    }
    row
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
        self.expired_throughs.push(time_of(after.expired_through));
        self.are_paused.push(after.is_paused);
        self.user_limits.push(count_u32(settings.user_limit));
        self.hold_seconds.push(count_u32(settings.hold_seconds));
        self.starts_ats.push(optional(settings.starts_at));
        self.ends_ats.push(optional(settings.ends_at));
        self.late_payments.push(late_payment_number(settings.late_payment));
        self.extensions_maxes.push(count_u32(settings.extensions_max));
        self.extension_seconds_maxes.push(count_u32(settings.extension_seconds_max));
        self.settings_versions.push(after.settings_version);
        self.settings_versions_before.push(change.before.as_ref().map_or(0, |before| before.settings_version));
        self.movement_counts.push(after.movement_count);
        self.is_movements.push(change.is_movement());
        self.d_on_hands.push(deltas[0]);
        self.d_reserveds.push(deltas[1]);
        self.d_solds.push(deltas[2]);
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
