//! What was measured of the levels on this cluster: kept in Postgres, or in a file, and put over the starting values at start.
//!
//! A calibration says nothing that could not be said worse by the starting values: a missing one is no error, and a level without a measured
//! setting keeps its own.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::levels::{LEVELS, Setting, Table};

/// The measured setting of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrated {
    /// 1 to [`LEVELS`].
    pub level: usize,
    /// Least time between two starts.
    pub linger_us: u64,
    /// Commands of one publish.
    pub commands_max: usize,
    /// Publishes on their way at once.
    pub in_flight_max: usize,
    /// What was measured with it: P95 from submission to delivery report.
    pub p95_us: u64,
    /// And records per second.
    pub records_per_second: u64,
}

/// Why a file is no calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// It can't be read or written.
    #[error("could not access the calibration file")]
    File(#[from] std::io::Error),
    /// It is something else.
    #[error("could not understand the calibration file")]
    Content(#[from] serde_json::Error),
    /// There is no such level.
    #[error("the calibration file names level {0}, there are 1 to {LEVELS}")]
    Level(usize),
}

impl Calibrated {
    /// The setting in it.
    pub fn setting(&self) -> Setting {
        let Self { linger_us, commands_max, in_flight_max, .. } = *self;
        Setting { linger: Duration::from_micros(linger_us), commands_max, in_flight_max }
    }
}

/// The starting values with these measured ones in their places, each cut to its bounds.
pub fn table(measured: &[Calibrated]) -> Table {
    let mut table = Table::default();
    for calibrated in measured {
        table.set(calibrated.level, calibrated.setting());
    }
    table
}

/// Reads a file that [`write()`] wrote.
///
/// # Errors
/// [`CalibrationError`].
pub fn read(path: &Path) -> Result<Vec<Calibrated>, CalibrationError> {
    let measured: Vec<Calibrated> = serde_json::from_slice(&std::fs::read(path)?)?;
    match measured.iter().find(|calibrated| !(1..=LEVELS).contains(&calibrated.level)) {
        Some(wrong) => Err(CalibrationError::Level(wrong.level)),
        None => Ok(measured),
    }
}

/// Writes a file for [`read`]: beside it first, so that nobody ever reads half of one.
///
/// # Errors
/// [`CalibrationError`].
pub fn write(path: &Path, measured: &[Calibrated]) -> Result<(), CalibrationError> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, serde_json::to_string_pretty(measured)? + "\n")?;
    Ok(std::fs::rename(&beside, path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calibrated(level: usize) -> Calibrated {
        Calibrated {
            level,
            linger_us: 700,
            commands_max: 99,
            in_flight_max: 1,
            p95_us: 1_234,
            records_per_second: 1_000,
        }
    }

    #[test]
    fn measured_settings_replace_their_levels_and_no_others_and_are_not_trusted() {
        let absurd = Calibrated { linger_us: u64::MAX, commands_max: 0, in_flight_max: 1_000_000, ..calibrated(9) };
        let table = table(&[calibrated(4), absurd, calibrated(0), calibrated(11)]);
        let expected = Setting { linger: Duration::from_micros(700), commands_max: 99, in_flight_max: 1 };
        for level in 1..=LEVELS {
            let setting = table.setting(level);
            match level {
                4 => assert_eq!(setting, expected),
                9 => {
                    assert_eq!(setting.linger, crate::limits::LINGER_MAX);
                    assert_eq!((setting.commands_max, setting.in_flight_max), (1, 2));
                }
                _ => assert_eq!(setting, Table::default().setting(level)),
            }
        }
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_another_one_is_refused() {
        let path = std::env::temp_dir().join(format!("flashsale-calibration-{}.json", crate::ids::fresh_id()));
        assert!(matches!(read(&path), Err(CalibrationError::File(_))));
        let measured = vec![calibrated(1), calibrated(10)];
        write(&path, &measured).expect("written");
        assert_eq!(read(&path).expect("read"), measured);
        write(&path, &[calibrated(11)]).expect("written");
        assert!(matches!(read(&path), Err(CalibrationError::Level(11))));
        std::fs::write(&path, "[{\"level\":1}]").expect("written");
        assert!(matches!(read(&path), Err(CalibrationError::Content(_))));
        std::fs::remove_file(&path).expect("it was there");
    }
}
