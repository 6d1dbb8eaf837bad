//! The catalogue: SKUs, halted partitions and sold-out flags in memory.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Lag;
use crate::effects::SkuHint;
use crate::ids::SkuId;
use crate::store::{CatalogueEntry, Store, StoreError};

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

/// A SKU that was sold out less than [`crate::limits::SOLD_OUT_LEASE`] ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoldOut {
    /// Units are held and some of them may come back.
    pub holds_pending: bool,
}

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct Catalogue {}

impl Catalogue {
    /// An empty catalogue over `store`.
    pub fn new(store: Store) -> Self {
        let _ = store;
        unimplemented!()
    }

    /// Reads all SKUs and all partitions once. Before the first success every SKU is looked up on its own.
    ///
    /// # Errors
    /// [`StoreError`]; what was known stays.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        unimplemented!()
    }

    /// Keeps the catalogue true until `stop`: all SKUs, those that were configured, and the flags.
    pub async fn run(self, stop: CancellationToken) {
        let _ = stop;
        unimplemented!()
    }

    /// A SKU, from memory where possible.
    pub async fn find(&self, sku: &SkuId) -> Found {
        let _ = sku;
        unimplemented!()
    }

    /// A SKU, if it is in memory.
    pub fn get(&self, sku: &SkuId) -> Option<Arc<CatalogueEntry>> {
        let _ = sku;
        unimplemented!()
    }

    /// All SKUs in memory.
    pub fn entries(&self) -> Vec<Arc<CatalogueEntry>> {
        unimplemented!()
    }

    /// Takes an entry over that was just read or decided.
    pub fn insert(&self, entry: CatalogueEntry) {
        let _ = entry;
        unimplemented!()
    }

    /// Whether the SKU is known to be sold out now.
    pub fn sold_out(&self, sku: &SkuId) -> Option<SoldOut> {
        let _ = sku;
        unimplemented!()
    }

    /// Why a partition is halted; absent = healthy, as far as known.
    pub fn halted_reason(&self, partition: i32) -> Option<Arc<str>> {
        let _ = partition;
        unimplemented!()
    }

    /// How far the partitions are behind.
    pub fn lag(&self) -> &Lag {
        unimplemented!()
    }

    /// Applies the hints of one batch, unless newer ones of its partition were applied before.
    pub fn apply(&self, partition: i32, epoch: i64, position: i64, skus: &[SkuHint]) {
        let _ = (partition, epoch, position, skus);
        unimplemented!()
    }

    /// Forgets all sold-out flags: messages may have been missed.
    pub fn drop_flags(&self) {
        unimplemented!()
    }
}
