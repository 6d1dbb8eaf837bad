//! Every accepted request whose decision was not in its answer is asked for it, after the rush: whoever waits then takes nobody's turn.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::time::{Instant, sleep};

use super::buyer::{Crowd, Decision, decided};
use super::connection::Connection;
use super::tally::Tally;
use crate::limits;

/// Asks for what is open, one after the other, until nothing is left.
pub(super) async fn follow_on(mut connection: Connection, crowd: &Crowd, tally: Rc<RefCell<Tally>>) {
    loop {
        let Some((sku, url)) = tally.borrow_mut().open.pop() else { return };
        let found = decision(&mut connection, crowd, &url).await;
        let tally = &mut *tally.borrow_mut();
        match found {
            Found::Decided(decision) => decision.note(tally, sku),
            Found::Nothing => tally.lost += 1,
            Found::Late => tally.undecided += 1,
        }
    }
}

enum Found {
    Decided(Decision),
    /// 404, though it was accepted.
    Nothing,
    /// Not in the buyer's patience.
    Late,
}

async fn decision(connection: &mut Connection, crowd: &Crowd, url: &str) -> Found {
    let give_up = Instant::now() + crowd.plan.patience;
    while Instant::now() < give_up {
        match connection.get(url, Some(limits::LOAD_FOLLOW_WAIT)).await {
            Ok(answer) if answer.status == 200 => {
                if let Some(decision) = decided(connection.body(&answer)) {
                    return Found::Decided(decision);
                }
            }
            Ok(answer) if answer.status == 404 => return Found::Nothing,
            Ok(_) | Err(_) => sleep(limits::LOAD_RETRY_WAIT).await,
        }
    }
    Found::Late
}
