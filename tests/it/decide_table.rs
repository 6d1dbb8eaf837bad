//! Reserve and configure, case by case. How a case is written: `support/cases.rs`.

use crate::support::cases::check;

// ---- the basics ---------------------------------------------------------------------------------------------------------------

#[test]
fn decide_gives_units_first_come_first_served() {
    check(
        "sku A on_hand=2 limit=1
         r1 u1 A 1 -> RESERVED
         r2 u2 A 1 -> RESERVED
         r3 u3 A 1 -> SOLD_OUT available=0 holds_pending
         A is on_hand=2 reserved=2 sold=0 version=1 movements=2",
    );
}

#[test]
fn decide_gives_all_units_of_a_request_or_none() {
    check(
        "sku A on_hand=5 limit=10
         r1 u1 A 3 -> RESERVED
         r2 u2 A 3 -> SOLD_OUT available=2 holds_pending
         A is on_hand=5 reserved=3 sold=0 version=1 movements=2",
    );
}

#[test]
fn decide_skips_a_request_that_is_too_large_and_a_later_smaller_one_wins() {
    check(
        "sku A on_hand=3 limit=10
         r1 u1 A 2 -> RESERVED
         r2 u2 A 2 -> SOLD_OUT available=1 holds_pending
         r3 u3 A 1 -> RESERVED
         r4 u4 A 1 -> SOLD_OUT available=0 holds_pending",
    );
}

#[test]
fn decide_takes_exactly_the_last_unit() {
    check(
        "sku A on_hand=1000 limit=1000
         r1 u1 A 1000 -> RESERVED
         r2 u2 A 1    -> SOLD_OUT available=0 holds_pending",
    );
    check(
        "sku A on_hand=999 limit=1000
         r1 u1 A 1000 -> SOLD_OUT available=999
         r2 u1 A 999  -> RESERVED",
    );
}

#[test]
fn decide_says_whether_units_may_come_back() {
    check(
        "sku NOTHING on_hand=0 limit=1
         r1 u1 NOTHING 1 -> SOLD_OUT available=0",
    );
    check(
        "sku OWNED on_hand=1 limit=1
         sold u9 OWNED 1
         r1 u1 OWNED 1 -> SOLD_OUT available=0",
    );
    check(
        "sku HELD on_hand=1 limit=1
         held u9 HELD 1
         r1 u1 HELD 1 -> SOLD_OUT available=0 holds_pending",
    );
    check(
        "sku BOTH on_hand=4 limit=9
         sold u8 BOTH 2
         held u9 BOTH 1
         r1 u1 BOTH 2 -> SOLD_OUT available=1 holds_pending",
    );
}

#[test]
fn decide_keeps_skus_apart() {
    check(
        "sku A on_hand=1 limit=1
         sku B on_hand=1 limit=1
         r1 u1 A 1 -> RESERVED
         r2 u1 B 1 -> RESERVED
         r3 u2 A 1 -> SOLD_OUT available=0 holds_pending
         A is on_hand=1 reserved=1 sold=0 version=1 movements=2
         B is on_hand=1 reserved=1 sold=0 version=1 movements=2",
    );
}

// ---- precedence: DUPLICATE, NOT_HERE, SALE_PAUSED, SALE_NOT_STARTED, SALE_ENDED, USER_LIMIT, SOLD_OUT -------------------------

#[test]
fn decide_says_duplicate_before_every_other_reason() {
    check(
        "sku A on_hand=1 limit=1 starts=100 ends=200
         @100 r1 u1 A 1 -> RESERVED
         @150 r1 u1 A 1 -> DUPLICATE
         @250 r1 u1 A 1 -> DUPLICATE",
    );
    // A rejection stands as well: the same id never gets units later.
    check(
        "sku A on_hand=1 limit=1 starts=100
         @50  r1 u1 A 1 -> SALE_NOT_STARTED starts=100
         @100 r1 u1 A 1 -> DUPLICATE
         @100 r2 u1 A 1 -> RESERVED",
    );
}

#[test]
fn decide_dedupes_by_id_alone_whatever_the_body_says() {
    check(
        "sku A on_hand=5 limit=5
         sku B on_hand=5 limit=5
         r1 u1 A 1 -> RESERVED
         r1 u2 A 1 -> DUPLICATE
         r1 u1 A 4 -> DUPLICATE
         r1 u1 B 1 -> DUPLICATE
         A is on_hand=5 reserved=1 sold=0 version=1 movements=2
         B is on_hand=5 reserved=0 sold=0 version=1 movements=1",
    );
}

#[test]
fn decide_dedupes_inside_a_batch_and_across_batches() {
    check(
        "sku A on_hand=5 limit=5
         r1 u1 A 1 -> RESERVED
         r1 u1 A 1 -> DUPLICATE
         ---
         r1 u1 A 1 -> DUPLICATE
         r2 u1 A 1 -> RESERVED
         ---
         r2 u1 A 1 -> DUPLICATE
         r1 u1 A 1 -> DUPLICATE
         A is on_hand=5 reserved=2 sold=0 version=1 movements=3",
    );
}

#[test]
fn decide_refuses_a_sku_of_another_partition_as_poison() {
    check(
        "r1 u1 ELSEWHERE 1 -> NOT_HERE
         r1 u1 ELSEWHERE 1 -> DUPLICATE",
    );
    // The client has heard REJECTED(UNKNOWN_SKU) for this id: it stays so, even when the SKU comes.
    check(
        "r1 u1 A 1 -> NOT_HERE
         configure c1 A seen=0 on_hand=1 -> CREATED version=1
         r1 u1 A 1 -> DUPLICATE
         r2 u1 A 1 -> RESERVED",
    );
}

#[test]
fn decide_refuses_bytes_that_are_no_command_as_poison() {
    check(
        "sku A on_hand=1 limit=1
         bytes    -> MALFORMED
         bytes    -> MALFORMED
         bytes x1 -> MALFORMED
         r1 u1 A 1 -> RESERVED",
    );
    // An id that was read from unfit bytes was answered REJECTED(INVALID): it is used up.
    check(
        "sku A on_hand=1 limit=1
         bytes r1  -> MALFORMED
         r1 u1 A 1 -> DUPLICATE",
    );
    // The other way round the first decision stands, and the bytes are still kept as poison.
    check(
        "sku A on_hand=1 limit=1
         r1 u1 A 1 -> RESERVED
         bytes r1  -> MALFORMED
         r1 u1 A 1 -> DUPLICATE
         A is on_hand=1 reserved=1 sold=0 version=1 movements=2",
    );
}

#[test]
fn decide_refuses_by_the_first_reason_that_holds() {
    // All of them hold, then one less each time: no sale can be before its start and after its end at once.
    check(
        "sku A on_hand=0 limit=1 starts=100 ends=200 paused
         @50  r1 u1 A 2 -> SALE_PAUSED
         @200 r2 u1 A 2 -> SALE_PAUSED",
    );
    check(
        "sku A on_hand=0 limit=1 starts=100 ends=200
         @50  r1 u1 A 2 -> SALE_NOT_STARTED starts=100
         @150 r2 u1 A 2 -> USER_LIMIT limit=1 remaining=1
         @150 r3 u1 A 1 -> SOLD_OUT available=0
         @200 r4 u1 A 2 -> SALE_ENDED ends=200",
    );
    check(
        "sku A on_hand=9 limit=1 paused
         r1 u1 A 2 -> SALE_PAUSED
         r2 u1 A 1 -> SALE_PAUSED
         A is on_hand=9 reserved=0 sold=0 version=1 movements=1 paused",
    );
}

#[test]
fn decide_says_duplicate_and_not_here_before_a_pause() {
    check(
        "sku A on_hand=9 limit=9
         r1 u1 A 1 -> RESERVED
         pause p1 A seen=1 -> CHANGED version=2
         r1 u1 A 1 -> DUPLICATE
         r2 u1 B 1 -> NOT_HERE
         bytes r3  -> MALFORMED
         r3 u1 A 1 -> DUPLICATE
         r4 u1 A 1 -> SALE_PAUSED",
    );
}

// ---- the sale's window --------------------------------------------------------------------------------------------------------

#[test]
fn decide_opens_the_sale_at_its_start_and_closes_it_at_its_end() {
    check(
        "sku A on_hand=9 limit=9 starts=1000 ends=2000
         @999  r1 u1 A 1 -> SALE_NOT_STARTED starts=1000
         @1000 r2 u1 A 1 -> RESERVED
         @1999 r3 u1 A 1 -> RESERVED
         @2000 r4 u1 A 1 -> SALE_ENDED ends=2000
         @2001 r5 u1 A 1 -> SALE_ENDED ends=2000",
    );
}

#[test]
fn decide_treats_an_absent_start_or_end_as_none() {
    check(
        "sku A on_hand=9 limit=9 ends=1000
         @0    r1 u1 A 1 -> RESERVED
         @1000 r2 u1 A 1 -> SALE_ENDED ends=1000",
    );
    check(
        "sku A on_hand=9 limit=9 starts=1000
         @999              r1 u1 A 1 -> SALE_NOT_STARTED starts=1000
         @9000000000000000 r2 u1 A 1 -> RESERVED",
    );
}

// ---- log time -----------------------------------------------------------------------------------------------------------------

#[test]
fn decide_holds_from_the_log_time_of_the_request() {
    check(
        "sku A on_hand=9 limit=9 hold=120
         @5000 r1 u1 A 1 -> RESERVED until=125000 at=5000
         @5001 r2 u1 A 1 -> RESERVED until=125001 at=5001",
    );
    check(
        "sku A on_hand=9 limit=9 hold=14400
         @0 r1 u1 A 1 -> RESERVED until=14400000",
    );
}

#[test]
fn decide_never_lets_log_time_run_backwards() {
    check(
        "sku A on_hand=9 limit=9 hold=10
         @5000 r1 u1 A 1 -> RESERVED until=15000 at=5000
         @4000 r2 u1 A 1 -> RESERVED until=15000 at=5000
         @5001 r3 u1 A 1 -> RESERVED until=15001 at=5001",
    );
    // Not from one batch to the next either, ...
    check(
        "sku A on_hand=9 limit=9 hold=10
         log_time 7000
         @5000 r1 u1 A 1 -> RESERVED until=17000 at=7000
         ---
         @6000 r2 u1 A 1 -> RESERVED until=17000 at=7000",
    );
    // ... and a sale that has ended or begun does not become open or closed again by a slow broker clock.
    check(
        "sku A on_hand=9 limit=9 starts=1000 ends=2000
         @1000 r1 u1 A 1 -> RESERVED
         @999  r2 u1 A 1 -> RESERVED at=1000
         @2000 r3 u1 A 1 -> SALE_ENDED ends=2000
         @1999 r4 u1 A 1 -> SALE_ENDED ends=2000 at=2000",
    );
}

#[test]
fn decide_moves_log_time_by_every_record_whatever_it_says() {
    check(
        "sku A on_hand=9 limit=9 ends=2000
         @1000 r1 u1 A 1 -> RESERVED
         @3000 bytes     -> MALFORMED at=3000
         @1000 r2 u1 A 1 -> SALE_ENDED ends=2000 at=3000",
    );
    check(
        "sku A on_hand=9 limit=9 ends=2000
         @1000 r1 u1 A 1 -> RESERVED
         @3000 r1 u1 A 1 -> DUPLICATE at=3000
         @1000 r2 u1 A 1 -> SALE_ENDED ends=2000 at=3000",
    );
}

// ---- the user's limit ---------------------------------------------------------------------------------------------------------

#[test]
fn decide_counts_what_a_user_holds_and_owns_against_the_limit() {
    check(
        "sku A on_hand=99 limit=4
         held u1 A 1
         sold u1 A 1
         r1 u1 A 3 -> USER_LIMIT limit=4 remaining=2
         r2 u1 A 2 -> RESERVED
         r3 u1 A 1 -> USER_LIMIT limit=4 remaining=0
         r4 u2 A 4 -> RESERVED",
    );
}

#[test]
fn decide_refuses_more_than_the_limit_in_one_request() {
    check(
        "sku A on_hand=99 limit=2
         r1 u1 A 3 -> USER_LIMIT limit=2 remaining=2
         r2 u1 A 2 -> RESERVED",
    );
}

#[test]
fn decide_counts_the_limit_per_sku() {
    check(
        "sku A on_hand=9 limit=1
         sku B on_hand=9 limit=2
         r1 u1 A 1 -> RESERVED
         r2 u1 B 2 -> RESERVED
         r3 u1 A 1 -> USER_LIMIT limit=1 remaining=0",
    );
}

#[test]
fn decide_lets_a_refused_request_use_up_nothing_of_the_limit() {
    check(
        "sku A on_hand=1 limit=2
         r1 u1 A 2 -> SOLD_OUT available=1
         r2 u1 A 1 -> RESERVED
         r3 u1 A 1 -> SOLD_OUT available=0 holds_pending",
    );
}

#[test]
fn decide_leaves_nothing_to_a_user_who_has_more_than_a_lowered_limit() {
    check(
        "sku A on_hand=99 limit=5
         r1 u1 A 4 -> RESERVED
         configure c1 A seen=1 limit=2 -> CHANGED version=2
         r2 u1 A 1 -> USER_LIMIT limit=2 remaining=0
         r3 u2 A 2 -> RESERVED
         A is on_hand=99 reserved=6 sold=0 version=2 movements=2",
    );
}

// ---- configure ----------------------------------------------------------------------------------------------------------------

#[test]
fn decide_creates_a_sku_with_its_first_movement() {
    check(
        "configure c1 A seen=0 on_hand=3 limit=2 -> CREATED version=1
         A is on_hand=3 reserved=0 sold=0 version=1 movements=1
         r1 u1 A 2 -> RESERVED
         A is on_hand=3 reserved=2 sold=0 version=1 movements=2",
    );
    // A sale of nothing is a sale; its balance is a movement too.
    check(
        "configure c1 A seen=0 on_hand=0 -> CREATED version=1
         A is on_hand=0 reserved=0 sold=0 version=1 movements=1",
    );
}

#[test]
fn decide_sells_a_sku_in_the_batch_that_creates_it() {
    check(
        "r0 u1 A 1 -> NOT_HERE
         configure c1 A seen=0 on_hand=1 -> CREATED version=1
         r1 u1 A 1 -> RESERVED
         r2 u2 A 1 -> SOLD_OUT available=0 holds_pending",
    );
}

#[test]
fn decide_puts_changed_settings_in_force_for_the_commands_after_them() {
    check(
        "sku A on_hand=9 limit=1 hold=10
         @0   r1 u1 A 1 -> RESERVED until=10000
         @0   r2 u1 A 1 -> USER_LIMIT limit=1 remaining=0
         configure c1 A seen=1 limit=2 hold=20 -> CHANGED version=2
         @0   r3 u1 A 1 -> RESERVED until=20000
         configure c2 A seen=2 limit=9 ends=500 -> CHANGED version=3
         @499 r4 u1 A 1 -> RESERVED
         @500 r5 u1 A 1 -> SALE_ENDED ends=500
         configure c3 A seen=3 limit=9 -> CHANGED version=4
         @501 r6 u1 A 1 -> RESERVED
         A is on_hand=9 reserved=4 sold=0 version=4 movements=2",
    );
}

#[test]
fn decide_changes_settings_without_a_movement() {
    check(
        "sku A on_hand=9 limit=1
         configure c1 A seen=1 limit=2 -> CHANGED version=2
         A is on_hand=9 reserved=0 sold=0 version=2 movements=1",
    );
}

#[test]
fn decide_refuses_settings_that_were_made_for_other_settings() {
    check(
        "sku A on_hand=9 limit=1 version=3
         configure c1 A seen=2 limit=5 -> SETTINGS_CHANGED version=3
         configure c2 A seen=4 limit=5 -> SETTINGS_CHANGED version=3
         configure c3 A seen=0 on_hand=9 limit=5 -> SETTINGS_CHANGED version=3
         configure c4 A seen=3 limit=5 -> CHANGED version=4
         configure c5 A seen=3 limit=6 -> SETTINGS_CHANGED version=4
         A is on_hand=9 reserved=0 sold=0 version=4 movements=1",
    );
    // Meant for a SKU that does not exist here.
    check("configure c1 A seen=1 on_hand=5 -> SETTINGS_CHANGED version=0");
}

#[test]
fn decide_refuses_a_stock_that_is_not_todays() {
    check(
        "sku A on_hand=9 limit=1
         configure c1 A seen=1 on_hand=8  limit=5 -> STOCK_CHANGED on_hand=9
         configure c2 A seen=1 on_hand=10 limit=5 -> STOCK_CHANGED on_hand=9
         configure c3 A seen=1 on_hand=9  limit=5 -> CHANGED version=2",
    );
    // The settings' version is looked at first.
    check(
        "sku A on_hand=9 limit=1
         configure c1 A seen=7 on_hand=8 -> SETTINGS_CHANGED version=1",
    );
    // Units sold are still units in the sale.
    check(
        "sku A on_hand=9 limit=9
         r1 u1 A 4 -> RESERVED
         configure c1 A seen=1 on_hand=5 -> STOCK_CHANGED on_hand=9",
    );
}

#[test]
fn decide_lets_a_refused_configure_burn_no_id() {
    check(
        "sku A on_hand=9 limit=1
         configure c1 A seen=2 limit=2 -> SETTINGS_CHANGED version=1
         configure c2 A seen=1 limit=3 -> CHANGED version=2
         configure c1 A seen=2 limit=2 -> CHANGED version=3
         configure c1 A seen=2 limit=2 -> DUPLICATE",
    );
}

#[test]
fn decide_does_not_configure_a_sku_that_is_pinned_elsewhere() {
    check(
        "configure c1 A seen=0 on_hand=5 pin=1 -> NOT_HERE
         configure c1 A seen=0 on_hand=5 pin=0 -> CREATED version=1
         r1 u1 A 1 -> RESERVED",
    );
    check(
        "sku A on_hand=9 limit=1
         configure c1 A seen=1 limit=5 pin=1 -> NOT_HERE
         A is on_hand=9 reserved=0 sold=0 version=1 movements=1",
    );
}

#[test]
fn decide_writes_nothing_about_a_sku_when_all_its_requests_are_refused() {
    check(
        "sku A on_hand=0 limit=1
         r1 u1 A 1 -> SOLD_OUT available=0
         r2 u1 A 2 -> USER_LIMIT limit=1 remaining=1
         A is on_hand=0 reserved=0 sold=0 version=1 movements=1",
    );
}
