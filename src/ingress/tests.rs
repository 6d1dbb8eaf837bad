//! Lanes against a publisher that the test holds in its hand, and what collectors do with what they are given.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::collector::{Collector, Pending, Record};
use super::counted::Counted;
use super::lane::{Lane, Message, Publisher};
use super::levels::{Policy, Pressure, Setting, Table};
use super::{Delivery, Entering, NotSent, OnDelivery, Submitted};
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

fn enter(collector: &Collector, sent: Sent, on_delivery: Option<OnDelivery>) -> Submitted {
    let mut command = Entering { partition: PARTITION, sent, on_delivery, trace: None };
    let entered = collector.enter(|door| command.enter(door));
    entered.unwrap_or_else(|why| Submitted::now(Delivery::NotSent(why)))
}

/// The users of a record's commands, in their order.
fn users_of(payload: &[u8]) -> (SkuId, Vec<String>) {
    let decoded = wire::decode(payload).expect("a record of ours");
    let user_of = |envelope: wire::Envelope| match envelope.command.expect("a good command") {
        Command::Reserve(reserve) => reserve.user.to_string(),
        _ => unreachable!("these tests only reserve"),
    };
    (decoded.sku, decoded.commands.into_iter().map(user_of).collect())
}

/// A record that the lane has published and that has no report yet.
struct Published {
    sku: String,
    users: Vec<String>,
    on_report: OnReport,
}

/// A running lane whose publishes end up in `published`.
struct Bench {
    collector: Arc<Collector>,
    published: Arc<Mutex<Vec<Published>>>,
    link: watch::Sender<Link>,
    closing: CancellationToken,
    abandoned: CancellationToken,
    task: JoinHandle<()>,
}

/// One publish at a time, and no sooner than this after the last one.
fn one_at_a_time(linger: Duration) -> Policy {
    let setting = Setting { linger, commands_max: 500, in_flight_max: 1 };
    Policy { pressure: Pressure::Fixed(setting), ..Policy::default() }
}

fn at_level(level: usize) -> Policy {
    Policy { pressure: Pressure::Levels { table: Table::default(), min: level, max: level }, ..Policy::default() }
}

fn lane(collector: &Arc<Collector>, publisher: Publisher, link: watch::Receiver<Link>, policy: Policy) -> Lane {
    let no_newer = watch::Sender::default().subscribe();
    Lane::new(Arc::clone(collector), publisher, link, (policy, no_newer), Counted::default())
}

impl Bench {
    fn new(link: Link) -> Self {
        Self::with(link, one_at_a_time(Duration::ZERO))
    }

    fn with(link: Link, policy: Policy) -> Self {
        let collector = Arc::new(Collector::new(PARTITION, limits::LANE_QUEUE_MAX));
        let (link, watched) = watch::channel(link);
        let published = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&published);
        let publisher = Box::new(move |message: Message<'_>, on_report| {
            let (sku, users) = users_of(message.payload);
            assert_eq!(sku, *message.sku);
            taken.lock().expect("no panic").push(Published { sku: sku.to_string(), users, on_report });
        });
        let (closing, abandoned) = (CancellationToken::new(), CancellationToken::new());
        let task = lane(&collector, publisher, watched, policy).run(closing.clone(), abandoned.clone());
        let task = tokio::spawn(task);
        Self { collector, published, link, closing, abandoned, task }
    }

    fn submit(&self, sku: &str, user: usize) -> JoinHandle<Delivery> {
        tokio::spawn(enter(&self.collector, reserve(sku, user), None))
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
    const LINGER: Duration = limits::PUBLISH_LINGER;
    let collector = Arc::new(Collector::new(PARTITION, limits::LANE_QUEUE_MAX));
    let (_link, watched) = watch::channel(Link::Up);
    let publishes = Arc::new(Mutex::new(0_usize));
    let counted = Arc::clone(&publishes);
    let publisher = Box::new(move |_: Message<'_>, on_report: OnReport| {
        *counted.lock().expect("no panic") += 1;
        on_report(Report::At(0));
    });
    let lane_ends = CancellationToken::new();
    let task = lane(&collector, publisher, watched, one_at_a_time(LINGER));
    let task = tokio::spawn(task.run(lane_ends.clone(), CancellationToken::new()));
    // Reports come at once: without a pace the lane would publish each request alone.
    let offer = async |user| {
        let mut submitted = enter(&collector, reserve("A", user), None);
        assert_eq!((&mut submitted).now_or_never(), None, "there is room");
        tokio::task::yield_now().await;
    };
    let began = std::time::Instant::now();
    offer(0).await;
    tokio::task::yield_now().await;
    assert_eq!(*publishes.lock().expect("no panic"), 1, "nobody waits for company");
    for user in 1..CROWD {
        offer(user).await;
    }
    lane_ends.cancel();
    task.await.expect("the lane ends");
    let records = *publishes.lock().expect("no panic");
    // Full records, and one that is not full for each publish: as many as the pace allows, or as full publishes there are.
    let paced = began.elapsed().as_secs_f64() / LINGER.as_secs_f64();
    let most = CROWD / limits::RECORD_COMMANDS_MAX + CROWD / 500 + paced as usize + 2;
    assert!(records <= most, "{records} records for {CROWD} requests, at most {most}");
}

#[tokio::test]
async fn at_low_pressure_two_publishes_are_on_their_way_at_once_and_a_third_waits() {
    let bench = Bench::with(Link::Up, at_level(1));
    let first = bench.submit("A", 1);
    let mut one = bench.published().await;
    let second = bench.submit("A", 2);
    let mut two = bench.published().await;
    assert_eq!((one.len(), two.len()), (1, 1), "nobody waits for company");
    let third = bench.submit("A", 3);
    assert!(bench.published().await.is_empty(), "two are enough");
    // Their reports may come in another order.
    (two.remove(0).on_report)(Report::At(8));
    assert_eq!(second.await.expect("no panic"), at(8, 0));
    let mut three = bench.published().await;
    assert_eq!(three.len(), 1);
    (one.remove(0).on_report)(Report::At(7));
    (three.remove(0).on_report)(Report::At(9));
    assert_eq!((first.await.expect("no panic"), third.await.expect("no panic")), (at(7, 0), at(9, 0)));
}

#[tokio::test]
async fn a_publish_is_bounded_by_commands_and_by_bytes() {
    let bounded = |commands_max, bytes_max| Policy { commands_max, bytes_max, ..one_at_a_time(Duration::ZERO) };
    // A record of 50 commands has about 2 KiB.
    for (policy, sizes) in [
        (bounded(120, usize::MAX), vec![50, 50]),
        (bounded(1, usize::MAX), vec![50]),
        (bounded(500, 5_000), vec![50, 50]),
        (bounded(500, 1), vec![50]),
        (bounded(500, usize::MAX), vec![50, 50, 50, 30]),
    ] {
        let bench = Bench::with(Link::Up, policy);
        let _first = bench.submit("A", 0);
        let mut flight = bench.published().await;
        let _others: Vec<_> = (1..=180).map(|user| bench.submit("A", user)).collect();
        bench.settle().await;
        (flight.remove(0).on_report)(Report::At(0));
        let flight = bench.published().await;
        assert_eq!(flight.iter().map(|record| record.users.len()).collect::<Vec<_>>(), sizes);
    }
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
    bench.settle().await;
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
    assert_eq!(enter(&bench.collector, reserve("A", 3), None).await, UNAVAILABLE);
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

#[tokio::test]
async fn a_library_that_ends_without_a_word_leaves_it_open() {
    let bench = Bench::new(Link::Up);
    let fired = bench.submit("A", 1);
    drop(bench.published().await);
    assert_eq!(fired.await.expect("no panic"), Delivery::Unknown);
    let next = bench.submit("A", 2);
    (bench.published().await.remove(0).on_report)(Report::At(5));
    assert_eq!(next.await.expect("no panic"), at(5, 0), "the lane goes on");
}

#[tokio::test]
async fn who_passes_a_callback_is_told_once_whatever_happens_to_the_future() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = |user: usize| -> OnDelivery {
        let told = Arc::clone(&told);
        Box::new(move |delivery| told.lock().expect("no panic").push((user, delivery)))
    };
    let bench = Bench::new(Link::Up);
    drop(enter(&bench.collector, reserve("A", 0), Some(tell(0))));
    let mut flight = bench.published().await;
    let polled = tokio::spawn(enter(&bench.collector, reserve("A", 1), Some(tell(1))));
    bench.settle().await;
    polled.abort();
    let awaited = enter(&bench.collector, reserve("A", 2), Some(tell(2)));
    (flight.remove(0).on_report)(Report::At(7));
    let mut flight = bench.published().await;
    (flight.remove(0).on_report)(Report::At(8));
    assert_eq!(awaited.await, at(8, 1));
    assert_eq!(*told.lock().expect("no panic"), [(0, at(7, 0)), (1, at(8, 0)), (2, at(8, 1))]);

    let _overdue = enter(&bench.collector, reserve("A", 3), Some(tell(3)));
    let flight = bench.published().await;
    let refused = enter(&bench.collector, reserve("A", 4), Some(tell(4)));
    bench.abandoned.cancel();
    bench.task.await.expect("the lane ends");
    drop(flight);
    assert_eq!(refused.await, UNAVAILABLE);
    assert_eq!(told.lock().expect("no panic")[3..], [(3, Delivery::Unknown), (4, UNAVAILABLE)]);
}

/// What happens to a collector, in an order that nobody chose.
#[derive(Clone, Debug)]
enum Step {
    Append { sku: usize, is_watched: bool },
    Take { commands_max: usize },
    Settle { which: usize, report: Report },
    Drop { which: usize },
    Refuse,
    Accept,
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let report =
        prop_oneof![(0_i64..9).prop_map(Report::At), Just(Report::Full), Just(Report::Refused), Just(Report::Open)];
    let step = prop_oneof![
        60 => (0_usize..4, any::<bool>()).prop_map(|(sku, is_watched)| Step::Append { sku, is_watched }),
        6 => (1_usize..120).prop_map(|commands_max| Step::Take { commands_max }),
        6 => (0_usize..9, report).prop_map(|(which, report)| Step::Settle { which, report }),
        1 => (0_usize..9).prop_map(|which| Step::Drop { which }),
        1 => Just(Step::Refuse),
        2 => Just(Step::Accept),
        1 => prop_oneof![20 => Just(Step::Accept), 1 => Just(Step::Close)],
    ];
    prop::collection::vec(step, 0..400)
}

/// Room for a few records: it is full now and then.
const CAPACITY: usize = 130;

/// What a collector must do, written down as one list of commands in the order in which they came.
#[derive(Default)]
struct Expected {
    skus: Vec<usize>,
    refusals: BTreeMap<usize, NotSent>,
    waiting: Vec<usize>,
    is_refusing: bool,
    is_closed: bool,
}

impl Expected {
    fn append(&mut self, sku: usize) -> usize {
        let user = self.skus.len();
        self.skus.push(sku);
        if self.is_closed || self.is_refusing {
            self.refusals.insert(user, NotSent::Unavailable);
        } else if self.waiting.len() == CAPACITY {
            self.refusals.insert(user, NotSent::Full);
        } else {
            self.waiting.push(user);
        }
        user
    }

    /// A record that was taken has the first waiting commands of one SKU.
    fn check_taken(&mut self, record: &Record) -> Vec<usize> {
        let (sku, users) = users_of(&record.payload);
        assert!((1..=limits::RECORD_COMMANDS_MAX).contains(&users.len()), "{users:?}");
        assert_eq!(users.len(), record.pending.commands());
        let users: Vec<usize> = users.iter().map(|user| user[2..].parse().expect("made above")).collect();
        let same = |user: &&usize| format!("S{}", self.skus[**user]) == sku.as_str();
        let first: Vec<usize> = self.waiting.iter().filter(same).take(users.len()).copied().collect();
        assert_eq!(users, first, "first come, first served, nothing left out");
        self.waiting.retain(|user| !users.contains(user));
        users
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn whatever_happens_each_command_is_in_one_record_and_told_once(steps in steps()) {
        let collector = Collector::new(PARTITION, CAPACITY);
        let mut expected = Expected::default();
        let told: Arc<Mutex<BTreeMap<usize, Vec<Delivery>>>> = Arc::default();
        let mut watched: BTreeMap<usize, Submitted> = BTreeMap::new();
        let mut taken: Vec<(Vec<usize>, Pending)> = Vec::new();
        let mut answers: BTreeMap<usize, Delivery> = BTreeMap::new();
        let mut answer = |users: Vec<usize>, report: Report| {
            for (index, user) in (0..).zip(users) {
                let delivery = match report {
                    Report::At(offset) => at(offset, index),
                    Report::Full => Delivery::NotSent(NotSent::Full),
                    Report::Refused => UNAVAILABLE,
                    Report::Open => Delivery::Unknown,
                };
                answers.insert(user, delivery);
            }
        };
        for step in steps {
            match step {
                Step::Append { sku, is_watched } => {
                    let user = expected.append(sku);
                    let on_told = Arc::clone(&told);
                    let tell: OnDelivery =
                        Box::new(move |delivery| on_told.lock().expect("no panic").entry(user).or_default().push(delivery));
                    let mut submitted = enter(&collector, reserve(&format!("S{sku}"), user), Some(tell));
                    if let Some(why) = expected.refusals.get(&user) {
                        prop_assert_eq!(submitted.now_or_never(), Some(Delivery::NotSent(*why)));
                    } else if is_watched {
                        prop_assert_eq!((&mut submitted).now_or_never(), None);
                        watched.insert(user, submitted);
                    }
                }
                Step::Take { commands_max } => {
                    let records = collector.take(commands_max, usize::MAX);
                    let sizes: Vec<usize> = records.iter().map(|record| record.pending.commands()).collect();
                    prop_assert!(sizes.iter().sum::<usize>() <= commands_max || sizes.len() == 1, "{:?}", sizes);
                    for record in records {
                        taken.push((expected.check_taken(&record), record.pending));
                    }
                }
                Step::Settle { which, report } if which < taken.len() => {
                    let (users, pending) = taken.swap_remove(which);
                    pending.settle(report);
                    answer(users, report);
                }
                Step::Drop { which } if which < taken.len() => {
                    let (users, pending) = taken.swap_remove(which);
                    drop(pending);
                    answer(users, Report::Open);
                }
                Step::Settle { .. } | Step::Drop { .. } => {}
                Step::Refuse => {
                    expected.is_refusing = true;
                    for record in collector.refuse() {
                        let (_, users) = users_of_unfinished(record, &mut expected);
                        answer(users, Report::Refused);
                    }
                    prop_assert!(expected.waiting.is_empty(), "all of it is taken");
                }
                Step::Accept => {
                    expected.is_refusing = false;
                    collector.accept();
                }
                Step::Close => {
                    expected.is_closed = true;
                    collector.close();
                }
            }
            prop_assert_eq!(collector.waiting().0, expected.waiting.len());
        }
        for record in collector.take(usize::MAX, usize::MAX) {
            let users = expected.check_taken(&record);
            record.pending.settle(Report::At(99));
            answer(users, Report::At(99));
        }
        prop_assert!(expected.waiting.is_empty(), "nothing is left behind");
        for (users, pending) in taken {
            pending.settle(Report::Open);
            answer(users, Report::Open);
        }
        let told = std::mem::take(&mut *told.lock().expect("no panic"));
        let once: BTreeMap<_, _> = answers.iter().map(|(user, delivery)| (*user, vec![*delivery])).collect();
        prop_assert_eq!(told, once);
        for (user, submitted) in watched {
            prop_assert_eq!(submitted.now_or_never(), Some(answers[&user]));
        }
    }
}

/// Settles a record that was refused before anybody completed its bytes.
fn users_of_unfinished(record: Record, expected: &mut Expected) -> (SkuId, Vec<usize>) {
    let sku = record.sku.clone();
    let same = |user: &usize, skus: &[usize]| format!("S{}", skus[*user]) == sku.as_str();
    let skus = expected.skus.clone();
    let users: Vec<usize> =
        expected.waiting.iter().filter(|user| same(user, &skus)).take(record.pending.commands()).copied().collect();
    expected.waiting.retain(|user| !users.contains(user));
    record.pending.settle(Report::Refused);
    (sku, users)
}
