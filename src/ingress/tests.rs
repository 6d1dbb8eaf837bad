//! Lanes against a publisher that the test holds in its hand, and the grouping of requests into records.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lane::Lane;
use super::request::{Claim, Request};
use super::{Delivery, NotSent, deliver, record};
use crate::ids::{Place, Quantity, SkuId, Ticket, UserId};
use crate::inventory::{Command, Reserve};
use crate::kafka::producer::{Link, OnReport, Report};
use crate::wire::{self, Sent};
use crate::{ids, limits};

const PARTITION: i32 = 3;
const UNAVAILABLE: Delivery = Delivery::NotSent(NotSent::Unavailable);

fn reserve(sku: &str, user: usize) -> Sent {
    let command = Command::Reserve(Reserve {
        id: ids::fresh_id(),
        user: UserId::parse(&format!("u-{user}")).expect("legal"),
        sku: SkuId::parse(sku).expect("legal"),
        quantity: Quantity::new(1).expect("legal"),
        metadata: None,
    });
    Sent { received_at_us: 0, request_id: String::new(), command }
}

fn at(offset: i64, index: u16) -> Delivery {
    Delivery::Delivered(Ticket { partition: PARTITION, place: Place { offset, index } })
}

/// A record that the lane has published and that has no report yet.
struct Published {
    sku: String,
    users: Vec<String>,
    on_report: OnReport,
}

/// A running lane whose publishes end up in `published`.
struct Bench {
    lane: mpsc::Sender<Request>,
    published: Arc<Mutex<Vec<Published>>>,
    link: watch::Sender<Link>,
    closing: CancellationToken,
    abandoned: CancellationToken,
    task: JoinHandle<()>,
}

impl Bench {
    fn new(link: Link) -> Self {
        let (lane, waiting) = mpsc::channel(limits::LANE_QUEUE_MAX);
        let (link, watched) = watch::channel(link);
        let published = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&published);
        let publisher = Box::new(move |record: record::Record, on_report| {
            let decoded = wire::decode(&record.payload).expect("a record of ours");
            assert_eq!(decoded.sku, record.sku);
            let user_of = |envelope: wire::Envelope| match envelope.command.expect("a good command") {
                Command::Reserve(reserve) => reserve.user.to_string(),
                _ => unreachable!("these tests only reserve"),
            };
            let users = decoded.commands.into_iter().map(user_of).collect();
            taken.lock().expect("no panic").push(Published { sku: record.sku.to_string(), users, on_report });
        });
        let (closing, abandoned) = (CancellationToken::new(), CancellationToken::new());
        let task =
            tokio::spawn(Lane::new(PARTITION, waiting, publisher, watched).run(closing.clone(), abandoned.clone()));
        Self { lane, published, link, closing, abandoned, task }
    }

    fn submit(&self, sku: &str, user: usize) -> JoinHandle<Delivery> {
        let (lane, sent) = (self.lane.clone(), reserve(sku, user));
        tokio::spawn(async move { deliver(&lane, sent, None).await })
    }

    /// Lets every task do all that it can do now (the tests' runtime has one thread).
    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    /// The records published since the last call.
    async fn published(&self) -> Vec<Published> {
        self.settle().await;
        std::mem::take(&mut *self.published.lock().expect("no panic"))
    }
}

#[tokio::test]
async fn what_gathers_during_a_publish_makes_the_next_one() {
    let bench = Bench::new(Link::Up);
    let first = bench.submit("A", 0);
    let mut flight = bench.published().await;
    assert_eq!(flight.len(), 1);
    let others: Vec<_> = (1..=120).map(|user| bench.submit("A", user)).collect();
    let other_sku = bench.submit("B", 500);
    assert!(bench.published().await.is_empty(), "one publish at a time");

    (flight.remove(0).on_report)(Report::At(41));
    assert_eq!(first.await.expect("no panic"), at(41, 0));
    let flight = bench.published().await;
    assert_eq!(
        flight.iter().map(|r| (&*r.sku, r.users.len())).collect::<Vec<_>>(),
        [("A", 50), ("A", 50), ("A", 20), ("B", 1)]
    );
    let users: Vec<_> = flight.iter().filter(|r| r.sku == "A").flat_map(|r| r.users.clone()).collect();
    assert_eq!(users, (1..=120).map(|user| format!("u-{user}")).collect::<Vec<_>>(), "first come, first served");

    for (offset, record) in (42..).zip(flight) {
        (record.on_report)(Report::At(offset));
    }
    for (user, answered) in (0..).zip(others) {
        let index = u16::try_from(user % 50).expect("small");
        assert_eq!(answered.await.expect("no panic"), at(42 + user / 50, index));
    }
    assert_eq!(other_sku.await.expect("no panic"), at(45, 0));
}

#[tokio::test]
async fn a_crowd_shares_publishes_and_a_few_are_published_at_once() {
    const CROWD: usize = 20_000;
    let (lane, waiting) = mpsc::channel(limits::LANE_QUEUE_MAX);
    let (_link, watched) = watch::channel(Link::Up);
    let publishes = Arc::new(Mutex::new(0_usize));
    let counted = Arc::clone(&publishes);
    let publisher = Box::new(move |_, on_report: OnReport| {
        *counted.lock().expect("no panic") += 1;
        on_report(Report::At(0));
    });
    let lane_ends = CancellationToken::new();
    let task = Lane::new(PARTITION, waiting, publisher, watched).run(lane_ends.clone(), CancellationToken::new());
    let task = tokio::spawn(task);
    // Reports come at once: without a pace the lane would publish each request alone.
    let offer = async |user| {
        let request = Request::new(reserve("A", user), None, Claim::default()).0;
        lane.send(request).await.map_err(drop).expect("the lane is open");
        tokio::task::yield_now().await;
    };
    let began = std::time::Instant::now();
    for user in 0..3 {
        offer(user).await;
        tokio::task::yield_now().await;
        assert_eq!(*publishes.lock().expect("no panic"), user + 1, "nobody waits for company");
    }
    for user in 3..CROWD {
        offer(user).await;
    }
    lane_ends.cancel();
    task.await.expect("the lane ends");
    let records = *publishes.lock().expect("no panic");
    // Full records, and what goes at once while not more than so many arrive: the more the slower this machine is, and far from one for
    // each on a machine that is not so slow that nothing can be said.
    let unpaced = limits::PACE_ABOVE_PER_SECOND * (began.elapsed() + limits::RATE_WINDOW).as_secs_f64();
    let most = CROWD / limits::RECORD_COMMANDS_MAX + 2 * unpaced as usize;
    assert!(records <= most, "{records} records for {CROWD} requests, at most {most}");
}

#[tokio::test]
async fn a_failing_record_does_not_fail_its_neighbours() {
    let bench = Bench::new(Link::Up);
    let skus = ["A", "B", "C", "D"];
    let answered = skus.map(|sku| bench.submit(sku, 1));
    let reports = [Report::At(7), Report::Refused, Report::Open, Report::Full];
    for (record, report) in bench.published().await.into_iter().zip(reports) {
        (record.on_report)(report);
    }
    let mut seen = Vec::new();
    for delivery in answered {
        seen.push(delivery.await.expect("no panic"));
    }
    assert_eq!(seen, [at(7, 0), UNAVAILABLE, Delivery::Unknown, Delivery::NotSent(NotSent::Full)]);
    let _next = bench.submit("A", 2);
    assert_eq!(bench.published().await.len(), 1, "the lane goes on");
}

#[tokio::test]
async fn behind_an_overdue_publish_requests_are_refused_and_never_published() {
    let bench = Bench::new(Link::Up);
    let fired = bench.submit("A", 1);
    let mut flight = bench.published().await;
    let behind = bench.submit("A", 2);
    let started = Instant::now();
    assert_eq!(fired.await.expect("no panic"), Delivery::Unknown, "it may land yet");
    assert_eq!(behind.await.expect("no panic"), UNAVAILABLE, "it can't");
    assert!(started.elapsed() < limits::DELIVERY_WAIT + Duration::from_millis(500));
    let late = bench.submit("A", 3);
    bench.settle().await;
    assert!(late.is_finished(), "no reason to wait behind an overdue publish");
    assert_eq!(late.await.expect("no panic"), UNAVAILABLE);

    (flight.remove(0).on_report)(Report::At(1));
    let again = bench.submit("A", 4);
    let mut flight = bench.published().await;
    assert_eq!(flight[0].users, ["u-4"], "what was refused is gone");
    (flight.remove(0).on_report)(Report::At(2));
    assert_eq!(again.await.expect("no panic"), at(2, 0));
}

#[tokio::test]
async fn a_request_taken_back_while_the_link_is_doubted_is_not_published_later() {
    let bench = Bench::new(Link::Doubted);
    let waits = bench.submit("A", 1);
    assert!(bench.published().await.is_empty(), "held back");
    assert_eq!(waits.await.expect("no panic"), UNAVAILABLE);
    bench.link.send_replace(Link::Up);
    assert!(bench.published().await.is_empty(), "its client was told that it was not sent");
}

#[tokio::test]
async fn a_doubted_link_holds_requests_back_and_one_that_is_down_refuses_them_at_once() {
    let bench = Bench::new(Link::Doubted);
    let held = bench.submit("A", 1);
    assert!(bench.published().await.is_empty());
    bench.link.send_replace(Link::Up);
    let mut flight = bench.published().await;
    assert_eq!(flight.len(), 1);

    let behind = bench.submit("A", 2);
    bench.link.send_replace(Link::Down);
    bench.settle().await;
    assert!(behind.is_finished(), "refused at once");
    assert_eq!(behind.await.expect("no panic"), UNAVAILABLE);
    assert!(!held.is_finished(), "it is on its way");
    (flight.remove(0).on_report)(Report::At(0));
    assert_eq!(held.await.expect("no panic"), at(0, 0));

    let refused = bench.submit("A", 3);
    assert!(bench.published().await.is_empty());
    assert_eq!(refused.await.expect("no panic"), UNAVAILABLE);
}

#[tokio::test]
async fn dropping_the_future_neither_loses_nor_doubles_the_request() {
    let bench = Bench::new(Link::Up);
    let _first = bench.submit("A", 1);
    let mut flight = bench.published().await;
    let dropped = bench.submit("A", 2);
    bench.settle().await;
    dropped.abort();
    (flight.remove(0).on_report)(Report::At(0));
    let mut flight = bench.published().await;
    assert_eq!(flight[0].users, ["u-2"]);
    (flight.remove(0).on_report)(Report::At(1));
    assert!(bench.published().await.is_empty());
}

#[tokio::test]
async fn a_full_lane_refuses_at_once() {
    let bench = Bench::new(Link::Up);
    let _fired = bench.submit("A", 0);
    let _flight = bench.published().await;
    let _waiting: Vec<_> = (0..limits::LANE_QUEUE_MAX).map(|user| bench.submit("A", user)).collect();
    bench.settle().await;
    let one_more = bench.submit("A", 9_999_999);
    bench.settle().await;
    assert!(one_more.is_finished());
    assert_eq!(one_more.await.expect("no panic"), Delivery::NotSent(NotSent::Full));
}

#[tokio::test]
async fn closing_publishes_what_is_there_and_ends() {
    let bench = Bench::new(Link::Up);
    let first = bench.submit("A", 1);
    let mut flight = bench.published().await;
    let second = bench.submit("A", 2);
    bench.settle().await;
    bench.closing.cancel();
    (flight.remove(0).on_report)(Report::At(0));
    let mut flight = bench.published().await;
    (flight.remove(0).on_report)(Report::At(1));
    assert_eq!((first.await.expect("no panic"), second.await.expect("no panic")), (at(0, 0), at(1, 0)));
    bench.task.await.expect("the lane ends");
    assert_eq!(deliver(&bench.lane, reserve("A", 3), None).await, UNAVAILABLE);
}

#[tokio::test]
async fn an_abandoned_lane_leaves_nobody_without_an_answer() {
    let bench = Bench::new(Link::Up);
    let fired = bench.submit("A", 1);
    let flight = bench.published().await;
    let waiting = bench.submit("A", 2);
    bench.settle().await;
    bench.closing.cancel();
    bench.abandoned.cancel();
    bench.task.await.expect("the lane ends");
    drop(flight); // a client library that ends without a word
    assert_eq!(waiting.await.expect("no panic"), UNAVAILABLE);
    assert_eq!(fired.await.expect("no panic"), Delivery::Unknown);
}

proptest! {
    #[test]
    fn grouping_loses_nothing_and_keeps_the_order_per_sku(skus in prop::collection::vec(0_usize..4, 0..300)) {
        let requests = skus.iter().enumerate().map(|(user, sku)| {
            Request::new(reserve(&format!("S{sku}"), user), None, Claim::default()).0
        });
        let user_of = |request: &Request| match &request.sent.command {
            Command::Reserve(reserve) => reserve.user.as_str()[2..].parse::<usize>().expect("made above"),
            _ => unreachable!("none made"),
        };
        let mut seen = vec![Vec::new(); 4];
        for group in record::group(requests) {
            prop_assert!((1..=limits::RECORD_COMMANDS_MAX).contains(&group.len()));
            let sku = skus[user_of(&group[0])];
            prop_assert!(group.iter().all(|request| skus[user_of(request)] == sku), "one SKU per record");
            seen[sku].extend(group.iter().map(user_of));
        }
        for (sku, seen) in seen.into_iter().enumerate() {
            let came: Vec<_> = (0..skus.len()).filter(|user| skus[*user] == sku).collect();
            prop_assert_eq!(seen, came);
        }
    }
}
