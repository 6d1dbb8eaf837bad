//! Where time enters the program. Decisions take it from the log; everything else asks a [`Clock`].
//!
//! Reading the system clock anywhere else is denied by clippy (`clippy.toml`), so that tests can hold time still and so that no
//! decision can ever depend on the clock of a process.

use std::time::{Instant, SystemTime};

use time::OffsetDateTime;

/// Milliseconds since 1970-01-01 UTC: the resolution of Kafka's log timestamps, and so of every decision.
pub type Millis = i64;

/// Tells the wall time. The one trait with a double: everything else in tests is real.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01 UTC.
    fn now(&self) -> Millis;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that may read the system clock")]
    fn now(&self) -> Millis {
        millis_of(OffsetDateTime::now_utc())
    }
}

/// The wall time of a moment that has passed, for people who look at traces.
#[expect(clippy::disallowed_methods, reason = "this is the one place that may read the system clock")]
pub fn wall_time_of(at: Instant) -> SystemTime {
    SystemTime::now() - at.elapsed()
}

/// Milliseconds since 1970-01-01 UTC of a time; fractions are cut off.
pub fn millis_of(at: OffsetDateTime) -> Millis {
    i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).unwrap_or(i64::MAX)
}

/// The first millisecond that RFC 3339 can write: year 0 begins.
pub const EARLIEST: Millis = -62_167_219_200_000;
/// The last one: year 9999 ends. Postgres reaches further on both sides.
pub const LATEST: Millis = 253_402_300_799_999;

/// The time of some milliseconds since 1970-01-01 UTC, clamped to [`EARLIEST`] and [`LATEST`].
pub fn time_of(at: Millis) -> OffsetDateTime {
    let nanos = i128::from(at.clamp(EARLIEST, LATEST)) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).expect("clamped to years that the type holds")
}

/// RFC 3339, UTC, milliseconds: `2026-11-21T10:00:00.000Z`, as every answer writes it.
pub fn rfc3339(at: Millis) -> String {
    let t = time_of(at);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_milliseconds_in_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_255_200_007), "2026-11-21T10:00:00.007Z");
        assert_eq!(rfc3339(i64::MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999Z");
    }

    #[test]
    fn millis_survive_the_way_there_and_back() {
        for at in [0, 1, 999, 1_000, -1, 1_795_255_200_007] {
            assert_eq!(millis_of(time_of(at)), at);
        }
    }
}
