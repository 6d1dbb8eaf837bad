//! The collector under every order in which its threads can meet: the same source, compiled against the model checker's lock.
//!
//! Each model is run once for every order that differs; a thread that is never woken again ends it as a deadlock. Their threads do as little
//! as shows the point, so that all of it takes a second.

#[allow(clippy::duplicate_mod, reason = "that is the point: the same source, over another lock")]
#[expect(dead_code, reason = "models use a part of it")]
#[path = "../collector.rs"]
mod collector;

mod sync {
    pub(super) use loom::sync::{Mutex, MutexGuard};
}

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use collector::{Collector, Record, Submitted};
use futures_util::FutureExt;
use loom::future::block_on;
use loom::thread;

use super::{Delivery, NotSent};
use crate::ids::{Place, SkuId, Ticket};
use crate::kafka::producer::Report;

const ROOMY: usize = 100;
const UNAVAILABLE: Delivery = Delivery::NotSent(NotSent::Unavailable);

/// Every order with at most so many switches away from a thread that could go on; more find nothing new in programs this small.
const PREEMPTIONS: usize = 2;

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS);
    model.check(check);
}

fn collector() -> (Arc<Collector>, SkuId) {
    (Arc::new(Collector::new(0, ROOMY)), SkuId::parse("A").expect("legal"))
}

fn enter(collector: &Collector, sku: &SkuId, told: Option<Arc<AtomicUsize>>) -> Submitted {
    let entered = collector.enter(|door| {
        door.room()?;
        let mut appended = door.append(sku, |bytes| bytes.push(b'c'));
        if let Some(told) = told {
            // Not a part of what is modelled: it only counts.
            appended.tell(Box::new(move |_| {
                told.fetch_add(1, Ordering::Relaxed);
            }));
        }
        Ok(appended.watch())
    });
    entered.unwrap_or_else(|why| Submitted::now(Delivery::NotSent(why)))
}

fn at(offset: i64, index: u16) -> Delivery {
    Delivery::Delivered(Ticket { partition: 0, place: Place { offset, index } })
}

/// The lane's part: sleeps until there is news, and takes what is there.
fn wait_and_take(collector: &Collector) -> Vec<Record> {
    block_on(poll_fn(|context| collector.poll_news(1, context)));
    collector.take(ROOMY, usize::MAX)
}

#[test]
fn who_submits_while_the_lane_falls_asleep_is_published_and_told() {
    model(|| {
        let (collector, sku) = collector();
        let waits = enter(&collector, &sku, None);
        let submitter = {
            let (collector, sku) = (Arc::clone(&collector), sku.clone());
            thread::spawn(move || block_on(enter(&collector, &sku, None)))
        };
        let mut published = Vec::new();
        while published.len() < 2 {
            for record in wait_and_take(&collector) {
                let offset = i64::try_from(record.pending.number).expect("small");
                published.extend((0..).take(record.pending.commands()).map(|index| at(offset, index)));
                record.pending.settle(Report::At(offset));
            }
        }
        assert_eq!([block_on(waits), submitter.join().expect("no panic")][..], published);
    });
}

#[test]
fn two_who_submit_at_once_get_places_of_their_own() {
    model(|| {
        let (collector, sku) = collector();
        let submitters: Vec<_> = (0..2)
            .map(|_| {
                let (collector, sku) = (Arc::clone(&collector), sku.clone());
                thread::spawn(move || enter(&collector, &sku, None))
            })
            .collect();
        let submitted: Vec<_> = submitters.into_iter().map(|one| one.join().expect("no panic")).collect();
        let record = collector.take(ROOMY, usize::MAX).remove(0);
        assert!(record.payload.ends_with(b"cc"), "both are in it");
        record.pending.settle(Report::At(0));
        let told: Vec<_> = submitted.into_iter().map(block_on).collect();
        assert!(told == [at(0, 0), at(0, 1)] || told == [at(0, 1), at(0, 0)], "{told:?}");
    });
}

#[test]
fn a_report_from_another_thread_wakes_the_lane_and_then_the_submitter() {
    model(|| {
        let (collector, sku) = collector();
        let submitted = enter(&collector, &sku, None);
        let record = collector.take(ROOMY, usize::MAX).remove(0);
        let reporter = collector.reporter(record.pending.number);
        let library = thread::spawn(move || reporter.report(Report::At(5)));
        let client = thread::spawn(move || block_on(submitted));
        block_on(poll_fn(|context| collector.poll_news(usize::MAX, context)));
        assert_eq!(collector.take_reports(), [(0, Report::At(5))]);
        record.pending.settle(Report::At(5));
        assert_eq!(client.join().expect("no panic"), at(5, 0));
        library.join().expect("no panic");
    });
}

#[test]
fn who_comes_while_the_lane_closes_is_refused_or_published_but_never_forgotten() {
    model(|| {
        let (collector, sku) = collector();
        let submitters: Vec<_> = (0..2)
            .map(|_| {
                let (collector, sku) = (Arc::clone(&collector), sku.clone());
                thread::spawn(move || block_on(enter(&collector, &sku, None)))
            })
            .collect();
        collector.close();
        let mut published = 0;
        for record in collector.take(ROOMY, usize::MAX) {
            published += record.pending.commands();
            record.pending.settle(Report::At(0));
        }
        assert_eq!(collector.waiting(), (0, 0), "nobody gets in behind the last look");
        let told: Vec<_> = submitters.into_iter().map(|one| one.join().expect("no panic")).collect();
        assert_eq!(told.iter().filter(|delivery| **delivery != UNAVAILABLE).count(), published);
    });
}

#[test]
fn a_lane_that_refuses_takes_all_that_waits_and_lets_nobody_in_until_it_accepts() {
    model(|| {
        let (collector, sku) = collector();
        let submitter = {
            let (collector, sku) = (Arc::clone(&collector), sku.clone());
            thread::spawn(move || block_on(enter(&collector, &sku, None)))
        };
        for record in collector.refuse() {
            record.pending.settle(Report::Refused);
        }
        assert_eq!(collector.waiting(), (0, 0));
        collector.accept();
        // It came before, between or after: only then it is there to be taken.
        for record in collector.take(ROOMY, usize::MAX) {
            record.pending.settle(Report::At(1));
        }
        collector.close();
        for record in collector.take(ROOMY, usize::MAX) {
            record.pending.settle(Report::At(2));
        }
        assert!([UNAVAILABLE, at(1, 0), at(2, 0)].contains(&submitter.join().expect("no panic")));
    });
}

#[test]
fn who_goes_away_while_the_report_comes_disturbs_nobody() {
    model(|| {
        let (collector, sku) = collector();
        let told = Arc::new(AtomicUsize::new(0));
        let mut leaves = enter(&collector, &sku, Some(Arc::clone(&told)));
        let stays = enter(&collector, &sku, Some(Arc::clone(&told)));
        let record = collector.take(ROOMY, usize::MAX).remove(0);
        let leaver = thread::spawn(move || {
            let seen = block_on(poll_fn(|context| std::task::Poll::Ready(leaves.poll_unpin(context))));
            drop(leaves);
            seen
        });
        let stayer = thread::spawn(move || block_on(stays));
        record.pending.settle(Report::At(3));
        assert_eq!(stayer.join().expect("no panic"), at(3, 1));
        let seen = leaver.join().expect("no panic");
        assert!(seen.is_pending() || seen == std::task::Poll::Ready(at(3, 0)), "{seen:?}");
        assert_eq!(told.load(Ordering::Relaxed), 2);
    });
}
