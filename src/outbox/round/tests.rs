//! What a round sends, and what it makes of reports.

use super::*;
use crate::ids::Place;
use crate::inventory::{Happening, Origin, SkuEvent, SkuHappening};

const PARTITION: i32 = 2;

/// The event of the command at `offset`.
fn event(sku: &str, offset: i64) -> Event {
    let origin = Origin::Command { place: Place { offset, index: 0 }, n: 0 };
    let change = SkuHappening::SoldOut;
    let what = Happening::Sku(SkuEvent { on_hand: 1, reserved: 0, sold: 1, settings_version: 1, change });
    Event { origin, at: 0, sku: SkuId::parse(sku).expect("legal"), what }
}

/// Rows of events `sku@offset`: `a1 b2 | a3`.
fn rows(text: &str) -> Vec<Row> {
    let row = |(n, row): (usize, &str)| {
        let events = row.split_whitespace().map(|word| event(&word[..1], word[1..].parse().expect("a number")));
        Row { id: n as i64 + 1, events: events.collect() }
    };
    text.split('|').enumerate().map(row).collect()
}

fn shown<'e>(events: impl IntoIterator<Item = &'e Event>) -> String {
    let word = |event: &Event| match event.origin {
        Origin::Command { place, .. } => format!("{}{}", event.sku, place.offset),
        Origin::EndOfHold => unreachable!("not in these tests"),
    };
    events.into_iter().map(word).collect::<Vec<_>>().join(" ")
}

fn slice_of(round: &mut Round) -> (Vec<At>, String) {
    let slice = round.slice();
    let text = shown(slice.iter().map(|at| round.event(*at)));
    (slice, text)
}

/// Runs a round; `say` tells what becomes of each event of a slice. What was sent, slice by slice, and the end.
fn run(text: &str, held: Held, say: impl Fn(&str) -> Sent) -> (Vec<String>, Settlement, Held) {
    let mut round = Round::new(PARTITION, rows(text), held);
    let mut sent = Vec::new();
    loop {
        let (slice, words) = slice_of(&mut round);
        if slice.is_empty() {
            break;
        }
        round.report(&slice, words.split(' ').map(&say).collect());
        sent.push(words);
    }
    let (settlement, held) = round.end();
    (sent, settlement, held)
}

fn skus(held: &Held) -> Vec<&str> {
    held.skus.iter().map(SkuId::as_str).collect()
}

#[test]
fn what_is_confirmed_is_done() {
    let (sent, settlement, held) = run("a1 b2 | a3", Held::default(), |_| Sent::Confirmed);
    assert_eq!(sent, ["a1 b2 a3"], "fired at once");
    assert_eq!(settlement, Settlement { done: vec![1, 2], ..Settlement::default() });
    assert_eq!(held, Held::default());
}

#[test]
fn a_sku_that_failed_is_held_back_and_others_go_on() {
    let fails = |word: &str| if word == "a1" { Sent::Open } else { Sent::Confirmed };
    let (_, settlement, held) = run("a1 b2 | b3 | a4", Held::default(), fails);
    // a4 was in the air already when a1 failed: the producer vouches for what that means. Here it was confirmed.
    assert_eq!(settlement.done, [2, 3]);
    assert_eq!(settlement.rest.len(), 1, "only what is left is kept");
    assert_eq!(shown(&settlement.rest[0].events), "a1");
    assert_eq!(skus(&held), ["a"]);
    let (sent, settlement, held) = run("a5 b6 | a7", held, |_| Sent::Confirmed);
    assert_eq!(sent, ["b6"], "nothing of a is sent before a1");
    assert_eq!(settlement.done, Vec::<i64>::new());
    assert_eq!(shown(&settlement.rest[0].events), "a5", "and a row that nothing was done about stays as it is");
    assert_eq!((settlement.rest.len(), skus(&held)), (1, vec!["a"]));
}

#[test]
fn later_slices_of_a_round_hold_back_too() {
    let many: Vec<String> = (0..limits::RELAY_SLICE_EVENTS + 5).map(|n| format!("a{n}")).collect();
    let (sent, settlement, held) = run(&format!("{} b9", many.join(" ")), Held::default(), |word| {
        if word == "a7" { Sent::Open } else { Sent::Confirmed }
    });
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0].split(' ').count(), limits::RELAY_SLICE_EVENTS);
    assert_eq!(sent[1], "b9");
    assert_eq!(settlement.rest[0].events.len(), 6);
    assert_eq!(skus(&held), ["a"]);
}

#[test]
fn what_is_impossible_is_parked_and_its_sku_goes_on() {
    let too_large = || Sent::Impossible("too large".to_owned());
    let say = |word: &str| if word == "a2" { too_large() } else { Sent::Confirmed };
    let (sent, settlement, held) = run("a1 a2 a3 b4", Held::default(), say);
    assert_eq!(sent, ["a1 a2 a3 b4"]);
    assert_eq!((settlement.done, settlement.rest), (vec![1], vec![]));
    assert_eq!(settlement.parked, [Parked { event: event("a", 2), reason: "too large".to_owned() }]);
    assert_eq!(held, Held::default());
}

#[test]
fn who_is_refused_is_parked_only_if_refused_alone() {
    // a1 and b2 were in one pack, of which only b2 is bad.
    let (_, settlement, held) = run("a1 b2 c3", Held::default(), |word| match word {
        "c3" => Sent::Confirmed,
        _ => Sent::Refused,
    });
    assert_eq!((settlement.parked.len(), settlement.rest.len()), (0, 1));
    assert_eq!(skus(&held), ["a", "b"]);
    let again = Held { skus: BTreeSet::new(), suspects: held.suspects };
    let refuses_b = |word: &str| if word == "b2" { Sent::Refused } else { Sent::Confirmed };
    let (sent, settlement, held) = run("a1 b2 | b4 a5", again, refuses_b);
    assert_eq!(sent, ["a1", "b2", "b4 a5"], "suspects go alone");
    assert_eq!(settlement.parked.len(), 1);
    assert_eq!(shown([&settlement.parked[0].event]), "b2");
    assert_eq!((settlement.done, held), (vec![1, 2], Held::default()));
}

#[test]
fn a_first_refusal_is_never_the_last_word_even_alone() {
    let (_, settlement, held) = run("a1", Held::default(), |_| Sent::Refused);
    assert_eq!(settlement, Settlement::default());
    assert_eq!((skus(&held), held.suspects.len()), (vec!["a"], 1));
}
