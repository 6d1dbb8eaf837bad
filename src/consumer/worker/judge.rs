//! What the failure of a batch means: try again, look for poison, claim again, or halt.
//!
//! Before COMMIT was sent, the server's SQLSTATE class decides. After it, and whenever the connection was lost, only the **oracle** does: the
//! partition's row, read on a new connection once the old backend is gone. COMMIT is never sent again on a guess.

use metrics::counter;
use tokio::time::sleep;

use super::{Batch, BatchEnd, Decided, Doing, Worker};

use crate::limits;
use crate::store::{BatchError, Standing, StoreError};
use crate::telemetry::metrics as names;

/// SQLSTATE of a statement that was ended from outside, by `statement_timeout` first of all.
const QUERY_CANCELED: &str = "57014";

/// `decide` panicked.
pub(super) struct Panicked;

/// What speaks against a command of a batch, and against nothing else.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// `decide` panicked.
    #[error("decide panicked")]
    Panicked,
    /// The server can't store some value (SQLSTATE class 22); its words.
    #[error("{0}")]
    Refused(String),
}

/// What one attempt at a batch came to.
pub(super) enum Attempt {
    Committed(Decided),
    /// Nothing was committed; try again after a wait. `is_counted`: a batch has only so many of these.
    Again {
        reason: String,
        is_counted: bool,
    },
    /// Some command of the batch is poison: find it.
    Poison(Fault),
    End(BatchEnd),
}

impl Worker<'_> {
    /// One attempt: transaction, and what its failure means.
    pub(super) async fn attempt(&mut self, batch: &Batch) -> Attempt {
        let mut transacted = self.transact(batch).await;
        // Its ids are looked up now. Whoever used one of them meanwhile has committed, so each attempt finds one more: there are no more
        // attempts than ids, whatever other partitions do.
        for _ in &batch.commands {
            if !matches!(transacted, Err((BatchError::Known, _))) {
                break;
            }
            transacted = self.transact(batch).await;
        }
        match transacted {
            Err((error @ BatchError::Known, _)) => {
                Attempt::End(BatchEnd::Halt(format!("{error}, though all of them were looked up")))
            }
            Ok(Ok(outcome)) => Attempt::Committed(outcome),
            Ok(Err(Panicked)) => Attempt::Poison(Fault::Panicked),
            Err((error, outcome)) => self.judge(batch, error, outcome).await,
        }
    }

    /// What an error means; `outcome` is what was decided, if COMMIT was sent.
    pub(super) async fn judge(&mut self, batch: &Batch, error: BatchError, outcome: Option<Decided>) -> Attempt {
        let (error, is_doubtful) = match error {
            BatchError::Fenced => return Attempt::End(BatchEnd::Fenced),
            BatchError::Contradiction(what) => return Attempt::End(BatchEnd::Halt(what)),
            // Met by a search for poison: begin again, the next attempt finds it.
            error @ BatchError::Known => return Attempt::Again { reason: error.to_string(), is_counted: false },
            BatchError::Refused(error) => return self.judge_refusal(&error).await,
            BatchError::Lost(error) => (error, false),
            BatchError::Doubtful(error) => (error, true),
        };
        tracing::warn!(
            kafka.partition = self.partition.partition,
            error = &error as &dyn std::error::Error,
            is_doubtful,
            "lost the connection or its answer, asking the oracle"
        );
        self.ask_oracle(batch, outcome, &error).await
    }

    /// What a refusal before COMMIT means, by SQLSTATE class.
    async fn judge_refusal(&mut self, error: &StoreError) -> Attempt {
        let code = error.sqlstate().unwrap_or_default();
        let reason = refusal_text(error);
        match code.get(..2).unwrap_or_default() {
            "22" => Attempt::Poison(Fault::Refused(reason)),
            // A broken assumption of ours (23505), or the last guard against a bug (23514): never tried again.
            "23" => Attempt::End(BatchEnd::Halt(reason)),
            // A statement that takes too long, though the server is well enough to say so: it may never end.
            _ if code == QUERY_CANCELED => Attempt::Again { reason, is_counted: true },
            // Out of disk, memory or connections, or going down: the server's trouble, it passes.
            "53" | "57" | "58" | "08" => match self.writer.recover().await {
                Ok(Standing::Fenced) => Attempt::End(BatchEnd::Fenced),
                Ok(Standing::Owner { .. }) | Err(_) => Attempt::Again { reason, is_counted: false },
            },
            _ => Attempt::Again { reason, is_counted: true },
        }
    }

    /// The commit oracle: one row on a new connection tells. Asked until it answers: a server that is away is waited for, for ever. One that
    /// answers the oracle, while the batch ends by a deadline (`why`), can't do the batch: that is counted.
    async fn ask_oracle(&mut self, batch: &Batch, outcome: Option<Decided>, why: &StoreError) -> Attempt {
        let was_doubtful = outcome.is_some();
        let is_counted = matches!(why, StoreError::Deadline { .. });
        self.partition.progress.begin(Doing::Oracle);
        let head = batch.head(self.log_time);
        let mut wait = limits::RECONNECT_WAIT_MIN;
        let standing = loop {
            match self.writer.recover().await {
                Ok(standing) => break standing,
                Err(error) => {
                    tracing::warn!(
                        kafka.partition = self.partition.partition,
                        error = &error as &dyn std::error::Error,
                        "postgres can't be asked yet"
                    );
                }
            }
            tokio::select! {
                () = self.partition.stop.cancelled() => return Attempt::End(BatchEnd::Stopped),
                () = sleep(wait) => wait = (wait * 2).min(limits::RECONNECT_WAIT_MAX),
            }
        };
        let found = match standing {
            Standing::Fenced => "fenced",
            Standing::Owner { position } if position == head.position => "committed",
            Standing::Owner { .. } => "not_committed",
        };
        if was_doubtful {
            counter!(names::COMMIT_AMBIGUOUS, "outcome" => found).increment(1);
        }
        match (standing, outcome) {
            (Standing::Fenced, _) => Attempt::End(BatchEnd::Fenced),
            (Standing::Owner { position }, Some(outcome)) if position == head.position => Attempt::Committed(outcome),
            (Standing::Owner { position }, _) if position == head.first_offset => Attempt::Again {
                reason: format!("{why}; the server answers, and the batch is not committed"),
                is_counted,
            },
            (Standing::Owner { .. }, _) => Attempt::End(BatchEnd::ClaimAgain),
        }
    }
}

/// A refusal of the server, for people: what was attempted, the code, the constraint.
pub(super) fn refusal_text(error: &StoreError) -> String {
    let (code, constraint) = (error.sqlstate().unwrap_or_default(), error.constraint().unwrap_or_default());
    format!("{error}: SQLSTATE {code} {constraint}")
}
