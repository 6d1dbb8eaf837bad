//! Holds that end by themselves: ticks, mass expiry, and what a crash in the middle leaves of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flashsale::consumer;
use flashsale::inventory::{Command, LatePayment};
use futures_util::StreamExt;

use crate::support::commands::{record, reserve};
use crate::support::consumer::World;
use crate::support::kafka::publish_raw;
use crate::support::life::{cancel, confirm, create_with_hold};
use crate::support::proxy::{Lose, Proxy};
use crate::support::wait::wait_for;

/// How late a hold may end here, in milliseconds. The promise is a second, and `--nocapture` shows what it was; a loaded machine that runs
/// all tests at once is not the place to measure it.
const LATE_MAX_MS: i64 = 5_000;
const HELD: &str = "SELECT coalesce(sum(reserved), 0)::bigint FROM sku";
/// The shortest hold, and then some.
const ENDED: Duration = Duration::from_secs(20);

/// Holds by as many users, in full records.
fn crowd(sku: &str, count: usize) -> Vec<Command> {
    (0..count).map(|n| reserve(sku, &format!("user-{n}"), 1)).collect()
}

fn publish(world: &World, partition: i32, commands: &[Command]) {
    let records: Vec<Vec<u8>> = commands.chunks(50).map(record).collect();
    let payloads: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    publish_raw(&world.topic, partition, commands[0].sku().as_str(), &payloads);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_ends_by_a_tick_when_nobody_buys() {
    let world = World::fresh(1).await;
    let consumer = world.consume();
    let hold = reserve("s", "u", 1);
    world.publish(0, &[create_with_hold("s", 1, 1, 10), hold.clone()]);
    world.wait_for_position(0, 2).await;
    assert_eq!(world.status(&hold).await, "RESERVED");
    wait_for("the hold has ended", ENDED, async || world.db.number(HELD).await == 0).await;
    assert_eq!(world.status(&hold).await, "EXPIRED");
    let late = "SELECT (extract(epoch FROM s.expired_through - r.expires_at) * 1000)::bigint FROM sku s, reservation r";
    let late = world.db.number(late).await;
    println!("a single hold ended {late} ms after its time");
    assert!((0..=LATE_MAX_MS).contains(&late), "ended {late} ms after its time");
    wait_for("the row says so", ENDED, async || {
        world.db.number("SELECT count(*) FROM reservation WHERE status = 5").await == 1
    })
    .await;
    let buyer = reserve("s", "v", 1);
    world.publish(0, std::slice::from_ref(&buyer));
    wait_for("the unit is sold again", ENDED, async || world.status(&buyer).await == "RESERVED").await;
    consumer.stop().await;
    world.finish().await;
}

/// Ten thousand holds of one second, and the consumer dies while their rows are being settled.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_holds_that_end_together_come_back_once_also_through_a_crash() {
    const HOLDS: i64 = 10_000;
    let world = World::fresh(1).await;
    world.publish(0, &[create_with_hold("s", HOLDS, 1, 10)]);
    publish(&world, 0, &crowd("s", HOLDS as usize));
    let consumer = world.consume();
    wait_for("all are held", ENDED, async || world.db.number(HELD).await == HOLDS).await;
    let settled = "SELECT count(*) FROM reservation WHERE status = 5";
    wait_for("some rows are settled", ENDED, async || world.db.number(settled).await > 0).await;
    consumer.crash();
    let consumer = world.consume();
    wait_for("all rows are settled", ENDED, async || world.db.number(settled).await == HOLDS).await;
    assert_eq!(world.db.number(HELD).await, 0);
    assert_eq!(world.db.number("SELECT count(*) FROM reservation WHERE version = 2").await, HOLDS, "each once");
    assert_eq!(
        world.db.number("SELECT -sum(d_reserved)::bigint FROM stock_movement WHERE d_reserved < 0").await,
        HOLDS
    );
    let late = "SELECT (extract(epoch FROM (SELECT expired_through FROM sku) - max(expires_at)) * 1000)::bigint FROM reservation";
    let late = world.db.number(late).await;
    println!("the last of {HOLDS} holds ended {late} ms after its time, through a crash");
    assert!((0..=LATE_MAX_MS).contains(&late), "the last ended {late} ms after its time");
    consumer.stop().await;
    world.finish().await;
}

/// The owner dies just before the holds end, and the next one comes only afterwards: no tick of theirs is in the log.
#[tokio::test(flavor = "multi_thread")]
async fn holds_that_end_while_nobody_decides_come_back_once() {
    const HOLDS: i64 = 1_000;
    let world = World::fresh(1).await;
    world.publish(0, &[create_with_hold("s", HOLDS, 1, 10)]);
    publish(&world, 0, &crowd("s", HOLDS as usize));
    let consumer = world.consume();
    wait_for("all are held", ENDED, async || world.db.number(HELD).await == HOLDS).await;
    let left = "SELECT (extract(epoch FROM min(expires_at) - clock_timestamp()) * 1000)::bigint FROM reservation";
    wait_for("the end is near", ENDED, async || world.db.number(left).await <= 500).await;
    consumer.crash();
    wait_for("the end has passed", ENDED, async || world.db.number(left).await < -500).await;
    assert_eq!(world.db.number(HELD).await, HOLDS, "nothing ends by the wall clock");
    let consumer = world.consume();
    wait_for("all are back", ENDED, async || world.db.number(HELD).await == 0).await;
    let ended = "SELECT count(*) FROM reservation WHERE status = 5 AND version = 2";
    wait_for("all rows are settled", ENDED, async || world.db.number(ended).await == HOLDS).await;
    let released = "SELECT -sum(d_reserved)::bigint FROM stock_movement WHERE d_reserved < 0";
    assert_eq!(world.db.number(released).await, HOLDS, "each once");
    consumer.stop().await;
    world.finish().await;
}

/// One is confirmed or cancelled or ends, never two of these; whoever comes late hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn cancels_confirms_and_ends_of_a_thousand_holds_resolve_each_once() {
    let world = World::fresh(1).await;
    world.publish(0, &[create_with_hold("s", 1_000, 1, 10)]);
    let holds = crowd("s", 1_000);
    publish(&world, 0, &holds);
    let consumer = world.consume();
    wait_for("all are held", ENDED, async || world.db.number(HELD).await == 1_000).await;
    let rivals: Vec<Command> = holds
        .iter()
        .enumerate()
        .flat_map(|(n, hold)| {
            let (cancel, confirm) = (cancel("s", hold), confirm("s", hold, "p"));
            match n % 3 {
                0 => vec![cancel.clone(), confirm, cancel],
                1 => vec![confirm.clone(), cancel, confirm],
                _ => vec![],
            }
        })
        .collect();
    publish(&world, 0, &rivals);
    wait_for("the rest has ended", ENDED, async || world.db.number(HELD).await == 0).await;
    assert_eq!(world.db.number("SELECT sold FROM sku").await, 333);
    let by_status = "SELECT string_agg(status || ':' || n, ' ' ORDER BY status) FROM (
                       SELECT status, count(*) AS n FROM reservation_now GROUP BY 1) c";
    assert_eq!(world.db.text(by_status).await.as_deref(), Some("3:333 4:334 5:333"));
    let refused = "SELECT string_agg(result || ':' || n, ' ' ORDER BY result) FROM (
                     SELECT result, count(*) AS n FROM command WHERE kind <> 'configure' GROUP BY 1) c";
    assert_eq!(
        world.db.text(refused).await.as_deref(),
        Some("ALREADY_CANCELLED:334 ALREADY_CONFIRMED:333 CANCELLED:334 CONFIRMED:333"),
        "the third of each three was a duplicate"
    );
    consumer.stop().await;
    world.finish().await;
}

/// Payments that arrive as the holds end: the log's order decides, and each payment hears what became of its hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_payments_race_against_the_end_of_their_holds() {
    let world = World::fresh(1).await;
    let Command::Configure(mut create) = create_with_hold("s", 1_000, 1, 10) else { unreachable!("it creates") };
    create.settings.late_payment = LatePayment::Reject;
    world.publish(0, &[Command::Configure(create)]);
    let holds = crowd("s", 1_000);
    publish(&world, 0, &holds);
    let consumer = world.consume();
    wait_for("all are held", ENDED, async || world.db.number(HELD).await == 1_000).await;
    let payments: Vec<Command> = holds.iter().map(|hold| confirm("s", hold, "p")).collect();
    let left = "SELECT (extract(epoch FROM min(expires_at) - clock_timestamp()) * 1000)::bigint FROM reservation";
    for (n, some) in payments.chunks(100).enumerate() {
        // From well before the end to well after it.
        let until = if n == 0 { 2_000 } else { 250 - 100 * n as i64 };
        wait_for("the end is near", ENDED, async || world.db.number(left).await <= until).await;
        publish(&world, 0, some);
    }
    let decided = "SELECT count(*) FROM command WHERE kind = 'confirm'";
    wait_for("all payments have their answer", ENDED, async || world.db.number(decided).await == 1_000).await;
    let contradictions = "SELECT count(*) FROM command c JOIN reservation_now r USING (reservation_id)
        WHERE (c.result, r.status) NOT IN (('CONFIRMED', 3), ('HOLD_EXPIRED', 5)) OR (r.status = 3) <> (c.log_time < r.expires_at)";
    assert_eq!(world.db.number(contradictions).await, 0);
    let sold = world.db.number("SELECT sold FROM sku").await;
    assert!((1..1_000).contains(&sold), "{sold} of 1,000 were in time: the race was none");
    consumer.stop().await;
    world.finish().await;
}

/// The oracle says that a doubtful batch was committed; what its holds need must not wait for the next command.
#[tokio::test(flavor = "multi_thread")]
async fn holds_end_also_when_the_answer_to_their_commit_was_lost_and_silence_follows() {
    let world = World::fresh(1).await;
    let server =
        world.db.url.split('@').nth(1).and_then(|rest| rest.split('/').next()).expect("host and port").to_owned();
    let proxy = Proxy::start(server.clone()).await;
    let url = world.db.url.replace(&server, &format!("127.0.0.1:{}", proxy.port));
    let consumer = world.consume_with(&url, consumer::decide);
    world.publish(0, &[create_with_hold("s", 1, 1, 10)]);
    world.wait_for_position(0, 1).await;
    proxy.lose_once(Lose::Answer);
    world.publish(0, &[reserve("s", "u", 1)]);
    world.wait_for_position(0, 2).await;
    wait_for("the answer is lost", ENDED, async || proxy.lost_count() == 1).await;
    wait_for("the hold has ended", ENDED, async || world.db.number(HELD).await == 0).await;
    consumer.stop().await;
    world.finish().await;
}

/// Partitions move while holds end: the new owner finds what is due.
#[tokio::test(flavor = "multi_thread")]
async fn two_consumers_end_every_hold_once_while_partitions_move() {
    const PARTITIONS: i32 = 4;
    let world = World::fresh(PARTITIONS).await;
    for partition in 0..PARTITIONS {
        let sku = format!("s{partition}");
        let Command::Configure(mut create) = create_with_hold(&sku, 500, 1, 10) else { unreachable!("it creates") };
        create.pin = partition;
        world.publish(partition, &[Command::Configure(create)]);
        publish(&world, partition, &crowd(&sku, 500));
    }
    let first = world.consume();
    wait_for("all are held", ENDED, async || world.db.number(HELD).await == 2_000).await;
    let began = Instant::now();
    let second = world.consume();
    wait_for("half have ended", ENDED, async || world.db.number(HELD).await <= 1_000).await;
    first.stop().await;
    wait_for("all have ended", ENDED, async || world.db.number(HELD).await == 0).await;
    wait_for("all rows say so", ENDED, async || {
        world.db.number("SELECT count(*) FROM reservation WHERE status = 5 AND version = 2").await == 2_000
    })
    .await;
    let owners: BTreeSet<i64> = futures_util::stream::iter(0..i64::from(PARTITIONS))
        .then(|partition| {
            let sql = format!("SELECT epoch FROM partition_state WHERE partition = {partition}");
            let db = &world.db;
            async move { db.number(&sql).await }
        })
        .collect()
        .await;
    assert!(owners.iter().max() > Some(&1), "partitions moved: {owners:?} after {:?}", began.elapsed());
    second.stop().await;
    world.finish().await;
}
