//! The crowd, made: offers requests at a rate that was fixed before, follows every one that was accepted to its decision, and says whether
//! what it saw from outside can be true.
//!
//! **Open model, within the connections**: request `n` is due at `n / rate`, whatever became of the others, and its latency counts from when it
//! was due, also if no connection was free then. Buyers are patient: what may have been lost, or is refused for now, is sent again with the
//! same key, on the same connection; so a service that refuses everybody for now is asked by as many buyers as there are connections, and
//! whoever comes too late for that is counted as failed, not as sent.

mod connection;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::ids;
use crate::limits;
use connection::{Answer, Connection};
pub use report::Report;
use report::{Decision, Fate, Stock};

/// What to offer.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Host and port of the API.
    pub target: String,
    /// What everybody wants.
    pub sku: String,
    /// Requests a second.
    pub rate: u32,
    /// For how long.
    pub duration: Duration,
    /// Kept connections: at most so many requests are in flight.
    pub connections: usize,
    /// How long a buyer keeps trying, and an accepted one waits for the decision.
    pub patience: Duration,
}

impl Plan {
    fn requests(&self) -> u64 {
        u64::from(self.rate) * self.duration.as_millis() as u64 / 1000
    }

    fn due(&self, number: u64, start: Instant) -> Instant {
        start + self.duration.mul_f64(number as f64 / self.requests() as f64)
    }
}

/// Offers it all, and waits for every decision.
pub async fn run(plan: Plan) -> Report {
    let plan = Arc::new(plan);
    let run = ids::fresh_token().simple().to_string();
    let (next, start) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let buyers: Vec<_> = (0..plan.connections)
        .map(|_| tokio::spawn(buy_on(Arc::clone(&plan), run.clone(), Arc::clone(&next), start)))
        .collect();
    let mut fates = Vec::new();
    for buyer in buyers {
        fates.extend(buyer.await.expect("a buyer does not panic"));
    }
    let took = start.elapsed();
    let stock = stock_of(&plan).await;
    Report::of(&plan, took, &fates, stock)
}

/// One connection: takes the next request that is due, and sees it through.
async fn buy_on(plan: Arc<Plan>, run: String, next: Arc<AtomicU64>, start: Instant) -> Vec<Fate> {
    let mut connection = Connection::to(&plan.target);
    let mut fates = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.requests() {
            break;
        }
        let due = plan.due(number, start);
        sleep_until(due).await;
        fates.push(buy(&mut connection, &plan, &run, number, due).await);
    }
    // Decisions are waited for after the rush, so that whoever waits takes nobody's turn.
    for fate in &mut fates {
        if let Some(status_url) = fate.status_url.take() {
            fate.decision = Some(decision(&mut connection, &plan, &status_url).await);
        }
    }
    fates
}

/// One buyer: tries with the same key until there is an answer that is no "not now".
async fn buy(connection: &mut Connection, plan: &Plan, run: &str, number: u64, due: Instant) -> Fate {
    let body = format!(r#"{{"user_id":"load-{run}-{number}","sku_id":"{}","quantity":1}}"#, plan.sku);
    let key = format!("load-{run}-{number}");
    let give_up = due + plan.patience;
    let mut fate = Fate::default();
    while Instant::now() < give_up {
        let answer = timeout_at(give_up, connection.post("/v1/reservations", &key, &body)).await;
        match answer {
            Ok(Ok(Answer { status: 200 | 202, body, .. })) => {
                fate.latency = due.elapsed();
                fate.status_url = text(&body, "status_url");
                fate.decision = None;
                fate.is_accepted = true;
                return fate;
            }
            Ok(Ok(Answer { status, body, .. })) if !is_for_now(status) => {
                fate.latency = due.elapsed();
                fate.refusal = Some(text(&body, "code").unwrap_or_else(|| status.to_string()));
                return fate;
            }
            Ok(Ok(answer)) => {
                fate.retries += 1;
                fate.not_now = text(&answer.body, "code");
                pause(answer.retry_after, give_up).await;
            }
            Ok(Err(error)) => {
                fate.retries += 1;
                fate.broken += 1;
                fate.not_now = Some(error.to_string());
                pause(None, give_up).await;
            }
            Err(_) => connection.close(),
        }
    }
    fate.latency = due.elapsed();
    fate
}

/// Answers that ask to come again with the same key.
fn is_for_now(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// As long as asked, or a moment; never beyond the buyer's patience.
async fn pause(retry_after: Option<u64>, give_up: Instant) {
    let wait = retry_after.map_or(limits::LOAD_RETRY_WAIT, Duration::from_secs);
    sleep_until(give_up.min(Instant::now() + wait)).await;
}

/// What became of an accepted request.
async fn decision(connection: &mut Connection, plan: &Plan, status_url: &str) -> Decision {
    let give_up = Instant::now() + plan.patience;
    while Instant::now() < give_up {
        match timeout_at(give_up, connection.get(status_url)).await {
            Ok(Ok(Answer { status: 200, body, .. })) => match text(&body, "status").as_deref() {
                Some("QUEUED") | None => {}
                Some("REJECTED") => return Decision::Rejected(text(&body, "reason").unwrap_or_default()),
                Some(_) => return Decision::Reserved,
            },
            Ok(Ok(Answer { status: 404, .. })) => return Decision::Lost,
            Ok(Ok(_) | Err(_)) => {}
            Err(_) => connection.close(),
        }
        sleep(limits::LOAD_RETRY_WAIT).await;
    }
    Decision::Undecided
}

/// The SKU as buyers see it.
async fn stock_of(plan: &Plan) -> Option<Stock> {
    let mut connection = Connection::to(&plan.target);
    let answer = connection.get(&format!("/v1/skus/{}", plan.sku)).await.ok()?;
    let body: Value = serde_json::from_str(&answer.body).ok()?;
    let number = |member: &str| body[member].as_i64();
    Some(Stock {
        on_hand: number("on_hand")?,
        reserved: number("reserved")?,
        sold: number("sold")?,
        hold_seconds: number("hold_seconds")?,
    })
}

fn text(body: &str, member: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    body[member].as_str().map(str::to_owned)
}
