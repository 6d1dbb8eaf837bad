//! Every command in every state of a reservation. How a case is written: `support/cases.rs`.

use crate::support::cases::{CUTS, check, said};

/// Ways to bring r1 into each state by log time 12000. SKU A has 5 units; holds last 10 s, so that of r1 ends at 10000.
const STATES: &[(&str, &str)] = &[
    ("missing", "@12000 tick A -> TICKED released=0"),
    ("of another SKU", "sku B on_hand=5 hold=100\n r1 u1 B 1 -> RESERVED\n @12000 tick A -> TICKED released=0"),
    ("REJECTED", "r1 u1 A 3 -> USER_LIMIT limit=2 remaining=2\n @12000 tick A -> TICKED released=0"),
    ("RESERVED", "@5000 r1 u1 A 2 -> RESERVED\n @12000 tick A -> TICKED released=0"),
    ("ended just now", "r1 u1 A 2 -> RESERVED\n @12000 bytes -> MALFORMED"),
    ("ended before", "r1 u1 A 2 -> RESERVED\n @12000 tick A -> TICKED released=2"),
    ("EXPIRED", "r1 u1 A 2 -> RESERVED\n @12000 tick A -> TICKED released=2\n settle"),
    ("CONFIRMED", "r1 u1 A 2 -> RESERVED\n confirm k0 r1 A p1 -> CONFIRMED\n @12000 tick A -> TICKED released=0"),
    ("CONFIRMED late", "r1 u1 A 2 -> RESERVED\n @12000 confirm k0 r1 A p1 -> CONFIRMED late"),
    ("CANCELLED", "r1 u1 A 2 -> RESERVED\n cancel k0 r1 A -> CANCELLED\n @12000 tick A -> TICKED released=0"),
];

const COMMANDS: &[(&str, &str)] = &[
    ("confirm p1", "confirm k1 r1 A p1"),
    ("confirm p2", "confirm k1 r1 A p2"),
    ("cancel", "cancel k1 r1 A note=why"),
    ("extend", "extend k1 r1 A 60"),
];

#[test]
fn decide_every_command_in_every_state() {
    let ended = "CONFIRMED late | CONFIRMED version=3 until=10000 changed=12000 payment=p1 late | reserved=0 sold=2
         confirm p2: CONFIRMED late | CONFIRMED version=3 until=10000 changed=12000 payment=p2 late | reserved=0 sold=2
         cancel: HOLD_EXPIRED | EXPIRED version=2 until=10000 | reserved=0 sold=0
         extend: HOLD_EXPIRED | EXPIRED version=2 until=10000 | reserved=0 sold=0";
    check_states(&format!(
            "missing
             confirm p1: NOT_RESERVED_YET | unknown | reserved=0 sold=0
             confirm p2: NOT_RESERVED_YET | unknown | reserved=0 sold=0
             cancel: NOT_RESERVED_YET | unknown | reserved=0 sold=0
             extend: NOT_RESERVED_YET | unknown | reserved=0 sold=0
             of another SKU
             confirm p1: NOT_RESERVED_YET | RESERVED version=1 until=100000 | reserved=0 sold=0
             confirm p2: NOT_RESERVED_YET | RESERVED version=1 until=100000 | reserved=0 sold=0
             cancel: NOT_RESERVED_YET | RESERVED version=1 until=100000 | reserved=0 sold=0
             extend: NOT_RESERVED_YET | RESERVED version=1 until=100000 | reserved=0 sold=0
             REJECTED
             confirm p1: RESERVATION_REJECTED | REJECTED version=1 | reserved=0 sold=0
             confirm p2: RESERVATION_REJECTED | REJECTED version=1 | reserved=0 sold=0
             cancel: RESERVATION_REJECTED | REJECTED version=1 | reserved=0 sold=0
             extend: RESERVATION_REJECTED | REJECTED version=1 | reserved=0 sold=0
             RESERVED
             confirm p1: CONFIRMED | CONFIRMED version=2 until=15000 changed=12000 payment=p1 | reserved=0 sold=2
             confirm p2: CONFIRMED | CONFIRMED version=2 until=15000 changed=12000 payment=p2 | reserved=0 sold=2
             cancel: CANCELLED | CANCELLED version=2 until=15000 changed=12000 note=why | reserved=0 sold=0
             extend: EXTENDED until=75000 | RESERVED version=2 until=75000 extended=1/60 | reserved=2 sold=0
             ended just now
             confirm p1: {ended}
             ended before
             confirm p1: {ended}
             EXPIRED
             confirm p1: {ended}
             CONFIRMED
             confirm p1: CONFIRMED | CONFIRMED version=2 until=10000 changed=0 payment=p1 | reserved=0 sold=2
             confirm p2: ALREADY_CONFIRMED | CONFIRMED version=2 until=10000 changed=0 payment=p1 | reserved=0 sold=2
             cancel: ALREADY_CONFIRMED | CONFIRMED version=2 until=10000 changed=0 payment=p1 | reserved=0 sold=2
             extend: ALREADY_CONFIRMED | CONFIRMED version=2 until=10000 changed=0 payment=p1 | reserved=0 sold=2
             CONFIRMED late
             confirm p1: CONFIRMED late | CONFIRMED version=3 until=10000 changed=12000 payment=p1 late | reserved=0 sold=2
             confirm p2: ALREADY_CONFIRMED | CONFIRMED version=3 until=10000 changed=12000 payment=p1 late | reserved=0 sold=2
             cancel: ALREADY_CONFIRMED | CONFIRMED version=3 until=10000 changed=12000 payment=p1 late | reserved=0 sold=2
             extend: ALREADY_CONFIRMED | CONFIRMED version=3 until=10000 changed=12000 payment=p1 late | reserved=0 sold=2
             CANCELLED
             confirm p1: ALREADY_CANCELLED | CANCELLED version=2 until=10000 changed=0 | reserved=0 sold=0
             confirm p2: ALREADY_CANCELLED | CANCELLED version=2 until=10000 changed=0 | reserved=0 sold=0
             cancel: CANCELLED | CANCELLED version=2 until=10000 changed=0 | reserved=0 sold=0
             extend: ALREADY_CANCELLED | CANCELLED version=2 until=10000 changed=0 | reserved=0 sold=0"
    ));
}

/// The table of all states and commands; it must be the same in every cut.
#[track_caller]
fn check_states(expected: &str) {
    let expected: Vec<&str> = expected.lines().map(str::trim).collect();
    for cut in CUTS {
        let mut table = Vec::new();
        for (state, setup) in STATES {
            table.push((*state).to_owned());
            for (name, command) in COMMANDS {
                let case = format!("sku A on_hand=5 limit=2 hold=10\n{setup}\n{command} -> ?\nr1 is ?\nA is ?");
                let lines: Vec<String> = case.lines().map(|line| line.trim().to_owned()).collect();
                let answer = said(&lines, cut);
                let answer: Vec<&str> = answer.lines().collect();
                let [.., before, verdict, reservation, sku] = answer[..] else { panic!("too short: {answer:?}") };
                assert_eq!(before, lines[lines.len() - 4], "{state}: the way into the state");
                let verdict = verdict.split(" -> ").nth(1).expect("an arrow");
                let reservation = reservation.trim_start_matches("r1 is ");
                let counters: Vec<&str> = sku.split(' ').skip(3).take(2).collect();
                assert!(sku.starts_with("A is on_hand=5 "), "no such command changes the stock: {sku}");
                table.push(format!("{name}: {verdict} | {reservation} | {}", counters.join(" ")));
            }
        }
        let wrong = table.iter().zip(&expected).find(|(is, should)| is != should);
        assert_eq!(wrong, None, "{cut:?}: is and should be");
        assert_eq!(table.len(), expected.len(), "{cut:?}: lines");
    }
}

#[test]
fn decide_refuses_a_late_payment_where_the_sale_says_so() {
    let ended = ["ended just now", "ended before", "EXPIRED"];
    for (_, setup) in STATES.iter().filter(|(state, _)| ended.contains(state)) {
        // All in one batch (`settle` cuts after the end of the hold): units are taken and given back, nothing moved.
        check(&format!(
            "sku A on_hand=5 limit=2 hold=10 late=reject
             {setup}
             confirm k1 r1 A p1 -> HOLD_EXPIRED
             confirm k1 r1 A p1 -> DUPLICATE
             confirm k2 r1 A p2 -> HOLD_EXPIRED
             r1 is EXPIRED version=2 until=10000
             A is on_hand=5 reserved=0 sold=0 version=1 movements=1"
        ));
    }
}
