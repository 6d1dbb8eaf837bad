//! Every contradiction by hand, and the two ways in which a restored database looks like one.

use super::*;

fn balance(on_hand: i64, reserved: i64, sold: i64) -> Balance {
    Balance { on_hand, reserved, sold }
}

fn movement(number: i64, first_offset: i64, delta: Balance, after: Balance) -> Movement {
    Movement { sku_id: "s".into(), number, first_offset, delta, balance: after }
}

fn counters(balance: Balance, movement_count: i64) -> Vec<Counters> {
    vec![Counters { sku_id: "s".into(), balance, movement_count }]
}

/// Ten units made, three held.
fn sound() -> (Books, Vec<Counters>) {
    let mut books = Books::default();
    books.fold(&movement(1, 0, balance(10, 0, 0), balance(10, 0, 0)));
    books.fold(&movement(2, 5, balance(0, 3, 0), balance(10, 3, 0)));
    (books, counters(balance(10, 3, 0), 2))
}

/// Checks found, with their units.
fn found(books: &Books, counters: &[Counters]) -> Vec<(Check, i64)> {
    let all = books.judge(counters, &[], &[]).into_iter().chain(books.recount_findings().to_vec());
    all.map(|finding| (finding.check, finding.units)).collect()
}

#[test]
fn what_adds_up_has_no_finding() {
    let (mut books, counters) = sound();
    books.compare(&counters, &[Recounted { sku_id: "s".into(), reserved: 3, sold: 0 }]);
    assert_eq!(found(&books, &counters), []);
    assert_eq!(books.behind(&counters), []);
    assert_eq!(Books::default().judge(&[], &[], &[]), []);
}

#[test]
fn each_telling_may_oversell() {
    let (mut books, rows) = sound();
    let oversold = counters(balance(10, 3, 9), 2);
    assert_eq!(found(&books, &oversold), [(Check::Oversell, 2), (Check::Counters, 9)]);
    assert_eq!(found(&books, &counters(balance(10, 3, -1), 2)), [(Check::Oversell, 1), (Check::Counters, 1)]);
    books.compare(&rows, &[Recounted { sku_id: "s".into(), reserved: 3, sold: 8 }]);
    assert_eq!(found(&books, &rows), [(Check::Oversell, 1), (Check::Reservations, 8)]);
    books.compare(&rows, &[Recounted { sku_id: "s".into(), reserved: 3, sold: 0 }]);
    assert_eq!(found(&books, &rows), [], "a later recount replaces it");
    books.fold(&movement(3, 6, balance(0, 9, 0), balance(10, 12, 0)));
    assert_eq!(found(&books, &counters(balance(10, 12, 0), 3))[0], (Check::Oversell, 2));
    books.fold(&movement(4, 7, balance(0, -9, 0), balance(10, 3, 0)));
    assert_eq!(found(&books, &counters(balance(10, 3, 0), 4)), [(Check::Oversell, 2)], "it has happened");
}

#[test]
fn movements_follow_from_each_other() {
    let cases = [
        (movement(4, 6, balance(0, 0, 0), balance(10, 3, 0)), (Check::Movements, 1), "a number is left out"),
        (movement(3, 6, balance(0, 1, 0), balance(10, 9, 0)), (Check::Movements, 5), "the balance does not follow"),
        (movement(3, 4, balance(0, 1, 0), balance(10, 4, 0)), (Check::Movements, 1), "it is from before"),
    ];
    for (next, expected, why) in cases {
        let (mut books, _) = sound();
        books.fold(&next);
        let rows = counters(next.balance, next.number);
        assert_eq!(found(&books, &rows), [expected], "{why}");
    }
    let (books, _) = sound();
    assert_eq!(found(&books, &counters(balance(10, 3, 0), 3)), [(Check::Movements, 1)], "one is missing at the end");
    assert_eq!(books.behind(&counters(balance(10, 3, 0), 3)), [("s".to_owned(), 2)]);
}

#[test]
fn reservations_and_counters_agree() {
    let (mut books, rows) = sound();
    books.compare(&rows, &[]);
    assert_eq!(found(&books, &rows), [(Check::Reservations, 3)], "none is there");
    books.compare(&rows, &[Recounted { sku_id: "s".into(), reserved: 2, sold: 1 }]);
    assert_eq!(found(&books, &rows), [(Check::Reservations, 1)]);
}

#[test]
fn a_book_begins_where_an_operator_said_so() {
    let (mut books, rows) = sound();
    books.compare(&rows, &[]);
    books.forget_resumed(&BTreeMap::new());
    assert_eq!(books.unread(&rows), []);
    assert_eq!(books.recount_findings().len(), 1);
    books.forget_resumed(&BTreeMap::from([("s".to_owned(), 1), ("t".to_owned(), 2)]));
    assert_eq!(books.unread(&rows), [("s".to_owned(), 2)], "it was resumed");
    assert_eq!(books.recount_findings(), [], "what was counted before may be mended");
    assert_eq!((books.last_resume("s"), books.last_resume("u")), (1, 0));
    let start = |number, reserved| Accepted { sku_id: "s".into(), number, balance: balance(10, reserved, 0) };
    books.begin_at(vec![start(1, 0)]);
    books.begin_at(vec![start(2, 3)]);
    books.begin_at(vec![start(1, 9)]);
    assert_eq!(books.behind(&rows), [], "the latest start counts");
    assert_eq!(found(&books, &rows), []);
}

#[test]
fn a_restored_database_is_read_anew() {
    let (mut books, _) = sound();
    let restored = counters(balance(10, 0, 0), 1);
    assert_eq!(books.unread(&restored), [("s".to_owned(), 1)]);
    assert_eq!(books.behind(&restored), [("s".to_owned(), 0)]);
    books.tile(&Batch { partition: 0, first_offset: 0, position: 9, epoch: 4 });
    assert_eq!(books.batches_behind(&[(0, 5)]), [(0, 0)]);
}

#[test]
fn what_is_forgotten_begins_anew() {
    let (mut books, rows) = sound();
    books.fold(&movement(5, 9, balance(0, 0, 0), balance(10, 3, 0)));
    books.tile(&Batch { partition: 0, first_offset: 0, position: 5, epoch: 1 });
    books.forget(&[Subject::Sku("s".into()), Subject::Partition(0)]);
    assert_eq!(books.unread(&rows), [("s".to_owned(), 2)]);
    let far = limits::AUDIT_OFFSETS_BACK + 7;
    books.begin_tiles(&[(0, far), (1, 3)]);
    assert_eq!(books.batches_behind(&[(0, far), (1, 3)]), [(0, 7), (1, 0)]);
}

#[test]
fn batches_tile_the_log() {
    let batch = |first_offset, position, epoch| Batch { partition: 0, first_offset, position, epoch };
    let check = |batches: &[Batch], position, expected: &[&str]| {
        let mut books = Books::default();
        batches.iter().for_each(|batch| books.tile(batch));
        let details: Vec<String> = books.judge(&[], &[], &[(0, position)]).into_iter().map(|f| f.detail).collect();
        assert_eq!(details, expected, "{batches:?}");
    };
    check(&[], 0, &[]);
    check(&[], 7, &[]);
    check(&[batch(3, 5, 1), batch(5, 9, 1), batch(9, 10, 2)], 10, &[]);
    check(&[batch(0, 5, 1), batch(6, 9, 1)], 9, &["a batch begins at 6, the one before ended at 5"]);
    check(&[batch(0, 5, 1), batch(4, 9, 1)], 9, &["a batch begins at 4, the one before ended at 5"]);
    check(&[batch(0, 5, 2), batch(5, 9, 1)], 9, &["a batch of epoch 1 follows one of epoch 2"]);
    check(&[batch(0, 5, 1)], 6, &["batches end at 5, the position is 6"]);
}

#[test]
fn rows_that_hold_anything_do_not_overflow() {
    let mut books = Books::default();
    let huge = balance(i64::MIN, i64::MAX, i64::MAX);
    books.fold(&movement(1, 0, huge, huge));
    books.fold(&movement(2, 0, huge, balance(i64::MAX, i64::MIN, i64::MIN)));
    let rows = counters(balance(i64::MIN, i64::MAX, i64::MAX), 2);
    books.compare(&rows, &[Recounted { sku_id: "s".into(), reserved: i64::MAX, sold: i64::MIN }]);
    assert!(!books.judge(&rows, &[], &[]).is_empty());
}
