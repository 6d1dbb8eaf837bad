//! The crowd, made: offers requests at times that were fixed before, follows every one that was accepted to its decision, and says whether
//! what it saw from outside can be true.
//!
//! **Open model, within the connections**: each request has its time (`schedule`), whatever became of the others, and its latency counts from
//! then, also if no connection was free. Buyers are patient: what may have been lost, or is refused for now, is sent again with the same key,
//! on the same connection; so a service that refuses everybody for now is asked by as many buyers as there are connections.
//!
//! With `batch` a call asks for many: each item is a request of its own, judged by its own answer.
//!
//! Each thread has a runtime, connections and a `tally` of its own; they share the next request's number and nothing else. Three phases, which
//! all threads begin together: connect, the rush, and `follow` for what the rush left undecided. CPU time is that of the rush.

mod answer;
mod buyer;
mod connection;
mod demand;
mod follow;
mod processes;
mod progress;
mod report;
mod schedule;
mod stock;
mod tally;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::Duration;

use tokio::runtime;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::ids;
use buyer::Crowd;
use connection::Connection;
use demand::Demand;
pub use processes::Watched;
pub use report::Report;
pub use schedule::{Profile, Schedule};
use stock::{Stock, stock_of};
use tally::Tally;

/// What to offer.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Host and port of the API.
    pub target: String,
    /// What is wanted, the most wanted first.
    pub skus: Vec<String>,
    /// The n-th SKU is wanted 1/n^`zipf` times as much as the first.
    pub zipf: f64,
    /// When.
    pub schedule: Schedule,
    /// Kept connections: at most so many requests are in flight.
    pub connections: usize,
    /// Threads that send.
    pub threads: usize,
    /// How long a buyer keeps trying, and an accepted one waits for the decision.
    pub patience: Duration,
    /// `Prefer: wait`, in whole seconds: the answer brings the decision.
    pub wait: Option<Duration>,
    /// So many requests are one call.
    pub batch: Option<u16>,
    /// Each request has an `Idempotency-Key`.
    pub is_keyed: bool,
    /// Nobody else buys these SKUs meanwhile: then every unit that was taken has its buyer here.
    pub is_alone: bool,
    /// Processes whose CPU time is told.
    pub watched: Vec<Watched>,
    /// What the report says of the service's settings, as it was told.
    pub settings: Vec<(String, String)>,
}

/// What a run saw, before it is judged.
struct Seen {
    tally: Tally,
    /// Of the rush.
    rush: Duration,
    /// Of everything.
    took: Duration,
    /// CPU time of the rush in microseconds: of the generator, and of each that was watched.
    generator_us: u64,
    watched_us: Vec<u64>,
    stocks: Vec<(Option<Stock>, Option<Stock>)>,
}

/// Offers it all, and waits for every decision. Blocks: the crowd has threads of its own.
///
/// # Panics
/// If the system gives no threads.
pub fn run(plan: Plan) -> Report {
    let run = format!("load-{}", &ids::fresh_token().simple().to_string()[..12]);
    let demand = Demand::new(plan.skus.clone(), plan.zipf, run, plan.is_keyed);
    let schedule = plan.schedule;
    let crowd = Arc::new(Crowd { plan, demand, schedule, next: AtomicU64::new(0), start: OnceLock::new() });
    let before = stocks(&crowd);
    let phases = Arc::new(Barrier::new(crowd.plan.threads + 1));
    let began = Instant::now();
    let threads: Vec<_> = (0..crowd.plan.threads)
        .map(|index| {
            let (crowd, phases) = (Arc::clone(&crowd), Arc::clone(&phases));
            std::thread::spawn(move || one_thread(&crowd, index, &phases))
        })
        .collect();
    phases.wait(); // connected
    let watched_before = processes::cpu_us(&crowd.plan.watched);
    let me = [Watched { name: String::new(), pid: std::process::id() }];
    let generator_before = processes::cpu_us(&me)[0];
    let start = Instant::now();
    crowd.start.set(start).expect("set here and nowhere else");
    phases.wait(); // the rush begins
    let shown = progress::show(&crowd);
    phases.wait(); // and is over
    let rush = start.elapsed();
    let watched_us = processes::cpu_us(&crowd.plan.watched);
    let watched_us =
        watched_us.iter().zip(&watched_before).map(|(after, before)| after.saturating_sub(*before)).collect();
    let generator_us = processes::cpu_us(&me)[0].saturating_sub(generator_before);
    drop(shown);
    let mut tally = Tally::new(&crowd.demand);
    for thread in threads {
        tally.add(thread.join().expect("a buyer does not panic"));
    }
    let stocks = before.into_iter().zip(stocks(&crowd)).collect();
    Report::of(&crowd.plan, &Seen { tally, rush, took: began.elapsed(), generator_us, watched_us, stocks })
}

fn own_runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().expect("the system gives a reactor")
}

/// One thread's share of the connections, through all phases.
fn one_thread(crowd: &Arc<Crowd>, index: usize, phases: &Barrier) -> Tally {
    let Plan { connections, threads, target, .. } = &crowd.plan;
    let share = connections / threads + usize::from(index < connections % threads);
    let runtime = own_runtime();
    let mut open: Vec<Connection> = (0..share).map(|_| Connection::to(target)).collect();
    runtime.block_on(async {
        for connection in &mut open {
            // A service that is away is told by what becomes of the requests.
            drop(connection.open().await);
        }
    });
    phases.wait();
    phases.wait();
    let tally = Rc::new(RefCell::new(Tally::new(&crowd.demand)));
    let buy = |connection| {
        let (crowd, tally) = (Arc::clone(crowd), Rc::clone(&tally));
        async move { buyer::buy_on(connection, &crowd, tally).await }
    };
    let open = all_of(&runtime, open.into_iter().map(buy));
    phases.wait();
    let follow = |connection| {
        let (crowd, tally) = (Arc::clone(crowd), Rc::clone(&tally));
        async move { follow::follow_on(connection, &crowd, tally).await }
    };
    all_of(&runtime, open.into_iter().map(follow));
    Rc::into_inner(tally).expect("all tasks have ended").into_inner()
}

/// Runs tasks side by side on this thread.
fn all_of<T: 'static>(
    runtime: &runtime::Runtime,
    tasks: impl Iterator<Item = impl Future<Output = T> + 'static>,
) -> Vec<T> {
    let local = LocalSet::new();
    let tasks: Vec<_> = tasks.map(|task| local.spawn_local(task)).collect();
    local.block_on(runtime, async {
        let mut results = Vec::with_capacity(tasks.len());
        for task in tasks {
            results.push(task.await.expect("a buyer does not panic"));
        }
        results
    })
}

/// All SKUs as buyers see them now.
fn stocks(crowd: &Crowd) -> Vec<Option<Stock>> {
    own_runtime().block_on(async {
        let mut connection = Connection::to(&crowd.plan.target);
        let mut stocks = Vec::new();
        for sku in crowd.demand.skus() {
            stocks.push(stock_of(&mut connection, sku).await);
        }
        stocks
    })
}
