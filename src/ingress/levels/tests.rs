//! Levels in made-up time: when they change, when not, and what they let a lane do.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn governor(min: usize, max: usize, now: Instant) -> Governor {
    let pressure = Pressure::Levels { table: Table::default(), min, max };
    Governor::new(Policy { pressure, ..Policy::default() }, now)
}

/// `per_second` arrivals, one look per millisecond, for so long; the levels seen, with their times.
fn offer(governor: &mut Governor, per_second: f64, from: Instant, ms: u32) -> Vec<(usize, Instant)> {
    let mut seen = Vec::new();
    let mut owed = 0.0;
    for n in 1..=ms {
        owed += per_second / 1000.0;
        let count = owed as usize;
        owed -= count as f64;
        let now = from + n * MS;
        governor.arrived(count, now);
        if seen.last().is_none_or(|(level, _)| *level != governor.level()) {
            seen.push((governor.level(), now));
        }
    }
    seen
}

#[test]
fn each_rate_has_its_level() {
    for (per_second, level) in [
        (50.0, 1),
        (300.0, 2),
        (1_500.0, 3),
        (3_500.0, 4),
        (7_500.0, 5),
        (20_000.0, 6),
        (40_000.0, 7),
        (80_000.0, 8),
        (200_000.0, 9),
        (500_000.0, 10),
    ] {
        let t0 = Instant::now();
        let mut governor = governor(1, LEVELS, t0);
        let seen = offer(&mut governor, per_second, t0, 4_000);
        assert_eq!(governor.level(), level, "{per_second}");
        let levels: Vec<usize> = seen.iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, (1..=level).collect::<Vec<_>>(), "one at a time");
        assert!(seen.windows(2).skip(1).all(|pair| pair[1].1 - pair[0].1 >= limits::LEVEL_HOLD), "{seen:?}");
    }
}

#[test]
fn between_the_edges_nothing_swings() {
    // 25,000/s is the edge of 6 and 7: 20 % over it is up, 40 % under it is down.
    for (per_second, from, to) in [(29_500.0, 6, 6), (31_500.0, 6, 7), (15_500.0, 7, 7), (14_500.0, 7, 6)] {
        let t0 = Instant::now();
        let mut governor = governor(1, LEVELS, t0);
        offer(&mut governor, if from == 6 { 20_000.0 } else { 40_000.0 }, t0, 3_000);
        assert_eq!(governor.level(), from);
        offer(&mut governor, per_second, t0 + 3_000 * MS, 2_000);
        assert_eq!(governor.level(), to, "{per_second}");
    }
}

#[test]
fn silence_is_followed_down_when_somebody_looks_again() {
    let t0 = Instant::now();
    let mut governor = governor(1, LEVELS, t0);
    offer(&mut governor, 40_000.0, t0, 3_000);
    assert_eq!(governor.level(), 7);
    let mut soon = governor.clone();
    soon.arrived(1, t0 + 3_600 * MS);
    assert!((4..=6).contains(&soon.level()), "half a second is two levels: {}", soon.level());
    governor.arrived(1, t0 + 60_000 * MS);
    assert_eq!(governor.level(), 1, "a minute is all of them");
}

#[test]
fn an_operators_bounds_hold() {
    let t0 = Instant::now();
    let mut bounded = governor(3, 5, t0);
    assert_eq!(bounded.level(), 3);
    offer(&mut bounded, 200_000.0, t0, 4_000);
    assert_eq!(bounded.level(), 5);
    bounded.arrived(0, t0 + 60_000 * MS);
    assert_eq!(bounded.level(), 3);
    let mut capped = Governor::new(Policy { commands_max: 20, ..Policy::default() }, t0);
    offer(&mut capped, 200_000.0, t0, 4_000);
    assert_eq!((capped.level(), capped.setting().commands_max), (9, 20));
    let setting = Setting { linger: 3 * MS, commands_max: 7, in_flight_max: 1 };
    let mut fixed = Governor::new(Policy { pressure: Pressure::Fixed(setting), ..Policy::default() }, t0);
    offer(&mut fixed, 200_000.0, t0, 1_000);
    assert_eq!((fixed.level(), fixed.setting()), (0, setting));
}

#[test]
fn the_first_never_waits_and_a_full_load_neither() {
    let t0 = Instant::now();
    let mut governor = governor(7, 7, t0);
    let Setting { linger, commands_max, .. } = governor.setting();
    assert_eq!(governor.wait(1, 1, t0), Duration::ZERO);
    governor.started(t0);
    assert_eq!(governor.wait(1, 1, t0), linger);
    assert_eq!(governor.wait(1, 1, t0 + MS), linger - MS);
    assert_eq!(governor.wait(1, 1, t0 + linger), Duration::ZERO);
    assert_eq!(governor.wait(commands_max, 1, t0), Duration::ZERO);
    assert_eq!(governor.wait(1, limits::PUBLISH_BYTES_MAX, t0), Duration::ZERO);
}

#[test]
fn the_table_only_gets_slower_and_larger_with_the_pressure() {
    let table = Table::default();
    for level in 1..LEVELS {
        let (lower, higher) = (table.setting(level), table.setting(level + 1));
        assert!(lower.linger <= higher.linger && lower.commands_max <= higher.commands_max, "{level}");
        assert!(lower.in_flight_max >= higher.in_flight_max, "{level}");
        // A level whose cap were usually reached within its linger would be paced by the cap.
        let edges = limits::LEVEL_EDGES_PER_SECOND;
        let middle = (edges[level.max(2) - 2] * edges[level - 1]).sqrt();
        assert!(middle * lower.linger.as_secs_f64() < lower.commands_max as f64, "{level}");
    }
    let mut same = Table::default();
    (1..=LEVELS).for_each(|level| same.set(level, Table::default().setting(level)));
    assert_eq!(same, Table::default(), "the starting values are within their bounds");
}

proptest! {
    /// Whatever comes: within bounds, one step at a time, never twice within the hold, and never far from what the rate says for long.
    #[test]
    fn a_level_is_bounded_slow_and_follows(
        (min, max) in (1..=LEVELS).prop_flat_map(|min| (Just(min), min..=LEVELS)),
        lumps in prop::collection::vec((0_u32..400, 0_usize..20_000), 1..200),
    ) {
        let t0 = Instant::now();
        let (mut governor, mut now) = (governor(min, max, t0), t0);
        let mut went_up_at = t0;
        for (ms, count) in lumps {
            now += ms * MS;
            let before = governor.level();
            governor.arrived(count, now);
            let level = governor.level();
            prop_assert!((min..=max).contains(&level));
            prop_assert!(level <= before + 1, "up by one: {} {}", before, level);
            if level > before {
                prop_assert!(now - went_up_at >= limits::LEVEL_HOLD);
                went_up_at = now;
            }
            let setting = governor.setting();
            prop_assert!(governor.wait(0, 0, now) <= setting.linger);
        }
        let per_second = governor.per_second_at(now);
        offer(&mut governor, per_second, now, 4_000);
        let edges = limits::LEVEL_EDGES_PER_SECOND;
        let level = governor.level();
        prop_assert!(level == max || per_second <= edges[level - 1] * limits::LEVEL_UP * 1.05);
        prop_assert!(level == min || per_second >= edges[level - 2] * limits::LEVEL_DOWN * 0.9);
    }
}
