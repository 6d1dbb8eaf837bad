//! Keys of commands that something else names, case by case: a confirm is named by its payment, an adjustment by its reference, and their
//! key is not to be used for another one. How a case is written: `support/cases.rs`.

use crate::support::cases::check;

#[test]
fn decide_refuses_a_key_that_came_with_another_payment() {
    check(
        "sku A on_hand=9 limit=9 hold=10
         r1 u1 A 1 -> RESERVED
         confirm pA r1 A a key=k -> CONFIRMED
         confirm pB r1 A b key=k -> IDEMPOTENCY_KEY_REUSED
         confirm pB r1 A b key=k -> IDEMPOTENCY_KEY_REUSED
         confirm pA r1 A a key=k -> DUPLICATE
         confirm pA r1 A a key=l -> DUPLICATE
         confirm pA r1 A a       -> DUPLICATE
         r1 is CONFIRMED version=2 until=10000 changed=0 payment=a
         A is on_hand=9 reserved=0 sold=1 version=1 movements=2",
    );
    // Across a batch's end, as within it.
    check(
        "sku A on_hand=9 limit=9 hold=10
         r1 u1 A 1 -> RESERVED
         confirm pA r1 A a key=k -> CONFIRMED
         ---
         confirm pB r1 A b key=k -> IDEMPOTENCY_KEY_REUSED
         confirm pB r1 A b key=l -> ALREADY_CONFIRMED",
    );
}

#[test]
fn decide_asks_for_the_key_before_the_state() {
    for (payment, verdict) in [("key=k", "IDEMPOTENCY_KEY_REUSED"), ("key=l", "CONFIRMED late"), ("", "CONFIRMED late")]
    {
        let line = format!("confirm pB r1 A b {payment}");
        check(&format!(
            "sku A on_hand=1 limit=1 hold=10
             @0     r1 u1 A 1 -> RESERVED
             @10000 r2 u2 A 1 -> RESERVED
             confirm pA r1 A a key=k -> PAID_UNFULFILLED
             cancel k2 r2 A -> CANCELLED
             {} -> {verdict}",
            line.trim_end()
        ));
    }
}

#[test]
fn decide_burns_no_key_by_a_refusal_that_is_forgotten() {
    check(
        "sku A on_hand=5 limit=9 hold=10
         confirm pA r1 A a key=k -> NOT_RESERVED_YET
         r1 u1 A 1 -> RESERVED
         confirm pB r1 A b key=k -> CONFIRMED
         confirm pA r1 A a key=k -> IDEMPOTENCY_KEY_REUSED
         adjust ref1 A by=-9 key=j -> BELOW_COMMITTED minimum=1
         adjust ref2 A by=1 key=j -> ADJUSTED on_hand=6 reserved=0 sold=1
         adjust ref1 A by=1 key=j -> IDEMPOTENCY_KEY_REUSED",
    );
    // A refusal for its key burns neither the name nor another key.
    check(
        "sku A on_hand=5 limit=9
         adjust ref1 A by=1 key=j -> ADJUSTED on_hand=6 reserved=0 sold=0
         adjust ref2 A by=1 key=j -> IDEMPOTENCY_KEY_REUSED
         adjust ref2 A by=1 key=l -> ADJUSTED on_hand=7 reserved=0 sold=0
         adjust ref2 A by=1 key=j -> DUPLICATE",
    );
}

#[test]
fn decide_knows_a_key_with_a_reference_and_without() {
    // `k` alone is the name of an adjustment without a reference.
    check(
        "sku A on_hand=5 limit=9
         adjust ref1 A by=1 key=k -> ADJUSTED on_hand=6 reserved=0 sold=0
         adjust k    A by=1       -> IDEMPOTENCY_KEY_REUSED
         adjust ref1 A by=1 key=k -> DUPLICATE
         adjust ref1 A by=1       -> DUPLICATE",
    );
    check(
        "sku A on_hand=5 limit=9
         adjust k    A by=1       -> ADJUSTED on_hand=6 reserved=0 sold=0
         adjust ref1 A by=1 key=k -> IDEMPOTENCY_KEY_REUSED
         adjust k    A by=1       -> DUPLICATE
         adjust ref1 A by=1       -> ADJUSTED on_hand=7 reserved=0 sold=0
         adjust ref1 A by=1 key=k -> DUPLICATE",
    );
}

#[test]
fn decide_takes_poison_for_no_use_of_a_name_or_a_key() {
    check(
        "adjust ref1 A by=1 key=k -> NOT_HERE
         adjust j    A by=1       -> NOT_HERE
         configure c1 A seen=0 on_hand=1 -> CREATED version=1
         adjust ref1 A by=1 key=k -> ADJUSTED on_hand=2 reserved=0 sold=0
         adjust ref1 A by=1 key=k -> DUPLICATE
         adjust ref2 A by=1 key=j -> ADJUSTED on_hand=3 reserved=0 sold=0
         bytes x -> MALFORMED
         adjust ref3 A by=1 key=x -> ADJUSTED on_hand=4 reserved=0 sold=0
         adjust x    A by=1       -> IDEMPOTENCY_KEY_REUSED",
    );
    // A SKU that is not here is poison before anything is asked.
    check(
        "sku A on_hand=5 limit=9
         adjust ref1 A by=1 key=k -> ADJUSTED on_hand=6 reserved=0 sold=0
         adjust ref2 B by=1 key=k -> NOT_HERE",
    );
}

#[test]
fn decide_keeps_keys_of_commands_apart_from_reservations() {
    check(
        "sku A on_hand=9 limit=9 hold=10
         r1 u1 A 1 -> RESERVED
         confirm pA r1 A a key=r1 -> CONFIRMED
         r1 u1 A 1 -> DUPLICATE
         adjust ref1 A by=1 key=k -> ADJUSTED on_hand=10 reserved=0 sold=1
         k u1 A 1 -> RESERVED
         adjust ref2 A by=1 key=l -> ADJUSTED on_hand=11 reserved=1 sold=1",
    );
}
