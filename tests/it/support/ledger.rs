//! A writer with its place in the log: batches decided and committed without Kafka, and what they told.

use std::collections::BTreeMap;

use flashsale::inventory::{Command, Logged, Outcome, decide};
use flashsale::store::{BatchHead, Claim, SettledHold, Writer, WriterConfig};

use super::commands::logged;
use super::database::Database;

/// One partition's writer.
pub struct Ledger {
    writer: Writer,
    claim: Claim,
    /// The ids of all events that were committed, by SKU, in order.
    pub told: BTreeMap<String, Vec<String>>,
}

impl Ledger {
    /// Claims a partition.
    pub async fn of(db: &Database, partition: i32) -> Self {
        let config = WriterConfig {
            database_url: db.url.as_str().into(),
            topic: db.topic.as_str().into(),
            owner: "test".into(),
            build: "test".into(),
        };
        let (writer, claim) = Writer::claim(&config, partition).await.expect("claimed");
        Self { writer, claim, told: BTreeMap::new() }
    }

    /// Decides and commits one batch at a log time, settling nothing.
    pub async fn commit(&mut self, at: i64, commands: &[Command]) -> Outcome {
        let commands: Vec<Logged> =
            logged(self.claim.position, commands).into_iter().map(|logged| Logged { at, ..logged }).collect();
        let head = BatchHead {
            first_offset: self.claim.position,
            position: self.claim.position + commands.len() as i64,
            log_time_before: self.claim.log_time,
            log_time: self.claim.log_time.max(at),
            last_digest: 7,
        };
        let mut tx = self.writer.begin(head).await.expect("the fence lets us pass");
        let snapshot = tx.load_snapshot(&commands).await.expect("the snapshot loads");
        let outcome = decide(&snapshot, &commands);
        tx.write(&commands, &outcome, &BTreeMap::new()).await.expect("written");
        tx.commit().await.expect("committed");
        (self.claim.position, self.claim.log_time) = (head.position, head.log_time);
        for event in &outcome.events {
            let id = event.id(self.writer.partition());
            self.told.entry(event.sku.as_str().to_owned()).or_default().push(id);
        }
        outcome
    }

    /// Settles ended holds between batches.
    pub async fn settle(&mut self) -> Vec<SettledHold> {
        let mut tx = self.writer.begin_between(self.claim.position, self.claim.log_time).await.expect("passed");
        let settled = tx.settle().await.expect("settled");
        tx.commit().await.expect("committed");
        for hold in &settled {
            let id = format!("{}.expired", hold.reservation);
            self.told.entry(hold.sku.as_str().to_owned()).or_default().push(id);
        }
        settled
    }
}
