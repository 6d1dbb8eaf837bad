//! Asking Redis for many requests at once, and telling it what became of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::counter;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::batcher::{Batcher, batcher};
use crate::cache::{AdmissionAnswer, AdmissionItem, AdmissionRead, Cache, SettleItem};
use crate::limits;
use crate::telemetry::metrics::PRECHECK_BYPASSED;

/// What Redis said about one request.
pub(super) struct Checked {
    pub(super) answer: AdmissionAnswer,
    /// How long Redis has remembered everything that it was told; zero if this process knows of something that it was not told.
    pub(super) memory_age: Duration,
}

/// The handle of admission; cheap to clone.
#[derive(Clone)]
pub(super) struct RedisCheck {
    checks: Batcher<AdmissionItem, Option<Checked>>,
    settles: mpsc::Sender<SettleItem>,
    /// Keyed requests were accepted without a marker, and Redis was not told so yet: it must not vouch for absence.
    is_memory_gapped: Arc<AtomicBool>,
}

impl RedisCheck {
    pub(super) fn start(cache: Cache, tasks: &TaskTracker) -> Self {
        let (checks, mut asked) = batcher(limits::ADMISSION_QUEUE_MAX);
        let (settles, settled) = mpsc::channel(limits::SETTLE_QUEUE_MAX);
        let is_memory_gapped = Arc::new(AtomicBool::new(false));
        let (front, gapped) = (cache.clone(), Arc::clone(&is_memory_gapped));
        let connecting = cache.clone();
        // Beside the checks: the first of them do not wait for a server that is away.
        tasks.spawn(async move { connecting.connect().await });
        tasks.spawn(async move {
            while let Some((items, answers)) = asked.next(limits::ADMISSION_CALL_MAX).await {
                answers.give(check(&front, &gapped, &items).await);
            }
        });
        tasks.spawn(settle_all(cache, settled));
        Self { checks, settles, is_memory_gapped }
    }

    /// `None` = Redis is away, late, spared, or has too many waiting: counted as bypassed.
    pub(super) async fn check(&self, item: AdmissionItem) -> Option<Checked> {
        let checked = self.checks.ask(item).await.flatten();
        if checked.is_none() {
            counter!(PRECHECK_BYPASSED).increment(1);
        }
        checked
    }

    /// A keyed request goes into the log without a marker.
    pub(super) fn note_gap(&self) {
        self.is_memory_gapped.store(true, Ordering::SeqCst);
    }

    /// Where what became of a request is left; full = Redis is not told.
    pub(super) fn settles(&self) -> mpsc::Sender<SettleItem> {
        self.settles.clone()
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

/// Best effort: what Redis is not told expires, and until then it is stricter than it need be.
async fn settle_all(cache: Cache, mut settled: mpsc::Receiver<SettleItem>) {
    let mut gathered = Vec::with_capacity(limits::SETTLE_CALL_MAX);
    let mut was_failing = false;
    while settled.recv_many(&mut gathered, limits::SETTLE_CALL_MAX).await > 0 {
        let said = cache.settle(&gathered).await;
        if let Err(error) = &said
            && !was_failing
        {
            warn!(error = error as &dyn std::error::Error, "provisional units and markers expire by themselves");
        }
        was_failing = said.is_err();
        gathered.clear();
    }
}
