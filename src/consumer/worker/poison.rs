//! The poison trials: which command of a batch can't be decided or stored.
//!
//! Found by rolled-back trials of ever shorter beginnings, each a whole transaction except for its COMMIT. The culprit is marked, and the
//! batch is decided again without it: one bad command costs its own decision, nobody else's. Only a panic of `decide` or SQLSTATE class 22
//! speak against a command; everything else ends the search.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::judge::{Attempt, Fault};
use super::{Batch, BatchEnd, Doing, Worker};
use crate::ids::Place;
use crate::inventory::{PoisonReason, Unfit};
use crate::store::BatchError;

impl Worker<'_> {
    /// Finds the first command that can't be decided or stored, by rolled-back trials of ever shorter beginnings, and marks it: the
    /// batch is then decided again without it. `fault` is what the whole batch met.
    ///
    /// # Errors
    /// What to do instead, if the search met something else than poison.
    pub(super) async fn poison_culprit(&mut self, batch: &mut Batch, mut fault: Fault) -> Result<(), Attempt> {
        self.writer.look_up_ids(); // A trial that the primary key refuses would prove nothing.
        let (mut good, mut bad) = (0, batch.commands.len());
        while bad - good > 1 {
            let middle = usize::midpoint(good, bad);
            match self.try_beginning(batch, middle).await? {
                None => good = middle,
                Some(found) => (bad, fault) = (middle, found),
            }
        }
        let culprit = &mut batch.commands[good];
        let id = match &culprit.command {
            Ok(command) => Some(command.id()),
            Err(unfit) if unfit.reason == PoisonReason::ProcessingError => {
                return Err(Attempt::End(BatchEnd::Halt(hopeless(culprit.place, &fault))));
            }
            Err(unfit) => unfit.id,
        };
        tracing::error!(
            kafka.partition = self.partition.partition,
            offset = culprit.place.offset,
            index = culprit.place.index,
            reason = %fault,
            "a command can't be decided or stored: poison"
        );
        culprit.command = Err(Unfit { id, reason: PoisonReason::ProcessingError });
        Ok(())
    }

    /// What speaks against the first `count` commands of a batch, if they alone were to be committed; nothing is.
    async fn try_beginning(&mut self, batch: &Batch, count: usize) -> Result<Option<Fault>, Attempt> {
        match self.trial(batch, count).await {
            Ok(fault) => Ok(fault),
            Err(error) => match self.judge(batch, error, None).await {
                Attempt::Poison(fault) => Ok(Some(fault)),
                other => Err(other),
            },
        }
    }

    async fn trial(&mut self, batch: &Batch, count: usize) -> Result<Option<Fault>, BatchError> {
        self.partition.progress.begin(Doing::Postgres);
        let decide = self.partition.deps.decide;
        let mut head = batch.head(self.log_time);
        let commands = &batch.commands[..count];
        head.log_time = commands.iter().map(|c| c.at).fold(self.log_time, i64::max);
        let mut tx = self.writer.begin(head).await?;
        let tried = async {
            let snapshot = tx.load_snapshot(commands).await?;
            let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| decide(&snapshot, commands))) else {
                return Ok(Some(Fault::Panicked));
            };
            tx.write(commands, &outcome, &batch.raw()).await.map(|()| None)
        };
        match tried.await {
            Ok(fault) => {
                tx.abandon().await;
                Ok(fault)
            }
            Err(error) => Err(tx.roll_back(error).await),
        }
    }
}

/// Why a command that is marked as poison can't even be kept as poison.
fn hopeless(place: Place, fault: &Fault) -> String {
    let Place { offset, index } = place;
    match fault {
        Fault::Panicked => format!(
            "decide panics even on a command that is only to be kept as poison (at {offset}.{index}): this build is broken"
        ),
        Fault::Refused(why) => format!("the poison at {offset}.{index} can't be stored: {why}"),
    }
}
