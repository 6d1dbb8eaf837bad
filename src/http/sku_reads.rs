//! Reads SKUs for buyers by natural batching: whoever asks while a query runs is answered by the next one, all in one query. A crowd that
//! looks at one product costs one small query at a time, and nobody reads anything older than the question.

use std::collections::HashMap;

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::ids::SkuId;
use crate::limits;
use crate::store::{CatalogueEntry, Store};

/// Why a SKU was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread;

type Answer = oneshot::Sender<Result<Option<CatalogueEntry>, Unread>>;

/// Handle; cheap to clone. The task ends with the last one.
#[derive(Clone)]
pub struct SkuReads {
    questions: mpsc::Sender<(SkuId, Answer)>,
}

impl SkuReads {
    /// Starts the task that asks.
    pub fn start(store: Store, tasks: &TaskTracker) -> Self {
        let (questions, asked) = mpsc::channel(limits::SKU_READ_QUEUE_MAX);
        tasks.spawn(answer_all(store, asked));
        Self { questions }
    }

    /// The SKU as last decided, `None` if it is not configured.
    ///
    /// # Errors
    /// [`Unread`] if Postgres can't be asked, or too many ask.
    pub async fn read(&self, sku: &SkuId) -> Result<Option<CatalogueEntry>, Unread> {
        let (answer, answered) = oneshot::channel();
        self.questions.try_send((sku.clone(), answer)).map_err(|_| Unread)?;
        answered.await.unwrap_or(Err(Unread))
    }
}

async fn answer_all(store: Store, mut asked: mpsc::Receiver<(SkuId, Answer)>) {
    let mut batch = Vec::with_capacity(limits::SKU_READ_MAX);
    while asked.recv_many(&mut batch, limits::SKU_READ_MAX).await > 0 {
        let mut skus: Vec<SkuId> = batch.iter().map(|(sku, _)| sku.clone()).collect();
        skus.sort_unstable();
        skus.dedup();
        let read = store.load_skus(&skus).await;
        if let Err(error) = &read {
            tracing::debug!(error = error as &dyn std::error::Error, "could not read skus");
        }
        let found: Option<HashMap<SkuId, CatalogueEntry>> =
            read.ok().map(|entries| entries.into_iter().map(|entry| (entry.sku_id.clone(), entry)).collect());
        for (sku, answer) in batch.drain(..) {
            // A caller that is gone needs no answer.
            let _ = answer.send(found.as_ref().map(|found| found.get(&sku).cloned()).ok_or(Unread));
        }
    }
}
