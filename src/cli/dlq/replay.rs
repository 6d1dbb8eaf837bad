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
use crate::store::{PoisonRow, Resolution, Store};
use crate::wire::{self, Sent};

pub(super) async fn replay(
    config: &Config,
    store: &Store,
    which: Which,
    note: Option<&str>,
    is_json: bool,
) -> Result<(), Failure> {
    let row = find(store, which).await?;
    if let Some(dealt) = &row.dealt {
        return match dealt.resolution {
            Resolution::Replayed(to) => tell_replay(&row, to, "REPLAYED_BEFORE", is_json),
            Resolution::Dropped => Err(Failure::refused(format!("{} was {}", row.ticket, told(dealt)))),
        };
    }
    let raw = store.load_poison_bytes(row.ticket).await.map_err(|error| unavailable(&error))?;
    let sent = replayable(&row, &raw).map_err(Failure::refused)?;
    let (id, is_reserve) = (sent.command.id(), matches!(sent.command, Command::Reserve(_)));
    let partition = home_of(store, &sent.command).await?;
    let asking = Asking::start(config, store)?;
    let published = asking.publish(partition, sent).await;
    asking.end().await;
    let to = match published {
        Delivery::Delivered(ticket) => ticket,
        Delivery::NotSent(_) => {
            return Err(Failure::unavailable_because("the command could not be published; nothing was changed"));
        }
        Delivery::Unknown => {
            return Err(Failure::unknown(
                "nobody knows whether the command was published: run it again, it is carried out once",
            ));
        }
    };
    if let Err(error) = store.resolve_poison(row.ticket, &Resolution::Replayed(to), note).await {
        let why = chain(&error);
        return Err(Failure::unknown(format!(
            "published as {to}, but not marked: run it again, it is carried out once: {why}"
        )));
    }
    let decision = await_decision(store, id, to, is_reserve).await;
    tell_replay(&row, to, decision.as_deref().unwrap_or("NOT_DECIDED_YET"), is_json)
}

fn tell_replay(row: &PoisonRow, to: Ticket, decision: &str, is_json: bool) -> Result<(), Failure> {
    if is_json {
        return print(pretty(
            &json!({"place": row.ticket.to_string(), "replayed_to": to.to_string(), "decision": decision}),
        ));
    }
    print(format!("{} is replayed as {to}: {decision}", row.ticket))
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

/// What was decided, a word; `None` = not yet, or it can't be asked.
async fn await_decision(store: &Store, id: Uuid, to: Ticket, is_reserve: bool) -> Option<String> {
    let deadline = Instant::now() + limits::ADMIN_DECISION_WAIT;
    while Instant::now() < deadline {
        let decided = if is_reserve {
            let read = store.load_statuses(&[id]).await.ok();
            read.and_then(|mut read| read.reservations.remove(&id)).map(|row| row.status.word().to_owned())
        } else {
            let read = store.load_commands(&[(id, to)]).await.ok();
            read.and_then(|mut rows| rows.pop().flatten()).map(|row| row.result)
        };
        if decided.is_some() {
            return decided;
        }
        sleep(limits::COMMAND_POLL_EVERY).await;
    }
    None
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
