//! The sweep of waiters on the real Postgres.

use std::time::Duration;

use flashsale::limits;
use flashsale::waiters::{Waiters, sweep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::database::Database;

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_sweep_wakes_those_whose_message_was_lost() {
    let db = Database::fresh("t", 1).await;
    let (waiters, stop) = (Waiters::default(), CancellationToken::new());
    let ids: Vec<_> = (1..=300).map(Uuid::from_u128).collect();
    let mut open: Vec<_> = ids.iter().map(|id| waiters.register(*id)).collect();
    let sweeping = tokio::spawn(sweep(waiters.clone(), db.store(), stop.clone()));
    db.run(
        "INSERT INTO reservation (reservation_id, user_hash, log_offset, log_time, expires_at, quantity, version, partition, log_index,
           status, user_id, sku_id)
         SELECT lpad(to_hex(n), 32, '0')::uuid, 1, n, now(), now(), 1, 1, 0, 0, 1, 'u', 's' FROM generate_series(1, 299) n",
    )
    .await;
    for waiter in &mut open[..299] {
        tokio::time::timeout(PATIENCE, waiter.woken()).await.expect("swept");
    }
    let undecided = tokio::time::timeout(2 * limits::WAITER_SWEEP_EVERY, open[299].woken()).await;
    assert!(undecided.is_err(), "an undecided one goes on waiting");
    stop.cancel();
    sweeping.await.expect("it ends when told");
    db.drop().await;
}
