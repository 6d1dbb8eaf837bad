//! Asking Redis for many requests at once, and telling it what became of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use metrics::counter;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::unheard::Unheard;
use crate::batcher::{Batcher, batcher, gather_paced};
use crate::cache::{AdmissionAnswer, AdmissionItem, AdmissionRead, Cache, SettleItem};
use crate::limits;
use crate::pace::{Every, Pace};
use crate::telemetry::metrics::PRECHECK_BYPASSED;

/// What Redis said about one request.
pub(super) struct Checked {
    pub(super) answer: AdmissionAnswer,
    /// How long Redis has remembered everything that it was told; zero if this process knows of something that it was not told.
    pub(super) memory_age: Duration,
}

/// What became of one request, for Redis to know.
pub(super) struct Told {
    pub(super) item: SettleItem,
    /// Redis has no marker of it: if it does not hear this, its memory has a gap.
    pub(super) is_gap_if_lost: bool,
}

/// The handle of admission; cheap to clone.
#[derive(Clone)]
pub(super) struct RedisCheck {
    checks: Batcher<AdmissionItem, Option<Checked>>,
    /// Of calls that ask about many: each is one call to Redis.
    groups: Batcher<Vec<AdmissionItem>, Vec<Option<Checked>>>,
    settles: mpsc::Sender<Told>,
    /// Keyed requests are in the log, or may be, and Redis could not be told of them: it must not vouch for absence.
    is_memory_gapped: Arc<AtomicBool>,
}

impl RedisCheck {
    pub(super) fn start(cache: Cache, unheard: Unheard, tasks: &TaskTracker) -> Self {
        let (checks, mut asked) = batcher(limits::ADMISSION_QUEUE_MAX);
        let (groups, mut asked_groups) = batcher::<Vec<AdmissionItem>, _>(limits::ADMISSION_GROUPS_MAX);
        let (settles, settled) = mpsc::channel(limits::SETTLE_QUEUE_MAX);
        let is_memory_gapped = Arc::new(AtomicBool::new(false));
        let (front, gapped) = (cache.clone(), Arc::clone(&is_memory_gapped));
        let (front_of_groups, gapped_of_groups) = (front.clone(), Arc::clone(&gapped));
        let connecting = cache.clone();
        // Beside the checks: the first of them do not wait for a server that is away.
        tasks.spawn(async move { connecting.connect().await });
        tasks.spawn(async move {
            let every = Every::growing(limits::ADMISSION_PACE, limits::ADMISSION_PACE_CROWD);
            let mut pace = Pace::by_rate(every, Instant::now());
            while let Some((items, answers)) = asked.next_paced(limits::ADMISSION_CALL_MAX, &mut pace).await {
                answers.give(check(&front, &gapped, &items).await);
            }
        });
        tasks.spawn(async move {
            while let Some((groups, answers)) = asked_groups.next(1).await {
                let mut checked = Vec::with_capacity(groups.len());
                for items in &groups {
                    checked.push(check(&front_of_groups, &gapped_of_groups, items).await);
                }
                answers.give(checked);
            }
        });
        tasks.spawn(settle_all(cache, Arc::clone(&is_memory_gapped), settled, unheard));
        Self { checks, groups, settles, is_memory_gapped }
    }

    /// `None` = Redis is away, late, spared, or has too many waiting: counted as bypassed.
    pub(super) async fn check(&self, item: AdmissionItem) -> Option<Checked> {
        let checked = self.checks.ask(item).await.flatten();
        if checked.is_none() {
            counter!(PRECHECK_BYPASSED).increment(1);
        }
        checked
    }

    /// The same for up to [`limits::ADMISSION_CALL_MAX`] requests, in their order.
    pub(super) async fn check_many(&self, items: Vec<AdmissionItem>) -> Vec<Option<Checked>> {
        let count = items.len();
        if count == 0 {
            return Vec::new();
        }
        let checked = self.groups.ask(items).await.unwrap_or_else(|| (0..count).map(|_| None).collect());
        let bypassed = checked.iter().filter(|checked| checked.is_none()).count();
        if bypassed > 0 {
            counter!(PRECHECK_BYPASSED).increment(bypassed as u64);
        }
        checked
    }

    /// Leaves what became of a request. Full = Redis is not told: it stays stricter until its hints expire, or has a gap.
    pub(super) fn settle(&self, told: Told) {
        if let Err(TrySendError::Full(told) | TrySendError::Closed(told)) = self.settles.try_send(told)
            && told.is_gap_if_lost
        {
            self.is_memory_gapped.store(true, Ordering::SeqCst);
        }
    }
}

async fn check(cache: &Cache, is_memory_gapped: &AtomicBool, items: &[AdmissionItem]) -> Vec<Option<Checked>> {
    // Taken before the call: a gap that opens meanwhile belongs to the next one.
    let is_memory_new = is_memory_gapped.swap(false, Ordering::SeqCst);
    match cache.admit(items, is_memory_new).await {
        Ok(AdmissionRead { answers, memory_age }) => {
            answers.into_iter().map(|answer| Some(Checked { answer, memory_age })).collect()
        }
        // The breaker says when it opens; a line per failed call would only add noise.
        Err(_) => {
            if is_memory_new {
                is_memory_gapped.store(true, Ordering::SeqCst);
            }
            items.iter().map(|_| None).collect()
        }
    }
}

/// Best effort: what Redis is not told expires, and until then it is stricter than it need be; of a gap in its memory it is told until it
/// hears it, also if no request comes to tell it on its way.
async fn settle_all(
    cache: Cache,
    is_memory_gapped: Arc<AtomicBool>,
    mut settled: mpsc::Receiver<Told>,
    unheard: Unheard,
) {
    let mut gathered = Vec::with_capacity(limits::SETTLE_CALL_MAX);
    let mut was_failing = false;
    let mut pace = Pace::new(limits::SETTLE_PACE, Instant::now());
    let (mut looks, mut gaps) = (interval(limits::UNHEARD_LOOK_EVERY), interval(limits::MEMORY_GAP_TELL_EVERY));
    for ticks in [&mut looks, &mut gaps] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        let is_gapped = is_memory_gapped.load(Ordering::SeqCst);
        tokio::select! {
            count = settled.recv_many(&mut gathered, limits::SETTLE_CALL_MAX) => {
                if count == 0 {
                    break;
                }
            }
            _ = gaps.tick(), if is_gapped => {
                check(&cache, &is_memory_gapped, &[]).await;
                continue;
            }
            _ = looks.tick() => {
                tell(&cache, &unheard.take_due(Instant::now()), &mut was_failing).await;
                continue;
            }
        }
        gather_paced(&mut settled, &mut gathered, limits::SETTLE_CALL_MAX, &mut pace).await;
        let is_gap_if_lost = gathered.iter().any(|told| told.is_gap_if_lost);
        let items: Vec<SettleItem> = gathered.drain(..).map(|told| told.item).collect();
        if !tell(&cache, &items, &mut was_failing).await && is_gap_if_lost {
            is_memory_gapped.store(true, Ordering::SeqCst);
        }
    }
    tell(&cache, &unheard.take_all(), &mut was_failing).await;
    // The last chance of a process that ends.
    if is_memory_gapped.load(Ordering::SeqCst) {
        check(&cache, &is_memory_gapped, &[]).await;
    }
}

/// Whether Redis heard all of it.
async fn tell(cache: &Cache, items: &[SettleItem], was_failing: &mut bool) -> bool {
    for call in items.chunks(limits::SETTLE_CALL_MAX) {
        if let Err(error) = cache.settle(call).await {
            if !std::mem::replace(was_failing, true) {
                warn!(error = &error as &dyn std::error::Error, "provisional units and markers expire by themselves");
            }
            // Each call that fails takes its deadline; the next look finds out whether Redis is back.
            return false;
        }
        *was_failing = false;
    }
    true
}
