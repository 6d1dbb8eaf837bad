//! `flashsale dlq`: what could not be decided, and what people do about it.
//!
//! The sale goes on without it: nothing here is urgent, and nothing is done by itself. What may be replayed is decided by one rule: **an answer
//! that was given stays**. A reservation whose id was read was answered REJECTED, so it is never replayed; its buyer asks again with a new
//! key. Any other command was answered with an error and burns no id, so it is published again under the id that it had: as often as
//! one likes, it is carried out once. A command whose id could not be read was answered nothing, and may be replayed, too.

mod look;
mod replay;

use clap::{Args, Subcommand};

use super::partition::{a_partition, parse_note};
use super::{Failure, print};
use crate::config::{Config, Needs};
use crate::ids::Ticket;
use crate::inventory::PoisonReason;
use crate::limits;
use crate::store::{Resolution, Store, StoreError};
use look::{find, told};

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
    #[arg(long, value_parser = a_partition())]
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
            Self::List(list) => look::show_page(&store, list, is_json).await,
            Self::Show { which } => look::show(&store, which, is_json).await,
            Self::Replay { which, note } => replay::replay(&config, &store, which, note.as_deref(), is_json).await,
            Self::Drop { which, note } => drop_one(&store, which, &note).await,
        }
    }
}

fn unavailable(error: &StoreError) -> Failure {
    Failure::unavailable(error)
}

/// Marks a dead letter as dealt with.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_record_or_a_command_of_it() {
        let which = |index| Which { partition: 3, offset: 17, index };
        assert_eq!(parse_which("3.17"), Ok(which(None)));
        assert_eq!(parse_which("3.17.4"), Ok(which(Some(4))));
        for wrong in ["", "3", "3.", "3.17.4.1", "-1.2", "a.b", "3.17."] {
            assert!(parse_which(wrong).is_err(), "{wrong}");
        }
    }
}
