//! `decide`: a batch of commands, in log order, against a snapshot.
//!
//! FIFO with skip: each command is decided by what all commands before it left, none waits for another. A refused request takes
//! nothing, so a later and smaller one may still win. Time is log time: before a command is decided, every hold of its SKU that has ended
//! by then is released, so a confirm and the end of its hold can't both win.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::command::{Command, Logged, PoisonReason};
use super::decision::{Changes, Decision, Outcome, Refusal, ReservationChange, SkuChange, Verdict};
use super::event::Event;
use super::reservation::Reservation;
use super::snapshot::{Holdings, Sku, Snapshot};
use crate::clock::Millis;
use crate::ids::{Place, SkuId, UserId};

mod hold;
mod reserve;
mod stock;
mod tell;

/// Decides a batch.
///
/// Time is each record's log timestamp, held back from running backwards. One decision per command, same order, same length. Any cut
/// of the same commands into batches gives the same decisions, provided each batch's snapshot is the state that the one before left.
///
/// # Panics
/// If the snapshot contradicts itself (promised more than exists). The caller catches it; nothing was written.
pub fn decide(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    let mut state = State::from(snapshot);
    state.events.reserve(commands.len());
    state.touched.reserve(commands.len());
    let decisions: Vec<Decision> = commands.iter().map(|logged| state.decide_one(logged)).collect();
    assert_eq!(decisions.len(), commands.len(), "one decision per command");
    let events = std::mem::take(&mut state.events);
    Outcome { decisions, changes: state.into_changes(snapshot), events }
}

/// The snapshot, as it moves through the batch.
struct State {
    partition: i32,
    log_time: Millis,
    skus: BTreeMap<SkuId, Sku>,
    known_reservations: BTreeSet<Uuid>,
    known_commands: BTreeSet<Uuid>,
    known_keys: BTreeSet<Uuid>,
    /// Those of the snapshot and those that the batch made.
    reservations: BTreeMap<Uuid, Reservation>,
    /// Ids of those that the batch made or changed, some of them repeatedly.
    touched: Vec<Uuid>,
    holdings: BTreeMap<(SkuId, UserId), Holdings>,
    /// Units of holds by their end. Of holds that end after the batch only what the batch itself did is here; nobody reads those.
    due: BTreeMap<SkuId, BTreeMap<Millis, i64>>,
    events: Vec<Event>,
    /// The command that is being decided, and how many events it has told.
    telling: (Place, u8),
}

impl From<&Snapshot> for State {
    fn from(snapshot: &Snapshot) -> Self {
        snapshot.skus.values().for_each(Sku::assert_sound);
        Self {
            partition: snapshot.partition,
            log_time: snapshot.log_time,
            skus: snapshot.skus.clone(),
            known_reservations: snapshot.known_reservations.clone(),
            known_commands: snapshot.known_commands.clone(),
            known_keys: snapshot.known_keys.clone(),
            reservations: snapshot.reservations.clone(),
            touched: Vec::new(),
            holdings: snapshot.holdings.clone(),
            due: snapshot.due.clone(),
            events: Vec::new(),
            telling: (Place { offset: 0, index: 0 }, 0),
        }
    }
}

impl State {
    fn decide_one(&mut self, logged: &Logged) -> Decision {
        self.log_time = self.log_time.max(logged.at);
        self.telling = (logged.place, 0);
        let verdict = match &logged.command {
            Err(unfit) => self.poison(unfit.id, unfit.reason),
            Ok(command) => self.decide_and_tell(command),
        };
        Decision { place: logged.place, at: self.log_time, verdict }
    }

    fn decide_and_tell(&mut self, command: &Command) -> Verdict {
        let before = self.available(command.sku());
        let released = self.release_due(command.sku());
        let between = self.available(command.sku());
        self.tell_stock(command.sku(), before, between);
        let verdict = self.decide_command(command, released);
        self.tell_stock(command.sku(), between, self.available(command.sku()));
        verdict
    }

    fn decide_command(&mut self, command: &Command, released: i64) -> Verdict {
        if self.is_known(command) {
            return Verdict::Duplicate;
        }
        if !self.skus.contains_key(command.sku()) && !matches!(command, Command::Configure(_)) {
            return self.poison(Some(command.id()), PoisonReason::NotHere);
        }
        if self.is_key_reused(command) {
            return Verdict::Refused(Refusal::KeyReused);
        }
        let verdict = match command {
            Command::Reserve(reserve) => self.reserve(reserve),
            Command::Confirm(confirm) => self.confirm(confirm),
            Command::Cancel(cancel) => self.cancel(cancel),
            Command::Extend(extend) => self.extend(extend),
            Command::Adjust(adjust) => self.adjust(adjust),
            Command::Configure(configure) => self.configure(configure),
            Command::Pause(pause) => self.pause(pause),
            Command::Tick(_) => Verdict::Ticked { released },
        };
        self.remember(command, &verdict);
        verdict
    }

    /// A reservation's id and a command's are two things. Those that the batch made, or that another command of it names, are here whole.
    fn is_known(&self, command: &Command) -> bool {
        match command {
            Command::Reserve(reserve) => {
                self.known_reservations.contains(&reserve.id) || self.reservations.contains_key(&reserve.id)
            }
            Command::Tick(_) => false,
            other => self.known_commands.contains(&other.id()),
        }
    }

    /// Whether another command had the same key: one that is named by something else has it beside its name, one that is not has it as its
    /// name. (Whoever repeats a name is a duplicate before that is asked, with whatever key.)
    fn is_key_reused(&self, command: &Command) -> bool {
        if matches!(command, Command::Reserve(_) | Command::Tick(_)) {
            return false;
        }
        let is_taken = |key_id| self.known_keys.contains(&key_id) || self.known_commands.contains(&key_id);
        self.known_keys.contains(&command.id()) || command.key_id().is_some_and(is_taken)
    }

    /// Keeps the id and the key id of a command whose answer stands for ever. (A reservation is here whole.)
    fn remember(&mut self, command: &Command, verdict: &Verdict) {
        let is_forgotten = match verdict {
            Verdict::Refused(refusal) => !refusal.is_remembered(),
            Verdict::Poison(_) => true,
            _ => matches!(command, Command::Reserve(_) | Command::Tick(_)),
        };
        if !is_forgotten {
            self.known_commands.insert(command.id());
            self.known_keys.extend(command.key_id());
        }
    }

    /// Releases the units of every hold of a SKU that has ended by now, in the counters; the rows follow later
    /// ([`Sku::expired_through`]). How many came back.
    fn release_due(&mut self, id: &SkuId) -> i64 {
        let (Some(sku), Some(due)) = (self.skus.get_mut(id), self.due.get_mut(id)) else { return 0 };
        let mut released = 0;
        while let Some(entry) = due.first_entry().filter(|entry| *entry.key() <= self.log_time) {
            released += entry.remove();
        }
        if released > 0 {
            sku.reserved -= released;
            sku.expired_through = self.log_time;
        }
        assert!(released >= 0, "holds that end are never fewer than none");
        sku.assert_sound();
        released
    }

    /// A reservation with a poisoned id was answered REJECTED, and stays so. Any other command burns nothing: sent again it is decided anew.
    /// (Whether it was a reserve can't always be read. No other command's id is ever a reservation's.)
    fn poison(&mut self, id: Option<Uuid>, reason: PoisonReason) -> Verdict {
        self.known_reservations.extend(id);
        Verdict::Poison(reason)
    }

    /// Puts a reservation that is changed in its place and keeps `due` and the holder's units in step.
    fn put_reservation(&mut self, id: Uuid, after: Reservation) {
        let before = self.reservations.get(&id);
        let log_time = self.log_time;
        let holdings = self.holdings.entry((after.sku.clone(), after.user.clone())).or_default();
        let due = self.due.entry(after.sku.clone()).or_default();
        for (reservation, sign) in before.map(|before| (before, -1)).into_iter().chain([(&after, 1)]) {
            let units = sign * reservation.units();
            match (reservation.status, reservation.expires_at) {
                (super::Status::Reserved, Some(ends)) => {
                    *holdings.holds.entry(ends).or_default() += units;
                    if ends > log_time {
                        *due.entry(ends).or_default() += units;
                    }
                }
                (super::Status::Confirmed, _) => holdings.sold += units,
                _ => {}
            }
        }
        self.reservations.insert(id, after);
        self.touched.push(id);
    }

    /// What differs from the snapshot; a SKU whose stock differs gets the number of its next movement.
    fn into_changes(self, snapshot: &Snapshot) -> Changes {
        let log_time = self.log_time;
        let units = self.holdings.into_iter().map(|(whose, has)| (whose, has.live_at(log_time))).collect();
        let mut touched = self.touched;
        touched.sort_unstable();
        let changed = self.reservations.into_iter().filter(|(id, _)| touched.binary_search(id).is_ok());
        let reservations = changed
            .map(|(id, after)| {
                (id, ReservationChange { before: snapshot.reservations.get(&id).cloned().map(Box::new), after })
            })
            .collect();
        let mut changes = Changes { log_time, skus: BTreeMap::new(), reservations, units };
        for (id, after) in self.skus {
            let before = snapshot.skus.get(&id);
            if before == Some(&after) {
                continue;
            }
            let mut change = SkuChange { before: before.cloned(), after };
            if change.before.is_none() || change.deltas() != [0, 0, 0] {
                change.after.movement_count += 1;
            }
            changes.skus.insert(id, change);
        }
        changes
    }
}
