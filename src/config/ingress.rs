//! The settings of ingress.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::{Ingress, Options, Problems};
use crate::ingress::levels::{LEVELS, Policy, Pressure, Setting, Table};
use crate::kafka::Compression;
use crate::limits;

impl Options {
    /// All of them are looked at, also those that the others make useless: a mistake is told when it is made.
    pub(super) fn ingress(&self, problems: &mut Problems) -> Option<Ingress> {
        let is_adaptive = match self.ingress_adaptive.trim() {
            "on" => Some(true),
            "off" => Some(false),
            _ => problems.add("INGRESS_ADAPTIVE", "must be on or off"),
        };
        let min = number(problems, "INGRESS_LEVEL_MIN", &self.ingress_level_min, 1..=LEVELS);
        let max = number(problems, "INGRESS_LEVEL_MAX", &self.ingress_level_max, 1..=LEVELS);
        if min.zip(max).is_some_and(|(min, max)| min > max) {
            problems.add::<()>("INGRESS_LEVEL_MIN", "must not be above INGRESS_LEVEL_MAX");
        }
        let linger_max_ms = limits::LINGER_MAX.as_millis() as f64;
        let linger_ms = number(problems, "INGRESS_LINGER_MS", &self.ingress_linger_ms, 0.0..=linger_max_ms);
        let linger_seconds = linger_ms.map(|ms| ms / 1e3);
        let commands = 1..=limits::PUBLISH_COMMANDS_MAX;
        let commands_max = number(problems, "INGRESS_COMMANDS_MAX", &self.ingress_commands_max, commands);
        let bytes = limits::PUBLISH_BYTES_SETTING_MIN..=limits::PUBLISH_BYTES_SETTING_MAX;
        let bytes_max = number(problems, "INGRESS_BYTES_MAX", &self.ingress_bytes_max, bytes);
        let compression = match Compression::parse(self.ingress_compression.trim()) {
            Ok(compression) => Some(compression),
            Err(error) => problems.add("INGRESS_COMPRESSION", error.to_string()),
        };
        let file = problems.given("INGRESS_CALIBRATION_FILE", &self.ingress_calibration_file, false, "");
        let (min, max, commands_max) = (min?, max?, commands_max?);
        let linger = Duration::from_secs_f64(linger_seconds?);
        let pressure = if is_adaptive? {
            Pressure::Levels { table: Table::default(), min, max }
        } else {
            Pressure::Fixed(Setting { linger, commands_max, in_flight_max: 1 })
        };
        let policy = Policy { pressure, commands_max, bytes_max: bytes_max? };
        Some(Ingress { policy, compression: compression?, calibration_file: file.map(PathBuf::from) })
    }
}

impl Ingress {
    /// By name, for [`super::Config::redacted`].
    pub(super) fn values(&self) -> Vec<(String, Value)> {
        let (levels, linger_ms) = match &self.policy.pressure {
            Pressure::Levels { min, max, .. } => (Value::from(format!("{min} to {max}")), Value::Null),
            Pressure::Fixed(setting) => (Value::Null, Value::from(setting.linger.as_secs_f64() * 1e3)),
        };
        let file = self.calibration_file.as_ref().map(|path| path.display().to_string());
        vec![
            ("ingress_levels".to_owned(), levels),
            ("ingress_linger_ms".to_owned(), linger_ms),
            ("ingress_commands_max".to_owned(), self.policy.commands_max.into()),
            ("ingress_bytes_max".to_owned(), self.policy.bytes_max.into()),
            ("ingress_compression".to_owned(), self.compression.word().into()),
            ("ingress_calibration_file".to_owned(), file.map_or(Value::Null, Value::from)),
        ]
    }
}

fn number<N: FromStr + PartialOrd + std::fmt::Display>(
    problems: &mut Problems,
    variable: &'static str,
    text: &str,
    within: RangeInclusive<N>,
) -> Option<N> {
    let number = text.trim().parse().ok().filter(|number| within.contains(number));
    number.or_else(|| problems.add(variable, format!("must be {} to {}", within.start(), within.end())))
}
