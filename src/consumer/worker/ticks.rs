//! Ticks: the owner of a partition tells the log that time has passed, so that holds end also when nobody buys.
//!
//! A tick decides nothing: holds end by the log time that the broker gives it. So a tick that comes too early (the broker's clock is
//! behind) or twice, or from a writer that was replaced meanwhile, is harmless.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use metrics::counter;

use crate::clock::Millis;
use crate::ids::{self, SkuId};
use crate::inventory::{Command, Tick};
use crate::kafka::Producer;
use crate::kafka::producer::Report;
use crate::limits;
use crate::telemetry::metrics as names;
use crate::wire::{self, Sent};

/// The ticks of one partition.
pub(super) struct Ticks {
    producer: Producer,
    partition: i32,
    /// The last tick of each SKU that had one lately.
    sent: BTreeMap<SkuId, SentTick>,
}

struct SentTick {
    at: Instant,
    /// The log time at which it was decided.
    decided_at: Option<Millis>,
    /// The broker did not take it, or may not have.
    is_lost: Arc<AtomicBool>,
}

impl SentTick {
    /// `None` = it is in the log or on its way there: however long the partition lags, another one would change nothing.
    fn until_again(&self, ends: Millis, now: Instant) -> Option<Duration> {
        let patience = match (self.decided_at, self.is_lost.load(Ordering::Relaxed)) {
            // Log time was that far behind our clock: so long it takes to get there.
            (Some(decided_at), _) => {
                let behind = u64::try_from(ends - decided_at).unwrap_or_default();
                limits::TICK_AGAIN_AFTER.max(Duration::from_millis(behind))
            }
            (None, true) => limits::TICK_LOST_AFTER,
            (None, false) => return None,
        };
        Some(patience.saturating_sub(now - self.at))
    }
}

impl Ticks {
    pub fn new(producer: Producer, partition: i32) -> Self {
        Self { producer, partition, sent: BTreeMap::new() }
    }

    /// Sends a tick for each SKU whose next hold has ended by `now`, unless one is under way. How long until the next look.
    pub fn send_due<'s>(&mut self, next_ends: impl Iterator<Item = (&'s SkuId, Millis)>, now: Millis) -> Duration {
        let at = Instant::now();
        let mut wait = limits::TICK_LOOK_EVERY;
        for (sku, ends) in next_ends {
            if ends > now {
                wait = wait.min(Duration::from_millis(ends.abs_diff(now)));
                continue;
            }
            match self.sent.get(sku).map(|sent| sent.until_again(ends, at)) {
                Some(None) => {}
                Some(Some(until_again)) if !until_again.is_zero() => wait = wait.min(until_again),
                Some(Some(_)) | None => {
                    let is_lost = self.send(sku, now);
                    self.sent.insert(sku.clone(), SentTick { at, decided_at: None, is_lost });
                }
            }
        }
        wait
    }

    /// A tick of `sku` was decided at this log time.
    pub fn decided(&mut self, sku: &SkuId, log_time: Millis) {
        if let Some(sent) = self.sent.get_mut(sku) {
            sent.decided_at = Some(log_time);
        }
        // A SKU without a tick lately needs no memory of it.
        self.sent.retain(|_, sent| sent.decided_at.is_none() || sent.at.elapsed() < limits::TICK_FORGET_AFTER);
    }

    fn send(&self, sku: &SkuId, now: Millis) -> Arc<AtomicBool> {
        let command = Command::Tick(Tick { id: ids::fresh_id(), sku: sku.clone() });
        let sent = Sent { received_at_us: now * 1000, request_id: String::new(), command };
        let payload = wire::encode(sku, [&sent].into_iter()).expect("one command of its own SKU");
        counter!(names::TICKS_SENT).increment(1);
        let is_lost = Arc::new(AtomicBool::new(false));
        let reported = Arc::clone(&is_lost);
        let on_report = move |report| reported.store(!matches!(report, Report::At(_)), Ordering::Relaxed);
        self.producer.send(self.partition, sku.as_str().as_bytes(), &payload, &[], Box::new(on_report));
        is_lost
    }
}
