//! The catalogue: SKUs, halted partitions and sold-out flags in memory.
//!
//! Settings and stock change only by commands in the log; this is a copy that hints and reads keep fresh. It may be a little old, never
//! wrong in what it refuses: settings are read again as soon as a hint says so, absence is believed for under a second, and a sold-out
//! flag is a lease that only Postgres renews.

mod absence;
mod flags;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Lag;
use crate::effects::SkuHint;
use crate::ids::SkuId;
use crate::limits;
use crate::store::{CatalogueEntry, HaltedSku, PartitionRow, Store, StoreError};
use absence::Absence;
use flags::Flags;

pub use flags::SoldOut;

/// What is known of a SKU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Configured. Stock may be a few seconds old, settings less.
    Entry(Arc<CatalogueEntry>),
    /// Not configured, by a look-up less than a second old.
    Unknown,
    /// Postgres can't be asked.
    Unavailable,
    /// Too many unknown SKUs are being looked up.
    Busy,
}

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct Catalogue {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    /// Each with when it was asked for.
    skus: RwLock<HashMap<SkuId, (Instant, Arc<CatalogueEntry>)>>,
    halted: RwLock<HashMap<i32, Arc<str>>>,
    /// SKUs that the auditor stopped.
    halted_skus: RwLock<HashMap<SkuId, Arc<str>>>,
    flags: Mutex<Flags>,
    absence: Absence,
    /// (epoch, position) of the last hints applied, per partition.
    fences: Mutex<HashMap<i32, (i64, i64)>>,
    /// SKUs whose settings changed, to be read again.
    configured: Mutex<BTreeSet<SkuId>>,
    is_configured: Notify,
    lag: Lag,
}

impl Catalogue {
    /// An empty catalogue over `store`.
    pub fn new(store: Store) -> Self {
        let inner = Inner {
            absence: Absence::new(store.clone()),
            store,
            skus: RwLock::default(),
            halted: RwLock::default(),
            halted_skus: RwLock::default(),
            flags: Mutex::default(),
            fences: Mutex::default(),
            configured: Mutex::default(),
            is_configured: Notify::new(),
            lag: Lag::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What it reads from.
    pub(super) fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Reads all SKUs and all partitions once. Before the first success every SKU is looked up on its own.
    ///
    /// # Errors
    /// [`StoreError`]; what was known stays.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let partitions = self.inner.store.load_partitions().await?;
        for row in &partitions {
            self.inner.lag.observe_position(row.partition, row.position);
        }
        self.replace_halted(&partitions);
        self.replace_halted_skus(&self.inner.store.load_halted_skus().await?);
        self.refresh_skus().await
    }

    async fn refresh_skus(&self) -> Result<(), StoreError> {
        let asked = Instant::now();
        let entries = self.inner.store.load_catalogue().await?;
        lock(&self.inner.flags).learn(asked, entries.iter().map(|entry| (&entry.sku_id, &entry.sku)));
        entries.into_iter().for_each(|entry| self.insert_read(asked, entry));
        Ok(())
    }

    /// Keeps the catalogue true until `stop`: all SKUs, those that were configured, and the flags.
    pub async fn run(self, stop: CancellationToken) {
        let all = async { tokio::join!(self.refresh_for_ever(), self.reload_for_ever(), self.renew_for_ever()) };
        // `None` when cancelled; the loops themselves never end.
        let _stopped = stop.run_until_cancelled(all).await;
    }

    async fn refresh_for_ever(&self) {
        let mut ticks = interval(limits::CATALOGUE_REFRESH_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outage = Outage::default();
        loop {
            ticks.tick().await;
            outage.note(self.refresh_skus().await, "the catalogue stays as last known");
        }
    }

    async fn reload_for_ever(&self) {
        let mut outage = Outage::default();
        loop {
            self.inner.is_configured.notified().await;
            let skus: Vec<_> = std::mem::take(&mut *lock(&self.inner.configured)).into_iter().collect();
            // If this fails, the next refresh repairs it.
            let asked = Instant::now();
            let read = self.inner.store.load_skus(&skus).await.map(|entries| {
                entries.into_iter().for_each(|entry| self.insert_read(asked, entry));
            });
            outage.note(read, "changed settings are read later");
        }
    }

    async fn renew_for_ever(&self) {
        let mut ticks = interval(limits::SOLD_OUT_RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outage = Outage::default();
        loop {
            ticks.tick().await;
            let flagged = lock(&self.inner.flags).flagged();
            if flagged.is_empty() {
                continue;
            }
            let asked = Instant::now();
            let read = self.inner.store.load_skus(&flagged).await.map(|entries| {
                lock(&self.inner.flags).renew(asked, entries.iter().map(|entry| (&entry.sku_id, &entry.sku)));
                entries.into_iter().for_each(|entry| self.insert_read(asked, entry));
            });
            outage.note(read, "sold-out flags run out");
        }
    }

    /// A SKU, from memory where possible; an unknown one by a query that is shared with all who ask at the same time.
    pub async fn find(&self, sku: &SkuId) -> Found {
        if let Some(entry) = self.get(sku) {
            return Found::Entry(entry);
        }
        let asked = Instant::now();
        match self.inner.absence.find(sku).await {
            Found::Entry(entry) => {
                self.insert_read(asked, entry.as_ref().clone());
                // What is in memory may be newer by now.
                Found::Entry(self.get(sku).unwrap_or(entry))
            }
            other => other,
        }
    }

    /// A SKU, if it is in memory.
    pub fn get(&self, sku: &SkuId) -> Option<Arc<CatalogueEntry>> {
        read(&self.inner.skus).get(sku).map(|(_, entry)| Arc::clone(entry))
    }

    /// All SKUs in memory.
    pub fn entries(&self) -> Vec<Arc<CatalogueEntry>> {
        read(&self.inner.skus).values().map(|(_, entry)| Arc::clone(entry)).collect()
    }

    /// Takes an entry over that was just read or decided. A SKU is never deleted.
    pub fn insert(&self, entry: CatalogueEntry) {
        self.insert_read(Instant::now(), entry);
    }

    /// An entry that was asked for at `asked`. One that overtook it and is newer stays; but Postgres is believed in the end, also when
    /// it was restored to older numbers.
    fn insert_read(&self, asked: Instant, entry: CatalogueEntry) {
        self.inner.absence.forget(&entry.sku_id);
        let age_of = |entry: &CatalogueEntry| (entry.sku.settings_version, entry.sku.movement_count);
        let mut skus = self.inner.skus.write().unwrap_or_else(PoisonError::into_inner);
        match skus.get(&entry.sku_id) {
            Some((known_asked, known)) if *known_asked > asked && age_of(known) > age_of(&entry) => {}
            _ => {
                skus.insert(entry.sku_id.clone(), (asked, Arc::new(entry)));
            }
        }
    }

    /// Whether the SKU is known to be sold out now.
    pub fn sold_out(&self, sku: &SkuId) -> Option<SoldOut> {
        lock(&self.inner.flags).sold_out(sku, Instant::now())
    }

    /// Why nobody sells a SKU: its partition is halted, or the auditor stopped it; absent = healthy, as far as known.
    pub fn halted_reason(&self, entry: &CatalogueEntry) -> Option<Arc<str>> {
        let of_partition = read(&self.inner.halted).get(&entry.partition).cloned();
        of_partition.or_else(|| read(&self.inner.halted_skus).get(&entry.sku_id).cloned())
    }

    /// Takes over which SKUs the auditor stopped.
    pub fn replace_halted_skus(&self, rows: &[HaltedSku]) {
        let reason_of = |row: &HaltedSku| Some((SkuId::parse(&row.sku_id).ok()?, row.reason.as_str().into()));
        *self.inner.halted_skus.write().unwrap_or_else(PoisonError::into_inner) =
            rows.iter().filter_map(reason_of).collect();
    }

    /// Takes over which partitions are halted.
    pub fn replace_halted(&self, rows: &[PartitionRow]) {
        let reason_of = |row: &PartitionRow| Some((row.partition, row.halted_reason.as_deref()?.into()));
        *self.inner.halted.write().unwrap_or_else(PoisonError::into_inner) =
            rows.iter().filter_map(reason_of).collect();
    }

    /// How far the partitions are behind.
    pub fn lag(&self) -> &Lag {
        &self.inner.lag
    }

    /// Applies the hints of one batch, unless newer ones of its partition were applied before. Never waits.
    pub fn apply(&self, partition: i32, epoch: i64, position: i64, skus: &[SkuHint]) {
        {
            let mut fences = lock(&self.inner.fences);
            let fence = fences.entry(partition).or_insert((i64::MIN, i64::MIN));
            if (epoch, position) <= *fence {
                return;
            }
            *fence = (epoch, position);
        }
        self.inner.lag.observe_position(partition, position);
        if skus.is_empty() {
            return;
        }
        lock(&self.inner.flags).apply(Instant::now(), skus);
        for hint in skus.iter().filter(|hint| hint.is_configured) {
            // It exists: whoever asks before it is read again looks it up.
            self.inner.absence.forget(&hint.sku);
            lock(&self.inner.configured).insert(hint.sku.clone());
            self.inner.is_configured.notify_one();
        }
    }

    /// Forgets all sold-out flags: messages may have been missed.
    pub fn drop_flags(&self) {
        lock(&self.inner.flags).clear();
    }
}

fn read<T>(shared: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    shared.read().unwrap_or_else(PoisonError::into_inner)
}

/// Nothing here panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says once that Postgres is away, not with every attempt.
#[derive(Default)]
struct Outage {
    is_on: bool,
}

impl Outage {
    fn note(&mut self, read: Result<(), StoreError>, consequence: &'static str) {
        if let Err(error) = &read
            && !self.is_on
        {
            warn!(error = error as &dyn std::error::Error, consequence, "could not read the catalogue");
        }
        self.is_on = read.is_err();
    }
}
