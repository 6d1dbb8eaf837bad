//! `flashsale dlq list` and `show`: what nobody has dealt with, and one of it with its command or its bytes.

use serde_json::{Value, json};

use super::{List, Which, unavailable};
use crate::cli::{Failure, log, pretty, print};
use crate::clock::rfc3339;
use crate::ids::Ticket;
use crate::limits;
use crate::store::{Dealt, PoisonFilter, PoisonRow, Resolution, Store};
use crate::wire;

/// A page of them. Exits 1 if it shows any that nobody has dealt with.
pub(super) async fn show_page(store: &Store, list: List, is_json: bool) -> Result<(), Failure> {
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
pub(super) fn told(dealt: &Dealt) -> String {
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

/// One, with its command or its bytes.
pub(super) async fn show(store: &Store, which: Which, is_json: bool) -> Result<(), Failure> {
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
pub(super) async fn find(store: &Store, which: Which) -> Result<PoisonRow, Failure> {
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
