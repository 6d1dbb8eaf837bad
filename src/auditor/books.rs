//! The auditor's books: what it has added up so far, and what contradicts it. **PURE**: rows come in, findings come out.
//!
//! A SKU's stock is told three times: by its counters, by the fold of its movements, and by its reservations. All three come from one
//! snapshot and must agree. Batches must tile the log, and epochs must not go back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::limits;

/// Stock of a SKU: units in the sale, held and sold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Units in the sale.
    pub on_hand: i64,
    /// Units held.
    pub reserved: i64,
    /// Units sold.
    pub sold: i64,
}

impl Balance {
    fn plus(self, other: Self) -> Self {
        // Rows may hold anything; what wraps round differs, and that is found.
        Self {
            on_hand: self.on_hand.wrapping_add(other.on_hand),
            reserved: self.reserved.wrapping_add(other.reserved),
            sold: self.sold.wrapping_add(other.sold),
        }
    }

    /// Units promised beyond the stock; 0 = none.
    pub fn oversold(self) -> i64 {
        self.reserved.saturating_add(self.sold).saturating_sub(self.on_hand).max(0)
    }

    fn is_negative(self) -> bool {
        self.on_hand < 0 || self.reserved < 0 || self.sold < 0
    }

    /// The largest difference in units.
    fn differs_by(self, other: Self) -> i64 {
        let pairs = [(self.on_hand, other.on_hand), (self.reserved, other.reserved), (self.sold, other.sold)];
        pairs.map(|(a, b)| i64::try_from(a.abs_diff(b)).unwrap_or(i64::MAX)).into_iter().max().unwrap_or(0)
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "on hand {}, reserved {}, sold {}", self.on_hand, self.reserved, self.sold)
    }
}

/// A SKU's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The SKU.
    pub sku_id: String,
    /// What the row says.
    pub balance: Balance,
    /// The number of its last movement.
    pub movement_count: i64,
}

/// A SKU without a row, although its stock has moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The SKU.
    pub sku_id: String,
    /// The number of its last movement.
    pub number: i64,
}

/// A row of `stock_movement`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    /// The SKU.
    pub sku_id: String,
    /// Counts from 1.
    pub number: i64,
    /// The batch that made it.
    pub first_offset: i64,
    /// What it changed.
    pub delta: Balance,
    /// What was there after it.
    pub balance: Balance,
}

/// A SKU's stock at which the fold begins: as an operator accepted it when a halt was cleared, or not long ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The SKU.
    pub sku_id: String,
    /// The number of its last movement then.
    pub number: i64,
    /// Its stock then.
    pub balance: Balance,
}

/// A SKU's reservations, added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recounted {
    /// The SKU.
    pub sku_id: String,
    /// Units of holds that run.
    pub reserved: i64,
    /// Units sold.
    pub sold: i64,
}

/// A row of `batch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its partition.
    pub partition: i32,
    /// Where it begins.
    pub first_offset: i64,
    /// Where it ends.
    pub position: i64,
    /// Who wrote it.
    pub epoch: i64,
}

/// What is contradicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// More units are promised than exist, by any of the three tellings.
    Oversell,
    /// Counters and movements disagree.
    Counters,
    /// Movements don't follow from each other.
    Movements,
    /// Counters and reservations disagree.
    Reservations,
    /// Batches have a gap, overlap, or go back in epoch.
    Batches,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Oversell, Self::Counters, Self::Movements, Self::Reservations, Self::Batches];

    /// As labels and reasons tell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Oversell => "oversell",
            Self::Counters => "counters",
            Self::Movements => "movements",
            Self::Reservations => "reservations",
            Self::Batches => "batches",
        }
    }
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A SKU.
    Sku(String),
    /// A partition of the log.
    Partition(i32),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sku(sku) => f.write_str(sku),
            Self::Partition(partition) => write!(f, "partition {partition}"),
        }
    }
}

/// A contradiction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub subject: Subject,
    /// What.
    pub check: Check,
    /// By how many units; 1 where units say nothing.
    pub units: i64,
    /// For people.
    pub detail: String,
}

impl Finding {
    fn of_sku(sku: &str, check: Check, units: i64, detail: String) -> Self {
        Self { subject: Subject::Sku(sku.to_owned()), check, units, detail }
    }

    /// Whether it is about this SKU.
    pub fn is_of_sku(&self, sku: &str) -> bool {
        matches!(&self.subject, Subject::Sku(of) if of == sku)
    }

    /// What makes it the same finding as one told before.
    pub fn key(&self) -> (Subject, Check) {
        (self.subject.clone(), self.check)
    }
}

/// One SKU, added up.
#[derive(Clone, Debug, Default)]
struct Book {
    number: i64,
    balance: Balance,
    last_offset: i64,
    /// Found while folding; stays until the book is forgotten.
    broken: Option<Finding>,
}

/// One partition's batches.
#[derive(Clone, Debug, Default)]
struct Tiles {
    position: i64,
    epoch: i64,
    broken: Option<Finding>,
}

/// Everything added up so far.
#[derive(Clone, Debug, Default)]
pub struct Books {
    skus: BTreeMap<String, Book>,
    tiles: BTreeMap<i32, Tiles>,
    /// What the last recount found; true until the next one.
    recount: Vec<Finding>,
    /// The last time that an operator let each SKU go on.
    resumes: BTreeMap<String, i64>,
}

impl Books {
    /// Takes over who was let go on by an operator: what is remembered of such a SKU is forgotten, its books begin with what was accepted.
    pub fn forget_resumed(&mut self, resumes: &BTreeMap<String, i64>) {
        let resumed = resumes.iter().filter(|(sku, id)| self.resumes.get(*sku) != Some(*id));
        let resumed: Vec<Subject> = resumed.map(|(sku, _)| Subject::Sku(sku.clone())).collect();
        self.forget(&resumed);
        self.resumes.clone_from(resumes);
    }

    /// Forgets what is remembered of some SKUs and partitions.
    pub fn forget(&mut self, subjects: &[Subject]) {
        for subject in subjects {
            match subject {
                Subject::Sku(sku) => drop(self.skus.remove(sku)),
                Subject::Partition(partition) => drop(self.tiles.remove(partition)),
            }
        }
        self.recount.retain(|finding| !subjects.contains(&finding.subject));
    }

    /// The number of the last time that an operator let a SKU go on; 0 = never.
    pub fn last_resume(&self, sku: &str) -> i64 {
        self.resumes.get(sku).copied().unwrap_or(0)
    }

    /// Whether these are the resumes that are known.
    pub fn knows_resumes(&self, resumes: &BTreeMap<String, i64>) -> bool {
        self.resumes == *resumes
    }

    /// SKUs without a book yet, or whose row has gone back behind it (a restored database), with their number of movements.
    pub fn unread(&mut self, counters: &[Counters]) -> Vec<(String, i64)> {
        let mut unread = Vec::new();
        for row in counters {
            if self.skus.get(&row.sku_id).is_none_or(|book| book.number > row.movement_count) {
                self.skus.remove(&row.sku_id);
                unread.push((row.sku_id.clone(), row.movement_count));
            }
        }
        unread
    }

    /// Begins books at some balance, unless they begin later already.
    pub fn begin_at(&mut self, starts: Vec<Accepted>) {
        for Accepted { sku_id, number, balance } in starts {
            let book = self.skus.entry(sku_id).or_default();
            if book.number <= number {
                *book = Book { number, balance, ..Book::default() };
            }
        }
    }

    /// SKUs with movements that are not folded yet, each with the number of the last one that is.
    pub fn behind(&self, counters: &[Counters]) -> Vec<(String, i64)> {
        let number_of = |sku: &String| self.skus.get(sku).map_or(0, |book| book.number);
        let behind = counters.iter().filter(|row| number_of(&row.sku_id) < row.movement_count);
        behind.map(|row| (row.sku_id.clone(), number_of(&row.sku_id))).collect()
    }

    /// What the movements of a SKU come to, with the number of the last one that is folded; nothing without a book.
    pub fn folded(&self, sku: &str) -> Option<(i64, Balance)> {
        self.skus.get(sku).map(|book| (book.number, book.balance))
    }

    /// Adds the next movement of a SKU.
    pub fn fold(&mut self, movement: &Movement) {
        let book = self.skus.entry(movement.sku_id.clone()).or_default();
        let expected = book.balance.plus(movement.delta);
        let tell = |check, units, detail| Some(Finding::of_sku(&movement.sku_id, check, units, detail));
        let number = movement.number;
        let broken = if number != book.number + 1 {
            tell(Check::Movements, 1, format!("movement {} is followed by {number}", book.number))
        } else if movement.balance != expected {
            let units = movement.balance.differs_by(expected);
            tell(Check::Movements, units, format!("movement {number} leaves {}, not {expected}", movement.balance))
        } else if movement.balance.oversold() > 0 || movement.balance.is_negative() {
            let units = movement.balance.oversold().max(1);
            tell(Check::Oversell, units, format!("movement {number} leaves {}", movement.balance))
        } else if movement.first_offset < book.last_offset {
            tell(Check::Movements, 1, format!("movement {number} is from before its predecessor in the log"))
        } else {
            None
        };
        book.broken = book.broken.take().or(broken);
        book.number = number;
        book.balance = movement.balance;
        book.last_offset = movement.first_offset;
    }

    /// Begins partitions that are not known with their last [`limits::AUDIT_OFFSETS_BACK`] offsets.
    pub fn begin_tiles(&mut self, positions: &[(i32, i64)]) {
        for (partition, position) in positions {
            let begun = || Tiles { position: (position - limits::AUDIT_OFFSETS_BACK).max(0), ..Tiles::default() };
            self.tiles.entry(*partition).or_insert_with(begun);
        }
    }

    /// Partitions with batches that are not seen yet, each with the position up to which they are. A position that went back, as in a
    /// restored database, begins anew.
    pub fn batches_behind(&mut self, positions: &[(i32, i64)]) -> Vec<(i32, i64)> {
        let mut behind = Vec::new();
        for (partition, position) in positions {
            let tiles = self.tiles.entry(*partition).or_default();
            if tiles.position > *position {
                *tiles = Tiles::default();
            }
            if tiles.position < *position {
                behind.push((*partition, tiles.position));
            }
        }
        behind
    }

    /// Adds the next batch of a partition. The first one may begin anywhere: older rows may have been removed.
    pub fn tile(&mut self, batch: &Batch) {
        let tiles = self.tiles.entry(batch.partition).or_default();
        let (first, position, epoch) = (batch.first_offset, tiles.position, tiles.epoch);
        let detail = if epoch > 0 && first != position {
            Some(format!("a batch begins at {first}, the one before ended at {position}"))
        } else if batch.epoch < epoch {
            Some(format!("a batch of epoch {} follows one of epoch {epoch}", batch.epoch))
        } else {
            None
        };
        let subject = Subject::Partition(batch.partition);
        let broken = detail.map(|detail| Finding { subject, check: Check::Batches, units: 1, detail });
        tiles.broken = tiles.broken.take().or(broken);
        tiles.position = batch.position;
        tiles.epoch = batch.epoch;
    }

    /// Compares the counters with the reservations of the same snapshot. Live reservations of a SKU without a row contradict it, too. The
    /// result stands until the next time.
    pub fn compare(&mut self, counters: &[Counters], recounted: &[Recounted]) {
        let by_sku: BTreeMap<&str, &Recounted> = recounted.iter().map(|r| (r.sku_id.as_str(), r)).collect();
        self.recount.clear();
        let known: BTreeSet<&str> = counters.iter().map(|row| row.sku_id.as_str()).collect();
        for Recounted { sku_id, reserved, sold } in recounted.iter().filter(|r| !known.contains(r.sku_id.as_str())) {
            let detail = format!("the reservations come to reserved {reserved}, sold {sold}; the SKU has no row");
            let units = reserved.saturating_add(*sold);
            self.recount.push(Finding::of_sku(sku_id, Check::Reservations, units, detail));
        }
        for row in counters {
            let (reserved, sold) = by_sku.get(row.sku_id.as_str()).map_or((0, 0), |r| (r.reserved, r.sold));
            let counted = Balance { on_hand: row.balance.on_hand, reserved, sold };
            if counted.oversold() > 0 {
                let detail = format!("the reservations come to {reserved} held and {sold} sold of {}", counted.on_hand);
                self.recount.push(Finding::of_sku(&row.sku_id, Check::Oversell, counted.oversold(), detail));
            }
            if counted != row.balance {
                let units = counted.differs_by(row.balance);
                let detail =
                    format!("the reservations come to reserved {reserved}, sold {sold}; the SKU says {}", row.balance);
                self.recount.push(Finding::of_sku(&row.sku_id, Check::Reservations, units, detail));
            }
        }
    }

    /// What the last recount found.
    pub fn recount_findings(&self) -> &[Finding] {
        &self.recount
    }

    /// Everything that is wrong now, the last recount apart.
    pub fn judge(&self, counters: &[Counters], lost: &[Lost], positions: &[(i32, i64)]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for Lost { sku_id, number } in lost {
            let detail = format!("the SKU has no row, and {number} movements");
            findings.push(Finding::of_sku(sku_id, Check::Counters, 1, detail));
        }
        for row in counters {
            let book = self.skus.get(&row.sku_id).cloned().unwrap_or_default();
            findings.extend(book.broken);
            if row.balance.oversold() > 0 || row.balance.is_negative() {
                let units = row.balance.oversold().max(1);
                findings.push(Finding::of_sku(
                    &row.sku_id,
                    Check::Oversell,
                    units,
                    format!("the SKU says {}", row.balance),
                ));
            }
            if book.number != row.movement_count {
                let detail = format!("of {} movements only {} are there", row.movement_count, book.number);
                findings.push(Finding::of_sku(&row.sku_id, Check::Movements, 1, detail));
            } else if book.balance != row.balance {
                let units = book.balance.differs_by(row.balance);
                let detail = format!("the movements come to {}; the SKU says {}", book.balance, row.balance);
                findings.push(Finding::of_sku(&row.sku_id, Check::Counters, units, detail));
            }
        }
        for (partition, position) in positions {
            let Some(tiles) = self.tiles.get(partition) else { continue };
            findings.extend(tiles.broken.clone());
            // Without any batch nothing is known: a partition need not begin at 0.
            if tiles.epoch > 0 && tiles.position != *position {
                let detail = format!("batches end at {}, the position is {position}", tiles.position);
                findings.push(Finding {
                    subject: Subject::Partition(*partition),
                    check: Check::Batches,
                    units: 1,
                    detail,
                });
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests;
