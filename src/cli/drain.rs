//! `flashsale drain`: decides what is in the log, and stops. For a planned shutdown: the APIs first, then this, then Postgres.
//!
//! It reads the ends of all partitions once, joins the group as any consumer does, and ends when every position has reached its end,
//! whoever decided it: partitions of other consumers are waited for. What comes into the log later is not its business, so a second run ends
//! at once unless something came.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::process::Supervisor;
use super::serve::{self, Shared};
use super::{Failure, pretty, print};
use crate::config::Config;
use crate::limits;
use crate::shutdown;
use crate::store::{PartitionRow, StoreError};
use crate::telemetry::logs;

#[derive(Args)]
pub(super) struct Drain {
    /// Give up when no partition has moved for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = limits::DRAIN_STILL_MAX.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..=limits::DRAIN_STILL_SETTING_MAX.as_secs()))]
    within: u64,
}

impl Drain {
    pub(super) async fn run(self, config: Config, is_json: bool) -> Result<(), Failure> {
        // Its result goes to stdout.
        logs::install_on_stderr(config.log_format);
        let stop = shutdown::on_signal()
            .map_err(|e| Failure::unavailable_because(format!("could not listen for signals: {e}")))?;
        let shared = Shared::new(config)?;
        let mut draining =
            Draining { patience: Patience::new(Duration::from_secs(self.within)), goals: BTreeMap::new() };
        let ended = draining.run(&shared, &stop).await;
        if !draining.goals.is_empty() {
            print(draining.told(is_json))?;
        }
        ended
    }
}

/// How long nothing may move, and since when nothing did.
struct Patience {
    still_max: Duration,
    moved_at: Instant,
}

impl Patience {
    fn new(still_max: Duration) -> Self {
        Self { still_max, moved_at: Instant::now() }
    }

    /// Something moved.
    fn renew(&mut self) {
        self.moved_at = Instant::now();
    }

    /// Nothing moved for too long; why not, as far as it is known.
    ///
    /// # Errors
    /// Exit 69 if so.
    fn check(&self, why: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.moved_at.elapsed() < self.still_max {
            return Ok(());
        }
        Err(Failure::unavailable_because(format!(
            "gave up after {} s without progress: {}",
            self.still_max.as_secs(),
            why()
        )))
    }
}

/// One partition on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Goal {
    /// The end of its log, as it was at the start.
    log_end: i64,
    /// The next offset to decide, as last read.
    position: i64,
    halted_reason: Option<String>,
}

impl Goal {
    fn is_reached(&self) -> bool {
        self.position >= self.log_end
    }

    /// For people and scripts. What is halted is never called decided: its log may be another one than the one that was.
    fn state(&self) -> &'static str {
        match (&self.halted_reason, self.is_reached()) {
            (Some(_), _) => "halted",
            (None, true) => "decided",
            (None, false) => "waiting",
        }
    }
}

struct Draining {
    patience: Patience,
    goals: BTreeMap<i32, Goal>,
}

impl Draining {
    async fn run(&mut self, shared: &Shared, stop: &CancellationToken) -> Result<(), Failure> {
        self.set_goals(shared, stop).await?;
        if !self.is_over() {
            self.consume(shared, stop).await?;
        }
        let halted = self.goals.iter().filter_map(|(partition, goal)| {
            let reason = goal.halted_reason.as_ref()?;
            Some(format!("partition {partition} is halted: {reason}; `flashsale partition resume` lets it go on"))
        });
        let halted: Vec<String> = halted.collect();
        if halted.is_empty() { Ok(()) } else { Err(Failure::refused(halted.join("\n"))) }
    }

    /// Reads how far the partitions are, and then where they end.
    async fn set_goals(&mut self, shared: &Shared, stop: &CancellationToken) -> Result<(), Failure> {
        loop {
            let why = match read_goals(shared).await {
                Ok(goals) => {
                    self.goals = goals;
                    return Ok(());
                }
                Err(Unread::ForGood(failure)) => return Err(failure),
                Err(Unread::Away(why)) => why,
            };
            self.patience.check(|| why)?;
            pause(stop).await?;
        }
    }

    /// Nothing is left but what is halted.
    fn is_over(&self) -> bool {
        self.goals.values().all(|goal| goal.state() != "waiting")
    }

    /// Takes part in the group until everything is decided.
    async fn consume(&mut self, shared: &Shared, stop: &CancellationToken) -> Result<(), Failure> {
        let mut supervisor = Supervisor::new();
        let consuming = supervisor.group();
        serve::start_consumer(shared, None, &consuming);
        let ended = tokio::select! {
            // A component that failed; the signal is seen by the other arm, too.
            Err(failure) = supervisor.watch(stop) => Err(failure),
            ended = self.watch(shared, stop) => ended,
        };
        consuming.end("consumer", limits::CONSUMER_DRAIN_DEADLINE).await;
        ended
    }

    /// Looks at the positions until all have reached their ends, or are halted.
    async fn watch(&mut self, shared: &Shared, stop: &CancellationToken) -> Result<(), Failure> {
        self.patience.renew();
        loop {
            pause(stop).await?;
            match shared.store.load_partitions().await {
                Ok(rows) => {
                    if self.take(&rows) {
                        self.patience.renew();
                    }
                    if self.is_over() {
                        return Ok(());
                    }
                    self.patience.check(|| self.waiting())?;
                }
                Err(error) => self.patience.check(|| super::chain(&error))?,
            }
        }
    }

    /// Takes over what was read; whether a partition has moved.
    fn take(&mut self, rows: &[PartitionRow]) -> bool {
        let mut has_moved = false;
        for row in rows {
            let Some(goal) = self.goals.get_mut(&row.partition) else { continue };
            has_moved |= goal.position != row.position || goal.halted_reason != row.halted_reason;
            goal.position = row.position;
            goal.halted_reason.clone_from(&row.halted_reason);
        }
        has_moved
    }

    /// What is not decided, for people.
    fn waiting(&self) -> String {
        let waiting = self.goals.iter().filter(|(_, goal)| goal.state() == "waiting");
        let told = waiting
            .map(|(p, goal)| format!("partition {p} stands at {}, its log ended at {}", goal.position, goal.log_end));
        told.collect::<Vec<_>>().join("; ")
    }

    /// The result: a line per partition.
    fn told(&self, is_json: bool) -> String {
        if is_json {
            let all = self.goals.iter().map(|(partition, goal)| {
                let mut value = json!({"partition": partition, "position": goal.position, "log_end": goal.log_end,
                    "state": goal.state()});
                if let Some(reason) = &goal.halted_reason {
                    value["halted_reason"] = reason.as_str().into();
                }
                value
            });
            return pretty(&all.collect::<Vec<_>>());
        }
        let head = "PARTITION  POSITION  LOG END  STATE".to_owned();
        let lines = self.goals.iter().map(|(partition, goal)| {
            format!("{partition:>9}  {:>8}  {:>7}  {}", goal.position, goal.log_end, goal.state())
        });
        std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
    }
}

/// Why there are no goals.
enum Unread {
    /// It may pass; what is away.
    Away(String),
    ForGood(Failure),
}

/// The positions, then the log's ends: so a position above its end is no race.
async fn read_goals(shared: &Shared) -> Result<BTreeMap<i32, Goal>, Unread> {
    shared.store.check_schema().await.map_err(|error| match error {
        error @ StoreError::OtherSchema { .. } => Unread::ForGood(Failure::unavailable(&error)),
        error => Unread::Away(super::chain(&error)),
    })?;
    let rows = shared.store.load_partitions().await.map_err(|error| Unread::Away(super::chain(&error)))?;
    if rows.is_empty() {
        let unmade = "the topic has no partitions: run `flashsale migrate`";
        return Err(Unread::ForGood(Failure::refused(unmade)));
    }
    let mut goals = BTreeMap::new();
    for PartitionRow { partition, position, halted_reason, .. } in rows {
        let ends = shared.log_ends.watermarks(partition).await;
        let (_, log_end) = ends.map_err(|error| Unread::Away(super::chain(&error)))?;
        if position > log_end && halted_reason.is_none() {
            let cut = format!(
                "partition {partition} is decided up to {position}, its log ends at {log_end}: it was cut or replaced"
            );
            return Err(Unread::ForGood(Failure::refused(cut)));
        }
        goals.insert(partition, Goal { log_end, position, halted_reason });
    }
    Ok(goals)
}

/// Until the next look.
///
/// # Errors
/// Exit 1 if the process is told to stop.
async fn pause(stop: &CancellationToken) -> Result<(), Failure> {
    match stop.run_until_cancelled(sleep(limits::DRAIN_LOOK_EVERY)).await {
        Some(()) => Ok(()),
        None => Err(Failure::refused("was told to stop before everything was decided")),
    }
}
