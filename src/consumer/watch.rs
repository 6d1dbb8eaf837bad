//! The watch beside the workers: says when one stands still before records that wait, and what waits.
//!
//! It looks every [`limits::CONSUMER_WATCH_EVERY`] and never acts: a process whose Postgres or Kafka is away must live and say so, by one
//! line of log per stall, by the metrics and by readiness ([`super::Health`]).
//!
//! It has a thread of its own: a worker that blocks a thread of the runtime can hold up every timer of it, and so would silence the watch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use metrics::gauge;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Health;
use super::progress::{Beat, Progress, Sight, StallClock, Turn, Watched};
use crate::ids::SkuId;
use crate::kafka::LogEnds;
use crate::limits;
use crate::telemetry::metrics as names;

/// What is looked at.
pub(super) struct Watch {
    pub watched: Watched,
    pub log_ends: LogEnds,
    pub beat: Beat,
    pub health: Health,
}

/// One partition, between two looks.
struct Partition {
    clock: StallClock,
    /// The log's ends, as last known: a Kafka that is away takes nothing back.
    ends: Option<(i64, i64)>,
    /// SKUs whose depth was shown.
    shown: BTreeSet<SkuId>,
}

impl Watch {
    /// Starts the thread; what it returns ends after `stop`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(self, stop: CancellationToken) -> std::io::Result<oneshot::Receiver<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (has_ended, ended) = oneshot::channel();
        std::thread::Builder::new().name("consumer-watch".to_owned()).spawn(move || {
            runtime.block_on(self.run(stop));
            // Nobody listens if the consumer was dropped.
            let _ = has_ended.send(());
        })?;
        Ok(ended)
    }

    async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(limits::CONSUMER_WATCH_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut partitions: BTreeMap<i32, Partition> = BTreeMap::new();
        let mut is_poll_silent = false;
        loop {
            let look = async {
                ticks.tick().await;
                let workers = self.watched.now();
                let ends = join_all(workers.keys().map(|partition| self.log_ends.watermarks(*partition))).await;
                (workers, ends)
            };
            let Some((workers, ends)) = stop.run_until_cancelled(look).await else { break };
            partitions.retain(|number, partition| {
                let is_ours = workers.contains_key(number);
                if !is_ours {
                    partition.forget(*number);
                }
                is_ours
            });
            let now = Instant::now();
            for ((number, progress), ends) in workers.iter().zip(ends) {
                let partition = partitions.entry(*number).or_insert_with(|| Partition::new(now));
                partition.ends = ends.ok().or(partition.ends);
                partition.look(*number, progress, now);
            }
            self.look_at_poll(&mut is_poll_silent, now);
            let stalled = partitions.values().filter(|partition| partition.clock.is_stalled()).count();
            self.health.set_stalled(stalled + usize::from(is_poll_silent));
        }
        self.health.set_stalled(0);
        partitions.iter_mut().for_each(|(number, partition)| partition.forget(*number));
    }

    fn look_at_poll(&self, was_silent: &mut bool, now: Instant) {
        let silence = self.beat.silence(now);
        let is_silent = silence >= limits::POLL_STALL_AFTER;
        if is_silent && !*was_silent {
            tracing::error!(
                silent_seconds = silence.as_secs(),
                "the poll thread does not poll: the group will leave us"
            );
        } else if *was_silent && !is_silent {
            tracing::info!("the poll thread polls again");
        }
        gauge!(names::POLL_STALLED).set(f64::from(u8::from(is_silent)));
        *was_silent = is_silent;
    }
}

impl Partition {
    fn new(now: Instant) -> Self {
        Self { clock: StallClock::new(now), ends: None, shown: BTreeSet::new() }
    }

    fn look(&mut self, number: i32, progress: &Arc<Progress>, now: Instant) {
        let sight = Sight { doing: progress.doing(), position: progress.position(), ends: self.ends };
        match self.clock.look(now, &sight) {
            Some(Turn::Began) => tracing::error!(
                kafka.partition = number,
                position = sight.position,
                lag.records = sight.lag(),
                doing = sight.doing.words(),
                "no progress, though records wait"
            ),
            Some(Turn::Ended) => tracing::info!(kafka.partition = number, "the partition goes on"),
            None => {}
        }
        gauge!(names::STALLED, "partition" => number.to_string()).set(f64::from(u8::from(self.clock.is_stalled())));
        self.show_depths(progress.shares().depths(if sight.position.is_some() { sight.lag() } else { 0 }));
    }

    /// Shows what waits; of a SKU that was shown before and is not any more, nothing.
    fn show_depths(&mut self, depths: BTreeMap<SkuId, f64>) {
        let show = |sku: &SkuId, depth: f64| gauge!(names::QUEUE_DEPTH, "sku" => sku.to_string()).set(depth);
        for gone in self.shown.iter().filter(|sku| !depths.contains_key(*sku)) {
            show(gone, 0.0);
        }
        depths.iter().for_each(|(sku, depth)| show(sku, *depth));
        self.shown = depths.into_keys().collect();
    }

    /// It is not ours any more.
    fn forget(&mut self, number: i32) {
        gauge!(names::STALLED, "partition" => number.to_string()).set(0.0);
        self.show_depths(BTreeMap::new());
    }
}
