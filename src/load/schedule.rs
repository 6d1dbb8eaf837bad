//! When each request is due. **PURE**, and fixed before the first one is sent: what the service does changes nothing about it.

use std::time::Duration;

/// The shape of a crowd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Evenly.
    Steady,
    /// From nothing to the full rate, linearly: half of what steady offers.
    Ramp,
    /// Half of all requests in the middle tenth of the time: five times the rate, and little before and after.
    Burst,
}

impl Profile {
    /// Reads `steady`, `ramp` or `burst`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "steady" => Some(Self::Steady),
            "ramp" => Some(Self::Ramp),
            "burst" => Some(Self::Burst),
            _ => None,
        }
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Ramp => "ramp",
            Self::Burst => "burst",
        }
    }

    /// When, as a share of the time, this share of all requests is due.
    fn time_of(self, share: f64) -> f64 {
        match self {
            Self::Steady => share,
            Self::Ramp => share.sqrt(),
            Self::Burst => match share {
                early if early < 0.25 => early / 0.25 * 0.45,
                middle if middle < 0.75 => 0.45 + (middle - 0.25) / 0.5 * 0.1,
                late => 0.55 + (late - 0.75) / 0.25 * 0.45,
            },
        }
    }
}

/// All arrivals.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Its shape.
    pub profile: Profile,
    /// Requests a second: of [`Profile::Ramp`] at the end, else on average.
    pub rate: u32,
    /// How long.
    pub duration: Duration,
}

impl Schedule {
    /// How many there are.
    pub fn requests(&self) -> u64 {
        let steady = u64::from(self.rate) * self.duration.as_millis() as u64 / 1000;
        if self.profile == Profile::Ramp { steady / 2 } else { steady }
    }

    /// When request `number` is due, from the start. On whole milliseconds: no timer here is finer, and what is due in the same one arrives as
    /// a crowd does, at once.
    pub fn due(&self, number: u64) -> Duration {
        let share = number as f64 / self.requests() as f64;
        let millis = self.duration.as_secs_f64() * 1000.0 * self.profile.time_of(share);
        Duration::from_millis(millis as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(profile: Profile) -> Schedule {
        Schedule { profile, rate: 1000, duration: Duration::from_secs(10) }
    }

    /// Requests that are due before this second.
    fn before(schedule: &Schedule, second: u64) -> usize {
        (0..schedule.requests()).filter(|n| schedule.due(*n) < Duration::from_secs(second)).count()
    }

    #[test]
    fn every_request_is_due_in_its_turn_and_in_time() {
        for profile in [Profile::Steady, Profile::Ramp, Profile::Burst] {
            let schedule = of(profile);
            let due: Vec<_> = (0..schedule.requests()).map(|n| schedule.due(n)).collect();
            assert!(due.is_sorted() && due[0] == Duration::ZERO, "{profile:?}");
            assert!(due.last().is_some_and(|last| *last < schedule.duration), "{profile:?}");
            assert_eq!(Profile::parse(profile.word()), Some(profile));
        }
    }

    #[test]
    fn a_crowd_has_its_shape() {
        let steady = of(Profile::Steady);
        assert_eq!([1, 5, 10].map(|second| before(&steady, second)), [1000, 5000, 10_000]);
        let ramp = of(Profile::Ramp);
        assert_eq!(ramp.requests(), 5000);
        let half = before(&ramp, 5);
        assert!((1248..=1252).contains(&half), "a quarter in the first half: {half}");
        let burst = of(Profile::Burst);
        let in_the_middle =
            (0..10_000).map(|n| burst.due(n).as_millis()).filter(|at| (4500..5500).contains(at)).count();
        assert!((4990..=5010).contains(&in_the_middle), "{in_the_middle}");
    }
}
