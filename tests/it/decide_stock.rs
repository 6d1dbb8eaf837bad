//! Adjustments, pauses and resumes, case by case. How a case is written: `support/cases.rs`.

use crate::support::cases::check;

#[test]
fn decide_adjusts_the_stock_up_and_down() {
    check(
        "sku A on_hand=5 limit=9 hold=10
         r1 u1 A 1 -> RESERVED
         r2 u1 A 2 -> RESERVED
         confirm k1 r2 A p -> CONFIRMED
         adjust a1 A by=5 -> ADJUSTED on_hand=10 reserved=1 sold=2
         adjust a2 A by=-7 -> ADJUSTED on_hand=3 reserved=1 sold=2
         r3 u2 A 1 -> SOLD_OUT available=0 holds_pending
         adjust a3 A by=1 -> ADJUSTED on_hand=4 reserved=1 sold=2
         r3 u2 A 1 -> DUPLICATE
         r4 u2 A 1 -> RESERVED
         A is on_hand=4 reserved=2 sold=2 version=1 movements=2",
    );
}

#[test]
fn decide_never_adjusts_below_what_is_promised() {
    check(
        "sku A on_hand=5 limit=9 hold=10
         r1 u1 A 1 -> RESERVED
         r2 u1 A 2 -> RESERVED
         confirm k1 r2 A p -> CONFIRMED
         adjust a1 A by=-3 -> BELOW_COMMITTED minimum=3
         adjust a2 A is=5 to=2 -> BELOW_COMMITTED minimum=3
         adjust a3 A by=-1000000000 -> BELOW_COMMITTED minimum=3
         adjust a4 A by=-2 -> ADJUSTED on_hand=3 reserved=1 sold=2
         @10000 adjust a5 A by=-1 -> ADJUSTED on_hand=2 reserved=0 sold=2
         adjust a6 A by=-1 -> BELOW_COMMITTED minimum=2",
    );
    check(
        "sku A on_hand=1 limit=1
         adjust a1 A by=-2 -> BELOW_COMMITTED minimum=0
         adjust a2 A by=-1 -> ADJUSTED on_hand=0 reserved=0 sold=0
         adjust a3 A by=-1 -> BELOW_COMMITTED minimum=0",
    );
}

#[test]
fn decide_never_adjusts_above_the_largest_stock() {
    check(
        "sku A on_hand=999999999 limit=1
         adjust a1 A by=2 -> ABOVE_MAXIMUM on_hand=999999999
         adjust a2 A by=1 -> ADJUSTED on_hand=1000000000 reserved=0 sold=0
         adjust a3 A by=1000000000 -> ABOVE_MAXIMUM on_hand=1000000000
         adjust a4 A by=9223372036854775807 -> ABOVE_MAXIMUM on_hand=1000000000
         adjust a5 A by=-9223372036854775808 -> BELOW_COMMITTED minimum=0",
    );
}

#[test]
fn decide_sets_a_counted_stock_if_it_was_what_was_believed() {
    check(
        "sku A on_hand=5 limit=9
         held u1 A 2
         adjust a1 A is=4 to=9 -> STOCK_CHANGED on_hand=5
         adjust a2 A is=4 to=1 -> STOCK_CHANGED on_hand=5
         adjust a3 A is=5 to=9 -> ADJUSTED on_hand=9 reserved=2 sold=0
         adjust a4 A is=5 to=9 -> STOCK_CHANGED on_hand=9
         adjust a5 A is=9 to=2 -> ADJUSTED on_hand=2 reserved=2 sold=0
         A is on_hand=2 reserved=2 sold=0 version=1 movements=2",
    );
}

#[test]
fn decide_makes_no_movement_of_an_adjustment_that_moves_nothing() {
    check(
        "sku A on_hand=5 limit=9
         adjust a1 A is=5 to=5 -> ADJUSTED on_hand=5 reserved=0 sold=0
         A is on_hand=5 reserved=0 sold=0 version=1 movements=1",
    );
    check(
        "sku A on_hand=5 limit=9
         adjust a1 A by=3 -> ADJUSTED on_hand=8 reserved=0 sold=0
         adjust a2 A by=-3 -> ADJUSTED on_hand=5 reserved=0 sold=0
         A is on_hand=5 reserved=0 sold=0 version=1 movements=1",
    );
}

#[test]
fn decide_adjusts_once_and_remembers_no_refusal() {
    check(
        "sku A on_hand=5 limit=9
         adjust a1 A by=-6 -> BELOW_COMMITTED minimum=0
         adjust a2 A is=4 to=9 -> STOCK_CHANGED on_hand=5
         adjust a3 A by=1000000000 -> ABOVE_MAXIMUM on_hand=5
         adjust a4 A by=1 -> ADJUSTED on_hand=6 reserved=0 sold=0
         adjust a4 A by=1 -> DUPLICATE
         adjust a1 A by=-6 -> ADJUSTED on_hand=0 reserved=0 sold=0
         adjust a4 A by=4 -> DUPLICATE
         adjust a5 A by=4 -> ADJUSTED on_hand=4 reserved=0 sold=0
         adjust a2 A is=4 to=9 -> ADJUSTED on_hand=9 reserved=0 sold=0
         adjust a2 A is=4 to=9 -> DUPLICATE
         A is on_hand=9 reserved=0 sold=0 version=1 movements=2",
    );
}

#[test]
fn decide_adjusts_without_a_new_settings_version() {
    check(
        "sku A on_hand=5 limit=9 version=3
         adjust a1 A by=1 -> ADJUSTED on_hand=6 reserved=0 sold=0
         configure c1 A seen=3 on_hand=5 -> STOCK_CHANGED on_hand=6
         configure c2 A seen=3 on_hand=6 -> CHANGED version=4",
    );
}

#[test]
fn decide_refuses_requests_between_pause_and_resume() {
    check(
        "sku A on_hand=5 limit=9
         r1 u1 A 1 -> RESERVED
         pause p1 A seen=1 -> CHANGED version=2
         r2 u1 A 1 -> SALE_PAUSED
         A is on_hand=5 reserved=1 sold=0 version=2 movements=2 paused
         resume p2 A seen=2 -> CHANGED version=3
         r2 u1 A 1 -> DUPLICATE
         r3 u1 A 1 -> RESERVED
         A is on_hand=5 reserved=2 sold=0 version=3 movements=3",
    );
}

#[test]
fn decide_pauses_nothing_but_requests() {
    check(
        "sku A on_hand=5 limit=9 hold=10
         r1 u1 A 1 -> RESERVED
         r2 u1 A 1 -> RESERVED
         r3 u1 A 1 -> RESERVED
         r4 u1 A 1 -> RESERVED
         pause p1 A seen=1 -> CHANGED version=2
         confirm k1 r1 A p -> CONFIRMED
         cancel k2 r2 A -> CANCELLED
         extend k3 r3 A 1 -> EXTENDED until=11000
         adjust k4 A by=1 -> ADJUSTED on_hand=6 reserved=2 sold=1
         @10000 tick A -> TICKED released=1
         A is on_hand=6 reserved=1 sold=1 version=2 movements=2 paused",
    );
}

#[test]
fn decide_pauses_by_the_settings_version_that_was_seen() {
    check(
        "sku A on_hand=5 limit=9 version=4
         pause  p1 A seen=3 -> SETTINGS_CHANGED version=4
         pause  p2 A seen=5 -> SETTINGS_CHANGED version=4
         resume p3 A seen=4 -> CHANGED version=5
         resume p3 A seen=5 -> DUPLICATE
         pause  p1 A seen=5 -> CHANGED version=6
         pause  p4 A seen=6 -> CHANGED version=7
         pause  p4 A seen=7 -> DUPLICATE
         A is on_hand=5 reserved=0 sold=0 version=7 movements=1 paused",
    );
}

#[test]
fn decide_keeps_a_pause_through_a_configure() {
    check(
        "sku A on_hand=5 limit=9
         pause p1 A seen=1 -> CHANGED version=2
         configure c1 A seen=2 limit=9 -> CHANGED version=3
         r1 u1 A 1 -> SALE_PAUSED
         resume p2 A seen=2 -> SETTINGS_CHANGED version=3
         r2 u1 A 1 -> SALE_PAUSED
         resume p3 A seen=3 -> CHANGED version=4
         r3 u1 A 1 -> RESERVED",
    );
}

#[test]
fn decide_pauses_one_sku_alone() {
    check(
        "sku A on_hand=5 limit=9
         sku B on_hand=5 limit=9
         pause p1 A seen=1 -> CHANGED version=2
         r1 u1 A 1 -> SALE_PAUSED
         r2 u1 B 1 -> RESERVED",
    );
}
