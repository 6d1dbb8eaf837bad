//! `flashsale partition`: how far each partition is decided, and the end of a halt.

use clap::Subcommand;
use serde_json::json;

use super::{Failure, pretty, print};
use crate::config::Config;
use crate::limits;
use crate::store::{PartitionRow, Store};

#[derive(Subcommand)]
pub(super) enum Partition {
    /// Show epoch, position and halt of every partition; exits 1 if one is halted
    Show {
        /// Only this one
        partition: Option<i32>,
    },
    /// Let a halted partition go on; say why, it is kept
    Resume {
        /// Which
        partition: i32,
        /// What was found and done, 1 to 200 characters
        #[arg(long, value_parser = parse_note)]
        note: String,
    },
}

pub(super) fn parse_note(text: &str) -> Result<String, String> {
    let is_good = (1..=limits::NOTE_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    is_good.then(|| text.to_owned()).ok_or_else(|| "must be 1 to 200 characters without control characters".to_owned())
}

impl Partition {
    pub(super) async fn run(self, config: Config, is_json: bool) -> Result<(), Failure> {
        let store = Store::new(config.database(), &config.topic).map_err(|error| Failure::unavailable(&error))?;
        match self {
            Self::Show { partition } => show(&store, partition, is_json).await,
            Self::Resume { partition, note } => resume(&store, partition, &note).await,
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
