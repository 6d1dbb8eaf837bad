//! `flashsale dlq replay`: publishes a dead letter's command again, under the id that it had, and waits for its decision.
//!
//! ```text
//! find      the row, and whether somebody dealt with it
//! judge     may it be published again? what was answered stays: see the top of `dlq.rs`
//! publish   to the partition where its SKU is decided
//! mark      the row; a run that ended before that publishes again, and the command is carried out once all the same
//! ```

use serde_json::json;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::look::{find, told};
use super::{Which, unavailable};
use crate::cli::asking::Asking;
use crate::cli::{Failure, chain, pretty, print};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::ids::Ticket;
use crate::ingress::Delivery;
use crate::inventory::{Command, PoisonReason};
use crate::limits;
use crate::store::{CommandRow, PoisonRow, Resolution, Store};
use crate::wire::{self, Sent};

/// Publishes the command, unless that was done before, and tells what was decided.
pub(super) async fn replay(
    config: &Config,
    store: &Store,
    which: Which,
    note: Option<&str>,
    is_json: bool,
) -> Result<(), Failure> {
    let row = find(store, which).await?;
    let raw = store.load_poison_bytes(row.ticket).await.map_err(|error| unavailable(&error))?;
    let sent = replayable(&row, &raw);
    let published_before = match row.dealt.as_ref().map(|dealt| &dealt.resolution) {
        Some(Resolution::Dropped) => return Err(dealt_with(&row)),
        Some(Resolution::Replayed(to)) => Some(*to),
        None => None,
    };
    let sent = sent.map_err(|why| match published_before {
        // By a build that could.
        Some(to) => Failure::unknown(format!("{} was replayed as {to}, but {why}", row.ticket)),
        None => Failure::refused(why),
    })?;
    let (id, is_reserve) = (sent.command.id(), matches!(sent.command, Command::Reserve(_)));
    let to = match published_before {
        Some(to) => to,
        None => {
            let to = publish(config, store, &row, sent).await?;
            mark(store, &row, to, note).await?;
            to
        }
    };
    let decision = await_decision(store, id, to, is_reserve).await;
    tell(&row, to, decision, published_before.is_some(), is_json)
}

/// Somebody dropped it.
fn dealt_with(row: &PoisonRow) -> Failure {
    let what = row.dealt.as_ref().map_or("dealt with".to_owned(), told);
    Failure::refused(format!("{} was {what}", row.ticket))
}

async fn publish(config: &Config, store: &Store, row: &PoisonRow, sent: Sent) -> Result<Ticket, Failure> {
    let partition = home_of(store, &sent.command).await?;
    let asking = Asking::start(config, store)?;
    let published = asking.publish(partition, sent).await;
    asking.end().await;
    match published {
        Delivery::Delivered(ticket) => Ok(ticket),
        Delivery::NotSent(_) => {
            Err(Failure::unavailable_because(format!("{} could not be published; nothing was changed", row.ticket)))
        }
        Delivery::Unknown => Err(Failure::unknown(format!(
            "nobody knows whether {} was published: run it again, it is carried out once",
            row.ticket
        ))),
    }
}

/// Notes where the command stands now. Of two who replay it at once the first one's place stays: both are in the log, one is carried out.
async fn mark(store: &Store, row: &PoisonRow, to: Ticket, note: Option<&str>) -> Result<(), Failure> {
    let marked = store.resolve_poison(row.ticket, &Resolution::Replayed(to), note).await;
    let is_first = marked.map_err(|error| {
        let why = chain(&error);
        Failure::unknown(format!("published as {to}, but not marked: run it again, it is carried out once: {why}"))
    })?;
    if is_first {
        return Ok(());
    }
    let Ticket { partition, place } = row.ticket;
    let now = find(store, Which { partition, offset: place.offset, index: Some(place.index) }).await?;
    match now.dealt.as_ref().map(|dealt| &dealt.resolution) {
        Some(Resolution::Replayed(_)) => Ok(()),
        _ => Err(Failure::refused(format!(
            "{} was published as {to}; meanwhile {}",
            row.ticket,
            dealt_with(&now).message
        ))),
    }
}

/// What was decided.
struct Decision {
    /// The state of the reservation, the result of the command, or why it is poison again.
    word: String,
    is_poison: bool,
}

/// Exits 1 if it is poison again, 2 if it is not decided yet.
fn tell(
    row: &PoisonRow,
    to: Ticket,
    decision: Option<Decision>,
    is_repeat: bool,
    is_json: bool,
) -> Result<(), Failure> {
    let word = decision.as_ref().map(|decision| decision.word.as_str());
    if is_json {
        print(pretty(&json!({"place": row.ticket.to_string(), "replayed_to": to.to_string(), "decision": word,
            "is_repeat": is_repeat})))?;
    } else {
        let (is, word) = (if is_repeat { "was" } else { "is" }, word.unwrap_or("not decided yet"));
        print(format!("{} {is} replayed as {to}: {word}", row.ticket))?;
    }
    match decision {
        Some(decision) if !decision.is_poison => Ok(()),
        Some(Decision { word, .. }) => Err(Failure::refused(format!("it is a dead letter again, {to}: {word}"))),
        None => Err(Failure::unknown(
            "it is in the log, but not decided yet: is a consumer running? Run it again to look, nothing more is published",
        )),
    }
}

/// The command as it may be published again, or why it may not: see the top of this file.
fn replayable(row: &PoisonRow, raw: &[u8]) -> Result<Sent, String> {
    let record = wire::decode(raw).map_err(|error| format!("its bytes can't be published as a command: {error}"))?;
    let count = record.commands.len();
    let envelope = match row.command_id {
        // Whether it stands for one command or for the whole record is not known, unless that is the same.
        None if count > 1 => {
            return Err(format!(
                "no id could be read then, and its record has {count} commands: it may stand for any of them"
            ));
        }
        _ => record.commands.into_iter().nth(usize::from(row.ticket.place.index)),
    };
    let envelope = envelope.ok_or("its record has fewer commands")?;
    let command =
        envelope.command.map_err(|unfit| format!("this build can't read it either: {}", unfit.reason.code()))?;
    match (&command, row.command_id) {
        (Command::Tick(_), _) => Err("a tick is not needed any more: the writer sends another".to_owned()),
        (_, Some(id)) if id != command.id() => Err(format!("its bytes are those of command {}", command.id())),
        (Command::Reserve(_), Some(id)) => {
            let told = PoisonReason::from_code(&row.reason).map_or("", PoisonReason::public_reason);
            Err(format!(
                "reservation {id} was answered REJECTED ({told}), and stays so: its buyer asks again with a new key"
            ))
        }
        _ => Ok(Sent {
            received_at_us: SystemClock.now().saturating_mul(1000),
            request_id: envelope.request_id,
            command,
        }),
    }
}

/// The partition where the command can be decided.
async fn home_of(store: &Store, command: &Command) -> Result<i32, Failure> {
    let sku = command.sku();
    if let Command::Configure(configure) = command {
        let pin = store.pin_of(sku).await.map_err(|error| unavailable(&error))?;
        return match pin {
            Some(pin) if pin == configure.pin => Ok(pin),
            Some(pin) => Err(Failure::refused(format!(
                "it names partition {}, {} is pinned to {pin}: it would be poison again",
                configure.pin,
                sku.as_str()
            ))),
            None => Err(Failure::refused(format!("{} is pinned nowhere: it would be poison again", sku.as_str()))),
        };
    }
    let found = store.load_skus(std::slice::from_ref(sku)).await.map_err(|error| unavailable(&error))?;
    let home = found.first().map(|entry| entry.partition);
    home.ok_or_else(|| Failure::refused(format!("there is no SKU {}: it would be poison again", sku.as_str())))
}

/// `None` = not yet within [`limits::ADMIN_DECISION_WAIT`], or it can't be asked.
async fn await_decision(store: &Store, id: Uuid, to: Ticket, is_reserve: bool) -> Option<Decision> {
    let deadline = Instant::now() + limits::ADMIN_DECISION_WAIT;
    loop {
        let decided = if is_reserve {
            let read = store.load_statuses(&[id]).await.ok();
            read.and_then(|mut read| read.reservations.remove(&id)).map(|row| match (row.user_id, row.rejection) {
                // Poison has no user.
                (None, Some(rejection)) => Decision { word: rejection.reason, is_poison: true },
                _ => Decision { word: row.status.word().to_owned(), is_poison: false },
            })
        } else {
            let read = store.load_commands(&[(id, to)]).await.ok();
            // And no kind.
            let decision = |row: CommandRow| Decision { word: row.result, is_poison: row.kind.is_empty() };
            read.and_then(|mut rows| rows.pop().flatten()).map(decision)
        };
        if decided.is_some() || Instant::now() >= deadline {
            return decided;
        }
        sleep(limits::COMMAND_POLL_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Place;

    #[test]
    fn what_nobody_can_read_is_not_replayed() {
        let ticket = Ticket { partition: 0, place: Place { offset: 1, index: 0 } };
        let row = PoisonRow { ticket, command_id: None, reason: "MALFORMED".into(), log_time: 0, size: 8, dealt: None };
        assert!(replayable(&row, b"nonsense").expect_err("no record").contains("no magic number"));
    }
}
