//! Keyed requests that would be refused, looked up in Postgres by their id, many in one query.

use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::batcher::{Batcher, batcher};
use crate::limits;
use crate::store::{ReservationRow, Store};

/// What Postgres says about one id.
#[derive(Clone, Debug)]
pub(super) enum Looked {
    /// It has its decision.
    Decided(Box<ReservationRow>),
    /// It has none.
    Undecided,
    /// Postgres can't be asked.
    Away,
}

/// Handle; cheap to clone.
#[derive(Clone)]
pub(super) struct KeyLookup {
    lookups: Batcher<Uuid, Looked>,
}

impl KeyLookup {
    pub(super) fn start(store: Store, tasks: &TaskTracker) -> Self {
        let (lookups, mut asked) = batcher(limits::KEY_LOOKUP_QUEUE_MAX);
        tasks.spawn(async move {
            while let Some((ids, answers)) = asked.next(limits::STATUS_READ_MAX).await {
                answers.give(look_up(&store, &ids).await);
            }
        });
        Self { lookups }
    }

    /// `None` if too many wait already. Within [`limits::READ_DEADLINE`], the wait for a turn included.
    pub(super) async fn look_up(&self, id: Uuid) -> Option<Looked> {
        tokio::time::timeout(limits::READ_DEADLINE, self.lookups.ask(id)).await.unwrap_or(Some(Looked::Away))
    }
}

async fn look_up(store: &Store, ids: &[Uuid]) -> Vec<Looked> {
    match store.load_statuses(ids).await {
        // Cloned, not removed: the same key may be asked for twice in one query.
        Ok(read) => ids
            .iter()
            .map(|id| read.reservations.get(id).map_or(Looked::Undecided, |row| Looked::Decided(Box::new(row.clone()))))
            .collect(),
        Err(_) => ids.iter().map(|_| Looked::Away).collect(),
    }
}
