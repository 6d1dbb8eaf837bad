//! The state of one partition in memory: makes a snapshot for a batch and applies what was decided, as `src/store` does.
//!
//! It loads **only** what the batch's commands touch (known reservations only after the primary key would have refused one; holds only
//! if they end within the batch), keeps rows instead of sums, and checks while applying what the tables and the writer check: no id twice,
//! movements numbered without gaps, each change made on the row that is stored. Rows of ended holds say so when [`MemoryStore::settle`] is
//! called, whenever that is.

use std::collections::{BTreeMap, BTreeSet};

use flashsale::ids::{SkuId, UserId};
use flashsale::inventory::{
    Changes, Command, Decision, Event, Holdings, LifeChange, Logged, Origin, Outcome, Reservation, ReservationChange,
    Reserve, Sku, SkuChange, Snapshot, Status, Verdict, decide,
};
use uuid::Uuid;

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
    /// As stored: an ended hold may still say RESERVED. See [`Self::now`].
    pub reservations: BTreeMap<Uuid, Reservation>,
    /// Ids of the `command` rows that occupy one.
    pub command_ids: BTreeSet<Uuid>,
    /// Key ids of the `command` rows that have one.
    pub key_ids: BTreeSet<Uuid>,
    /// Ids of the `poison` rows that have one.
    pub poison_ids: BTreeSet<Uuid>,
    pub movements: Vec<MovementRow>,
    /// What was told, in the order of the outbox.
    pub events: Vec<Event>,
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
        self.events.extend(outcome.events);
        outcome.decisions
    }

    /// Lets the rows of ended holds say so, where `is_chosen` says yes to the row's number.
    pub fn settle(&mut self, mut is_chosen: impl FnMut(usize) -> bool) {
        for (number, (id, row)) in self.reservations.iter_mut().enumerate() {
            let through = self.skus[&row.sku].expired_through;
            let has_ended = row.status == Status::Reserved && row.expires_at.expect("a hold ends") <= through;
            if has_ended && is_chosen(number) {
                row.status = Status::Expired;
                row.version += 1;
                let ends = row.expires_at.expect("a hold ends");
                self.events.push(Event::of_reservation(Origin::EndOfHold, ends, *id, row, LifeChange::Expired));
            }
        }
    }

    /// What a reservation is, as every reader sees it.
    pub fn now(&self, id: &Uuid) -> Option<Reservation> {
        let row = self.reservations.get(id)?.clone();
        let through = self.skus[&row.sku].expired_through;
        Some(row.settled(through))
    }

    /// Units that a user holds or owns of a SKU, counted from the rows.
    pub fn units(&self, sku: &SkuId, user: &UserId) -> i64 {
        self.sum(|row| {
            row.sku == *sku && row.user == *user && matches!(row.status, Status::Reserved | Status::Confirmed)
        })
    }

    /// Units of a SKU in reservations that are in one state.
    pub fn units_in(&self, sku: &SkuId, status: Status) -> i64 {
        self.sum(|row| row.sku == *sku && row.status == status)
    }

    fn sum(&self, is_wanted: impl Fn(&Reservation) -> bool) -> i64 {
        self.reservations.keys().filter_map(|id| self.now(id)).filter(|row| is_wanted(row)).map(|row| row.units()).sum()
    }

    /// Whether a row would be written twice.
    fn has_conflict(&self, batch: &[Logged], outcome: &Outcome) -> bool {
        batch.iter().zip(&outcome.decisions).any(|(logged, decision)| match (&logged.command, &decision.verdict) {
            (Ok(Command::Reserve(reserve)), Verdict::Reserved { .. } | Verdict::Rejected(_)) => {
                self.reservations.contains_key(&reserve.id)
            }
            _ => false,
        })
    }

    // ---- the snapshot ---------------------------------------------------------------------------------------------------------

    fn snapshot_for(&self, batch: &[Logged], is_careful: bool) -> Snapshot {
        let commands: Vec<&Command> = batch.iter().filter_map(|logged| logged.command.as_ref().ok()).collect();
        let mut snapshot = Snapshot { partition: self.partition, log_time: self.log_time, ..Snapshot::default() };
        self.load_known(&mut snapshot, &commands, is_careful);
        let until = batch.iter().map(|logged| logged.at).fold(self.log_time, i64::max);
        for command in &commands {
            if let Some(sku) = self.skus.get(command.sku()) {
                snapshot.skus.insert(command.sku().clone(), sku.clone());
            }
            snapshot.due.insert(command.sku().clone(), self.due(command.sku(), until));
            if let Some((id, target)) = command.target().and_then(|id| self.reservations.get_key_value(&id)) {
                snapshot.reservations.insert(*id, target.clone());
            }
        }
        let askers = commands.iter().filter_map(|command| match command {
            Command::Reserve(reserve) => Some(reserve.user.clone()),
            _ => None,
        });
        let users: BTreeSet<UserId> =
            askers.chain(snapshot.reservations.values().map(|row| row.user.clone())).collect();
        let asked: BTreeSet<&SkuId> = commands.iter().map(|command| command.sku()).collect();
        for row in self.reservations.values().filter(|row| users.contains(&row.user) && asked.contains(&row.sku)) {
            let whose = || (row.sku.clone(), row.user.clone());
            match row.status {
                Status::Confirmed => snapshot.holdings.entry(whose()).or_default().sold += row.units(),
                Status::Reserved => {
                    let Holdings { holds, .. } = snapshot.holdings.entry(whose()).or_default();
                    *holds.entry(row.expires_at.expect("a hold ends")).or_default() += row.units();
                }
                _ => {}
            }
        }
        snapshot
    }

    fn load_known(&self, snapshot: &mut Snapshot, commands: &[&Command], is_careful: bool) {
        let looks_up = is_careful || commands.iter().any(|command| !self.skus.contains_key(command.sku()));
        for command in commands {
            let id = command.id();
            if self.poison_ids.contains(&id) || (looks_up && self.reservations.contains_key(&id)) {
                snapshot.known_reservations.insert(id);
            }
            for id in [Some(id), command.key_id()].into_iter().flatten() {
                if self.command_ids.contains(&id) {
                    snapshot.known_commands.insert(id);
                }
                if self.key_ids.contains(&id) {
                    snapshot.known_keys.insert(id);
                }
            }
        }
    }

    /// Units of holds that end by `until` and are not released yet.
    fn due(&self, sku: &SkuId, until: i64) -> BTreeMap<i64, i64> {
        let through = self.skus.get(sku).map_or(0, |sku| sku.expired_through);
        let mut due = BTreeMap::new();
        for row in self.reservations.values().filter(|row| row.sku == *sku && row.status == Status::Reserved) {
            let ends = row.expires_at.expect("a hold ends");
            if ends > through && ends <= until {
                *due.entry(ends).or_default() += row.units();
            }
        }
        due
    }

    // ---- the transaction ------------------------------------------------------------------------------------------------------

    fn apply(&mut self, batch: &[Logged], outcome: &Outcome) {
        assert_eq!(batch.len(), outcome.decisions.len(), "one decision per command");
        for (logged, decision) in batch.iter().zip(&outcome.decisions) {
            assert_eq!(logged.place, decision.place, "decisions keep the order of their commands");
            self.apply_decision(logged, &decision.verdict);
        }
        for (id, change) in &outcome.changes.reservations {
            self.apply_reservation(*id, change);
        }
        for (id, change) in &outcome.changes.skus {
            self.apply_sku(id, change);
        }
        self.log_time = outcome.changes.log_time;
        self.check_units(&outcome.changes);
    }

    fn apply_decision(&mut self, logged: &Logged, verdict: &Verdict) {
        match (verdict, &logged.command) {
            (Verdict::Reserved { expires_at }, Ok(Command::Reserve(reserve))) => {
                self.insert_reservation(reserve, Status::Reserved, Some(*expires_at));
            }
            (Verdict::Rejected(_), Ok(Command::Reserve(reserve))) => {
                self.insert_reservation(reserve, Status::Rejected, None);
            }
            (Verdict::Poison(_), Ok(command)) => drop(self.poison_ids.insert(command.id())),
            (Verdict::Poison(_), Err(unfit)) => self.poison_ids.extend(unfit.id),
            (Verdict::Duplicate, Ok(_)) | (Verdict::Ticked { .. }, Ok(Command::Tick(_))) => {}
            (Verdict::Refused(refusal), Ok(_)) if !refusal.is_remembered() => {}
            (
                Verdict::Configured { .. }
                | Verdict::Confirmed { .. }
                | Verdict::Cancelled
                | Verdict::Extended { .. }
                | Verdict::Adjusted { .. }
                | Verdict::Refused(_),
                Ok(command),
            ) => {
                assert!(self.command_ids.insert(command.id()), "an id is stored once: {logged:?}");
                let is_free = command.key_id().is_none_or(|key_id| self.key_ids.insert(key_id));
                assert!(is_free, "a key id is stored once: {logged:?}");
            }
            (verdict, command) => panic!("{verdict:?} is no answer to {command:?}"),
        }
    }

    /// The row of a reservation as it was first decided, whatever the rest of its batch makes of it.
    fn insert_reservation(&mut self, reserve: &Reserve, status: Status, expires_at: Option<i64>) {
        let row = Reservation {
            user: reserve.user.clone(),
            sku: reserve.sku.clone(),
            quantity: reserve.quantity,
            status,
            version: 1,
            expires_at,
            extensions: 0,
            extension_seconds: 0,
            changed_at: None,
            payment_ref: None,
            is_late: false,
            note: None,
            metadata: reserve.metadata.clone(),
        };
        assert!(self.reservations.insert(reserve.id, row).is_none(), "an id is stored once: {reserve:?}");
    }

    fn apply_reservation(&mut self, id: Uuid, change: &ReservationChange) {
        let after = &change.after;
        let row = self.reservations.get_mut(&id).unwrap_or_else(|| panic!("a change of a row that is not there: {id}"));
        let version_before = match change.before.as_deref() {
            Some(before) => {
                assert_eq!(row, before, "a change starts from the stored row");
                before.version
            }
            None => 1,
        };
        assert_eq!(row.version, version_before, "a change starts from the stored version");
        let may_be_kept = |row: &Reservation| (row.user.clone(), row.sku.clone(), row.quantity, row.metadata.clone());
        assert_eq!(may_be_kept(row), may_be_kept(after), "no command changes what was asked for");
        if after.version == version_before {
            assert_eq!(row, after, "a change has a version of its own");
        }
        assert!(after.version >= version_before, "versions count upwards");
        assert_eq!(after.status == Status::Confirmed, after.payment_ref.is_some(), "CHECK reservation_payment");
        assert!(after.status != Status::Reserved || after.expires_at.is_some(), "CHECK reservation_hold");
        *row = after.clone();
    }

    fn apply_sku(&mut self, id: &SkuId, change: &SkuChange) {
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

    /// The hints say what the rows say, by the batch's last log time.
    fn check_units(&self, changes: &Changes) {
        for ((sku, user), units) in &changes.units {
            let theirs = self.reservations.values().filter(|row| row.sku == *sku && row.user == *user);
            let live = theirs.filter(|row| match row.status {
                Status::Reserved => row.expires_at.expect("a hold ends") > changes.log_time,
                status => status == Status::Confirmed,
            });
            assert_eq!(*units, live.map(Reservation::units).sum::<i64>(), "units of {user} of {sku}");
        }
    }
}
