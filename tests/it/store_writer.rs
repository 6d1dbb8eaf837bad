//! The writer on a real Postgres: claims, the fence, the oracle, and what the schema refuses.

use std::collections::BTreeMap;
use std::sync::Arc;

use flashsale::inventory::{Command, Outcome, Refusal, Verdict, decide};
use flashsale::limits;
use flashsale::store::{
    AuditSession, BatchError, BatchHead, Claim, ClaimError, OutboxSession, Standing, Writer, WriterConfig,
};
use futures_util::future::join_all;

use crate::support::commands::{create, logged, reserve, reserve_as, sku};
use crate::support::database::Database;
use crate::support::life::{adjust, confirm_keyed};
use crate::support::proxy::{Lose, Proxy};

fn config(url: &str, topic: &str) -> WriterConfig {
    WriterConfig { database_url: url.into(), topic: topic.into(), owner: "test".into(), build: "test".into() }
}

async fn database() -> Database {
    Database::fresh("t", 2).await
}

/// One batch of one-command records from `claim`'s position on, up to COMMIT; the caller commits.
async fn commit(writer: &mut Writer, claim: &mut Claim, commands: &[Command]) -> Result<Outcome, BatchError> {
    let commands = logged(claim.position, commands);
    let head = BatchHead {
        first_offset: claim.position,
        position: claim.position + commands.len() as i64,
        log_time_before: claim.log_time,
        log_time: claim.log_time.max(1_000),
        last_digest: 7,
    };
    let mut tx = writer.begin(head).await?;
    let snapshot = tx.load_snapshot(&commands).await.expect("the snapshot loads");
    let outcome = decide(&snapshot, &commands);
    if let Err(error) = tx.write(&commands, &outcome, &BTreeMap::new()).await {
        return Err(tx.roll_back(error).await);
    }
    tx.commit().await?;
    (claim.position, claim.log_time) = (head.position, head.log_time);
    Ok(outcome)
}

#[tokio::test]
async fn a_batch_moves_decisions_stock_and_position_together() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    assert_eq!((claim.epoch, claim.position, claim.last_digest), (1, 0, None));
    commit(&mut writer, &mut claim, &[create("s", 0, 3, 2), reserve("s", "u", 2), reserve("s", "v", 2)]).await.unwrap();
    assert_eq!(db.number("SELECT position FROM partition_state WHERE partition = 0").await, 3);
    assert_eq!(db.number("SELECT reserved FROM sku").await, 2);
    assert_eq!(db.number("SELECT count(*) FROM reservation WHERE status = 1").await, 1);
    assert_eq!(db.number("SELECT available FROM reservation WHERE status = 2").await, 1);
    assert_eq!(db.text("SELECT result FROM command").await.as_deref(), Some("CREATED"));
    let (_, again) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    assert_eq!((again.epoch, again.position, again.log_time, again.last_digest), (2, 3, 1_000, Some(7)));
    db.assert_invariants().await;
    db.drop().await;
}

#[tokio::test]
async fn the_fence_is_sent_as_text_and_loses_nothing() {
    // Neither a name that must be quoted, nor a fraction of a second, nor the sign of a digest.
    let topic = r"it's \ a topic";
    let db = Database::fresh(topic, 1).await;
    let (mut writer, claim) = Writer::claim(&config(&db.url, topic), 0).await.expect("claimed");
    let (log_time, last_digest) = (1_795_255_200_007, i64::MIN);
    let head =
        BatchHead { first_offset: 0, position: i64::MAX, log_time_before: claim.log_time, log_time, last_digest };
    writer.begin(head).await.expect("the fence lets us pass").commit().await.expect("committed");
    let (_, again) = Writer::claim(&config(&db.url, topic), 0).await.expect("claimed");
    assert_eq!((again.position, again.log_time, again.last_digest), (i64::MAX, log_time, Some(last_digest)));
}

#[tokio::test]
async fn of_two_writers_the_older_writes_nothing() {
    let db = database().await;
    let (mut old, mut old_claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    commit(&mut old, &mut old_claim, &[create("s", 0, 10, 5)]).await.unwrap();
    let (mut new, mut new_claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    // The zombie wakes with a batch in hand.
    let zombie = commit(&mut old, &mut old_claim, &[reserve("s", "zombie", 1)]).await;
    assert!(matches!(zombie, Err(BatchError::Fenced)), "{zombie:?}");
    commit(&mut new, &mut new_claim, &[reserve("s", "u", 1)]).await.unwrap();
    // Also at the right position, with an epoch that is not its own.
    old_claim.position = new_claim.position;
    let zombie = commit(&mut old, &mut old_claim, &[reserve("s", "zombie", 1)]).await;
    assert!(matches!(zombie, Err(BatchError::Fenced)), "{zombie:?}");
    assert!(!old.halt(new_claim.position, "a zombie's opinion").await.unwrap(), "nor does it halt the partition");
    assert_eq!(old.recover().await.unwrap(), Standing::Fenced);
    assert_eq!(db.number("SELECT count(*) FROM reservation WHERE user_id = 'zombie'").await, 0);
    db.assert_invariants().await;
    db.drop().await;
}

#[tokio::test]
async fn an_equal_epoch_with_another_token_is_fenced() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    // A failover to a replica that lagged: the epoch counts up again, by another process.
    db.run("UPDATE partition_state SET owner_token = gen_random_uuid()").await;
    let refused = commit(&mut writer, &mut claim, &[create("s", 0, 10, 5)]).await;
    assert!(matches!(refused, Err(BatchError::Fenced)), "{refused:?}");
    db.drop().await;
}

#[tokio::test]
async fn a_writer_with_another_position_is_fenced() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    claim.position = 5;
    let refused = commit(&mut writer, &mut claim, &[create("s", 0, 10, 5)]).await;
    assert!(matches!(refused, Err(BatchError::Fenced)), "{refused:?}");
    db.drop().await;
}

#[tokio::test]
async fn a_halted_partition_is_fenced_until_an_operator_resumes_it() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    assert!(writer.halt(0, "because").await.unwrap());
    assert!(!writer.halt(0, "again").await.unwrap(), "the first reason stands");
    let refused = commit(&mut writer, &mut claim, &[create("s", 0, 10, 5)]).await;
    assert!(matches!(refused, Err(BatchError::Fenced)), "{refused:?}");
    let (_, halted) = Writer::claim(&config(&db.url, "t"), 0).await.unwrap();
    assert_eq!(halted.halted_reason.as_deref(), Some("because"));
    assert!(db.store().resume_partition(0, "looked at it").await.unwrap());
    assert!(!db.store().resume_partition(0, "again").await.unwrap());
    assert_eq!(
        db.text("SELECT note || ': ' || halted_reason FROM partition_resume").await.as_deref(),
        Some("looked at it: because")
    );
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.unwrap();
    commit(&mut writer, &mut claim, &[create("s", 0, 10, 5)]).await.unwrap();
    db.drop().await;
}

#[tokio::test]
async fn a_partition_without_a_row_is_not_guessed() {
    let db = database().await;
    let error = Writer::claim(&config(&db.url, "t"), 9).await.expect_err("no row");
    assert!(matches!(error, ClaimError::NoRow(9)), "{error:?}");
    db.drop().await;
}

/// The oracle, after the proxy lost the COMMIT or its answer.
async fn doubt(lose: Lose) -> (Standing, i64) {
    let db = database().await;
    let server = db.url.split('@').nth(1).and_then(|rest| rest.split('/').next()).expect("host and port").to_owned();
    let proxy = Proxy::start(server.clone()).await;
    let url = db.url.replace(&server, &format!("127.0.0.1:{}", proxy.port));
    let (mut writer, mut claim) = Writer::claim(&config(&url, "t"), 0).await.expect("claimed");
    commit(&mut writer, &mut claim, &[create("s", 0, 10, 5)]).await.unwrap();
    proxy.lose_once(lose);
    let doubtful = commit(&mut writer, &mut claim, &[reserve("s", "u", 1)]).await;
    assert!(matches!(doubtful, Err(BatchError::Doubtful(_))), "{doubtful:?}");
    assert_eq!(proxy.lost_count(), 1);
    let standing = writer.recover().await.expect("the oracle answers");
    let rows = db.number("SELECT count(*) FROM reservation").await;
    if standing == (Standing::Owner { position: 1 }) {
        commit(&mut writer, &mut claim, &[reserve("s", "u", 1)]).await.expect("decided again");
    }
    db.assert_invariants().await;
    db.drop().await;
    (standing, rows)
}

#[tokio::test]
async fn the_oracle_finds_a_commit_whose_answer_was_lost() {
    assert_eq!(doubt(Lose::Answer).await, (Standing::Owner { position: 2 }, 1));
}

#[tokio::test]
async fn the_oracle_finds_that_a_lost_commit_never_was() {
    assert_eq!(doubt(Lose::Commit).await, (Standing::Owner { position: 1 }, 0));
}

/// Ends a writer's backend, as an operator or an out-of-memory killer would.
async fn end_backend_of(db: &Database) {
    let sql = "SELECT count(pg_terminate_backend(backend_pid)) FROM partition_state WHERE backend_pid IS NOT NULL";
    assert_eq!(db.number(sql).await, 1);
}

#[tokio::test]
async fn a_backend_killed_before_commit_leaves_nothing() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    commit(&mut writer, &mut claim, &[create("s", 0, 10, 5)]).await.unwrap();
    let commands = logged(1, &[reserve("s", "u", 1)]);
    let head = BatchHead { first_offset: 1, position: 2, log_time_before: 1_000, log_time: 1_000, last_digest: 8 };
    let mut tx = writer.begin(head).await.unwrap();
    let snapshot = tx.load_snapshot(&commands).await.unwrap();
    tx.write(&commands, &decide(&snapshot, &commands), &BTreeMap::new()).await.unwrap();
    end_backend_of(&db).await;
    let killed = tx.commit().await;
    assert!(matches!(killed, Err(BatchError::Doubtful(_))), "{killed:?}");
    assert_eq!(writer.recover().await.unwrap(), Standing::Owner { position: 1 });
    assert_eq!(db.number("SELECT count(*) FROM reservation").await, 0);
    commit(&mut writer, &mut claim, &[reserve("s", "u", 1)]).await.expect("decided again");
    db.assert_invariants().await;
    db.drop().await;
}

#[tokio::test]
async fn a_backend_killed_between_batches_costs_a_reconnect() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    commit(&mut writer, &mut claim, &[create("s", 0, 10, 5)]).await.unwrap();
    end_backend_of(&db).await;
    let lost = commit(&mut writer, &mut claim, &[reserve("s", "u", 1)]).await;
    assert!(matches!(lost, Err(BatchError::Lost(_) | BatchError::Refused(_))), "{lost:?}");
    assert_eq!(writer.recover().await.unwrap(), Standing::Owner { position: 1 });
    commit(&mut writer, &mut claim, &[reserve("s", "u", 1)]).await.expect("goes on");
    db.drop().await;
}

#[tokio::test]
async fn a_claim_ends_a_zombie_that_is_frozen_inside_its_transaction() {
    let db = database().await;
    let (mut zombie, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    commit(&mut zombie, &mut claim, &[create("s", 0, 10, 5)]).await.unwrap();
    let head = BatchHead { first_offset: 1, position: 2, log_time_before: 1_000, log_time: 1_000, last_digest: 8 };
    let tx = zombie.begin(head).await.expect("it holds the row now");
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed over the zombie");
    assert_eq!(claim.position, 1);
    commit(&mut writer, &mut claim, &[reserve("s", "u", 1)]).await.unwrap();
    let late = tx.commit().await;
    assert!(matches!(late, Err(BatchError::Doubtful(_))), "{late:?}");
    assert_eq!(zombie.recover().await.unwrap(), Standing::Fenced);
    db.assert_invariants().await;
    db.drop().await;
}

#[tokio::test]
async fn the_schema_refuses_an_oversell_by_name() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    commit(&mut writer, &mut claim, &[create("s", 0, 10, 5)]).await.unwrap();
    let commands = logged(1, &[reserve("s", "u", 1)]);
    let head = BatchHead { first_offset: 1, position: 2, log_time_before: 1_000, log_time: 1_000, last_digest: 8 };
    let mut tx = writer.begin(head).await.unwrap();
    let snapshot = tx.load_snapshot(&commands).await.unwrap();
    let mut outcome = decide(&snapshot, &commands);
    // A bug in decide, as the database would see it.
    outcome.changes.skus.values_mut().for_each(|change| change.after.reserved = 11);
    let Err(BatchError::Refused(refused)) = tx.write(&commands, &outcome, &BTreeMap::new()).await else {
        panic!("the schema must refuse")
    };
    assert_eq!(refused.sqlstate().as_deref(), Some("23514"));
    assert_eq!(refused.constraint().as_deref(), Some("sku_no_oversell"));
    tx.abandon().await;
    db.assert_invariants().await;
    db.drop().await;
}

#[tokio::test]
async fn an_id_that_is_known_is_found_by_the_primary_key_and_then_by_look_up() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    let again = reserve_as(uuid::Uuid::from_u128(5), "s", "u", 1);
    commit(&mut writer, &mut claim, &[create("s", 0, 10, 5), again.clone()]).await.unwrap();
    let commands = logged(2, &[again.clone(), reserve("s", "v", 1)]);
    let head = BatchHead { first_offset: 2, position: 4, log_time_before: 1_000, log_time: 1_000, last_digest: 8 };
    let mut tx = writer.begin(head).await.unwrap();
    let snapshot = tx.load_snapshot(&commands).await.unwrap();
    assert_eq!(snapshot.known_reservations.len(), 0, "nobody looked");
    let outcome = decide(&snapshot, &commands);
    let error = tx.write(&commands, &outcome, &BTreeMap::new()).await.unwrap_err();
    assert!(matches!(error, BatchError::Known), "{error}");
    tx.roll_back(error).await;

    commit(&mut writer, &mut claim, &[again.clone(), reserve("s", "v", 1)]).await.expect("looked up, a duplicate");
    assert_eq!(db.number("SELECT duplicate_count::bigint FROM batch WHERE first_offset = 2").await, 1);
    assert_eq!(db.number("SELECT reserved FROM sku").await, 2);

    // A bug in the snapshot, as the database would see it: refused, not overwritten.
    let commands = logged(4, &[again]);
    let head = BatchHead { first_offset: 4, position: 5, log_time_before: 1_000, log_time: 1_000, last_digest: 8 };
    let mut tx = writer.begin(head).await.unwrap();
    let mut snapshot = tx.load_snapshot(&commands).await.unwrap();
    assert_eq!(snapshot.known_reservations.len(), 1, "looked up");
    snapshot.known_reservations.clear();
    let outcome = decide(&snapshot, &commands);
    let error = tx.write(&commands, &outcome, &BTreeMap::new()).await.unwrap_err();
    assert!(matches!(error, BatchError::Known), "{error}");
    tx.roll_back(error).await;
    db.assert_invariants().await;
    db.drop().await;
}

/// What each of these is told, one batch each, by a writer that remembers nothing.
async fn verdicts(db: &Database, commands: &[Command]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for command in commands {
        let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
        let outcome = commit(&mut writer, &mut claim, std::slice::from_ref(command)).await.expect("committed");
        verdicts.extend(outcome.decisions.into_iter().map(|decision| decision.verdict));
    }
    verdicts
}

#[tokio::test]
async fn a_key_is_known_whatever_column_holds_it() {
    const REUSED: Verdict = Verdict::Refused(Refusal::KeyReused);
    let db = database().await;
    let held = reserve("s", "u", 1);
    verdicts(&db, &[create("s", 0, 10, 5), held.clone()]).await;
    let confirmed = |payment, key| confirm_keyed("s", &held, payment, key);
    let said =
        verdicts(&db, &[confirmed("A", "k"), confirmed("B", "k"), confirmed("A", "k"), confirmed("A", "l")]).await;
    assert_eq!(said, [Verdict::Confirmed { is_late: false }, REUSED, Verdict::Duplicate, Verdict::Duplicate]);
    // Beside a reference first, then alone; and alone first, then beside a reference.
    let mixed = [
        adjust("s", Some("r1"), Some("k")),
        adjust("s", None, Some("k")),
        adjust("s", Some("r2"), Some("k")),
        adjust("s", None, Some("j")),
        adjust("s", Some("r3"), Some("j")),
        adjust("s", Some("r3"), None),
    ];
    let said = verdicts(&db, &mixed).await;
    let adjusted = |on_hand| Verdict::Adjusted { on_hand, reserved: 0, sold: 1 };
    assert_eq!(said, [adjusted(11), REUSED, REUSED, adjusted(12), REUSED, adjusted(13)]);
    // A refused one is named by its place and burns neither its name nor its key.
    assert_eq!(db.number("SELECT count(*) FROM command WHERE key_id IS NOT NULL").await, 2);
    let refused = "result = 'IDEMPOTENCY_KEY_REUSED'";
    assert_eq!(db.number(&format!("SELECT count(*) FROM command WHERE {refused}")).await, 4);
    let burnt =
        format!("SELECT count(*) FROM command WHERE {refused} AND (command_id = requested_id OR key_id IS NOT NULL)");
    assert_eq!(db.number(&burnt).await, 0);
    db.assert_invariants().await;
    db.drop().await;
}

#[tokio::test]
async fn a_key_that_nobody_looked_up_is_refused_by_its_index() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    let created = [create("s", 0, 10, 5), adjust("s", Some("r1"), Some("k"))];
    commit(&mut writer, &mut claim, &created).await.expect("committed");
    // A bug in the snapshot, as the database would see it.
    let commands = logged(2, &[adjust("s", Some("r2"), Some("k"))]);
    let head = BatchHead { first_offset: 2, position: 3, log_time_before: 1_000, log_time: 1_000, last_digest: 8 };
    let mut tx = writer.begin(head).await.unwrap();
    let mut snapshot = tx.load_snapshot(&commands).await.unwrap();
    assert_eq!(snapshot.known_keys.len(), 1, "looked up");
    snapshot.known_keys.clear();
    let outcome = decide(&snapshot, &commands);
    let error = tx.write(&commands, &outcome, &BTreeMap::new()).await.unwrap_err();
    assert!(matches!(error, BatchError::Known), "{error}");
    tx.abandon().await;
    db.assert_invariants().await;
    db.drop().await;
}

#[tokio::test]
async fn a_known_id_for_a_sku_that_is_not_here_is_a_duplicate_not_poison() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    let id = uuid::Uuid::from_u128(5);
    commit(&mut writer, &mut claim, &[create("s", 0, 10, 5), reserve_as(id, "s", "u", 1)]).await.unwrap();
    commit(&mut writer, &mut claim, &[reserve_as(id, "elsewhere", "u", 1)]).await.unwrap();
    assert_eq!(db.number("SELECT duplicate_count::bigint FROM batch WHERE first_offset = 2").await, 1);
    assert_eq!(db.number("SELECT count(*) FROM poison").await, 0);
    db.drop().await;
}

/// The writer remembers SKUs; a row that is another one than it left contradicts the single writer.
#[tokio::test]
async fn stock_that_somebody_else_changed_is_a_contradiction_not_overwritten() {
    let changes = ["on_hand = on_hand + 1", "reserved = 0", "sold = 1", "settings_version = 9", "partition = 1"];
    for change in changes {
        let db = database().await;
        let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
        commit(&mut writer, &mut claim, &[create("s", 0, 10, 5), reserve("s", "u", 1)]).await.unwrap();
        db.run(&format!("UPDATE sku SET {change}")).await;
        let error = commit(&mut writer, &mut claim, &[reserve("s", "v", 1)]).await.unwrap_err();
        assert!(matches!(error, BatchError::Contradiction(_)), "{error}");
        assert_eq!(db.number("SELECT count(*) FROM reservation").await, 1, "nothing was committed");
        db.drop().await;
    }
}

/// A user's units are looked up only if the user may hold some: what a claim found, and what was committed since.
#[tokio::test]
async fn units_from_before_the_claim_and_since_count_against_the_limit() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    commit(&mut writer, &mut claim, &[create("s", 0, 10, 2), reserve("s", "before", 2)]).await.unwrap();
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed again");
    commit(&mut writer, &mut claim, &[reserve("s", "before", 1), reserve("s", "since", 2)]).await.unwrap();
    commit(&mut writer, &mut claim, &[reserve("s", "since", 1), reserve("s", "new", 1)]).await.unwrap();
    let refused = db
        .number("SELECT count(*) FROM reservation WHERE reason = 'USER_LIMIT' AND user_id IN ('before', 'since')")
        .await;
    assert_eq!(refused, 2);
    assert_eq!(db.number("SELECT reserved FROM sku").await, 5);
    db.assert_invariants().await;
    db.drop().await;
}

#[tokio::test]
async fn ten_skus_created_at_once_get_ten_partitions() {
    let db = Database::fresh("t", 10).await;
    let store = Arc::new(db.store());
    let pins = (0..10).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.pin_sku(&sku(&format!("s{n}"))).await.expect("pinned") })
    });
    let mut found = Vec::new();
    for pin in pins.collect::<Vec<_>>() {
        found.push(pin.await.expect("no panic"));
    }
    found.sort_unstable();
    assert_eq!(found, (0..10).collect::<Vec<_>>());
    let again = store.pin_sku(&sku("s3")).await.unwrap();
    assert_eq!(store.pin_of(&sku("s3")).await.unwrap(), Some(again), "a pin never moves");
    db.drop().await;
}

/// While a newer build's migrations run, processes of this one go on with the statements that they have prepared.
#[tokio::test]
async fn who_runs_does_not_notice_that_the_tables_were_expanded() {
    let db = database().await;
    let (mut writer, mut claim) = Writer::claim(&config(&db.url, "t"), 0).await.expect("claimed");
    let store = db.store();
    let mut auditor = AuditSession::open(&db.url, "t").await.expect("it opens");
    let mut relay = OutboxSession::open(&db.url, "t").await.expect("it opens");
    commit(&mut writer, &mut claim, &[create("s", 0, 10, 5)]).await.unwrap();
    for round in 0..2 {
        writer.remember().await.unwrap();
        commit(&mut writer, &mut claim, &[reserve("s", &format!("u{round}"), 1)]).await.unwrap();
        // At once, so that every connection of the pool has prepared it.
        let reads = || (0..limits::READ_CONNECTIONS_MAX).map(|_| store.clone());
        join_all(reads().map(async |store| assert_eq!(store.load_catalogue().await.unwrap().len(), 1))).await;
        join_all(reads().map(async |store| assert_eq!(store.load_skus(&[sku("s")]).await.unwrap().len(), 1))).await;
        join_all(reads().map(async |store| assert_eq!(store.load_partitions().await.unwrap().len(), 2))).await;
        join_all(reads().map(async |store| store.load_statuses(&[uuid::Uuid::nil()]).await.unwrap())).await;
        join_all(reads().map(async |store| store.load_last_effects(0).await.unwrap())).await;
        store.load_dead_letters(&[0]).await.unwrap();
        store.load_halted_skus().await.unwrap();
        let mut snapshot = auditor.snapshot().await.unwrap();
        assert_eq!(snapshot.counters(None).await.unwrap().len(), 1);
        assert_eq!(snapshot.movements(&[("s".to_owned(), 0)]).await.unwrap().len(), 2 + round);
        assert_eq!(snapshot.batches(&[(0, 0)]).await.unwrap().len(), 2 + round);
        snapshot.recount(None).await.unwrap();
        snapshot.end().await.unwrap();
        relay.load(&[(0, 0)], &[]).await.unwrap();
        db.run(&format!(
            "DO $$ DECLARE name text; BEGIN
               FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = current_schema() LOOP
                 EXECUTE format('ALTER TABLE %I ADD COLUMN planted_{round} text', name);
               END LOOP; END $$"
        ))
        .await;
    }
    db.drop().await;
}
