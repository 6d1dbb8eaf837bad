//! The poison trials: which command of a batch can't be decided or stored.
//!
//! Found by rolled-back trials of ever shorter beginnings, each a whole transaction except for its COMMIT. The culprit is marked, and the
//! batch is decided again without it: one bad command costs its own decision, nobody else's. Only a panic of `decide` or SQLSTATE class 22
//! speak against a command; everything else ends the search.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::judge::refusal_text;
use super::{Batch, BatchEnd, Worker};
use crate::inventory::{PoisonReason, Unfit};
use crate::store::BatchError;

impl Worker<'_> {
    /// Finds the first command that can't be decided or stored, by rolled-back trials of ever shorter beginnings, and marks it: the
    /// batch is then decided again without it.
    pub(super) async fn poison_culprit(&mut self, batch: &mut Batch) -> Result<(), BatchEnd> {
        let (mut good, mut bad) = (0, batch.commands.len());
        while bad - good > 1 {
            let middle = usize::midpoint(good, bad);
            match self.try_beginning(batch, middle).await? {
                true => good = middle,
                false => bad = middle,
            }
        }
        let culprit = &mut batch.commands[good];
        let id = match &culprit.command {
            Ok(command) => Some(command.id()),
            Err(unfit) if unfit.reason == PoisonReason::ProcessingError => {
                return Err(BatchEnd::Halt(format!("the poison at {:?} can't be stored", culprit.place)));
            }
            Err(unfit) => unfit.id,
        };
        tracing::error!(
            kafka.partition = self.partition.partition,
            offset = culprit.place.offset,
            index = culprit.place.index,
            "a command can't be decided or stored: poison"
        );
        culprit.command = Err(Unfit { id, reason: PoisonReason::ProcessingError });
        Ok(())
    }

    /// Whether the first `count` commands of a batch could be committed; nothing is.
    async fn try_beginning(&mut self, batch: &Batch, count: usize) -> Result<bool, BatchEnd> {
        let decide = self.partition.deps.decide;
        let mut head = batch.head(self.log_time);
        let commands = &batch.commands[..count];
        head.log_time = commands.iter().map(|c| c.at).fold(self.log_time, i64::max);
        let trial = async {
            let mut tx = self.writer.begin(head).await?;
            let result = async {
                let snapshot = tx.load_snapshot(commands).await?;
                let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| decide(&snapshot, commands))) else {
                    return Ok(false);
                };
                match tx.write(commands, &outcome, &batch.raw()).await {
                    Ok(()) => Ok(true),
                    Err(BatchError::Refused(error)) if error.sqlstate().is_some_and(|c| c.starts_with("22")) => {
                        Ok(false)
                    }
                    Err(error) => Err(error),
                }
            }
            .await;
            match result {
                Ok(is_good) => {
                    tx.abandon().await;
                    Ok(is_good)
                }
                Err(error) => Err(tx.roll_back(error).await),
            }
        };
        trial.await.map_err(|error| match error {
            BatchError::Fenced => BatchEnd::Fenced,
            BatchError::Contradiction(what) => BatchEnd::Halt(what),
            BatchError::Refused(error) if error.sqlstate().is_some_and(|code| code.starts_with("23")) => {
                BatchEnd::Halt(refusal_text(&error))
            }
            // Passing trouble: the worker starts anew from the stored position, after a pause.
            BatchError::Refused(_) | BatchError::Lost(_) | BatchError::Doubtful(_) => BatchEnd::ClaimAgain,
        })
    }
}
