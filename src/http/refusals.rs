//! What the writer, the log or Postgres said against a command, as problems: the same for reservations and SKUs.

use super::app::not_sent;
use super::problem::{Code, Effect, Problem};
use crate::commands::{AskError, CommandRefusal};
use crate::inventory::Refusal;

/// The problem of a refused command.
pub(super) fn refused(refusal: &CommandRefusal) -> Problem {
    match refusal {
        CommandRefusal::Writer(refusal) => refused_by_writer(*refusal),
        CommandRefusal::NameReused => name_reused(),
        CommandRefusal::Poisoned(reason) => {
            Problem::new(Code::Internal, "the change could not be decided; it is among the dead letters")
                .with("reason", reason.as_str())
        }
    }
}

fn refused_by_writer(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::KeyReused => name_reused(),
        Refusal::SettingsChanged { .. } => {
            Problem::new(Code::SettingsChanged, "somebody else changed the settings at the same time")
        }
        Refusal::StockChanged { on_hand } => {
            Problem::new(Code::StockChanged, format!("{on_hand} units are in the sale")).with("on_hand", on_hand)
        }
        Refusal::BelowCommitted { minimum } => {
            Problem::new(Code::BelowCommitted, format!("{minimum} units are reserved and sold"))
                .with("minimum", minimum)
        }
        Refusal::AboveMaximum { on_hand } => {
            Problem::new(Code::AboveMaximum, format!("{on_hand} units are in the sale, and so many can't be added"))
                .with("on_hand", on_hand)
        }
        Refusal::NotReservedYet => not_reserved_yet(),
        Refusal::ReservationRejected => {
            Problem::new(Code::ReservationRejected, "the reservation was rejected, it never held units")
        }
        Refusal::AlreadyConfirmed => Problem::new(Code::AlreadyConfirmed, "the reservation is confirmed"),
        Refusal::AlreadyCancelled => Problem::new(Code::AlreadyCancelled, "the reservation is cancelled"),
        Refusal::HoldExpired => Problem::new(Code::HoldExpired, "the hold has ended"),
        Refusal::PaidUnfulfilled => Problem::new(
            Code::PaidUnfulfilled,
            "the hold had ended and its units can't be reserved again: this payment is to be refunded",
        ),
        Refusal::ExtensionLimit { extensions_left, seconds_left } => Problem::new(
            Code::ExtensionLimit,
            format!("{extensions_left} extensions are left, of {seconds_left} seconds in all"),
        )
        .with("extensions_left", extensions_left)
        .with("seconds_left", seconds_left),
    }
}

fn name_reused() -> Problem {
    Problem::new(Code::IdempotencyKeyReused, "this key or reference was used for another change")
}

/// 409 for a reservation that has no decision, as far as anybody can say now. Nobody remembers it.
pub(super) fn not_reserved_yet() -> Problem {
    Problem::new(Code::NotReservedYet, "the reservation is not decided yet").retry_after(1)
}

/// 503 for a command that is not in the log, or may be.
pub(super) fn not_asked(error: AskError) -> Problem {
    match error {
        AskError::NotSent(why) => not_sent(why),
        AskError::Unknown => Problem::unavailable(
            Code::QueueUnavailable,
            Effect::Unknown,
            "nobody knows yet whether the change was queued",
        ),
    }
}

/// A refusal in a line, for the command line: `CODE: what is wrong`.
pub(crate) fn told(refusal: &CommandRefusal) -> String {
    let problem = refused(refusal);
    format!("{}: {}", problem.code().word(), problem.detail())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::NotSent;

    #[test]
    fn every_refusal_of_a_command_has_its_problem() {
        let refusals = [
            Refusal::SettingsChanged { settings_version: 3 },
            Refusal::StockChanged { on_hand: 98 },
            Refusal::BelowCommitted { minimum: 7 },
            Refusal::AboveMaximum { on_hand: 1_000_000_000 },
            Refusal::NotReservedYet,
            Refusal::ReservationRejected,
            Refusal::AlreadyConfirmed,
            Refusal::AlreadyCancelled,
            Refusal::HoldExpired,
            Refusal::PaidUnfulfilled,
            Refusal::ExtensionLimit { extensions_left: 1, seconds_left: 30 },
        ];
        // The words of the pure core and those of HTTP are the same.
        for refusal in refusals.into_iter().chain([Refusal::KeyReused]) {
            assert_eq!(refused_by_writer(refusal).code().word(), refusal.code());
        }
        let all = refusals.map(CommandRefusal::Writer).into_iter();
        let all = all.chain([CommandRefusal::NameReused, CommandRefusal::Poisoned("NOT_HERE".into())]);
        let mut bodies: Vec<_> = all.map(|refusal| refused(&refusal).nested_body()).collect();
        let errors = [AskError::NotSent(NotSent::Full), AskError::NotSent(NotSent::Unavailable), AskError::Unknown];
        bodies.extend(errors.map(|error| not_asked(error).nested_body()));
        insta::assert_json_snapshot!(bodies);
    }
}
