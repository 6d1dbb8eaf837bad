//! Ten pressure levels: how many commands a publish may take, how long it waits for them, and how many publishes are on their way at once.
//!
//! A lane's level follows the measured rate of **arrivals**, never its own output: +20 % over an edge goes up, -40 % under it goes down, one
//! level at a time, and no sooner than [`limits::LEVEL_HOLD`] after the last change. What a level means is a [`Table`]: starting values here,
//! measured ones from `flashsale calibrate`.
//!
//! `linger` is the least time between two starts: whoever comes first after a silence never waits, and a lane under pressure publishes at
//! most so often. Two publishes in flight overlap their round trips at low pressure; the order per SKU stays, because the producer is
//! idempotent: the broker takes a partition's records by their sequence numbers or not at all, and the client library sends again in order.
//! From level 6 on one is in flight: a second one would only make both smaller.
//!
//! Pure: time comes in as arguments.

use std::time::{Duration, Instant};

use crate::limits;
use crate::pace::Rate;

/// How many levels there are.
pub const LEVELS: usize = limits::LEVEL_EDGES_PER_SECOND.len() + 1;

/// What a level means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Least time between two starts.
    pub linger: Duration,
    /// Commands of one publish; so many start it at once.
    pub commands_max: usize,
    /// Publishes on their way at once.
    pub in_flight_max: usize,
}

/// A setting for each level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table(Box<[Setting; LEVELS]>);

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The setting, or how it is chosen.
    pub pressure: Pressure,
    /// Upper bound of any setting's `commands_max`.
    pub commands_max: usize,
    /// Bytes of one publish; one record goes even if it is larger.
    pub bytes_max: usize,
}

/// The setting, or how it is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Always this one.
    Fixed(Setting),
    /// By the rate of arrivals, from level `min` to level `max` (1 to [`LEVELS`]).
    Levels {
        /// What they mean.
        table: Table,
        /// The lowest.
        min: usize,
        /// The highest.
        max: usize,
    },
}

/// One lane's level and pace.
#[derive(Clone, Debug)]
pub struct Governor {
    policy: Policy,
    rate: Rate,
    level: usize,
    since: Instant,
    started_at: Option<Instant>,
}

/// Starting values by level: microseconds of linger, commands, in flight. More than [`limits::RECORD_COMMANDS_MAX`] commands are several
/// records. An ack takes 0.2 ms: publishing all the time would make records of 5 commands, at 28 broker CPU-us each instead of 5 to 11. A
/// longer linger at levels 6 and 7 (1.5 and 2 ms) saves the broker 1.4 us a command and costs 0.6 to 1.3 ms of P95 (`benches/policies.rs`).
const STARTING: [(u64, usize, usize); LEVELS] = [
    (0, 16, 2),
    (0, 32, 2),
    (250, 64, 2),
    (500, 128, 2),
    (1000, 256, 2),
    (1000, 256, 1),
    (1000, 512, 1),
    (4000, 1024, 1),
    (8000, 2048, 1),
    (15_000, 4096, 1),
];

impl Default for Table {
    fn default() -> Self {
        Self(Box::new(STARTING.map(|(linger_us, commands_max, in_flight_max)| Setting {
            linger: Duration::from_micros(linger_us),
            commands_max,
            in_flight_max,
        })))
    }
}

impl Table {
    /// What `level` (1 to [`LEVELS`]) means.
    pub fn setting(&self, level: usize) -> Setting {
        self.0[level - 1]
    }

    /// Puts a measured setting in the place of `level`'s, cut to its bounds: a stored value is not trusted.
    pub fn set(&mut self, level: usize, setting: Setting) {
        let Some(place) = level.checked_sub(1).and_then(|at| self.0.get_mut(at)) else { return };
        *place = Setting {
            linger: setting.linger.min(limits::LINGER_MAX),
            commands_max: setting.commands_max.clamp(1, limits::PUBLISH_COMMANDS_MAX),
            in_flight_max: setting.in_flight_max.clamp(1, limits::PUBLISHES_IN_FLIGHT_MAX),
        };
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            pressure: Pressure::Levels { table: Table::default(), min: 1, max: LEVELS },
            commands_max: limits::PUBLISH_COMMANDS_MAX,
            bytes_max: limits::PUBLISH_BYTES_MAX,
        }
    }
}

impl Governor {
    /// At its lowest level.
    pub fn new(policy: Policy, now: Instant) -> Self {
        let level = match &policy.pressure {
            Pressure::Fixed(_) => 0,
            Pressure::Levels { min, max, .. } => {
                assert!(1 <= *min && min <= max && *max <= LEVELS, "levels {min} to {max}");
                *min
            }
        };
        Self { policy, rate: Rate::new(now), level, since: now, started_at: None }
    }

    /// Counts arrivals, at the moment when they are taken, and follows them.
    pub fn arrived(&mut self, count: usize, now: Instant) {
        self.sink(now);
        self.rate.arrived(count, now);
        if let Pressure::Levels { max, .. } = self.policy.pressure
            && self.level < max
            && self.may_change(now)
            && self.rate.per_second_at(now) > limits::LEVEL_EDGES_PER_SECOND[self.level - 1] * limits::LEVEL_UP
        {
            self.level += 1;
            self.since = now;
        }
    }

    /// Goes down as far as the silence until `now` would have taken it, had somebody looked.
    fn sink(&mut self, now: Instant) {
        let Pressure::Levels { min, .. } = self.policy.pressure else { return };
        while self.level > min {
            let edge = limits::LEVEL_EDGES_PER_SECOND[self.level - 2] * limits::LEVEL_DOWN;
            let at = self.rate.below_from(edge).max(self.since + limits::LEVEL_HOLD);
            if at > now {
                return;
            }
            self.level -= 1;
            self.since = at;
        }
    }

    fn may_change(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= limits::LEVEL_HOLD
    }

    /// The present level, 1 to [`LEVELS`]; 0 = a fixed setting.
    pub fn level(&self) -> usize {
        self.level
    }

    /// Arrivals per second.
    pub fn per_second_at(&self, now: Instant) -> f64 {
        self.rate.per_second_at(now)
    }

    /// What the present level means, within the operator's bounds.
    pub fn setting(&self) -> Setting {
        let setting = match &self.policy.pressure {
            Pressure::Fixed(setting) => *setting,
            Pressure::Levels { table, .. } => table.setting(self.level),
        };
        Setting { commands_max: setting.commands_max.min(self.policy.commands_max), ..setting }
    }

    /// Bytes of one publish.
    pub fn bytes_max(&self) -> usize {
        self.policy.bytes_max
    }

    /// How long to go on gathering before the next start, with so many `commands` of so many `bytes` waiting; zero = start now.
    pub fn wait(&self, commands: usize, bytes: usize, now: Instant) -> Duration {
        let setting = self.setting();
        match self.started_at {
            Some(started_at) if commands < setting.commands_max && bytes < self.policy.bytes_max => {
                (started_at + setting.linger).saturating_duration_since(now)
            }
            _ => Duration::ZERO,
        }
    }

    /// Follows a newer table from now on.
    pub fn set_table(&mut self, newer: Table) {
        if let Pressure::Levels { table, .. } = &mut self.policy.pressure {
            *table = newer;
        }
    }

    /// Notes a start.
    pub fn started(&mut self, now: Instant) {
        self.started_at = Some(now);
    }
}

#[cfg(test)]
mod tests;
