//! The life of a hold, case by case: confirm, cancel, extend, and its end by log time. How a case is written: `support/cases.rs`.

use crate::support::cases::check;

// ---- the end of a hold --------------------------------------------------------------------------------------------------------

#[test]
fn decide_ends_a_hold_at_its_end_and_not_a_millisecond_before() {
    check(
        "sku A on_hand=1 limit=9 hold=10
         @0     r1 u1 A 1 -> RESERVED until=10000
         @9999  r2 u2 A 1 -> SOLD_OUT available=0 holds_pending
         r1 is RESERVED version=1 until=10000
         @10000 r3 u3 A 1 -> RESERVED until=20000
         r1 is EXPIRED version=2 until=10000
         A is on_hand=1 reserved=1 sold=0 version=1 movements=2",
    );
    for (at, confirm) in [(9_999, "CONFIRMED"), (10_000, "CONFIRMED late"), (10_001, "CONFIRMED late")] {
        check(&format!(
            "sku A on_hand=1 limit=1 hold=10
             @0 r1 u1 A 1 -> RESERVED
             @{at} confirm k1 r1 A p -> {confirm}"
        ));
    }
    for (command, before) in [("cancel k1 r1 A", "CANCELLED"), ("extend k1 r1 A 1", "EXTENDED until=11000")] {
        for (at, verdict) in [(9_999, before), (10_000, "HOLD_EXPIRED")] {
            check(&format!(
                "sku A on_hand=1 limit=1 hold=10
                 @0 r1 u1 A 1 -> RESERVED
                 @{at} {command} -> {verdict}"
            ));
        }
    }
}

#[test]
fn decide_frees_the_users_limit_with_the_hold() {
    check(
        "sku A on_hand=9 limit=2 hold=10
         @0     r1 u1 A 2 -> RESERVED
         @9999  r2 u1 A 1 -> USER_LIMIT limit=2 remaining=0
         @10000 r3 u1 A 2 -> RESERVED
         @10000 r4 u1 A 1 -> USER_LIMIT limit=2 remaining=0",
    );
}

#[test]
fn decide_ends_holds_before_any_command_of_their_sku_whatever_it_is() {
    for command in [
        "r1 u1 A 1 -> DUPLICATE",
        "r2 u2 A 9 -> USER_LIMIT limit=2 remaining=2",
        "confirm k r0 A p -> NOT_RESERVED_YET",
        "confirm k1 r3 A p -> DUPLICATE",
        "cancel k r0 A -> NOT_RESERVED_YET",
        "extend k r0 A 60 -> NOT_RESERVED_YET",
        "adjust k A is=1 to=5 -> STOCK_CHANGED on_hand=9",
        "configure k A seen=7 -> SETTINGS_CHANGED version=1",
        "configure k A seen=1 pin=1 -> NOT_HERE",
        "pause k A seen=7 -> SETTINGS_CHANGED version=1",
        "tick A -> TICKED released=2",
    ] {
        check(&format!(
            "sku A on_hand=9 limit=2 hold=10
             r3 u3 A 1 -> RESERVED
             confirm k1 r3 A p -> CONFIRMED
             ---
             r1 u1 A 2 -> RESERVED
             ---
             A is on_hand=9 reserved=2 sold=1 version=1 movements=3
             @10000 {command}
             A is on_hand=9 reserved=0 sold=1 version=1 movements=4
             r1 is EXPIRED version=2 until=10000"
        ));
    }
}

#[test]
fn decide_ends_no_hold_by_another_skus_commands_or_by_bytes() {
    check(
        "sku A on_hand=9 limit=2 hold=10
         sku B on_hand=9 limit=2 hold=10
         r1 u1 A 2 -> RESERVED
         r2 u1 B 2 -> RESERVED
         ---
         @20000 tick B -> TICKED released=2
         @20000 bytes  -> MALFORMED
         A is on_hand=9 reserved=2 sold=0 version=1 movements=2
         r1 is RESERVED version=1 until=10000
         r2 is EXPIRED version=2 until=10000
         tick A -> TICKED released=2
         r1 is EXPIRED version=2 until=10000",
    );
}

#[test]
fn decide_ticks_release_once() {
    check(
        "sku A on_hand=9 limit=9 hold=10
         @0     tick A -> TICKED released=0
         @0     r1 u1 A 1 -> RESERVED
         @5000  r2 u2 A 2 -> RESERVED
         @5000  r3 u3 A 4 -> RESERVED
         cancel k1 r3 A -> CANCELLED
         @9999  tick A -> TICKED released=0
         @10000 tick A -> TICKED released=1
         @10000 tick A -> TICKED released=0
         @14999 tick A -> TICKED released=0
         @99999 tick A -> TICKED released=2
         @5000  tick A -> TICKED released=0 at=99999
         A is on_hand=9 reserved=0 sold=0 version=1 movements=1",
    );
    check("tick A -> NOT_HERE");
}

#[test]
fn decide_ends_holds_by_the_log_time_that_holds_back_a_slow_clock() {
    check(
        "sku A on_hand=1 limit=1 hold=10
         @0     r1 u1 A 1 -> RESERVED
         @10000 bytes -> MALFORMED
         @0     r2 u2 A 1 -> RESERVED until=20000 at=10000",
    );
}

#[test]
fn decide_sells_the_same_unit_again_and_again() {
    check(
        "sku A on_hand=1 limit=1 hold=10
         @0     r1 u1 A 1 -> RESERVED
         @10000 r2 u1 A 1 -> RESERVED
         @20000 r3 u1 A 1 -> RESERVED
         cancel k1 r3 A -> CANCELLED
         r4 u1 A 1 -> RESERVED
         confirm k2 r4 A p -> CONFIRMED
         @90000 r5 u2 A 1 -> SOLD_OUT available=0
         A is on_hand=1 reserved=0 sold=1 version=1 movements=2",
    );
}

#[test]
fn decide_counts_holds_that_end_together() {
    check(
        "sku A on_hand=9 limit=9 hold=10
         r1 u1 A 1 -> RESERVED
         r2 u1 A 2 -> RESERVED
         r3 u2 A 3 -> RESERVED
         confirm k1 r2 A p -> CONFIRMED
         ---
         r4 u1 A 7 -> USER_LIMIT limit=9 remaining=6
         cancel k2 r1 A -> CANCELLED
         r5 u2 A 6 -> SOLD_OUT available=4 holds_pending
         @10000 tick A -> TICKED released=3
         r6 u2 A 7 -> RESERVED
         A is on_hand=9 reserved=7 sold=2 version=1 movements=3",
    );
}

// ---- late payments ------------------------------------------------------------------------------------------------------------

#[test]
fn decide_fulfils_a_late_payment_whatever_window_and_pause_say() {
    check(
        "sku A on_hand=1 limit=1 hold=10 ends=5000
         @0     r1 u1 A 1 -> RESERVED
         @5000  r2 u2 A 1 -> SALE_ENDED ends=5000
         pause p1 A seen=1 -> CHANGED version=2
         @20000 confirm k1 r1 A p -> CONFIRMED late
         r1 is CONFIRMED version=3 until=10000 changed=20000 payment=p late
         A is on_hand=1 reserved=0 sold=1 version=2 movements=2 paused",
    );
    check(
        "sku A on_hand=1 limit=1 hold=10
         @0 r1 u1 A 1 -> RESERVED
         configure c1 A seen=1 hold=10 starts=90000 -> CHANGED version=2
         @20000 confirm k1 r1 A p -> CONFIRMED late",
    );
}

#[test]
fn decide_refuses_a_late_payment_that_has_no_units_left() {
    check(
        "sku A on_hand=2 limit=2 hold=10
         @0     r1 u1 A 2 -> RESERVED
         @10000 r2 u2 A 1 -> RESERVED
         confirm k1 r1 A p1 -> PAID_UNFULFILLED
         r1 is EXPIRED version=2 until=10000
         cancel k2 r2 A -> CANCELLED
         confirm k1 r1 A p1 -> DUPLICATE
         confirm k3 r1 A p2 -> CONFIRMED late
         A is on_hand=2 reserved=0 sold=2 version=1 movements=3",
    );
    // Exactly enough is enough.
    check(
        "sku A on_hand=3 limit=2 hold=10
         @0     r1 u1 A 2 -> RESERVED
         @10000 r2 u2 A 1 -> RESERVED
         confirm k1 r1 A p1 -> CONFIRMED late",
    );
}

#[test]
fn decide_refuses_a_late_payment_above_the_limit_in_force() {
    check(
        "sku A on_hand=9 limit=2 hold=10
         @0     r1 u1 A 2 -> RESERVED
         @10000 r2 u1 A 1 -> RESERVED
         confirm k1 r1 A p1 -> PAID_UNFULFILLED
         @20000 confirm k2 r1 A p2 -> CONFIRMED late
         r3 u1 A 1 -> USER_LIMIT limit=2 remaining=0",
    );
    check(
        "sku A on_hand=9 limit=2 hold=10
         @0     r1 u1 A 2 -> RESERVED
         configure c1 A seen=1 limit=1 hold=10 -> CHANGED version=2
         @10000 confirm k1 r1 A p1 -> PAID_UNFULFILLED",
    );
    // A hold that still runs is paid for, whatever the limit is by now.
    check(
        "sku A on_hand=9 limit=2 hold=10
         @0     r1 u1 A 2 -> RESERVED
         configure c1 A seen=1 limit=1 -> CHANGED version=2
         @9999  confirm k1 r1 A p1 -> CONFIRMED",
    );
    // What the user has of another SKU, and what other users have, does not count.
    check(
        "sku A on_hand=9 limit=2 hold=10
         sku B on_hand=9 limit=2 hold=100
         sold u2 A 2
         r0 u1 B 2 -> RESERVED
         @0     r1 u1 A 2 -> RESERVED
         @10000 confirm k1 r1 A p1 -> CONFIRMED late",
    );
}

#[test]
fn decide_asks_the_policy_in_force_before_the_stock() {
    check(
        "sku A on_hand=1 limit=1 hold=10
         @0     r1 u1 A 1 -> RESERVED
         @10000 r2 u2 A 1 -> RESERVED
         configure c1 A seen=1 hold=10 late=reject -> CHANGED version=2
         confirm k1 r1 A p1 -> HOLD_EXPIRED",
    );
}

// ---- extensions ---------------------------------------------------------------------------------------------------------------

#[test]
fn decide_extends_as_often_and_as_long_as_the_sale_allows() {
    check(
        "sku A on_hand=9 limit=9 hold=10 ext=2 ext_seconds=100
         @0 r1 u1 A 1 -> RESERVED until=10000
         extend e1 r1 A 101 -> EXTENSION_LIMIT extensions_left=2 seconds_left=100
         extend e2 r1 A 40  -> EXTENDED until=50000
         extend e3 r1 A 61  -> EXTENSION_LIMIT extensions_left=1 seconds_left=60
         extend e4 r1 A 60  -> EXTENDED until=110000
         extend e5 r1 A 1   -> EXTENSION_LIMIT extensions_left=0 seconds_left=0
         r1 is RESERVED version=3 until=110000 extended=2/100
         @109999 tick A -> TICKED released=0
         @110000 tick A -> TICKED released=1
         r1 is EXPIRED version=4 until=110000 extended=2/100
         extend e6 r1 A 1 -> HOLD_EXPIRED",
    );
    check(
        "sku A on_hand=9 limit=9 hold=10 ext=1 ext_seconds=100
         r1 u1 A 1 -> RESERVED
         extend e1 r1 A 1 -> EXTENDED until=11000
         extend e2 r1 A 1 -> EXTENSION_LIMIT extensions_left=0 seconds_left=99",
    );
    for settings in ["ext=0", "ext_seconds=0"] {
        check(&format!(
            "sku A on_hand=9 limit=9 hold=10 {settings}
             r1 u1 A 1 -> RESERVED
             extend e1 r1 A 1 -> EXTENSION_LIMIT {}",
            if settings == "ext=0" { "extensions_left=0 seconds_left=600" } else { "extensions_left=3 seconds_left=0" }
        ));
    }
}

#[test]
fn decide_extends_by_the_bounds_in_force() {
    check(
        "sku A on_hand=9 limit=9 hold=10 ext=3 ext_seconds=600
         r1 u1 A 1 -> RESERVED
         extend e1 r1 A 60 -> EXTENDED until=70000
         extend e2 r1 A 60 -> EXTENDED until=130000
         configure c1 A seen=1 ext=1 ext_seconds=50 -> CHANGED version=2
         extend e3 r1 A 1  -> EXTENSION_LIMIT extensions_left=0 seconds_left=0
         configure c2 A seen=2 ext=3 ext_seconds=600 -> CHANGED version=3
         extend e3 r1 A 1  -> EXTENDED until=131000",
    );
}

#[test]
fn decide_extends_one_hold_alone_and_keeps_its_units_held() {
    check(
        "sku A on_hand=3 limit=3 hold=10
         r1 u1 A 1 -> RESERVED
         r2 u1 A 2 -> RESERVED
         ---
         @9999  extend e1 r1 A 5 -> EXTENDED until=15000
         @10000 r3 u1 A 3 -> USER_LIMIT limit=3 remaining=2
         @10000 r4 u2 A 3 -> SOLD_OUT available=2 holds_pending
         @14999 tick A -> TICKED released=0
         @15000 tick A -> TICKED released=1
         r1 is EXPIRED version=3 until=15000 extended=1/5
         r2 is EXPIRED version=2 until=10000",
    );
    // From the old end on, not from now.
    check(
        "sku A on_hand=3 limit=3 hold=10
         r1 u1 A 1 -> RESERVED
         @9000 extend e1 r1 A 1 -> EXTENDED until=11000",
    );
    // Confirmed and cancelled after an extension: no unit stays behind.
    check(
        "sku A on_hand=3 limit=3 hold=10
         r1 u1 A 1 -> RESERVED
         r2 u1 A 1 -> RESERVED
         extend e1 r1 A 5 -> EXTENDED until=15000
         extend e2 r2 A 5 -> EXTENDED until=15000
         confirm k1 r1 A p -> CONFIRMED
         cancel k2 r2 A -> CANCELLED
         @90000 tick A -> TICKED released=0
         r1 is CONFIRMED version=3 until=15000 extended=1/5 changed=0 payment=p
         A is on_hand=3 reserved=0 sold=1 version=1 movements=2",
    );
}

// ---- resolved once, named once ------------------------------------------------------------------------------------------------

#[test]
fn decide_occupies_an_id_by_what_stands_for_ever() {
    check(
        "sku A on_hand=9 limit=9 hold=10 ext=1
         confirm k1 r1 A p -> NOT_RESERVED_YET
         cancel  k2 r2 A   -> NOT_RESERVED_YET
         extend  k3 r3 A 1 -> NOT_RESERVED_YET
         r1 u1 A 1 -> RESERVED
         r2 u1 A 1 -> RESERVED
         r3 u1 A 1 -> RESERVED
         confirm k1 r1 A p -> CONFIRMED
         confirm k1 r1 A p -> DUPLICATE
         cancel  k2 r2 A   -> CANCELLED
         cancel  k2 r2 A   -> DUPLICATE
         extend  k3 r3 A 1 -> EXTENDED until=11000
         extend  k3 r3 A 1 -> DUPLICATE
         extend  k4 r3 A 1 -> EXTENSION_LIMIT extensions_left=0 seconds_left=599
         extend  k4 r3 A 1 -> EXTENSION_LIMIT extensions_left=0 seconds_left=599
         cancel  k5 r1 A   -> ALREADY_CONFIRMED
         cancel  k5 r1 A   -> DUPLICATE
         confirm k6 r2 A p -> ALREADY_CANCELLED
         confirm k6 r2 A p -> DUPLICATE
         @11000 extend k7 r3 A 1 -> HOLD_EXPIRED
         extend  k7 r3 A 1 -> DUPLICATE
         r4 u1 A 9 -> USER_LIMIT limit=9 remaining=8
         confirm k8 r4 A p -> RESERVATION_REJECTED
         confirm k8 r4 A p -> RESERVATION_REJECTED",
    );
}

#[test]
fn decide_dedupes_commands_by_id_alone_and_apart_from_reservations() {
    check(
        "sku A on_hand=9 limit=9 hold=10
         r1 u1 A 1 -> RESERVED
         r2 u1 A 1 -> RESERVED
         cancel  k1 r1 A   -> CANCELLED
         confirm k1 r2 A p -> DUPLICATE
         pause   k1 A seen=1 -> DUPLICATE
         k1 u1 A 1 -> RESERVED
         cancel  r2 r2 A -> CANCELLED
         bytes k9 -> MALFORMED
         cancel k9 k1 A -> CANCELLED
         k9 u1 A 1 -> DUPLICATE
         k1 is CANCELLED version=2 until=10000 changed=0",
    );
}

#[test]
fn decide_resolves_a_reservation_and_makes_it_in_one_batch() {
    check(
        "sku A on_hand=1 limit=1 hold=10
         r1 u1 A 1 -> RESERVED
         confirm k1 r1 A p -> CONFIRMED
         cancel k2 r1 A -> ALREADY_CONFIRMED
         r1 u1 A 1 -> DUPLICATE
         r1 is CONFIRMED version=2 until=10000 changed=0 payment=p
         A is on_hand=1 reserved=0 sold=1 version=1 movements=2",
    );
}

#[test]
fn decide_knows_a_reservation_that_another_command_of_the_batch_names() {
    // The row was loaded for the confirm; its id needs no look-up to be known.
    check(
        "sku A on_hand=9 limit=9 hold=10
         r1 u1 A 1 -> RESERVED
         ---
         r1 u1 A 1 -> DUPLICATE
         confirm k1 r1 A p -> CONFIRMED
         r1 u1 A 1 -> DUPLICATE",
    );
}

#[test]
fn decide_refuses_a_command_for_a_sku_that_is_not_here_as_poison() {
    check(
        "confirm k1 r1 A p -> NOT_HERE
         confirm k1 r1 A p -> NOT_HERE
         cancel k2 r1 A -> NOT_HERE
         extend k3 r1 A 1 -> NOT_HERE
         adjust k4 A by=1 -> NOT_HERE
         pause k5 A seen=1 -> NOT_HERE
         resume k6 A seen=1 -> NOT_HERE
         tick A -> NOT_HERE
         tick A -> NOT_HERE
         configure c1 A seen=0 on_hand=1 -> CREATED version=1
         cancel k2 r1 A -> NOT_RESERVED_YET
         r1 u1 A 1 -> RESERVED
         bytes k1 -> MALFORMED
         confirm k1 r1 A p -> CONFIRMED
         confirm k1 r1 A p -> DUPLICATE",
    );
}

#[test]
fn decide_carries_metadata_through_a_whole_life() {
    let metadata = r#"{"cart":"7"}"#;
    check(&format!(
        "sku A on_hand=1 limit=1 hold=10
         r1 u1 A 1 metadata={metadata} -> RESERVED
         extend k0 r1 A 1 -> EXTENDED until=11000
         r1 is RESERVED version=2 until=11000 extended=1/1 metadata={metadata}
         @11000 confirm k1 r1 A p -> CONFIRMED late
         r1 is CONFIRMED version=4 until=11000 extended=1/1 changed=11000 payment=p metadata={metadata} late
         r2 u1 A 1 metadata={metadata} -> USER_LIMIT limit=1 remaining=0
         r2 is REJECTED version=1 metadata={metadata}"
    ));
}
