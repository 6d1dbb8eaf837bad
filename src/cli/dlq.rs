//! `flashsale dlq`: what could not be decided, and what people do about it.
//!
//! The sale goes on without it: nothing here is urgent, and nothing is done by itself. What may be replayed is decided by one rule: **an answer
//! that was given stays**. A reservation whose id was read was answered REJECTED, so it is never replayed; its buyer asks again with a new
//! key. Any other command was answered with an error and burns no id, so it is published again under the id that it had: as often as
//! one likes, it is carried out once. A command whose id could not be read was answered nothing, and may be replayed, too.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::asking::Asking;
use super::partition::parse_note;
use super::{Failure, log, pretty, print};
use crate::clock::{Clock, SystemClock, rfc3339};
use crate::config::{Config, Needs};
use crate::ids::Ticket;
use crate::ingress::Delivery;
use crate::inventory::{Command, PoisonReason};
use crate::limits;
use crate::store::{Dealt, PoisonFilter, PoisonRow, Resolution, Store, StoreError};
use crate::wire::{self, Sent};

#[derive(Subcommand)]
pub(super) enum Dlq {
    /// Show what nobody has dealt with, in the order of the log; exits 1 if there is any
    List(List),
    /// Show one: when and why, the command or its bytes, what was done about it
    Show {
        /// PARTITION.OFFSET[.INDEX], as the list shows it
        #[arg(value_parser = parse_which)]
        which: Which,
    },
    /// Publish the command again, under the id that it had, and wait for its decision
    Replay {
        /// PARTITION.OFFSET[.INDEX], as the list shows it
        #[arg(value_parser = parse_which)]
        which: Which,
        /// Why, 1 to 200 characters
        #[arg(long, value_parser = parse_note)]
        note: Option<String>,
    },
    /// Mark it as dealt with; nothing else is done
    Drop {
        /// PARTITION.OFFSET[.INDEX], as the list shows it
        #[arg(value_parser = parse_which)]
        which: Which,
        /// What was found and done, 1 to 200 characters
        #[arg(long, value_parser = parse_note)]
        note: String,
    },
}

#[derive(Args)]
pub(super) struct List {
    /// Only of this partition
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..i64::from(limits::PARTITIONS_MAX)))]
    partition: Option<i32>,
    /// Only with this reason: MALFORMED, NOT_HERE or PROCESSING_ERROR
    #[arg(long, value_parser = parse_reason)]
    reason: Option<PoisonReason>,
    /// Also what somebody has dealt with
    #[arg(long)]
    all: bool,
    /// At most so many
    #[arg(long, default_value_t = limits::POISON_PAGE_DEFAULT,
        value_parser = clap::value_parser!(i64).range(1..limits::POISON_PAGE_MAX))]
    limit: i64,
    /// Go on behind the page that ended with this
    #[arg(long, value_parser = parse_cursor)]
    cursor: Option<Ticket>,
}

/// A record, or one command of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Which {
    partition: i32,
    offset: i64,
    index: Option<u16>,
}

fn parse_which(text: &str) -> Result<Which, String> {
    let whole = Ticket::parse(text).map(|t| Which {
        partition: t.partition,
        offset: t.place.offset,
        index: Some(t.place.index),
    });
    let record = || {
        Ticket::parse(&format!("{text}.0")).map(|t| Which {
            partition: t.partition,
            offset: t.place.offset,
            index: None,
        })
    };
    whole.or_else(record).ok_or_else(|| "must be PARTITION.OFFSET or PARTITION.OFFSET.INDEX".to_owned())
}

fn parse_cursor(text: &str) -> Result<Ticket, String> {
    Ticket::parse(text).ok_or_else(|| "must be PARTITION.OFFSET.INDEX".to_owned())
}

fn parse_reason(text: &str) -> Result<PoisonReason, String> {
    PoisonReason::from_code(text).ok_or_else(|| "must be MALFORMED, NOT_HERE or PROCESSING_ERROR".to_owned())
}

impl Dlq {
    /// Replaying needs Kafka, too.
    pub(super) fn needs(&self) -> &'static [Needs] {
        match self {
            Self::Replay { .. } => &[Needs::Database, Needs::Kafka],
            Self::List(_) | Self::Show { .. } | Self::Drop { .. } => &[Needs::Database],
        }
    }

    pub(super) async fn run(self, config: Config, is_json: bool) -> Result<(), Failure> {
        let store = Store::new(config.database(), &config.topic).map_err(|error| unavailable(&error))?;
        match self {
            Self::List(list) => show_page(&store, list, is_json).await,
            Self::Show { which } => show(&store, which, is_json).await,
            Self::Replay { which, note } => replay(&config, &store, which, note.as_deref(), is_json).await,
            Self::Drop { which, note } => drop_one(&store, which, &note).await,
        }
    }
}

fn unavailable(error: &StoreError) -> Failure {
    Failure::unavailable(error)
}

// ---- looking ------------------------------------------------------------------------------------------------------------------

async fn show_page(store: &Store, list: List, is_json: bool) -> Result<(), Failure> {
    let List { partition, reason, all, limit, cursor } = list;
    let reason = reason.map(|reason| reason.code().to_owned());
    // One more shows that there are more.
    let filter = PoisonFilter { partition, reason, with_dealt: all, after: cursor, limit: limit + 1 };
    let mut rows = store.load_poison(&filter).await.map_err(|error| unavailable(&error))?;
    let has_more = i64::try_from(rows.len()).is_ok_and(|count| count > limit);
    if has_more {
        rows.pop();
    }
    let next = rows.last().filter(|_| has_more).map(|row| row.ticket);
    if is_json {
        let mut page = json!({"items": rows.iter().map(json_of).collect::<Vec<_>>()});
        if let Some(next) = next {
            page["next_cursor"] = next.to_string().into();
        }
        print(pretty(&page))?;
    } else {
        print(format!("{:<16} {:<24} {:<16} {:<36}  DEALT WITH", "PLACE", "LOG TIME", "REASON", "ID"))?;
        for row in &rows {
            print(line_of(row))?;
        }
        if let Some(next) = next {
            print(format!("more: --cursor {next}"))?;
        }
    }
    let open = rows.iter().filter(|row| row.dealt.is_none()).count();
    if open == 0 { Ok(()) } else { Err(Failure::refused(format!("{open} shown that nobody has dealt with"))) }
}

fn line_of(row: &PoisonRow) -> String {
    let id = row.command_id.map_or("-".to_owned(), |id| id.to_string());
    let dealt = row.dealt.as_ref().map_or("-".to_owned(), told);
    let (place, at) = (row.ticket.to_string(), rfc3339(row.log_time));
    format!("{place:<16} {at:<24} {:<16} {id:<36}  {dealt}", row.reason)
}

/// What was done, for people.
fn told(dealt: &Dealt) -> String {
    let what = match dealt.resolution {
        Resolution::Replayed(to) => format!("replayed as {to}"),
        Resolution::Dropped => "dropped".to_owned(),
    };
    let note = dealt.note.as_ref().map_or(String::new(), |note| format!(": {note}"));
    format!("{what} at {}{note}", rfc3339(dealt.at))
}

fn json_of(row: &PoisonRow) -> Value {
    let mut value = json!({
        "place": row.ticket.to_string(), "reason": row.reason, "log_time": rfc3339(row.log_time), "size": row.size,
        "id": row.command_id.map(|id| id.to_string()),
    });
    if let Some(Dealt { resolution, at, note }) = &row.dealt {
        value["resolution"] = resolution.word().into();
        value["resolved_at"] = rfc3339(*at).into();
        value["note"] = note.as_deref().into();
        if let Resolution::Replayed(to) = resolution {
            value["replayed_to"] = to.to_string().into();
        }
    }
    value
}

async fn show(store: &Store, which: Which, is_json: bool) -> Result<(), Failure> {
    let row = find(store, which).await?;
    let raw = store.load_poison_bytes(row.ticket).await.map_err(|error| unavailable(&error))?;
    let content = content_of(&row, &raw);
    if is_json {
        let mut value = json_of(&row);
        value.as_object_mut().expect("made as one").extend(content);
        return print(pretty(&value));
    }
    print(line_of(&row))?;
    for (name, value) in content {
        match value {
            Value::String(text) if text.len() > limits::POISON_HEX_SHOWN_MAX => {
                print(format!(
                    "{name}: {}... ({} bytes; --json shows all)",
                    &text[..limits::POISON_HEX_SHOWN_MAX],
                    raw.len()
                ))?;
            }
            Value::String(text) => print(format!("{name}: {text}"))?,
            other => print(format!("{name}: {other}"))?,
        }
    }
    Ok(())
}

/// The command, if this build can read it; else the bytes of its record, and why not.
fn content_of(row: &PoisonRow, raw: &[u8]) -> serde_json::Map<String, Value> {
    let Ticket { partition, place } = row.ticket;
    let mut content = serde_json::Map::new();
    let is_whole = match wire::decode(raw) {
        Ok(record) => {
            content.insert("sku_id".to_owned(), record.sku.as_str().into());
            let envelope = record.commands.get(usize::from(place.index));
            let command =
                envelope.map(|envelope| log::command_of(partition, place.offset, usize::from(place.index), envelope));
            content.insert("command".to_owned(), command.unwrap_or_default());
            envelope.is_some_and(|envelope| envelope.command.is_ok())
        }
        Err(error) => {
            content.insert("undecodable".to_owned(), error.to_string().into());
            false
        }
    };
    if !is_whole {
        content.insert("payload_hex".to_owned(), log::hex(raw).into());
    }
    content
}

/// The one that is meant.
async fn find(store: &Store, which: Which) -> Result<PoisonRow, Failure> {
    let Which { partition, offset, index } = which;
    let mut rows = store.load_poison_of(partition, offset).await.map_err(|error| unavailable(&error))?;
    rows.retain(|row| index.is_none_or(|index| index == row.ticket.place.index));
    match (rows.pop(), rows.len()) {
        (Some(row), 0) => Ok(row),
        (None, _) => Err(Failure::refused("there is no such dead letter")),
        (Some(last), _) => {
            let others = rows.iter().chain([&last]).map(|row| row.ticket.to_string()).collect::<Vec<_>>().join(", ");
            Err(Failure::refused(format!("which of them: {others}")))
        }
    }
}

// ---- dealing with it ----------------------------------------------------------------------------------------------------------

async fn drop_one(store: &Store, which: Which, note: &str) -> Result<(), Failure> {
    let row = find(store, which).await?;
    let is_marked = match &row.dealt {
        None => store
            .resolve_poison(row.ticket, &Resolution::Dropped, Some(note))
            .await
            .map_err(|error| unavailable(&error))?,
        Some(_) => false,
    };
    if is_marked {
        return print(format!("{} is dropped", row.ticket));
    }
    // Somebody else may have been first just now.
    let dealt = find(store, which).await?.dealt.ok_or_else(|| Failure::bug("a mark is gone"))?;
    match dealt.resolution {
        Resolution::Dropped => print(format!("{} was {} before", row.ticket, told(&dealt))),
        Resolution::Replayed(_) => Err(Failure::refused(format!("{} was {}", row.ticket, told(&dealt)))),
    }
}

async fn replay(
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
        let why = super::chain(&error);
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
    fn a_place_is_a_record_or_a_command_of_it() {
        let which = |index| Which { partition: 3, offset: 17, index };
        assert_eq!(parse_which("3.17"), Ok(which(None)));
        assert_eq!(parse_which("3.17.4"), Ok(which(Some(4))));
        for wrong in ["", "3", "3.", "3.17.4.1", "-1.2", "a.b", "3.17."] {
            assert!(parse_which(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_nobody_can_read_is_not_replayed() {
        let ticket = Ticket { partition: 0, place: Place { offset: 1, index: 0 } };
        let row = PoisonRow { ticket, command_id: None, reason: "MALFORMED".into(), log_time: 0, size: 8, dealt: None };
        assert!(replayable(&row, b"nonsense").expect_err("no record").contains("no magic number"));
    }
}
