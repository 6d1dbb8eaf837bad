//! `flashsale partition`: how far each partition is decided, the end of a halt, and the way past a record that no build can read.

use clap::Subcommand;
use clap::builder::RangedI64ValueParser;
use serde_json::json;

use super::{Failure, pretty, print};
use crate::config::{Config, Needs};
use crate::kafka::LogEnds;
use crate::limits;
use crate::store::{PartitionRow, SkippedRecord, Store};
use crate::wire::{self, DecodeError};

#[derive(Subcommand)]
pub(super) enum Partition {
    /// Show epoch, position and halt of every partition; exits 1 if one is halted
    Show {
        /// Only this one
        #[arg(value_parser = a_partition())]
        partition: Option<i32>,
    },
    /// Let a halted partition go on; say why, it is kept
    Resume {
        /// Which
        #[arg(value_parser = a_partition())]
        partition: i32,
        /// What was found and done, 1 to 200 characters
        #[arg(long, value_parser = parse_note)]
        note: String,
    },
    /// Step over the next record to decide, if it claims to be a newer build's; it is kept among the dead letters. May lose what was
    /// answered 202
    Skip {
        /// Which
        #[arg(value_parser = a_partition())]
        partition: i32,
        /// The record's; must be the partition's position
        #[arg(long, value_parser = clap::value_parser!(i64).range(0..))]
        offset: i64,
        /// How it is known that no build wrote it, 1 to 200 characters
        #[arg(long, value_parser = parse_note)]
        note: String,
    },
}

/// Reads a partition's number.
pub(super) fn a_partition() -> RangedI64ValueParser<i32> {
    clap::value_parser!(i32).range(0..i64::from(limits::PARTITIONS_MAX))
}

pub(super) fn parse_note(text: &str) -> Result<String, String> {
    let is_good = (1..=limits::NOTE_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    is_good.then(|| text.to_owned()).ok_or_else(|| "must be 1 to 200 characters without control characters".to_owned())
}

impl Partition {
    /// Skipping reads the record.
    pub(super) fn needs(&self) -> &'static [Needs] {
        match self {
            Self::Skip { .. } => &[Needs::Database, Needs::Kafka],
            Self::Show { .. } | Self::Resume { .. } => &[Needs::Database],
        }
    }

    pub(super) async fn run(self, config: Config, is_json: bool) -> Result<(), Failure> {
        let store = Store::new(config.database(), &config.topic).map_err(|error| Failure::unavailable(&error))?;
        match self {
            Self::Show { partition } => show(&store, partition, is_json).await,
            Self::Resume { partition, note } => resume(&store, partition, &note).await,
            Self::Skip { partition, offset, note } => skip(&config, &store, partition, offset, &note).await,
        }
    }
}

async fn show(store: &Store, partition: Option<i32>, is_json: bool) -> Result<(), Failure> {
    let all = store.load_partitions().await.map_err(|error| Failure::unavailable(&error))?;
    let rows: Vec<&PartitionRow> = all.iter().filter(|row| partition.is_none_or(|p| p == row.partition)).collect();
    if rows.is_empty() {
        return Err(Failure::refused("there is no such partition"));
    }
    if is_json {
        print(pretty(&rows.iter().map(|row| json_of(row)).collect::<Vec<_>>()))?;
    } else {
        print("PARTITION  EPOCH  POSITION  STATE")?;
        for row in &rows {
            let state = row.halted_reason.as_deref().map_or("deciding".to_owned(), |why| format!("HALTED: {why}"));
            print(format!("{:>9}  {:>5}  {:>8}  {state}", row.partition, row.epoch, row.position))?;
        }
    }
    let halted = rows.iter().filter(|row| row.halted_reason.is_some()).count();
    if halted == 0 { Ok(()) } else { Err(Failure::refused(format!("{halted} halted"))) }
}

fn json_of(row: &PartitionRow) -> serde_json::Value {
    let mut value = json!({"partition": row.partition, "epoch": row.epoch, "position": row.position});
    if let Some(reason) = &row.halted_reason {
        value["halted_reason"] = reason.as_str().into();
    }
    value
}

async fn resume(store: &Store, partition: i32, note: &str) -> Result<(), Failure> {
    match store.resume_partition(partition, note).await {
        Ok(true) => print(format!("partition {partition} goes on")),
        Ok(false) => Err(Failure::refused(format!("partition {partition} is not halted"))),
        Err(error) => Err(Failure::unavailable(&error)),
    }
}

async fn skip(config: &Config, store: &Store, partition: i32, offset: i64, note: &str) -> Result<(), Failure> {
    let log_ends = LogEnds::start(config.brokers(), &config.topic).map_err(|error| Failure::unavailable(&error))?;
    let read = log_ends.read_record(partition, offset).await.map_err(|error| Failure::unavailable(&error))?;
    let record = read.ok_or_else(|| Failure::refused(format!("the log has no record {partition}.{offset}")))?;
    // Every other record has a decision, if only that it is poison.
    if !matches!(wire::decode(&record.payload), Err(DecodeError::UnknownVersion(_))) {
        return Err(Failure::refused(format!("{partition}.{offset} needs no skipping: this build decides it")));
    }
    let skipped = SkippedRecord { partition, offset, at: record.at, raw: &record.payload, note };
    match store.skip_record(skipped).await {
        Ok(true) => print(format!(
            "{partition}.{offset} is skipped, and among the dead letters; start the consumers anew that gave the partition up"
        )),
        Ok(false) => Err(Failure::refused(format!(
            "partition {partition} does not stand at {offset}: `flashsale partition show {partition}`"
        ))),
        // Asked again, it is skipped or it stands behind it: never two records.
        Err(error) => Err(Failure::unknown(format!("run it again: {}", super::chain(&error)))),
    }
}
