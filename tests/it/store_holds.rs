//! The life of a hold in the tables: changed rows, holds that end in the counters first and in their rows afterwards, late payments.

use std::collections::BTreeMap;

use flashsale::inventory::{Command, Logged, Outcome, decide};
use flashsale::store::{BatchError, BatchHead, Claim, SettledHold, Writer, WriterConfig};

use crate::support::commands::{logged, reserve};
use crate::support::database::Database;
use crate::support::life::{cancel, confirm, create_with_hold, extend, tick};

const HOLD_MS: i64 = 10_000;

/// A writer with its place in the log.
struct Bench {
    db: Database,
    writer: Writer,
    claim: Claim,
}

impl Bench {
    async fn fresh() -> Self {
        let db = Database::fresh("t", 1).await;
        let (writer, claim) = Writer::claim(&config(&db), 0).await.expect("claimed");
        Self { db, writer, claim }
    }

    async fn claim_again(&mut self) {
        (self.writer, self.claim) = Writer::claim(&config(&self.db), 0).await.expect("claimed");
    }

    /// Decides and commits one batch at a log time; `settles` = rows of ended holds as well.
    async fn commit(&mut self, at: i64, commands: &[Command], settles: bool) -> Result<Outcome, BatchError> {
        let commands: Vec<Logged> =
            logged(self.claim.position, commands).into_iter().map(|logged| Logged { at, ..logged }).collect();
        let head = BatchHead {
            first_offset: self.claim.position,
            position: self.claim.position + commands.len() as i64,
            log_time_before: self.claim.log_time,
            log_time: self.claim.log_time.max(at),
            last_digest: 7,
        };
        let mut tx = self.writer.begin(head).await?;
        let snapshot = tx.load_snapshot(&commands).await.expect("the snapshot loads");
        let outcome = decide(&snapshot, &commands);
        if let Err(error) = tx.write(&commands, &outcome, &BTreeMap::new()).await {
            return Err(tx.roll_back(error).await);
        }
        if settles {
            tx.settle().await.expect("settled");
        }
        tx.commit().await?;
        (self.claim.position, self.claim.log_time) = (head.position, head.log_time);
        Ok(outcome)
    }

    /// Settles between batches.
    async fn settle(&mut self) -> Result<Vec<SettledHold>, BatchError> {
        let mut tx = self.writer.begin_between(self.claim.position, self.claim.log_time).await?;
        let settled = tx.settle().await?;
        tx.commit().await?;
        Ok(settled)
    }

    async fn numbers(&self, sql: &str) -> i64 {
        self.db.number(sql).await
    }

    async fn finish(self) {
        self.db.assert_invariants().await;
        self.db.drop().await;
    }
}

fn config(db: &Database) -> WriterConfig {
    WriterConfig { database_url: db.url.as_str().into(), topic: "t".into(), owner: "test".into(), build: "test".into() }
}

#[tokio::test]
async fn confirm_cancel_and_extend_change_their_rows_and_the_counters() {
    let mut bench = Bench::fresh().await;
    let [a, b, c] = ["a", "b", "c"].map(|user| reserve("s", user, 2));
    bench.commit(1_000, &[create_with_hold("s", 6, 2, 10), a.clone(), b.clone(), c.clone()], false).await.unwrap();
    bench.commit(2_000, &[confirm("s", &a, "pay-1"), cancel("s", &b), extend("s", &c, 60)], false).await.unwrap();
    assert_eq!(bench.numbers("SELECT sold FROM sku").await, 2);
    assert_eq!(bench.numbers("SELECT reserved FROM sku").await, 2);
    let rows = "SELECT string_agg(concat_ws(' ', user_id, status, version, payment_ref, note, extensions, extension_seconds,
                  (extract(epoch FROM changed_at) * 1000)::bigint, (extract(epoch FROM expires_at) * 1000)::bigint), ', ' ORDER BY user_id)
                FROM reservation";
    assert_eq!(
        bench.db.text(rows).await.as_deref(),
        Some("a 3 2 pay-1 0 0 2000 11000, b 4 2 changed my mind 0 0 2000 11000, c 1 2 1 60 71000")
    );
    let commands = "SELECT string_agg(kind || ' ' || result, ', ' ORDER BY log_offset) FROM command";
    assert_eq!(
        bench.db.text(commands).await.as_deref(),
        Some("configure CREATED, confirm CONFIRMED, cancel CANCELLED, extend EXTENDED")
    );
    // The writer remembers when each hold ends now, not when it was to end.
    bench.commit(1_000 + HOLD_MS, &[tick("s")], true).await.unwrap();
    assert_eq!(bench.numbers("SELECT reserved FROM sku").await, 2, "paid, given back and extended holds don't end");
    bench.commit(71_000, &[tick("s")], true).await.unwrap();
    assert_eq!(bench.numbers("SELECT reserved FROM sku").await, 0);
    bench.finish().await;
}

#[tokio::test]
async fn a_reservation_made_and_changed_in_one_batch_is_one_row() {
    let mut bench = Bench::fresh().await;
    let [a, b] = ["a", "b"].map(|user| reserve("s", user, 1));
    let batch = [create_with_hold("s", 6, 2, 10), a.clone(), confirm("s", &a, "p"), b.clone(), cancel("s", &b)];
    bench.commit(1_000, &batch, false).await.unwrap();
    let rows = "SELECT string_agg(concat_ws(' ', user_id, status, version), ', ' ORDER BY user_id) FROM reservation";
    assert_eq!(bench.db.text(rows).await.as_deref(), Some("a 3 2, b 4 2"));
    assert!(bench.writer.next_ends().next().is_none(), "nothing is held");
    bench.finish().await;
}

#[tokio::test]
async fn a_hold_ends_in_the_counters_at_once_and_in_its_row_afterwards() {
    let mut bench = Bench::fresh().await;
    let [a, b] = ["a", "b"].map(|user| reserve("s", user, 1));
    bench.commit(1_000, &[create_with_hold("s", 1, 1, 10), a.clone()], false).await.unwrap();
    assert_eq!(bench.writer.next_ends().map(|(_, ends)| ends).collect::<Vec<_>>(), [1_000 + HOLD_MS]);
    bench.commit(1_000 + HOLD_MS - 1, &[tick("s")], true).await.unwrap();
    assert_eq!(bench.numbers("SELECT reserved FROM sku").await, 1, "not a millisecond early");
    bench.commit(1_000 + HOLD_MS, std::slice::from_ref(&b), false).await.unwrap();
    let stored = "SELECT status::bigint FROM reservation WHERE user_id = 'a'";
    let shown = "SELECT (status * 10 + version)::bigint FROM reservation_now WHERE user_id = 'a'";
    assert_eq!((bench.numbers(stored).await, bench.numbers(shown).await), (1, 52), "expired, whatever the row says");
    bench.db.assert_invariants().await;
    assert!(bench.writer.has_unsettled());
    let position = bench.numbers("SELECT position FROM partition_state").await;
    let settled = bench.settle().await.unwrap();
    assert_eq!(
        settled.iter().map(|hold| (hold.reservation, hold.units, hold.units_left)).collect::<Vec<_>>(),
        [(a.id(), 1, 0)]
    );
    assert_eq!((bench.numbers(stored).await, bench.numbers(shown).await), (5, 52), "nothing changed for a reader");
    assert_eq!(bench.numbers("SELECT position FROM partition_state").await, position);
    assert!(!bench.writer.has_unsettled());
    assert_eq!(bench.settle().await.unwrap(), [], "once");
    bench.finish().await;
}

/// One user may have hundreds: their units are counted once, and only what still counts.
#[tokio::test]
async fn units_left_are_what_still_runs_or_is_paid_however_many_ended() {
    let mut bench = Bench::fresh().await;
    let early: Vec<Command> = (0..600).map(|_| reserve("s", "u", 1)).collect();
    let batch: Vec<Command> =
        [create_with_hold("s", 1_000, 1_000, 10)].into_iter().chain(early.iter().cloned()).collect();
    bench.commit(1_000, &batch, false).await.unwrap();
    bench
        .commit(5_000, &[confirm("s", &early[0], "p"), reserve("s", "u", 7), reserve("s", "v", 1)], false)
        .await
        .unwrap();
    bench.commit(1_000 + HOLD_MS, &[tick("s")], false).await.unwrap();
    let settled = bench.settle().await.unwrap();
    assert_eq!(settled.len(), 500, "so many at once");
    assert!(
        settled.iter().all(|hold| hold.units_left == 8),
        "7 held and 1 paid, whether or not the other 99 rows say so yet"
    );
    assert_eq!(bench.settle().await.unwrap().len(), 99);
    bench.finish().await;
}

#[tokio::test]
async fn what_ended_before_a_claim_is_found_and_settled_after_it() {
    let mut bench = Bench::fresh().await;
    let buyers: Vec<Command> = (0..3).map(|n| reserve("s", &format!("u{n}"), 1)).collect();
    let batch: Vec<Command> = [create_with_hold("s", 5, 1, 10)].into_iter().chain(buyers).collect();
    bench.commit(1_000, &batch, false).await.unwrap();
    bench.commit(5_000, &[reserve("s", "later", 1)], false).await.unwrap();
    bench.commit(1_000 + HOLD_MS, &[tick("s")], false).await.unwrap();
    bench.claim_again().await;
    assert!(!bench.writer.has_unsettled(), "nothing is remembered yet");
    bench.writer.remember().await.unwrap();
    assert!(bench.writer.has_unsettled());
    assert_eq!(bench.writer.next_ends().map(|(_, ends)| ends).collect::<Vec<_>>(), [5_000 + HOLD_MS]);
    assert_eq!(bench.settle().await.unwrap().len(), 3);
    bench.commit(5_000 + HOLD_MS, &[tick("s")], true).await.unwrap();
    assert_eq!(bench.numbers("SELECT reserved FROM sku").await, 0);
    bench.settle().await.unwrap();
    assert_eq!(bench.numbers("SELECT count(*) FROM reservation WHERE status = 5 AND version = 2").await, 4);
    bench.finish().await;
}

/// The payment wins the row: settling must leave it alone.
#[tokio::test]
async fn a_late_payment_of_a_row_that_is_not_settled_yet_stands() {
    let mut bench = Bench::fresh().await;
    let a = reserve("s", "a", 1);
    bench.commit(1_000, &[create_with_hold("s", 1, 1, 10), a.clone()], false).await.unwrap();
    bench.commit(1_000 + HOLD_MS, &[tick("s")], false).await.unwrap();
    bench.commit(2_000 + HOLD_MS, &[confirm("s", &a, "late")], true).await.unwrap();
    assert_eq!(bench.settle().await.unwrap(), []);
    let row = "SELECT concat_ws(' ', status, version, is_late, payment_ref) FROM reservation";
    assert_eq!(bench.db.text(row).await.as_deref(), Some("3 3 t late"), "version 2 was its end");
    assert_eq!((bench.numbers("SELECT sold FROM sku").await, bench.numbers("SELECT reserved FROM sku").await), (1, 0));
    bench.finish().await;
}

#[tokio::test]
async fn a_late_payment_without_stock_is_remembered_also_after_a_restock() {
    let mut bench = Bench::fresh().await;
    let [a, b] = ["a", "b"].map(|user| reserve("s", user, 1));
    bench.commit(1_000, &[create_with_hold("s", 1, 1, 10), a.clone()], false).await.unwrap();
    bench.commit(1_000 + HOLD_MS, &[b.clone(), confirm("s", &a, "late")], false).await.unwrap();
    bench.commit(2_000 + HOLD_MS, &[cancel("s", &b), confirm("s", &a, "late")], false).await.unwrap();
    let results = "SELECT string_agg(result, ', ' ORDER BY log_offset) FROM command WHERE kind = 'confirm'";
    assert_eq!(bench.db.text(results).await.as_deref(), Some("PAID_UNFULFILLED"), "the second was a duplicate");
    bench.commit(2_000 + HOLD_MS, &[confirm("s", &a, "another payment")], false).await.unwrap();
    assert_eq!(bench.db.text(results).await.as_deref(), Some("PAID_UNFULFILLED, CONFIRMED"));
    bench.finish().await;
}

#[tokio::test]
async fn a_writer_that_was_replaced_settles_nothing() {
    let mut bench = Bench::fresh().await;
    bench.commit(1_000, &[create_with_hold("s", 1, 1, 10), reserve("s", "a", 1)], false).await.unwrap();
    bench.commit(1_000 + HOLD_MS, &[tick("s")], false).await.unwrap();
    let (_successor, _) = Writer::claim(&config(&bench.db), 0).await.expect("claimed");
    assert!(matches!(bench.settle().await.unwrap_err(), BatchError::Fenced));
    assert_eq!(bench.numbers("SELECT count(*) FROM reservation WHERE status = 1").await, 1);
    bench.finish().await;
}

#[tokio::test]
async fn a_reservation_that_somebody_else_changed_is_a_contradiction() {
    let mut bench = Bench::fresh().await;
    let a = reserve("s", "a", 1);
    bench.commit(1_000, &[create_with_hold("s", 1, 1, 10), a.clone()], false).await.unwrap();
    let commands = logged(bench.claim.position, &[cancel("s", &a)]);
    let head = BatchHead { first_offset: 2, position: 3, log_time_before: 1_000, log_time: 1_000, last_digest: 8 };
    let mut tx = bench.writer.begin(head).await.unwrap();
    let snapshot = tx.load_snapshot(&commands).await.unwrap();
    bench.db.run("UPDATE reservation SET version = 9").await;
    let error = tx.write(&commands, &decide(&snapshot, &commands), &BTreeMap::new()).await.unwrap_err();
    assert!(matches!(error, BatchError::Contradiction(_)), "{error}");
    tx.abandon().await;
    bench.finish().await;
}
