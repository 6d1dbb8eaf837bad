//! Ids that somebody wrote to two partitions at the same time: a duplicate in one of them, never a halt.

use std::collections::BTreeSet;

use flashsale::consumer;
use flashsale::ids::{self, Note};
use flashsale::inventory::{Adjust, Command, Logged, Outcome, Snapshot, StockChange};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::support::commands::{create, record, reserve, reserve_as, sku};
use crate::support::consumer::{SOON, World};
use crate::support::kafka::publish_raw;
use crate::support::wait::wait_for;

fn adjust(id: Uuid, sku_name: &str) -> Command {
    let note = Note::parse("why").expect("legal");
    Command::Adjust(Adjust { id, sku: sku(sku_name), change: StockChange::By(1), note, reference: None, key_id: None })
}

async fn run(conn: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql.as_str())).execute(conn).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// Lets partition 0 decide `commands` while another partition's batch has written `row` and not committed; then it commits.
async fn race(world: &World, row: String, commands: &[Command], position: i64) {
    let mut rival = world.db.connect().await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut rival).await.expect("it answers");
    run(&mut rival, format!("BEGIN; {row}")).await;
    publish_raw(&world.topic, 0, "s", &[&record(commands)]);
    wait_for("the batch waits for the other one", SOON, async || {
        let waiting = format!("SELECT count(*) FROM pg_stat_activity WHERE {pid} = ANY(pg_blocking_pids(pid))");
        world.db.number(&waiting).await == 1
    })
    .await;
    run(&mut rival, "COMMIT".to_owned()).await;
    world.wait_for_position(0, position).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_another_partition_commits_after_the_look_up_is_a_duplicate() {
    let world = World::fresh(2).await;
    world.publish(0, &[create("s", 0, 10, 9)]);
    let consumer = world.consume();
    world.wait_for_position(0, 1).await;
    let id = ids::fresh_id();
    let row = format!(
        "INSERT INTO command (command_id, requested_id, kind, sku_id, result, fingerprint, partition, log_offset, log_index, log_time)
         VALUES ('{id}', '{id}', 'adjust', 't', 'ADJUSTED', 0, 1, 500, 0, now())"
    );
    let neighbour = reserve("s", "a", 1);
    race(&world, row, &[adjust(id, "s"), neighbour.clone(), adjust(ids::fresh_id(), "s")], 2).await;
    assert_eq!(world.status(&neighbour).await, "RESERVED");
    assert_eq!(world.db.number("SELECT on_hand FROM sku").await, 11, "the other one was made");
    // A repeat makes the writer look reservations up as well, and still it can't see what is not committed.
    world.publish(0, std::slice::from_ref(&neighbour));
    world.wait_for_position(0, 3).await;
    let id = ids::fresh_id();
    let row = format!(
        "INSERT INTO reservation (reservation_id, user_hash, log_offset, log_time, quantity, version, partition, log_index, status,
           reason, user_id, sku_id) VALUES ('{id}', 0, 500, now(), 1, 1, 1, 0, 2, 'SOLD_OUT', 'u', 't')"
    );
    let last = reserve("s", "c", 1);
    race(&world, row, &[reserve_as(id, "s", "b", 1), last.clone()], 4).await;
    assert_eq!(world.status(&last).await, "RESERVED");
    assert_eq!(world.db.number("SELECT sum(duplicate_count) FROM batch").await, 3);
    assert_eq!(world.db.text("SELECT max(halted_reason) FROM partition_state").await, None);
    consumer.stop().await;
    // The rival's rows belong to no batch.
    world.db.run("DELETE FROM reservation WHERE log_offset = 500; DELETE FROM command WHERE log_offset = 500").await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_commands_in_two_partitions_are_done_once_and_stop_neither() {
    const RECORDS: usize = 20;
    let world = World::fresh(2).await;
    let names = ["s", "t"];
    for (partition, name) in (0..).zip(names) {
        world.publish(partition, &[create(name, partition, 10_000, 1000)]);
    }
    let consumer = world.consume();
    for partition in [0, 1] {
        world.wait_for_position(partition, 1).await;
    }
    let mut done = 1;
    for _ in 0..RECORDS {
        let adjusts: Vec<Uuid> = (0..25).map(|_| ids::fresh_id()).collect();
        let reserves: Vec<Uuid> = (0..25).map(|_| ids::fresh_id()).collect();
        done += 1;
        for (partition, name) in (0..).zip(names) {
            let mut commands: Vec<Command> = adjusts.iter().map(|id| adjust(*id, name)).collect();
            commands.extend(reserves.iter().map(|id| reserve_as(*id, name, "u", 1)));
            // As far from each other's order as can be.
            if partition == 1 {
                commands.reverse();
            }
            publish_raw(&world.topic, partition, name, &[&record(&commands)]);
        }
    }
    for partition in [0, 1] {
        world.wait_for_position(partition, done).await;
    }
    let each = (RECORDS * 25) as i64;
    assert_eq!(world.db.number("SELECT count(*) FROM command WHERE kind = 'adjust'").await, each, "each once");
    assert_eq!(world.db.number("SELECT sum(on_hand)::bigint FROM sku").await, 20_000 + each);
    assert_eq!(world.db.number("SELECT sum(reserved)::bigint FROM sku").await, each);
    assert_eq!(world.db.number("SELECT sum(duplicate_count) FROM batch").await, 2 * each);
    consumer.stop().await;
    world.finish().await;
}

/// A decision function that takes every id for a new one.
fn forgetful(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    let known_reservations = BTreeSet::new();
    consumer::decide(&Snapshot { known_reservations, ..snapshot.clone() }, commands)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_no_look_up_helps_halts_and_is_not_tried_for_ever() {
    let world = World::fresh(1).await;
    let twice = reserve("s", "u", 1);
    world.publish(0, &[create("s", 0, 10, 9), twice.clone()]);
    let consumer = world.consume_with(&world.db.url, forgetful);
    world.wait_for_position(0, 2).await;
    world.publish(0, &[twice]);
    let reason = world.wait_for_halt(0).await;
    assert_eq!(reason, "an id of the batch was decided before, though all of them were looked up");
    consumer.stop().await;
    world.finish().await;
}
