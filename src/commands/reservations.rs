//! Confirm, cancel, extend: finds the reservation's SKU, makes the command and asks its writer.
//!
//! The SKU of a decided reservation stands in its row, that of an undecided one in the log at its ticket. Whether the reservation may be
//! changed is the writer's to say; only what can't change any more (it was rejected) is said here.

use uuid::Uuid;

use super::{AskError, Asked, CommandRefusal, Commands, InLog, Standing, refusal_of};
use crate::ids::{self, IdempotencyKey, Note, PaymentRef, SkuId, Ticket};
use crate::inventory::{Cancel, Command, Confirm, Extend, Refusal, Status};
use crate::limits;
use crate::origin::Origin;
use crate::status::{Found, StatusAnswer, StatusReader};
use crate::store::{ReservationRow, StoreError};

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct ReservationCommands {
    commands: Commands,
    status: StatusReader,
}

/// What is to become of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is paid for. Named by the payment, also with a key: that is only not to be used for another payment.
    Confirm(PaymentRef),
    /// It is given back. Named by the key, or by the reservation alone.
    Cancel(Option<Note>),
    /// It is to last so many seconds longer, 1 to [`limits::HOLD_SECONDS_MAX`]. Named by the key, or new each time.
    Extend(u32),
}

/// One change of one reservation.
#[derive(Clone, Debug)]
pub struct ChangeReservation {
    /// Which.
    pub id: Uuid,
    /// Where its request stands, as the client shows it.
    pub ticket: Option<Ticket>,
    /// What is asked for.
    pub change: Change,
    /// The client's name for this call.
    pub key: Option<IdempotencyKey>,
    /// Finds the call in logs and traces.
    pub origin: Origin,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Done, now or before: the reservation as it is now.
    Done(Box<ReservationRow>),
    /// Refused.
    Refused(CommandRefusal),
    /// In the log, but not decided within [`limits::RESERVATION_DECISION_WAIT`].
    Undecided {
        /// The command.
        id: Uuid,
        /// Where it stands.
        ticket: Ticket,
    },
}

/// Why a change was not asked for, or nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no such reservation.
    #[error("there is no such reservation")]
    UnknownReservation,
    /// It may be undecided, and its SKU can't be known now: ask again.
    #[error("the reservation is not decided, and its SKU can't be known now")]
    SkuUnknown,
    /// It is undecided, and too many are being looked up in the log: ask again. Nothing was published.
    #[error("too many undecided reservations are being looked up")]
    Busy,
    /// Nobody can be asked where it stands.
    #[error("the reservation can't be read now")]
    Unreadable,
    /// It is done, and the reservation can't be read now.
    #[error("the change is done, and the reservation can't be read now")]
    Unshown,
    /// See [`AskError`].
    #[error(transparent)]
    Ask(AskError),
}

/// Where a command stands that was answered 202.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeStanding {
    /// No command of this reservation has this id and ticket.
    Unknown,
    /// In the log, not decided; its kind, if the log can be read now.
    Queued(Option<&'static str>),
    /// Done: its kind, and the reservation as it is now.
    Done(String, Box<ReservationRow>),
    /// Refused: its kind, and why.
    Refused(String, CommandRefusal),
}

/// Where the writer of a reservation is found.
struct Target {
    partition: i32,
    sku: SkuId,
}

impl ReservationCommands {
    /// Over the parts of this process.
    pub fn new(commands: Commands, status: StatusReader) -> Self {
        Self { commands, status }
    }

    /// Asks for a change and waits for its decision.
    ///
    /// Publishing is not taken back when this future is dropped: run it in a task of its own.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn change(&self, asked: ChangeReservation) -> Result<Changed, ChangeError> {
        let ChangeReservation { id, ticket, change, key, origin } = asked;
        let Target { partition, sku } = match self.target(id, ticket).await? {
            Ok(target) => target,
            Err(refusal) => return Ok(Changed::Refused(CommandRefusal::Writer(refusal))),
        };
        let (command, is_named_by_key) = command_of(id, sku, change, key.as_ref());
        let (command_id, fingerprint) = (command.id(), command.fingerprint());
        let asking = self.commands.ask(partition, command, origin, limits::RESERVATION_DECISION_WAIT);
        match asking.await.map_err(ChangeError::Ask)? {
            Asked::Undecided(ticket) => Ok(Changed::Undecided { id: command_id, ticket }),
            // This command is a duplicate of the row's, by its key, but it asks for something else: the writer left it out.
            Asked::Decided(row) if is_named_by_key && row.fingerprint.is_some_and(|known| known != fingerprint) => {
                Ok(Changed::Refused(CommandRefusal::NameReused))
            }
            Asked::Decided(row) => match refusal_of(&row) {
                Some(refusal) => Ok(Changed::Refused(refusal)),
                None => match self.status.read(id).await {
                    Ok(StatusAnswer { row: Some(row), .. }) => Ok(Changed::Done(Box::new(row))),
                    // Done, and can't be shown: the same request again will show it.
                    Ok(StatusAnswer { row: None, .. }) | Err(_) => Err(ChangeError::Unshown),
                },
            },
        }
    }

    /// The reservation's SKU and partition, or why no change of it can be done any more.
    async fn target(&self, id: Uuid, ticket: Option<Ticket>) -> Result<Result<Target, Refusal>, ChangeError> {
        match self.status.find(id, ticket).await {
            Found::Decided(row) if row.status == Status::Rejected => Ok(Err(Refusal::ReservationRejected)),
            Found::Decided(row) => {
                let sku = row.sku_id.as_deref().and_then(|sku| SkuId::parse(sku).ok());
                let sku = sku.ok_or(ChangeError::Unreadable)?;
                Ok(Ok(Target { partition: row.ticket.partition, sku }))
            }
            Found::Queued(queued) => match self.commands.in_log(queued.ticket).await {
                InLog::Found(command) => match *command {
                    Command::Reserve(reserve) if reserve.id == id => {
                        Ok(Ok(Target { partition: queued.ticket.partition, sku: reserve.sku }))
                    }
                    // A ticket of another request.
                    _ => Err(ChangeError::UnknownReservation),
                },
                InLog::Nothing => Err(ChangeError::UnknownReservation),
                InLog::Unreadable => Err(ChangeError::SkuUnknown),
                InLog::Busy => Err(ChangeError::Busy),
            },
            Found::Absent => Err(ChangeError::UnknownReservation),
            // Either it may still be undecided somewhere, or nobody can be asked at all.
            Found::Unavailable => match self.status.read(id).await {
                Ok(_) => Err(ChangeError::SkuUnknown),
                Err(_) => Err(ChangeError::Unreadable),
            },
        }
    }

    /// Where the command of this id and ticket stands.
    ///
    /// # Errors
    /// [`StoreError`]; also if the reservation of a command that is done can't be read now.
    pub async fn standing(&self, reservation: Uuid, id: Uuid, ticket: Ticket) -> Result<ChangeStanding, StoreError> {
        Ok(match self.commands.standing(id, ticket).await? {
            Standing::Unknown => ChangeStanding::Unknown,
            Standing::Queued(None) => ChangeStanding::Queued(None),
            Standing::Queued(Some(command)) if command.target() == Some(reservation) => {
                ChangeStanding::Queued(Some(command.kind()))
            }
            Standing::Queued(Some(_)) => ChangeStanding::Unknown,
            // Poison has no reservation; its id was found all the same.
            Standing::Decided(row) if row.reservation_id.is_some_and(|target| target != reservation) => {
                ChangeStanding::Unknown
            }
            Standing::Decided(row) => match refusal_of(&row) {
                Some(refusal) => ChangeStanding::Refused(row.kind, refusal),
                // A command on a SKU.
                None if row.reservation_id.is_none() => ChangeStanding::Unknown,
                None => match self.status.read(reservation).await {
                    Ok(StatusAnswer { row: Some(now), .. }) => ChangeStanding::Done(row.kind, Box::new(now)),
                    Ok(StatusAnswer { row: None, .. }) | Err(_) => {
                        return Err(StoreError::Deadline { attempt: "read the reservation of a command" });
                    }
                },
            },
        })
    }
}

/// The command, and whether a key (and nothing that it asks for) names it.
fn command_of(reservation: Uuid, sku: SkuId, change: Change, key: Option<&IdempotencyKey>) -> (Command, bool) {
    let named = |kind: &str, name: &str| ids::named_reservation_command_id(kind, reservation, name);
    match change {
        Change::Confirm(payment_ref) => {
            let id = named("confirm", payment_ref.as_str());
            let key_id = key.map(|key| ids::confirm_key_id(reservation, key));
            (Command::Confirm(Confirm { id, reservation, sku, payment_ref, key_id }), false)
        }
        Change::Cancel(note) => {
            // No key is empty, so the two never meet.
            let id = named("cancel", key.map_or("", IdempotencyKey::as_str));
            (Command::Cancel(Cancel { id, reservation, sku, note }), key.is_some())
        }
        Change::Extend(seconds) => {
            let id = key.map_or_else(ids::fresh_id, |key| named("extend", key.as_str()));
            (Command::Extend(Extend { id, reservation, sku, seconds }), key.is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_named_as_the_contract_says() {
        let sku = SkuId::parse("s").expect("legal");
        let reservation = Uuid::from_u128(7);
        let command = |change: Change, key: Option<&str>| {
            let key = key.map(|key| IdempotencyKey::parse(key).expect("legal"));
            command_of(reservation, sku.clone(), change, key.as_ref()).0
        };
        let id = |change: Change, key: Option<&str>| command(change, key).id();
        let key_id = |change: Change, key: Option<&str>| command(change, key).key_id();
        let confirm = |text| Change::Confirm(PaymentRef::parse(text).expect("legal"));
        let note = || Some(Note::parse("why").expect("legal"));
        assert_eq!(id(confirm("pay-1"), None), id(confirm("pay-1"), Some("k")), "the payment names it");
        assert_ne!(id(confirm("pay-1"), None), id(confirm("pay-2"), None));
        assert_eq!(key_id(confirm("pay-1"), None), None);
        assert_eq!(
            key_id(confirm("pay-1"), Some("k")),
            key_id(confirm("pay-2"), Some("k")),
            "the key has an id of its own"
        );
        assert_ne!(key_id(confirm("pay-1"), Some("k")), key_id(confirm("pay-1"), Some("l")));
        assert_ne!(key_id(confirm("pay-1"), Some("pay-1")), Some(id(confirm("pay-1"), None)), "no key is a payment");
        assert_eq!(key_id(Change::Cancel(None), Some("k")), None, "its key is its name");
        assert_eq!(id(Change::Cancel(None), None), id(Change::Cancel(note()), None), "the reservation alone names it");
        assert_ne!(id(Change::Cancel(None), None), id(Change::Cancel(None), Some("k")));
        assert_ne!(id(Change::Extend(1), None), id(Change::Extend(1), None), "new each time");
        assert_eq!(id(Change::Extend(1), Some("k")), id(Change::Extend(2), Some("k")));
        assert_ne!(id(Change::Extend(1), Some("k")), id(Change::Cancel(None), Some("k")), "a key names one kind");
    }
}
