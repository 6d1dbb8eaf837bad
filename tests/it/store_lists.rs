//! Lists of reservations: against a naive filter, page by page while holds end, over long stretches without a match, and by which plan.

use std::collections::BTreeMap;

use flashsale::clock::time_of;
use flashsale::ids::{SkuId, UserId};
use flashsale::inventory::Status;
use flashsale::limits;
use flashsale::store::{ReservationFilter, ReservationPage, Store};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::support::commands::{sku, user};
use crate::support::consumer::SOON;
use crate::support::database::Database;
use crate::support::wait::wait_for;

const STATES: [Status; 5] = [Status::Reserved, Status::Rejected, Status::Confirmed, Status::Cancelled, Status::Expired];
const USERS: [&str; 3] = ["u", "v", "its-hash-is-that-of-u"];
const SKUS: [&str; 3] = ["a", "b", "c"];
/// Up to here the holds of SKU `b` have ended.
const ENDED_THROUGH: i64 = 50_000;

/// A reservation as the table holds it.
#[derive(Clone, Debug)]
struct Planted {
    id: Uuid,
    user: &'static str,
    sku: &'static str,
    stored: Status,
    expires_at: Option<i64>,
}

impl Planted {
    fn status(&self) -> Status {
        let has_ended = self.sku == "b" && self.expires_at.is_some_and(|at| at <= ENDED_THROUGH);
        if self.stored == Status::Reserved && has_ended { Status::Expired } else { self.stored }
    }

    fn is_asked_for(&self, filter: &ReservationFilter) -> bool {
        let is_state = match filter.status {
            Some(status) => self.status() == status,
            None => filter.user.is_none() || self.status() != Status::Rejected,
        };
        let is_before = filter.expires_before.is_none_or(|before| self.expires_at.is_some_and(|at| at < before));
        let is_user = filter.user.as_ref().is_none_or(|user| user.as_str() == self.user);
        let is_sku = filter.sku.as_ref().is_none_or(|sku| sku.as_str() == self.sku);
        is_state && is_before && is_user && is_sku
    }
}

/// Numbers without a pattern, the same in each run.
fn scattered(n: u64, below: usize) -> usize {
    let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 33) as usize % below
}

fn scattered_rows(count: u64) -> Vec<Planted> {
    let row = |n: u64| {
        let stored = STATES[scattered(n * 5, 5)];
        Planted {
            id: Uuid::from_u64_pair(scattered(n * 5 + 1, 1 << 30) as u64, n),
            user: USERS[scattered(n * 5 + 2, 3)],
            sku: SKUS[scattered(n * 5 + 3, 3)],
            stored,
            expires_at: (stored != Status::Rejected).then_some(1_000 * scattered(n * 5 + 4, 100) as i64),
        }
    };
    (0..count).map(row).collect()
}

fn hash_of(name: &str) -> i64 {
    user(if name == USERS[2] { "u" } else { name }).hash64()
}

async fn plant(conn: &mut PgConnection, rows: &[Planted]) {
    let ends = rows.iter().map(|row| row.expires_at.map(time_of)).collect::<Vec<_>>();
    sqlx::query(
        "INSERT INTO reservation (reservation_id, user_hash, log_offset, log_time, expires_at, quantity, version, partition, log_index,
                                  status, user_id, sku_id, reason, payment_ref)
         SELECT id, hash, 0, 'epoch', ends, 1, 1, 0, 0, status, user_id, sku_id, CASE status WHEN 2 THEN 'SOLD_OUT' END,
                CASE status WHEN 3 THEN 'pay-9' END
         FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::smallint[], $5::text[], $6::text[])
           AS p (id, hash, ends, status, user_id, sku_id)",
    )
    .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| hash_of(row.user)).collect::<Vec<_>>())
    .bind(ends)
    .bind(rows.iter().map(|row| row.stored.number()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.user).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.sku).collect::<Vec<_>>())
    .execute(conn)
    .await
    .expect("planted");
}

/// Tables with SKUs `a` and `b`; what `c` was is forgotten.
async fn tables() -> Database {
    let db = Database::fresh("t", 2).await;
    db.run(&format!(
        "INSERT INTO sku (sku_id, partition, on_hand, reserved, sold, expired_through, is_paused, user_limit, hold_seconds, late_payment,
                          extensions_max, extension_seconds_max, settings_version, movement_count)
         SELECT sku_id, 0, 0, 0, 0, ends, false, 1, 120, 0, 3, 600, 1, 0
         FROM (VALUES ('a', timestamptz 'epoch' - interval '1 s'), ('b', timestamptz 'epoch' + interval '{ENDED_THROUGH} ms')) AS s (sku_id, ends)"
    ))
    .await;
    db
}

fn all() -> ReservationFilter {
    ReservationFilter { user: None, sku: None, status: None, expires_before: None, after: None, limit: 500 }
}

fn ids_of(page: &ReservationPage) -> Vec<Uuid> {
    page.rows.iter().map(|row| row.id).collect()
}

/// Every page until there is no next one.
async fn pages(store: &Store, filter: &ReservationFilter, examined_max: usize) -> Vec<ReservationPage> {
    let (mut filter, mut pages) = (filter.clone(), Vec::new());
    loop {
        let page = store.list_reservations(&filter, examined_max).await.expect("listed");
        assert!(page.rows.len() <= filter.limit);
        assert!(page.next.is_none_or(|next| filter.after.is_none_or(|after| next > after)), "it goes on");
        filter.after = page.next;
        pages.push(page);
        if filter.after.is_none() {
            return pages;
        }
    }
}

fn filters() -> Vec<ReservationFilter> {
    let users = [None, Some("u"), Some("nobody")].map(|name| name.map(user));
    let mut filters = Vec::new();
    for user in &users {
        for sku in [None, Some(sku("b"))] {
            for status in [None].into_iter().chain(STATES.map(Some)) {
                for expires_before in [None, Some(30_000)] {
                    let (user, sku): (Option<UserId>, Option<SkuId>) = (user.clone(), sku.clone());
                    filters.push(ReservationFilter { user, sku, status, expires_before, ..all() });
                }
            }
        }
    }
    filters
}

#[tokio::test]
async fn every_list_is_what_a_naive_filter_finds_however_it_is_cut() {
    let db = tables().await;
    let mut rows = scattered_rows(150);
    plant(&mut db.connect().await, &rows).await;
    rows.sort_by_key(|row| row.id);
    let store = db.store();
    let mut found_in_states: BTreeMap<&str, usize> = BTreeMap::new();
    let cuts = [(1, limits::LIST_EXAMINED_MAX), (7, 1), (3, 10), (149, 40)];
    for (n, filter) in filters().into_iter().enumerate() {
        let expected: Vec<(Uuid, Status)> =
            rows.iter().filter(|row| row.is_asked_for(&filter)).map(|row| (row.id, row.status())).collect();
        for (limit, examined_max) in [(500, limits::LIST_EXAMINED_MAX), cuts[n % cuts.len()]] {
            let filter = ReservationFilter { limit, ..filter.clone() };
            let listed = pages(&store, &filter, examined_max).await;
            let found: Vec<(Uuid, Status)> =
                listed.iter().flat_map(|page| &page.rows).map(|row| (row.id, row.status)).collect();
            assert_eq!(found, expected, "{filter:?}, at most {examined_max} looked at");
        }
        for (_, status) in expected {
            *found_in_states.entry(status.word()).or_default() += 1;
        }
    }
    assert!(found_in_states.len() == 5 && found_in_states.values().all(|count| *count > 30), "{found_in_states:?}");
    db.drop().await;
}

#[tokio::test]
async fn pages_of_any_size_make_the_whole_while_holds_end() {
    let db = tables().await;
    let mut rows: Vec<Planted> =
        scattered_rows(60).into_iter().map(|row| Planted { user: "u", sku: "a", ..row }).collect();
    plant(&mut db.connect().await, &rows).await;
    rows.sort_by_key(|row| row.id);
    let store = db.store();
    let mut conn = db.connect().await;
    let mut ended = 0;
    for user in [Some(user("u")), None] {
        let filter = ReservationFilter { user, ..all() };
        let whole: Vec<Uuid> = rows.iter().filter(|row| row.is_asked_for(&filter)).map(|row| row.id).collect();
        // Everything is held again, but what was refused.
        sqlx::query("UPDATE reservation SET status = 1, payment_ref = NULL WHERE status <> 2")
            .execute(&mut conn)
            .await
            .unwrap();
        for limit in 1..=whole.len() {
            let (mut filter, mut found) = (ReservationFilter { limit, ..filter.clone() }, Vec::new());
            loop {
                let page = store.list_reservations(&filter, 50_000).await.expect("listed");
                found.extend(ids_of(&page));
                // Holds end before and behind the cursor, and some come back into the other index, as by a late payment.
                let victims = [rows[scattered(ended, 60)].id, rows[scattered(ended + 1, 60)].id];
                let sql = "UPDATE reservation SET status = CASE status WHEN 1 THEN 4 + $2 ELSE 1 END
                           WHERE reservation_id = ANY($1) AND status <> 2";
                sqlx::query(sql).bind(victims).bind((ended % 2) as i16).execute(&mut conn).await.unwrap();
                ended += 1;
                filter.after = page.next;
                if page.next.is_none() {
                    break;
                }
            }
            assert_eq!(found, whole, "pages of {limit}");
        }
    }
    db.drop().await;
}

#[tokio::test]
async fn a_list_with_few_matches_goes_on_over_pages_without_any() {
    let db = tables().await;
    let mut rows = scattered_rows(95);
    rows.sort_by_key(|row| row.id);
    for (n, row) in rows.iter_mut().enumerate() {
        let is_wanted = [0, 57, 94].contains(&n);
        *row = Planted { user: "u", sku: if is_wanted { "a" } else { "c" }, stored: Status::Cancelled, ..row.clone() };
    }
    plant(&mut db.connect().await, &rows).await;
    let expected: Vec<Vec<Uuid>> = (0..10)
        .map(|page| match page {
            0 => vec![rows[0].id],
            5 => vec![rows[57].id],
            9 => vec![rows[94].id],
            _ => vec![],
        })
        .collect();
    for user in [None, Some(user("u"))] {
        let filter = ReservationFilter { user, sku: Some(sku("a")), ..all() };
        let listed = pages(&db.store(), &filter, 10).await;
        assert_eq!(listed.iter().map(ids_of).collect::<Vec<_>>(), expected);
        let ends: Vec<Option<Uuid>> = listed.iter().map(|page| page.next).collect();
        let tenths: Vec<Option<Uuid>> = (0..10).map(|page| rows.get(page * 10 + 9).map(|row| row.id)).collect();
        assert_eq!(ends, tenths, "each page ends with the last one that it looked at");
    }
    db.drop().await;
}

/// The counters of the server tell which indexes were used, and whether the table was read instead.
#[tokio::test]
async fn lists_of_a_user_use_their_indexes_whatever_the_planner_knows() {
    let read = "SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables
                 WHERE schemaname = current_schema() AND relname = 'reservation'";
    let of_index = |name: &str| {
        format!(
            "SELECT coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_user_indexes
                 WHERE schemaname = current_schema() AND indexrelname = '{name}'"
        )
    };
    for (settings, analyze) in [
        ("plan_cache_mode%3Dforce_generic_plan", ""),
        ("plan_cache_mode%3Dforce_generic_plan", "ANALYZE"),
        ("plan_cache_mode%3Dforce_custom_plan", ""),
        ("plan_cache_mode%3Dforce_custom_plan", "ANALYZE"),
    ] {
        let db = tables().await;
        let hash = hash_of("u");
        db.run(&format!(
            "INSERT INTO reservation (reservation_id, user_hash, log_offset, log_time, expires_at, quantity, version, partition, log_index,
                                      status, user_id, sku_id, reason, payment_ref)
             SELECT gen_random_uuid(), CASE n % 500 WHEN 7 THEN {hash} ELSE n % 500 END, n, 'epoch', 'epoch', 1, 1, 0, 0, s,
                    CASE n % 500 WHEN 7 THEN 'u' ELSE 'someone' END, 'a', CASE s WHEN 2 THEN 'SOLD_OUT' END, CASE s WHEN 3 THEN 'p' END
             FROM generate_series(1, 20000) n CROSS JOIN LATERAL (SELECT (1 + (n / 500) % 5)::smallint AS s) x; {analyze}"
        ))
        .await;
        let store = Store::new(&format!("{}%20-c{settings}", db.url), "t").expect("a legal URL");
        let mut asked = [0, 0];
        for status in [None].into_iter().chain(STATES.map(Some)).filter(|status| *status != Some(Status::Rejected)) {
            let filter = ReservationFilter { user: Some(user("u")), status, limit: 3, ..all() };
            assert!(filter.is_indexed());
            store.list_reservations(&filter, limits::LIST_EXAMINED_MAX).await.expect("listed");
            asked[0] += i64::from(status != Some(Status::Cancelled));
            asked[1] += i64::from(!matches!(status, Some(Status::Reserved | Status::Confirmed)));
        }
        // And a walk, which the primary key orders.
        let walk = ReservationFilter { status: Some(Status::Rejected), sku: Some(sku("b")), limit: 3, ..all() };
        store.list_reservations(&walk, limits::LIST_EXAMINED_MAX).await.expect("listed");
        // A session tells its counters when it ends.
        drop(store);
        wait_for("the counters are told", SOON, async || {
            db.number(&of_index("reservation_user_units")).await >= asked[0]
                && db.number(&of_index("reservation_user_ended")).await >= asked[1]
        })
        .await;
        assert_eq!(db.number(read).await, 0, "{settings} {analyze}: the table was read");
        db.drop().await;
    }
}

#[tokio::test]
async fn a_plan_that_was_made_for_small_tables_does_not_walk_them() {
    let db = Database::fresh("t", 1).await;
    // Few rows, and the planner knows it: to walk them all is the cheaper plan then, and it is kept while they become many.
    db.plant_crowd(5).await;
    db.run("ANALYZE reservation, poison").await;
    let store = db.store();
    let scans = |column: &'static str| {
        let db = &db;
        async move {
            // Summed up over all tables: which of the small ones a read begins with is the planner's choice.
            db.number(&format!(
                "SELECT coalesce(sum({column}), 0)::bigint FROM pg_stat_user_tables
                 WHERE schemaname = current_schema() AND relname IN ('reservation', 'poison')"
            ))
            .await
        }
    };
    let (walked, looked_up) = (scans("seq_scan").await, scans("idx_scan").await);
    // More than the server plans for the values at hand: the last plan is one for any.
    const READS: i64 = 12;
    for n in 0..READS {
        let read = store.load_statuses(&[Uuid::from_u128(u128::MAX - n as u128)]).await.expect("it answers");
        assert!(read.reservations.is_empty());
    }
    // The server tells its counts about a second late.
    wait_for("the reads are counted", SOON, async || {
        scans("idx_scan").await - looked_up + scans("seq_scan").await - walked >= READS
    })
    .await;
    assert_eq!(scans("seq_scan").await - walked, 0, "each read walked the table");
    db.drop().await;
}
