//! Buyers on one connection, one after the other: send when it is due, come again when told to, note what stands.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Plan;
use super::answer::member;
use super::connection::{Answer, Connection};
use super::demand::Demand;
use super::schedule::Schedule;
use super::tally::{Tally, record};
use crate::limits;

/// What all connections share.
pub(super) struct Crowd {
    pub plan: Plan,
    pub demand: Demand,
    pub schedule: Schedule,
    /// The next request that nobody has taken.
    pub next: AtomicU64,
    /// Set when the rush begins.
    pub start: OnceLock<Instant>,
}

/// Sees through request after request, until there is none left; gives the connection back.
pub(super) async fn buy_on(mut connection: Connection, crowd: &Crowd, tally: Rc<RefCell<Tally>>) -> Connection {
    let start = *crowd.start.get().expect("set before the rush");
    loop {
        let number = crowd.next.fetch_add(1, Ordering::Relaxed);
        if number >= crowd.schedule.requests() {
            return connection;
        }
        let due = start + crowd.schedule.due(number);
        sleep_until(due).await;
        record(&mut tally.borrow_mut().starts, due.elapsed());
        buy(&mut connection, crowd, number, due, &tally).await;
    }
}

/// One buyer: tries with the same key until there is an answer that is no "not now". Nothing of the tally is held across a wait.
async fn buy(connection: &mut Connection, crowd: &Crowd, number: u64, due: Instant, tally: &RefCell<Tally>) {
    let Crowd { plan, demand, .. } = crowd;
    let give_up = due + plan.patience;
    let sku = demand.wanted(number);
    let mut not_now: Option<String> = None;
    let mut may_be_taken = false;
    while Instant::now() < give_up {
        demand.write(number, &plan.target, plan.wait, &mut connection.request);
        let deadline = Instant::now() + limits::LOAD_ANSWER_DEADLINE + plan.wait.unwrap_or_default();
        let answer = connection.exchange(deadline.min(give_up)).await;
        let again = {
            let tally = &mut *tally.borrow_mut();
            match judge(&answer, connection, tally, sku, due) {
                Verdict::Stands => {
                    tally.offered += 1;
                    note(tally, not_now.as_deref());
                    return;
                }
                Verdict::Again { why, wait, is_unknown } => {
                    tally.sent_again += 1;
                    tally.connections_broken += u64::from(answer.is_err());
                    not_now = Some(why);
                    may_be_taken |= is_unknown;
                    wait
                }
            }
        };
        // Without a key nobody may ask again for what may have been taken.
        if may_be_taken && !plan.is_keyed {
            break;
        }
        sleep_until(give_up.min(Instant::now() + again)).await;
    }
    let tally = &mut *tally.borrow_mut();
    tally.offered += 1;
    tally.failed += 1;
    tally.failed_unknown += u64::from(may_be_taken);
    note(tally, not_now.as_deref());
}

fn note(tally: &mut Tally, not_now: Option<&str>) {
    if let Some(why) = not_now {
        Tally::count(&mut tally.not_now, why);
    }
}

/// What an answer means to a buyer.
enum Verdict {
    /// It was noted, and that is all.
    Stands,
    /// Come again with the same key.
    Again { why: String, wait: Duration, is_unknown: bool },
}

fn judge(answer: &io::Result<Answer>, connection: &Connection, tally: &mut Tally, sku: usize, due: Instant) -> Verdict {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            return Verdict::Again { why: error.to_string(), wait: limits::LOAD_RETRY_WAIT, is_unknown: true };
        }
    };
    let body = connection.body(answer);
    match answer.status {
        200 | 202 => {
            tally.accepted += 1;
            record(&mut tally.answers, due.elapsed());
            match decided(body) {
                Some(decision) => {
                    record(&mut tally.decisions, due.elapsed());
                    decision.note(tally, sku);
                }
                None => match member(body, "status_url") {
                    Some(url) => tally.open.push((sku, url.into())),
                    None => tally.lost += 1,
                },
            }
            Verdict::Stands
        }
        status if is_for_now(status) => Verdict::Again {
            why: member(body, "code").map_or_else(|| status.to_string(), str::to_owned),
            wait: answer.retry_after.map_or(limits::LOAD_RETRY_WAIT, Duration::from_secs),
            is_unknown: member(body, "outcome") != Some("none"),
        },
        status => {
            record(&mut tally.answers, due.elapsed());
            match member(body, "code") {
                Some(code) => Tally::count(&mut tally.refused, code),
                None => Tally::count(&mut tally.refused, &status.to_string()),
            }
            Verdict::Stands
        }
    }
}

/// Answers that ask to come again with the same key.
fn is_for_now(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// What the service says became of a request.
pub(super) enum Decision {
    Reserved,
    Rejected(String),
}

/// Reads a reservation's body; `None` while it is undecided.
pub(super) fn decided(body: &[u8]) -> Option<Decision> {
    match member(body, "status")? {
        "QUEUED" => None,
        "REJECTED" => Some(Decision::Rejected(member(body, "reason").unwrap_or_default().to_owned())),
        _ => Some(Decision::Reserved),
    }
}

impl Decision {
    pub fn note(self, tally: &mut Tally, sku: usize) {
        match self {
            Self::Reserved => tally.reserved[sku] += 1,
            Self::Rejected(reason) => Tally::count(&mut tally.rejected, &reason),
        }
    }
}
