//! What buyers saw, added up as it comes: a run of millions keeps counters and histograms, and a line per buyer only where something is
//! still to be found out.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::demand::Demand;
use crate::limits;

/// Counts of one generator thread, or of all.
#[derive(Debug)]
pub(super) struct Tally {
    /// Requests that were due and dealt with.
    pub offered: u64,
    /// 202, or decided in the answer.
    pub accepted: u64,
    /// Buyers who ran out of patience without an answer that stands.
    pub failed: u64,
    /// Of these, such whose request may have been taken.
    pub failed_unknown: u64,
    /// Final refusals before the log, by code.
    pub refused: BTreeMap<String, u64>,
    /// Decided for them, by SKU.
    pub reserved: Vec<u64>,
    /// Decided against them, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// 404, though they were accepted.
    pub lost: u64,
    /// Accepted, and no decision in their patience.
    pub undecided: u64,
    pub sent_again: u64,
    pub connections_broken: u64,
    /// Why buyers were told to come again, the last word for each.
    pub not_now: BTreeMap<String, u64>,
    /// From when a request was due to the answer that stands, in microseconds.
    pub answers: Histogram<u64>,
    /// From when it was due to its decision.
    pub decisions: Histogram<u64>,
    /// From when it was due until it was sent: what the generator itself is late by.
    pub starts: Histogram<u64>,
    /// Whose decision is to be asked for: their SKU, and where.
    pub open: Vec<(usize, Box<str>)>,
}

impl Tally {
    pub fn new(demand: &Demand) -> Self {
        Self {
            offered: 0,
            accepted: 0,
            failed: 0,
            failed_unknown: 0,
            refused: BTreeMap::new(),
            reserved: vec![0; demand.skus().len()],
            rejected: BTreeMap::new(),
            lost: 0,
            undecided: 0,
            sent_again: 0,
            connections_broken: 0,
            not_now: BTreeMap::new(),
            answers: histogram(),
            decisions: histogram(),
            starts: histogram(),
            open: Vec::new(),
        }
    }

    pub fn add(&mut self, other: Self) {
        self.offered += other.offered;
        self.accepted += other.accepted;
        self.failed += other.failed;
        self.failed_unknown += other.failed_unknown;
        self.lost += other.lost;
        self.undecided += other.undecided;
        self.sent_again += other.sent_again;
        self.connections_broken += other.connections_broken;
        for (mine, theirs) in self.reserved.iter_mut().zip(other.reserved) {
            *mine += theirs;
        }
        for (mine, theirs) in [
            (&mut self.refused, other.refused),
            (&mut self.rejected, other.rejected),
            (&mut self.not_now, other.not_now),
        ] {
            theirs.into_iter().for_each(|(name, number)| *mine.entry(name).or_default() += number);
        }
        for (mine, theirs) in [
            (&mut self.answers, other.answers),
            (&mut self.decisions, other.decisions),
            (&mut self.starts, other.starts),
        ] {
            mine.add(theirs).expect("all have the same bounds");
        }
        self.open.extend(other.open);
    }

    /// One more of this name.
    pub fn count(names: &mut BTreeMap<String, u64>, name: &str) {
        match names.get_mut(name) {
            Some(number) => *number += 1,
            None => drop(names.insert(name.to_owned(), 1)),
        }
    }

    /// Everybody who got units, of all SKUs.
    pub fn reserved_in_all(&self) -> u64 {
        self.reserved.iter().sum()
    }
}

/// Notes a duration; what is beyond the bound counts as the bound.
pub(super) fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
}

/// Microseconds to an hour, three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, limits::LOAD_PATIENCE_MAX.as_micros() as u64, 3)
        .expect("1 to an hour, by three digits, is a legal histogram")
}
