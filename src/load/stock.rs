//! The books from outside: what the service says of its stock before and after, against what it told the buyers.

use serde_json::Value;

use super::connection::Connection;
use super::tally::Tally;

/// A SKU as buyers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stock {
    pub on_hand: i64,
    pub reserved: i64,
    pub sold: i64,
    pub hold_seconds: i64,
}

impl Stock {
    fn promised(&self) -> i64 {
        self.reserved + self.sold
    }
}

/// Reads one; `None` if the service does not tell.
pub(super) async fn stock_of(connection: &mut Connection, sku: &str) -> Option<Stock> {
    let answer = connection.get(&format!("/v1/skus/{sku}"), None).await.ok().filter(|answer| answer.status == 200)?;
    let body: Value = serde_json::from_slice(connection.body(&answer)).ok()?;
    let number = |member: &str| body[member].as_i64();
    Some(Stock {
        on_hand: number("on_hand")?,
        reserved: number("reserved")?,
        sold: number("sold")?,
        hold_seconds: number("hold_seconds")?,
    })
}

/// What can be checked of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// How long it took, following included.
    pub seconds: u64,
    /// Nobody else buys these SKUs meanwhile.
    pub is_alone: bool,
}

/// What can't be, if every answer was honest. `stocks` are before and after, by SKU.
pub(super) fn violations(
    skus: &[String],
    stocks: &[(Option<Stock>, Option<Stock>)],
    tally: &Tally,
    seen: Seen,
) -> Vec<String> {
    let mut violations = Vec::new();
    if tally.offered > 0 && tally.failed == tally.offered {
        violations.push(format!("none of {} requests got an answer that stands: the run shows nothing", tally.offered));
    }
    if tally.lost > 0 {
        violations.push(format!("{} accepted requests are unknown afterwards", tally.lost));
    }
    if tally.undecided > 0 {
        violations.push(format!("{} accepted requests have no decision", tally.undecided));
    }
    for ((sku, (before, after)), reserved) in skus.iter().zip(stocks).zip(&tally.reserved) {
        let reserved = i64::try_from(*reserved).unwrap_or(i64::MAX);
        let (Some(before), Some(after)) = (before, after) else {
            violations.push(format!("the stock of {sku} could not be read"));
            continue;
        };
        if after.promised() > after.on_hand {
            violations.push(format!("{sku}: {} units promised of {}", after.promised(), after.on_hand));
        }
        // A longer run may see units again whose holds have ended.
        if !i64::try_from(seen.seconds).is_ok_and(|seconds| seconds < after.hold_seconds) {
            continue;
        }
        if reserved > after.on_hand {
            violations.push(format!("{sku}: {reserved} buyers were told that they have one of {}", after.on_hand));
        }
        // Whoever got no answer that stands may have units, or not.
        let taken = after.promised() - before.promised();
        let most = reserved + i64::try_from(tally.failed_unknown).unwrap_or(i64::MAX);
        if seen.is_alone && !(reserved..=most).contains(&taken) {
            violations.push(format!("{sku}: {taken} units were taken, and {reserved} to {most} buyers were told so"));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::demand::Demand;
    use super::*;

    fn stock(on_hand: i64, reserved: i64, sold: i64) -> Option<Stock> {
        Some(Stock { on_hand, reserved, sold, hold_seconds: 60 })
    }

    fn count(change: impl Fn(&mut Tally), before: Option<Stock>, after: Option<Stock>, seconds: u64) -> usize {
        let skus = ["s".to_owned()];
        let mut tally = Tally::new(&Demand::new(skus.to_vec(), 1.0, "r".into(), true));
        change(&mut tally);
        violations(&skus, &[(before, after)], &tally, Seen { seconds, is_alone: true }).len()
    }

    #[test]
    fn an_honest_run_has_no_violation() {
        assert_eq!(count(|t| t.reserved[0] = 5, stock(10, 2, 1), stock(10, 7, 1), 1), 0);
        assert_eq!(count(|t| t.reserved[0] = 5, stock(10, 2, 1), stock(10, 0, 8), 1), 0, "some paid");
        let unknown = |t: &mut Tally| (t.reserved[0], t.failed_unknown) = (5, 2);
        for taken in 5..=7 {
            assert_eq!(count(unknown, stock(10, 0, 0), stock(10, taken, 0), 1), 0, "{taken}");
        }
        assert_eq!(count(|t| t.reserved[0] = 50, stock(10, 0, 0), stock(10, 1, 0), 60), 0, "holds ended and came back");
    }

    #[test]
    fn what_cannot_be_is_a_violation() {
        let nothing = |_: &mut Tally| ();
        let empty = stock(10, 0, 0);
        assert_eq!(count(|t| (t.offered, t.failed) = (3, 3), empty, empty, 1), 1, "nobody was answered");
        assert_eq!(count(|t| (t.offered, t.failed) = (3, 2), empty, empty, 1), 0);
        assert_eq!(count(|t| t.lost = 1, empty, empty, 1), 1);
        assert_eq!(count(|t| t.undecided = 1, empty, empty, 1), 1);
        assert_eq!(count(nothing, empty, None, 1), 1);
        assert_eq!(count(nothing, None, empty, 1), 1);
        assert_eq!(count(nothing, stock(10, 11, 0), stock(10, 11, 0), 1), 1, "oversold");
        assert_eq!(count(|t| t.reserved[0] = 11, empty, stock(10, 10, 0), 1), 2, "told more than there are");
        assert_eq!(count(|t| t.reserved[0] = 2, empty, stock(10, 1, 0), 1), 1, "told and not taken");
        assert_eq!(count(|t| t.reserved[0] = 1, empty, stock(10, 2, 0), 1), 1, "taken twice for one");
        let unknown = |t: &mut Tally| (t.reserved[0], t.failed_unknown) = (5, 2);
        assert_eq!([4, 8].map(|taken| count(unknown, empty, stock(10, taken, 0), 1)), [1, 1]);
    }
}
