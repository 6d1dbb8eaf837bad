//! `flashsale log tail`: the records of the log as JSON lines, for people and `jq`.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::partition::a_partition;
use super::{Failure, print};
use crate::clock::rfc3339;
use crate::config::Config;
use crate::http::views::late_payment_word;
use crate::ids::{Note, Place, Reference, Ticket};
use crate::inventory::{Command, StockChange};
use crate::kafka::LogRecord;
use crate::kafka::log_ends::{LogReader, LogStart};
use crate::limits;
use crate::shutdown;
use crate::wire::{self, Envelope};

#[derive(Subcommand)]
pub(super) enum Log {
    /// Print records as JSON lines
    Tail(Tail),
}

#[derive(Args)]
pub(super) struct Tail {
    /// Only this partition
    #[arg(long, value_parser = a_partition())]
    partition: Option<i32>,
    /// Begin at this offset [default: the oldest record; with --follow, the newest]
    #[arg(long, value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    from: Option<i64>,
    /// Stop after so many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Wait for more instead of ending with the log; SIGINT and SIGTERM end it, with exit code 0
    #[arg(long)]
    follow: bool,
}

impl Log {
    pub(super) async fn run(self, config: Config) -> Result<(), Failure> {
        let Self::Tail(tail) = self;
        // The usual end of --follow is no failure.
        let stop = shutdown::on_signal()
            .map_err(|error| Failure::unavailable_because(format!("could not listen for signals: {error}")))?;
        let tailing = tokio::task::spawn_blocking(move || tail.run(&config, &stop));
        tailing.await.map_err(|error| Failure::bug(error.to_string()))?
    }
}

impl Tail {
    /// Blocks; sees `stop` within [`limits::LOG_TAIL_WAIT`].
    fn run(self, config: &Config, stop: &CancellationToken) -> Result<(), Failure> {
        let start = match self.from {
            Some(offset) => LogStart::Offset(offset),
            None if self.follow => LogStart::End,
            None => LogStart::Beginning,
        };
        let partitions: Vec<i32> = self.partition.into_iter().collect();
        let mut reader = LogReader::open(config.brokers(), &config.topic, &partitions, start)
            .map_err(|error| Failure::unavailable(&error))?;
        let (mut printed, mut quiet_since) = (0, Instant::now());
        while !stop.is_cancelled() && self.max.is_none_or(|max| printed < max) {
            match reader.next(limits::LOG_TAIL_WAIT).map_err(|error| Failure::unavailable(&error))? {
                Some(record) => {
                    print(line_of(&record))?;
                    printed += 1;
                    quiet_since = Instant::now();
                }
                None if self.follow => {}
                None if is_over(quiet_since.elapsed()) => break,
                None => {}
            }
        }
        Ok(())
    }
}

/// The log ends where nothing more comes: the first record may take a connection and a fetch.
fn is_over(quiet: Duration) -> bool {
    quiet >= limits::LOG_TAIL_QUIET
}

/// One record: where it stands, and its commands, or its bytes if they are none.
fn line_of(record: &LogRecord) -> Value {
    let LogRecord { partition, offset, at, .. } = record;
    let mut line = json!({"partition": partition, "offset": offset, "at": rfc3339(*at)});
    match wire::decode(&record.payload) {
        Ok(decoded) => {
            let command = |(index, envelope)| command_of(*partition, *offset, index, envelope);
            line["sku_id"] = decoded.sku.as_str().into();
            line["commands"] = decoded.commands.iter().enumerate().map(command).collect();
        }
        Err(error) => {
            line["undecodable"] = error.to_string().into();
            line["key_hex"] = hex(&record.key).into();
            line["payload_hex"] = hex(&record.payload).into();
        }
    }
    line
}

/// One command of a record.
pub(super) fn command_of(partition: i32, offset: i64, index: usize, envelope: &Envelope) -> Value {
    let index = u16::try_from(index).expect("a record holds few commands");
    let ticket = Ticket { partition, place: Place { offset, index } };
    let mut value = json!({
        "ticket": ticket.to_string(),
        "received_at": rfc3339(envelope.received_at_us.div_euclid(1000)),
        "request_id": envelope.request_id,
    });
    if let Ok(command) = &envelope.command {
        value["kind"] = command.kind().into();
        value["id"] = command.id().to_string().into();
        if let Some(target) = command.target() {
            value["reservation_id"] = target.to_string().into();
        }
    }
    match &envelope.command {
        Ok(Command::Reserve(reserve)) => {
            value["user_id"] = reserve.user.as_str().into();
            value["quantity"] = reserve.quantity.get().into();
            if let Some(metadata) = &reserve.metadata {
                value["metadata"] = serde_json::from_str(metadata.as_str()).unwrap_or_default();
            }
        }
        Ok(Command::Configure(configure)) => {
            let settings = &configure.settings;
            value["pin"] = configure.pin.into();
            value["seen_version"] = configure.seen_version.into();
            value["on_hand"] = configure.on_hand.into();
            value["settings"] = json!({
                "user_limit": settings.user_limit, "hold_seconds": settings.hold_seconds,
                "starts_at": settings.starts_at.map(rfc3339), "ends_at": settings.ends_at.map(rfc3339),
                "late_payment": late_payment_word(settings.late_payment), "extensions_max": settings.extensions_max,
                "extension_seconds_max": settings.extension_seconds_max,
            });
        }
        Ok(Command::Confirm(confirm)) => value["payment_ref"] = confirm.payment_ref.as_str().into(),
        Ok(Command::Cancel(cancel)) => value["note"] = cancel.note.as_ref().map(Note::as_str).into(),
        Ok(Command::Extend(extend)) => value["seconds"] = extend.seconds.into(),
        Ok(Command::Adjust(adjust)) => {
            match adjust.change {
                StockChange::By(delta) => value["delta"] = delta.into(),
                StockChange::To { compare_on_hand, on_hand } => {
                    value["compare_on_hand"] = compare_on_hand.into();
                    value["on_hand"] = on_hand.into();
                }
            }
            value["note"] = adjust.note.as_str().into();
            value["reference"] = adjust.reference.as_ref().map(Reference::as_str).into();
        }
        Ok(Command::Pause(pause)) => {
            value["seen_version"] = pause.seen_version.into();
            value["note"] = pause.note.as_ref().map(Note::as_str).into();
        }
        Ok(Command::Tick(_)) => {}
        Err(unfit) => {
            value["unfit"] = unfit.reason.code().into();
            value["id"] = unfit.id.map(|id| id.to_string()).into();
        }
    }
    value
}

/// Bytes for people.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undecodable_records_are_shown_as_bytes() {
        let record = LogRecord { partition: 1, offset: 7, at: 0, key: b"k".to_vec(), payload: vec![0, 255] };
        assert_eq!(
            line_of(&record),
            json!({"partition": 1, "offset": 7, "at": "1970-01-01T00:00:00.000Z", "undecodable": "not a record: no magic number",
                "key_hex": "6b", "payload_hex": "00ff"})
        );
    }
}
