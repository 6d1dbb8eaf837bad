//! Buyers on one connection, one call after the other: send when it is due, come again when told to, note what stands.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Plan;
use super::answer::{self, Item, member};
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
    let together = crowd.plan.batch.map_or(1, u64::from);
    let mut buyers = Vec::new();
    loop {
        let first = crowd.next.fetch_add(together, Ordering::Relaxed);
        let end = crowd.schedule.requests().min(first + together);
        if first >= end {
            return connection;
        }
        buyers.extend((first..end).map(Buyer::new));
        // A call is due when its last item is.
        let due = start + crowd.schedule.due(end - 1);
        sleep_until(due).await;
        record(&mut tally.borrow_mut().starts, due.elapsed());
        buy(&mut connection, crowd, &mut buyers, due, &tally).await;
    }
}

/// Somebody without an answer that stands.
struct Buyer {
    number: u64,
    /// Why the last answer was none.
    not_now: Option<String>,
    may_be_taken: bool,
}

impl Buyer {
    fn new(number: u64) -> Self {
        Self { number, not_now: None, may_be_taken: false }
    }

    fn note(&self, tally: &mut Tally) {
        tally.offered += 1;
        if let Some(why) = &self.not_now {
            Tally::count(&mut tally.not_now, why);
        }
    }
}

/// Those who are in one call: each tries with the same key until there is an answer that is no "not now". Nothing of the tally is held across a
/// wait. Leaves nobody in `buyers`.
async fn buy(
    connection: &mut Connection,
    crowd: &Crowd,
    buyers: &mut Vec<Buyer>,
    due: Instant,
    tally: &RefCell<Tally>,
) {
    let Crowd { plan, demand, .. } = crowd;
    let give_up = due + plan.patience;
    while !buyers.is_empty() && Instant::now() < give_up {
        let numbers = buyers.iter().map(|buyer| buyer.number);
        match plan.batch {
            Some(_) => demand.write_many(numbers, &plan.target, plan.wait, &mut connection.request),
            None => numbers.for_each(|n| demand.write(n, &plan.target, plan.wait, &mut connection.request)),
        }
        let deadline = Instant::now() + limits::LOAD_ANSWER_DEADLINE + plan.wait.unwrap_or_default();
        let answer = connection.exchange(deadline.min(give_up)).await;
        let again = hear(&answer, connection, crowd, buyers, due, &mut tally.borrow_mut());
        if !buyers.is_empty() {
            sleep_until(give_up.min(Instant::now() + again)).await;
        }
    }
    let tally = &mut *tally.borrow_mut();
    buyers.drain(..).for_each(|buyer| fail(&buyer, tally));
}

fn fail(buyer: &Buyer, tally: &mut Tally) {
    buyer.note(tally);
    tally.failed += 1;
    tally.failed_unknown += u64::from(buyer.may_be_taken);
}

/// Notes what stands and keeps those who come again, after so long.
fn hear(
    answer: &io::Result<Answer>,
    connection: &Connection,
    crowd: &Crowd,
    buyers: &mut Vec<Buyer>,
    due: Instant,
    tally: &mut Tally,
) -> Duration {
    tally.connections_broken += u64::from(answer.is_err());
    let took = due.elapsed();
    let whole = answer.as_ref().map(|answer| {
        let body = connection.body(answer);
        Item { status: answer.status, retry_after: answer.retry_after, body }
    });
    // The items of a call of many; its refusal as a whole is everybody's.
    let mut items = match whole {
        Ok(whole) if crowd.plan.batch.is_some() && whole.status == 200 => Some(answer::items(whole.body)),
        _ => None,
    };
    let mut again = Duration::ZERO;
    buyers.retain_mut(|buyer| {
        let verdict = match (&mut items, &whole) {
            (Some(items), _) => match items.next() {
                Some(item) => judge(item, tally, crowd.demand.wanted(buyer.number), took),
                None => Verdict::unknown("an answer lacks items".to_owned()),
            },
            (None, Ok(whole)) => judge(*whole, tally, crowd.demand.wanted(buyer.number), took),
            (None, Err(error)) => Verdict::unknown(error.to_string()),
        };
        match verdict {
            Verdict::Stands => {
                buyer.note(tally);
                false
            }
            Verdict::Again { why, wait, is_unknown } => {
                tally.sent_again += 1;
                buyer.not_now = Some(why);
                buyer.may_be_taken |= is_unknown;
                again = again.max(wait);
                // Without a key nobody may ask again for what may have been taken.
                let comes_again = crowd.plan.is_keyed || !buyer.may_be_taken;
                if !comes_again {
                    fail(buyer, tally);
                }
                comes_again
            }
        }
    });
    again
}

/// What an answer means to a buyer.
enum Verdict {
    /// It was noted, and that is all.
    Stands,
    /// Come again with the same key.
    Again { why: String, wait: Duration, is_unknown: bool },
}

impl Verdict {
    fn unknown(why: String) -> Self {
        Self::Again { why, wait: limits::LOAD_RETRY_WAIT, is_unknown: true }
    }
}

fn judge(answer: Item<'_>, tally: &mut Tally, sku: usize, took: Duration) -> Verdict {
    let Item { status, retry_after, body } = answer;
    match status {
        200 | 202 => {
            tally.accepted += 1;
            record(&mut tally.answers, took);
            match decided(body) {
                Some(decision) => {
                    record(&mut tally.decisions, took);
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
            wait: retry_after.map_or(limits::LOAD_RETRY_WAIT, Duration::from_secs),
            is_unknown: member(body, "outcome") != Some("none"),
        },
        status => {
            record(&mut tally.answers, took);
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
