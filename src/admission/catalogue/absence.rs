//! SKUs that are not in memory: one query at a time per SKU, and absence believed for under a second.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};

use super::{Found, lock};
use crate::ids::SkuId;
use crate::limits;
use crate::store::Store;

type Answer = Pin<Box<dyn Future<Output = Found> + Send>>;
type Query = Shared<Answer>;

pub(super) struct Absence {
    store: Store,
    /// Absent as of a look-up asked at that instant.
    absent: Arc<Mutex<HashMap<SkuId, Instant>>>,
    /// Queries under way, polled by those who wait for them. Weak: if all of them go away, the query ends.
    lookups: Mutex<HashMap<SkuId, WeakShared<Answer>>>,
}

impl Absence {
    pub(super) fn new(store: Store) -> Self {
        Self { store, absent: Arc::default(), lookups: Mutex::default() }
    }

    /// Looks a SKU up, unless it was absent a moment ago.
    pub(super) async fn find(&self, sku: &SkuId) -> Found {
        if self.is_absent(sku) {
            return Found::Unknown;
        }
        let Some(query) = self.join_or_start(sku) else { return Found::Busy };
        query.await
    }

    /// The SKU exists.
    pub(super) fn forget(&self, sku: &SkuId) {
        lock(&self.absent).remove(sku);
    }

    fn is_absent(&self, sku: &SkuId) -> bool {
        lock(&self.absent).get(sku).is_some_and(is_believed)
    }

    /// `None` if too many are under way.
    fn join_or_start(&self, sku: &SkuId) -> Option<Query> {
        let mut lookups = lock(&self.lookups);
        if let Some(query) = lookups.get(sku).and_then(WeakShared::upgrade)
            // A finished one is an old answer: its absence is in `absent` as long as it may be believed.
            && query.peek().is_none()
        {
            return Some(query);
        }
        lookups.retain(|_, query| query.upgrade().is_some_and(|query| query.peek().is_none()));
        if lookups.len() >= limits::SKU_LOOKUPS_MAX {
            return None;
        }
        let query = look_up(self.store.clone(), Arc::clone(&self.absent), sku.clone()).boxed().shared();
        lookups.insert(sku.clone(), query.downgrade().expect("it has not been polled"));
        Some(query)
    }
}

fn is_believed(asked: &Instant) -> bool {
    asked.elapsed() < limits::ABSENCE_BELIEVED_FOR
}

async fn look_up(store: Store, absent: Arc<Mutex<HashMap<SkuId, Instant>>>, sku: SkuId) -> Found {
    let asked = Instant::now();
    match store.load_skus(std::slice::from_ref(&sku)).await {
        Ok(entries) => match entries.into_iter().next() {
            Some(entry) => Found::Entry(Arc::new(entry)),
            None => {
                remember(&mut lock(&absent), sku, asked);
                Found::Unknown
            }
        },
        // The store counts and the refresh says that it is away; here it is one answer.
        Err(_) => Found::Unavailable,
    }
}

/// A scan of random ids is not remembered beyond the bound: each of them costs a look-up then, and those are bounded too.
fn remember(absent: &mut HashMap<SkuId, Instant>, sku: SkuId, asked: Instant) {
    if absent.len() >= limits::ABSENT_SKUS_MAX {
        absent.retain(|_, asked| is_believed(asked));
    }
    if absent.len() < limits::ABSENT_SKUS_MAX {
        absent.insert(sku, asked);
    }
}
