//! The scripts on a real Redis: keys, limits, giving back, and the fence of effects.

use std::time::Duration;

use flashsale::cache::{AdmissionAnswer, AdmissionItem, KeyMarker, SettleItem};
use flashsale::effects::{BatchEffects, Effects};
use flashsale::ids::{self, IdempotencyKey, Quantity, Ticket};
use flashsale::limits;
use flashsale::waiters::Waiters;
use futures_util::future::join_all;

use crate::support::commands::{sku, user};
use crate::support::redis::Space;
use crate::support::site::SOON;
use crate::support::wait::wait_for;
use AdmissionAnswer::{Absent, KeyReused, Ok as Admitted, OverLimit, Pending};

const MINUTE: i64 = 29_000_000;
const PENDING: AdmissionAnswer = Pending { minute: MINUTE };

fn item(user_name: &str, sku_name: &str, quantity: u32, limit: u32) -> AdmissionItem {
    AdmissionItem {
        user: user(user_name),
        sku: sku(sku_name),
        quantity: Quantity::new(quantity).expect("legal"),
        limit,
        minute: MINUTE,
        key: None,
        refused_already: false,
    }
}

fn keyed(user_name: &str, sku_name: &str, quantity: u32, key: &str) -> AdmissionItem {
    let plain = item(user_name, sku_name, quantity, 5);
    let key = IdempotencyKey::parse(key).expect("legal");
    let marker = KeyMarker {
        name: ids::key_marker_name(&plain.user, &key),
        id: ids::keyed_reservation_id(&plain.user, &plain.sku, &key),
        fingerprint: ids::fingerprint(&plain.sku, plain.quantity),
    };
    AdmissionItem { key: Some(marker), ..plain }
}

fn not_sent(item: &AdmissionItem) -> SettleItem {
    let AdmissionItem { user, sku, quantity, minute, key, .. } = item.clone();
    SettleItem::NotSent { user, sku, quantity, minute, key }
}

fn delivered(item: &AdmissionItem, ticket: &str) -> SettleItem {
    SettleItem::Delivered { key: item.key.expect("keyed"), ticket: Ticket::parse(ticket).expect("legal") }
}

fn replay(item: &AdmissionItem, ticket: &str) -> AdmissionAnswer {
    AdmissionAnswer::Replay { id: item.key.as_ref().expect("keyed").id, ticket: Ticket::parse(ticket) }
}

fn effects(epoch: i64, position: i64, units: &[(&str, i64)], settled: &[(&str, u32)]) -> BatchEffects {
    BatchEffects {
        partition: 3,
        epoch,
        position,
        units: units.iter().map(|(name, units)| (sku("s"), user(name), *units)).collect(),
        settled: settled.iter().map(|(name, quantity)| (sku("s"), user(name), *quantity, MINUTE)).collect(),
        ..BatchEffects::default()
    }
}

impl Space {
    async fn admit(&self, items: &[AdmissionItem]) -> Vec<AdmissionAnswer> {
        self.cache.admit(items, false).await.expect("redis answers").answers
    }

    async fn admit_one(&self, item: &AdmissionItem) -> AdmissionAnswer {
        self.admit(std::slice::from_ref(item)).await.remove(0)
    }

    async fn units(&self, key: &str, name: &str) -> Option<i64> {
        self.ask(&format!("HGET {{}}{key} {name}")).await
    }
}

#[tokio::test]
async fn of_200_posts_with_one_key_exactly_one_takes_units() {
    let space = Space::fresh().await;
    let one = keyed("u", "s", 2, "k");
    space.cache.connect().await;
    let calls = (0..200).map(|n| {
        let (cache, items) = (space.cache.clone(), vec![one.clone(); 1 + n % 3]);
        tokio::spawn(async move { cache.admit(&items, false).await.expect("redis answers").answers })
    });
    let answers: Vec<_> = join_all(calls).await.into_iter().flat_map(|call| call.expect("no panic")).collect();
    assert_eq!(answers.iter().filter(|a| **a == Admitted).count(), 1);
    assert_eq!(answers.iter().filter(|a| **a == PENDING).count(), answers.len() - 1);
    assert_eq!(space.units(&format!("q:s:{MINUTE}"), "u").await, Some(2));
}

#[tokio::test]
async fn limits_are_exact_under_concurrency() {
    let space = Space::fresh().await;
    space.cache.connect().await;
    let calls = (0..100).map(|n| {
        let cache = space.cache.clone();
        let items: Vec<_> = (0..10).map(|u| item(&format!("u{}", (u + n) % 10), "s", 1, 3)).collect();
        tokio::spawn(async move { cache.admit(&items, false).await.expect("redis answers").answers })
    });
    let answers: Vec<_> = join_all(calls).await.into_iter().flat_map(|call| call.expect("no panic")).collect();
    assert_eq!(answers.iter().filter(|a| **a == Admitted).count(), 30, "3 for each of 10 users");
    assert_eq!(answers.iter().filter(|a| **a == OverLimit { decided: 0, undecided: 3 }).count(), 970);
}

#[tokio::test]
async fn one_call_answers_as_many_calls_one_after_the_other() {
    // A small world, so that users, keys and SKUs meet often; the numbers come from a fixed sequence.
    let mut state = 42_u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let items: Vec<_> = (0..limits::ADMISSION_CALL_MAX)
        .map(|_| {
            let (user, sku, quantity) = (format!("u{}", next(6)), format!("s{}", next(3)), 1 + next(3) as u32);
            let plain = if next(2) == 0 {
                keyed(&user, &sku, quantity, &format!("k{}", next(20)))
            } else {
                item(&user, &sku, quantity, 9)
            };
            let refused_already = plain.key.is_some() && next(3) == 0;
            AdmissionItem { minute: MINUTE + next(5) as i64, refused_already, ..plain }
        })
        .collect();
    let (together, apart) = (Space::fresh().await, Space::fresh().await);
    let mut one_by_one = Vec::new();
    for item in &items {
        one_by_one.push(apart.admit_one(item).await);
    }
    assert_eq!(together.admit(&items).await, one_by_one);
    assert!(one_by_one.iter().any(|a| matches!(a, Pending { .. })));
    for kind in [Admitted, Absent, KeyReused] {
        assert!(one_by_one.contains(&kind), "the sequence is too tame: no {kind:?}");
    }
    assert!(one_by_one.iter().any(|a| matches!(a, OverLimit { .. })));
    assert_eq!(together.keys().await, apart.keys().await);
    for key in together.keys().await.iter().filter(|key| key.starts_with("q:")) {
        for name in (0..6).map(|u| format!("u{u}")) {
            assert_eq!(together.units(key, &name).await, apart.units(key, &name).await, "{key} {name}");
        }
    }
}

#[tokio::test]
async fn units_of_two_minutes_and_decided_ones_count() {
    let space = Space::fresh().await;
    assert!(space.cache.apply_effects(&effects(1, 1, &[("u", 1)], &[])).await.expect("applied"));
    let at = |minute: i64, quantity: u32| AdmissionItem { minute: MINUTE + minute, ..item("u", "s", quantity, 6) };
    assert_eq!(space.admit(&[at(0, 2), at(1, 1)]).await, [Admitted, Admitted]);
    assert_eq!(space.admit_one(&at(1, 3)).await, OverLimit { decided: 1, undecided: 3 });
    assert_eq!(space.admit_one(&at(2, 3)).await, Admitted, "the first minute has passed");
    assert_eq!(space.admit_one(&at(2, 2)).await, OverLimit { decided: 1, undecided: 4 });
}

#[tokio::test]
async fn a_refusal_burns_nothing() {
    let space = Space::fresh().await;
    let big = AdmissionItem { limit: 1, ..keyed("u", "s", 2, "k") };
    assert_eq!(space.admit_one(&big).await, OverLimit { decided: 0, undecided: 0 });
    let refused = AdmissionItem { refused_already: true, ..keyed("u", "s", 1, "k") };
    assert_eq!(space.admit_one(&refused).await, Absent);
    assert_eq!(space.keys().await, ["birth"]);
    assert_eq!(space.admit_one(&keyed("u", "s", 1, "k")).await, Admitted, "neither key nor units are used up");
}

#[tokio::test]
async fn what_was_not_sent_is_given_back() {
    let space = Space::fresh().await;
    let (one, other) = (keyed("u", "s", 2, "k"), item("u", "s", 1, 5));
    assert_eq!(space.admit(&[one.clone(), other.clone()]).await, [Admitted, Admitted]);
    space.cache.settle(&[not_sent(&one)]).await.expect("settled");
    assert_eq!(space.units(&format!("q:s:{MINUTE}"), "u").await, Some(1));
    assert_eq!(space.admit_one(&one).await, Admitted, "the key is free again");
    space.cache.settle(&[not_sent(&one), not_sent(&other), not_sent(&other)]).await.expect("settled");
    assert_eq!(space.keys().await, ["birth"], "clamped at nothing, and the empty hash is gone");
}

#[tokio::test]
async fn a_delivered_key_is_replayed_and_not_given_back() {
    let space = Space::fresh().await;
    let one = keyed("u", "s", 2, "k");
    assert_eq!(space.admit_one(&one).await, Admitted);
    space.cache.settle(&[delivered(&one, "3.7.1")]).await.expect("settled");
    assert_eq!(space.admit_one(&one).await, replay(&one, "3.7.1"));
    let refused = AdmissionItem { refused_already: true, ..one.clone() };
    assert_eq!(space.admit_one(&refused).await, replay(&one, "3.7.1"), "a replay is never hidden by a refusal");
    // Another try of the same key failed: what is known stays known, and its units stay taken.
    space.cache.settle(&[not_sent(&one)]).await.expect("settled");
    assert_eq!(space.admit_one(&one).await, replay(&one, "3.7.1"));
    assert_eq!(space.units(&format!("q:s:{MINUTE}"), "u").await, Some(2));
    // A later delivery report of a second publish does not change the first answer.
    space.cache.settle(&[delivered(&one, "3.9.0")]).await.expect("settled");
    assert_eq!(space.admit_one(&one).await, replay(&one, "3.7.1"));
}

#[tokio::test]
async fn a_try_that_was_not_sent_says_nothing_about_a_retry() {
    let space = Space::fresh().await;
    let one = keyed("u", "s", 2, "k");
    assert_eq!(space.admit_one(&one).await, Admitted);
    // A second try is on its way, with an unknown outcome, when the first one turns out not to be sent.
    assert_eq!(space.admit_one(&one).await, PENDING);
    space.cache.settle(&[not_sent(&one)]).await.expect("settled");
    let refused = AdmissionItem { refused_already: true, ..one.clone() };
    assert_eq!(space.admit_one(&refused).await, PENDING, "the second one may be in the log");
    assert_eq!(space.units(&format!("q:s:{MINUTE}"), "u").await, Some(2));
    space.cache.settle(&[delivered(&one, "3.8.0")]).await.expect("settled");
    assert_eq!(space.admit_one(&one).await, replay(&one, "3.8.0"));
}

#[tokio::test]
async fn a_retry_is_told_the_minute_of_its_units() {
    let space = Space::fresh().await;
    let one = keyed("u", "s", 2, "k");
    assert_eq!(space.admit_one(&one).await, Admitted);
    for later in 1..3 {
        assert_eq!(space.admit_one(&AdmissionItem { minute: MINUTE + later, ..one.clone() }).await, PENDING);
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_published_again_and_takes_units_once() {
    let space = Space::fresh().await;
    let one = keyed("u", "s", 2, "k");
    assert_eq!(space.admit_one(&one).await, Admitted);
    // No settle: nobody knows. Also a retry that would be refused for another reason is not refused.
    let refused = AdmissionItem { refused_already: true, ..one.clone() };
    assert_eq!(space.admit(&[one.clone(), refused]).await, [PENDING, PENDING]);
    assert_eq!(space.units(&format!("q:s:{MINUTE}"), "u").await, Some(2));
    space.cache.settle(&[delivered(&one, "3.8.0")]).await.expect("settled");
    assert_eq!(space.admit_one(&one).await, replay(&one, "3.8.0"));
}

#[tokio::test]
async fn a_request_without_a_marker_gets_one_when_nobody_knows_what_became_of_it() {
    let space = Space::fresh().await;
    let (one, known) = (keyed("u", "s", 2, "k"), keyed("u", "s", 2, "l"));
    let unknown = |item: &AdmissionItem| SettleItem::Unknown { key: item.key.expect("keyed"), minute: MINUTE };
    space.cache.settle(&[unknown(&one), delivered(&known, "3.1.0"), unknown(&known)]).await.expect("settled");
    let refused = AdmissionItem { refused_already: true, ..one.clone() };
    assert_eq!(space.admit_one(&refused).await, PENDING);
    // That a later try was not sent does not make it absent.
    space.cache.settle(&[not_sent(&one)]).await.expect("settled");
    assert_eq!(space.admit_one(&refused).await, PENDING);
    assert_eq!(space.admit_one(&known).await, replay(&known, "3.1.0"), "what is known stays known");
}

#[tokio::test]
async fn a_key_used_for_another_body_or_sku_is_told_so() {
    let space = Space::fresh().await;
    let first = keyed("u", "s", 1, "k");
    assert_eq!(space.admit_one(&first).await, Admitted);
    let others = [keyed("u", "s", 2, "k"), keyed("u", "other", 1, "k")];
    assert_eq!(space.admit(&others).await, [KeyReused, KeyReused], "pending");
    space.cache.settle(&[delivered(&first, "3.1.0")]).await.expect("settled");
    assert_eq!(space.admit(&others).await, [KeyReused, KeyReused], "known");
    assert_eq!(space.admit_one(&keyed("v", "s", 2, "k")).await, Admitted, "another user's key is another key");
    // Nor does the other's delivery (it was admitted while Redis was away) take the key over.
    space.cache.settle(&[delivered(&others[1], "1.1.0")]).await.expect("settled");
    assert_eq!(space.admit_one(&first).await, replay(&first, "3.1.0"));
    // And its failure does not free it.
    space.cache.settle(&[not_sent(&others[0])]).await.expect("settled");
    assert_eq!(space.admit_one(&first).await, replay(&first, "3.1.0"));
}

#[tokio::test]
async fn effects_set_decided_units_and_settle_provisional_ones() {
    let space = Space::fresh().await;
    space.admit(&[item("u", "s", 2, 5), item("u", "s", 1, 5), item("v", "s", 1, 5)]).await;
    let batch = effects(1, 10, &[("u", 3), ("v", 0)], &[("u", 2), ("u", 1), ("v", 1), ("w", 9)]);
    assert!(space.cache.apply_effects(&batch).await.expect("applied"));
    assert_eq!(space.keys().await, ["birth", "f:3", "u:s"]);
    assert_eq!((space.units("u:s", "u").await, space.units("u:s", "v").await), (Some(3), None));
    assert_eq!(space.admit_one(&item("u", "s", 3, 5)).await, OverLimit { decided: 3, undecided: 0 });
}

#[tokio::test]
async fn a_stale_writers_effects_do_not_show() {
    let space = Space::fresh().await;
    let mut applied = Vec::new();
    for (epoch, position, units) in [(2, 20, 2), (1, 30, 9), (1, 20, 9), (2, 19, 9), (2, 21, 3), (3, 21, 4), (10, 5, 1)]
    {
        applied.push(space.cache.apply_effects(&effects(epoch, position, &[("u", units)], &[])).await.expect("asked"));
    }
    assert_eq!(applied, [true, false, false, false, true, true, true]);
    assert_eq!(space.units("u:s", "u").await, Some(1), "epochs are compared as numbers, 10 is after 3");
    let other = BatchEffects { partition: 4, ..effects(1, 1, &[("u", 7)], &[]) };
    assert!(space.cache.apply_effects(&other).await.expect("asked"), "each partition has its own fence");
}

#[tokio::test]
async fn units_are_forgotten_behind_any_fence_and_a_broken_hint_costs_nobody_elses_answer() {
    let space = Space::fresh().await;
    assert!(space.cache.apply_effects(&effects(9, 9, &[("u", 5), ("v", 5)], &[])).await.expect("applied"));
    let (u, s) = (user("u"), sku("s"));
    space.cache.forget_units(&[(&u, &s), (&user("nobody"), &sku("nothing"))]).await.expect("redis answers");
    assert_eq!((space.units("u:s", "u").await, space.units("u:s", "v").await), (None, Some(5)));
    space.cache.forget_units(&[]).await.expect("nothing is asked");
    let _: i64 = space.ask("HSET {}u:s u 1e300 v -7").await;
    let answers = space.admit(&[item("u", "s", 1, 5), item("v", "s", 13, 5), item("w", "s", 1, 5)]).await;
    let over = |decided| OverLimit { decided, undecided: 0 };
    assert_eq!(answers, [over(999_999_999), over(0), Admitted]);
}

/// What a writer tells between two batches, about holds that ended, comes with the position of the first one.
#[tokio::test]
async fn hints_at_the_same_position_are_applied_in_their_order_and_settle_nothing_twice() {
    let space = Space::fresh().await;
    space.admit(&[item("u", "s", 2, 5), item("u", "s", 2, 5)]).await;
    assert!(space.cache.apply_effects(&effects(1, 10, &[("u", 2)], &[("u", 2)])).await.expect("asked"));
    assert!(space.cache.apply_effects(&effects(1, 10, &[("u", 1)], &[("u", 2)])).await.expect("asked"));
    assert_eq!(space.units("u:s", "u").await, Some(1));
    assert_eq!(
        space.admit_one(&item("u", "s", 5, 5)).await,
        OverLimit { decided: 1, undecided: 2 },
        "2 of 4 are settled, once"
    );
}

/// Hints that were lost may have said that units came back: what Redis believed of that SKU goes, before the new hints come.
#[tokio::test]
async fn units_that_are_to_be_forgotten_go_before_the_new_ones_come() {
    let space = Space::fresh().await;
    assert!(space.cache.apply_effects(&effects(1, 10, &[("gone", 5), ("u", 4)], &[])).await.expect("asked"));
    let next = BatchEffects { forgotten: vec![sku("s"), sku("other")], ..effects(1, 11, &[("u", 2)], &[]) };
    assert!(space.cache.apply_effects(&next).await.expect("asked"));
    assert_eq!((space.units("u:s", "gone").await, space.units("u:s", "u").await), (None, Some(2)));
}

/// Redis refuses a batch's hints (another type is planted where its units go), or too many batches wait for it: the next hints make up for it.
#[tokio::test]
async fn units_that_redis_was_not_told_are_forgotten_with_the_next_hints() {
    let space = Space::fresh().await;
    let telling = Effects::start(Some(space.cache.clone()), Waiters::default(), None);
    let _: String = space.ask("SET {}u:s planted").await;
    telling.submit(effects(1, 10, &[("refused", 5)], &[]));
    telling.submit(effects(1, 11, &[("u", 4)], &[]));
    wait_for("the planted one is gone", SOON, async || space.ask::<String>("TYPE {}u:s").await == "hash").await;
    assert_eq!((space.units("u:s", "refused").await, space.units("u:s", "u").await), (None, Some(4)));
    // This thread does not let the one that tells run, so the queue fills, and the last batch is not told.
    for position in 0..=limits::EFFECTS_BEHIND_MAX as i64 {
        let units: &[(&str, i64)] = if position < limits::EFFECTS_BEHIND_MAX as i64 { &[] } else { &[("u", 0)] };
        telling.submit(effects(1, 12 + position, units, &[]));
    }
    wait_for("u is forgotten", SOON, async || space.units("u:s", "u").await.is_none()).await;
    telling.stop().await;
}

#[tokio::test]
async fn effects_that_a_claim_repeats_are_harmless() {
    let space = Space::fresh().await;
    space.admit(&[item("u", "s", 2, 5), item("u", "s", 2, 5)]).await;
    let batch = |epoch| effects(epoch, 10, &[("u", 2)], &[("u", 2)]);
    assert!(space.cache.apply_effects(&batch(1)).await.expect("applied"));
    assert!(space.cache.apply_effects(&batch(2)).await.expect("applied"), "the new owner tells it again");
    assert_eq!(space.units("u:s", "u").await, Some(2));
    assert_eq!(space.units(&format!("q:s:{MINUTE}"), "u").await, Some(2), "the undecided request still counts");
}

#[tokio::test]
async fn a_large_batch_fits_one_call() {
    let space = Space::fresh().await;
    let names: Vec<_> = (0..limits::BATCH_SIZE_SETTING_MAX).map(|n| format!("u{n}")).collect();
    let units: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let settled: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
    assert!(space.cache.apply_effects(&effects(1, 1, &units, &settled)).await.expect("applied"));
    assert_eq!(space.ask::<usize>("HLEN {}u:s").await, limits::BATCH_SIZE_SETTING_MAX);
}

#[tokio::test]
async fn everything_but_the_birth_mark_expires() {
    let space = Space::fresh().await;
    let one = keyed("u", "s", 1, "k");
    space.admit(&[one.clone(), keyed("u", "s", 1, "pending")]).await;
    space.cache.settle(&[delivered(&one, "3.1.0")]).await.expect("settled");
    space.cache.apply_effects(&effects(1, 1, &[("u", 1)], &[])).await.expect("applied");
    for key in space.keys().await {
        let life: i64 = space.ask(&format!("TTL {{}}{key}")).await;
        assert_eq!(life < 0, key == "birth", "{key} lives {life} s");
    }
}

#[tokio::test]
async fn a_flushed_redis_starts_again_and_says_how_young_it_is() {
    let space = Space::fresh().await;
    let one = keyed("u", "s", 1, "k");
    assert_eq!(space.admit_one(&one).await, Admitted);
    space.age_memory(100).await;
    let read = space.cache.admit(&[], false).await.expect("redis answers");
    assert!((99..=101).contains(&read.memory_age.as_secs()), "{read:?}");
    space.flush().await;
    let read = space.cache.admit(std::slice::from_ref(&one), false).await.expect("redis answers");
    assert_eq!(read.answers, [Admitted], "it forgot the key; the writer knows it");
    assert!(read.memory_age < Duration::from_secs(2), "{read:?}");
    space.flush().await;
    assert!(space.cache.apply_effects(&effects(1, 1, &[("u", 1)], &[])).await.expect("applied"));
    space.flush().await;
    space.cache.settle(&[delivered(&one, "3.1.0")]).await.expect("settled");
    assert_eq!(space.admit_one(&one).await, replay(&one, "3.1.0"), "a delivery makes a key known, marker or not");
}

#[tokio::test]
async fn a_gap_in_what_redis_was_told_makes_its_memory_new() {
    let space = Space::fresh().await;
    space.age_memory(100).await;
    let read = space.cache.admit(&[], true).await.expect("redis answers");
    assert!(read.memory_age < Duration::from_secs(2), "{read:?}");
    let read = space.cache.admit(&[], false).await.expect("redis answers");
    assert!(read.memory_age < Duration::from_secs(2), "for every process: {read:?}");
}
