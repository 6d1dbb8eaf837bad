//! The state of one partition in memory: makes a snapshot for a batch and applies what was decided, as the real store does.
//!
//! It loads **only** what the batch's commands touch (known reservations only after the primary key would have refused one), keeps rows
//! instead of sums, and checks while applying what the tables' constraints check: no id twice, movements numbered without gaps, each change made on the state that is stored.

use std::collections::{BTreeMap, BTreeSet};

use flashsale::ids::{SkuId, UserId};
use flashsale::inventory::{Command, Decision, Logged, Outcome, Sku, Snapshot, Status, Verdict, decide};
use uuid::Uuid;

/// A decided reserve command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationRow {
    pub id: Uuid,
    pub user: UserId,
    pub sku: SkuId,
    pub quantity: i64,
    pub status: Status,
}

/// What one batch did to one SKU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovementRow {
    pub sku: SkuId,
    pub number: i64,
    pub deltas: [i64; 3],
    pub balance: [i64; 3],
}

/// One partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStore {
    pub partition: i32,
    pub log_time: i64,
    pub skus: BTreeMap<SkuId, Sku>,
    pub reservations: Vec<ReservationRow>,
    /// Ids of the `command` rows that occupy one.
    pub command_ids: BTreeSet<Uuid>,
    /// Ids of the `poison` rows that have one.
    pub poison_ids: BTreeSet<Uuid>,
    pub movements: Vec<MovementRow>,
}

impl MemoryStore {
    /// Decides one batch and applies it; a batch of no commands is none.
    pub fn run(&mut self, batch: &[Logged]) -> Vec<Decision> {
        if batch.is_empty() {
            return Vec::new();
        }
        let mut outcome = decide(&self.snapshot_for(batch, false), batch);
        if self.has_conflict(batch, &outcome) {
            outcome = decide(&self.snapshot_for(batch, true), batch);
        }
        self.apply(batch, &outcome);
        outcome.decisions
    }

    /// Units that a user holds or owns of a SKU, counted from the rows.
    pub fn units(&self, sku: &SkuId, user: &UserId) -> i64 {
        self.sum(|row| row.sku == *sku && row.user == *user && row.status != Status::Rejected)
    }

    /// Units of a SKU in rows of one status.
    pub fn units_in(&self, sku: &SkuId, status: Status) -> i64 {
        self.sum(|row| row.sku == *sku && row.status == status)
    }

    fn sum(&self, is_wanted: impl Fn(&ReservationRow) -> bool) -> i64 {
        self.reservations.iter().filter(|row| is_wanted(row)).map(|row| row.quantity).sum()
    }

    fn has_reservation(&self, id: &Uuid) -> bool {
        self.reservations.iter().any(|row| row.id == *id)
    }

    /// Whether a row would be written twice.
    fn has_conflict(&self, batch: &[Logged], outcome: &Outcome) -> bool {
        batch.iter().zip(&outcome.decisions).any(|(logged, decision)| match (&logged.command, &decision.verdict) {
            (Ok(Command::Reserve(reserve)), Verdict::Reserved { .. } | Verdict::Rejected(_)) => {
                self.has_reservation(&reserve.id)
            }
            _ => false,
        })
    }

    fn snapshot_for(&self, batch: &[Logged], is_careful: bool) -> Snapshot {
        let mut snapshot = Snapshot { partition: self.partition, log_time: self.log_time, ..Snapshot::default() };
        let commands = || batch.iter().filter_map(|logged| logged.command.as_ref().ok());
        let looks_up = is_careful || commands().any(|command| !self.skus.contains_key(command.sku()));
        for command in commands() {
            let id = command.id();
            if self.poison_ids.contains(&id) || (looks_up && self.has_reservation(&id)) {
                snapshot.known_reservations.insert(id);
            }
            if self.poison_ids.contains(&id) || self.command_ids.contains(&id) {
                snapshot.known_commands.insert(id);
            }
            if let Some(sku) = self.skus.get(command.sku()) {
                snapshot.skus.insert(command.sku().clone(), sku.clone());
            }
            if let Command::Reserve(reserve) = command {
                let units = self.units(&reserve.sku, &reserve.user);
                if units > 0 {
                    snapshot.units.insert((reserve.sku.clone(), reserve.user.clone()), units);
                }
            }
        }
        snapshot
    }

    fn apply(&mut self, batch: &[Logged], outcome: &Outcome) {
        assert_eq!(batch.len(), outcome.decisions.len(), "one decision per command");
        for (logged, decision) in batch.iter().zip(&outcome.decisions) {
            assert_eq!(logged.place, decision.place, "decisions keep the order of their commands");
            self.apply_decision(logged, &decision.verdict);
        }
        for (id, change) in &outcome.changes.skus {
            assert_eq!(self.skus.get(id), change.before.as_ref(), "a change starts from the stored state");
            assert_ne!(change.before.as_ref(), Some(&change.after), "a SKU that did not change is not written");
            let after = change.after.clone();
            if change.is_movement() {
                let balance = [after.on_hand, after.reserved, after.sold];
                self.movements.push(MovementRow {
                    sku: id.clone(),
                    number: after.movement_count,
                    deltas: change.deltas(),
                    balance,
                });
            }
            self.skus.insert(id.clone(), after);
        }
        self.log_time = outcome.changes.log_time;
    }

    fn apply_decision(&mut self, logged: &Logged, verdict: &Verdict) {
        match (verdict, &logged.command) {
            (Verdict::Reserved { .. }, Ok(command)) => self.insert_reservation(command, Status::Reserved),
            (Verdict::Rejected(_), Ok(command)) => self.insert_reservation(command, Status::Rejected),
            (Verdict::Configured { .. }, Ok(command)) => {
                assert!(self.command_ids.insert(command.id()), "an id is stored once: {logged:?}");
            }
            (Verdict::Poison(_), Ok(command)) => {
                self.poison_ids.insert(command.id());
            }
            (Verdict::Poison(_), Err(unfit)) => self.poison_ids.extend(unfit.id),
            (Verdict::Refused(_) | Verdict::Duplicate, Ok(_)) => {}
            (verdict, Err(_)) => panic!("only poison is said about unfit bytes, not {verdict:?}"),
        }
    }

    fn insert_reservation(&mut self, command: &Command, status: Status) {
        let Command::Reserve(reserve) = command else { panic!("only a reserve makes a reservation: {command:?}") };
        assert!(!self.has_reservation(&reserve.id), "an id is stored once: {command:?}");
        self.reservations.push(ReservationRow {
            id: reserve.id,
            user: reserve.user.clone(),
            sku: reserve.sku.clone(),
            quantity: i64::from(reserve.quantity.get()),
            status,
        });
    }
}
