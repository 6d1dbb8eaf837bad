//! How many commands of each SKU wait in a partition: an estimate, since the log is not read ahead.
//!
//! What waits is taken to be mixed as what was decided lately: records that wait, times the SKU's commands per record of late. No waiting
//! records, no depth; a SKU that stays away from the batches fades with every batch, and is forgotten.

use std::collections::BTreeMap;

use crate::ids::SkuId;
use crate::inventory::{Logged, Outcome, Verdict};
use crate::limits;

/// The mix of the batches of late: newer commands weigh more, by half for each [`limits::QUEUE_MIX_COMMANDS`] that followed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shares {
    records: f64,
    /// Commands by SKU; only SKUs that are configured in this partition, so the labels of the metric are bounded.
    commands: BTreeMap<SkuId, f64>,
}

/// Less than half a command left of a SKU: it is forgotten.
const FORGOTTEN_BELOW: f64 = 0.5;

impl Shares {
    /// A batch was decided.
    pub fn add(&mut self, records: usize, commands: &[Logged], outcome: &Outcome) {
        let decided = commands.iter().zip(&outcome.decisions);
        // A command of a SKU that is not configured here is poison, so what is left has a SKU of this partition, or nearly: a refused
        // creation does not make one.
        let skus = decided.filter_map(|(logged, decision)| match (&logged.command, &decision.verdict) {
            (Ok(command), verdict) if !matches!(verdict, Verdict::Poison(_) | Verdict::Refused(_)) => {
                Some(command.sku())
            }
            _ => None,
        });
        self.mix(records, commands.len(), skus);
    }

    fn mix<'a>(&mut self, records: usize, command_count: usize, skus: impl Iterator<Item = &'a SkuId>) {
        let keep = 0.5_f64.powf(command_count as f64 / limits::QUEUE_MIX_COMMANDS as f64);
        self.records = self.records * keep + records as f64;
        self.commands.values_mut().for_each(|commands| *commands *= keep);
        for sku in skus {
            match self.commands.get_mut(sku) {
                Some(commands) => *commands += 1.0,
                None => {
                    self.commands.insert(sku.clone(), 1.0);
                }
            }
        }
        self.commands.retain(|_, commands| *commands >= FORGOTTEN_BELOW);
    }

    /// Commands of each SKU that wait, while `lag` records do; whole commands.
    pub fn depths(&self, lag: i64) -> BTreeMap<SkuId, f64> {
        let lag = lag.max(0) as f64;
        let depth = |commands: &f64| if self.records > 0.0 { (lag * commands / self.records).round() } else { 0.0 };
        self.commands.iter().map(|(sku, commands)| (sku.clone(), depth(commands))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch: records, and commands by SKU.
    type Decided<'a> = (usize, &'a [(&'a str, usize)]);

    /// Batches, the lag, and the depths that follow.
    fn check(batches: &[Decided], lag: i64, expected: &[(&str, f64)]) {
        let mut shares = Shares::default();
        for (records, commands) in batches {
            let skus: Vec<SkuId> = commands
                .iter()
                .flat_map(|(sku, count)| std::iter::repeat_n(SkuId::parse(sku).unwrap(), *count))
                .collect();
            shares.mix(*records, skus.len(), skus.iter());
        }
        let depths = shares.depths(lag);
        let found: Vec<(&str, f64)> = depths.iter().map(|(sku, depth)| (sku.as_str(), *depth)).collect();
        assert_eq!(found, expected, "{batches:?}, lag {lag}");
    }

    #[test]
    fn depth_is_the_lag_times_the_commands_per_record_of_late() {
        check(&[], 100, &[]);
        check(&[(1, &[("a", 1)])], 0, &[("a", 0.0)]);
        check(&[(1, &[("a", 1)])], -5, &[("a", 0.0)]);
        check(&[(1, &[("a", 1)])], 100, &[("a", 100.0)]);
        check(&[(5, &[("a", 250)])], 100, &[("a", 5000.0)]);
        check(&[(4, &[("a", 30), ("b", 10)])], 8, &[("a", 60.0), ("b", 20.0)]);
        // The same mix again and again changes nothing.
        let mix: Decided = (5, &[("a", 200), ("b", 50)]);
        check(&[mix; 40], 10, &[("a", 400.0), ("b", 100.0)]);
    }

    #[test]
    fn newer_batches_weigh_more() {
        // A thousand commands later the older half weighs half.
        check(&[(1000, &[("a", 1000)]), (1000, &[("b", 1000)])], 300, &[("a", 100.0), ("b", 200.0)]);
    }

    #[test]
    fn a_sku_that_stays_away_is_forgotten() {
        let other: Decided = (5, &[("b", 250)]);
        let mut batches: Vec<Decided> = vec![(5, &[("a", 250)])];
        batches.extend([other; 40]);
        check(&batches, 10, &[("b", 500.0)]);
    }
}
