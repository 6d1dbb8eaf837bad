//! `decide`: a batch of commands, in log order, against a snapshot.
//!
//! FIFO with skip: each command is decided by what all commands before it left, none waits for another. A refused request takes
//! nothing, so a later and smaller one may still win.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::command::{Command, Configure, Logged, PoisonReason, Reserve, Settings};
use super::decision::{Changes, Decision, Outcome, Refusal, Rejection, SkuChange, Verdict};
use super::snapshot::{Sku, Snapshot};
use crate::clock::Millis;
use crate::ids::{SkuId, UserId};

/// Decides a batch.
///
/// Time is each record's log timestamp, held back from running backwards. One decision per command, same order, same length. Any cut
/// of the same commands into batches gives the same decisions, provided each batch's snapshot is the state that the one before left.
///
/// # Panics
/// If the snapshot contradicts itself (promised more than exists). The caller catches it; nothing was written.
pub fn decide(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    let mut state = State::from(snapshot);
    let decisions: Vec<Decision> = commands.iter().map(|logged| state.decide_one(logged)).collect();
    assert_eq!(decisions.len(), commands.len(), "one decision per command");
    Outcome { decisions, changes: state.into_changes(snapshot) }
}

/// The snapshot, as it moves through the batch.
struct State {
    partition: i32,
    log_time: Millis,
    skus: BTreeMap<SkuId, Sku>,
    known_reservations: BTreeSet<Uuid>,
    known_commands: BTreeSet<Uuid>,
    units: BTreeMap<(SkuId, UserId), i64>,
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
            units: snapshot.units.clone(),
        }
    }
}

impl State {
    fn decide_one(&mut self, logged: &Logged) -> Decision {
        self.log_time = self.log_time.max(logged.at);
        let verdict = match &logged.command {
            Err(unfit) => self.poison(unfit.id, unfit.reason),
            Ok(Command::Reserve(reserve)) if self.known_reservations.contains(&reserve.id) => Verdict::Duplicate,
            Ok(Command::Reserve(reserve)) => self.reserve(reserve),
            Ok(Command::Configure(configure)) if self.known_commands.contains(&configure.id) => Verdict::Duplicate,
            Ok(Command::Configure(configure)) => self.configure(configure),
        };
        Decision { place: logged.place, at: self.log_time, verdict }
    }

    /// A poisoned id is known, whatever kind of command would come with it.
    fn poison(&mut self, id: Option<Uuid>, reason: PoisonReason) -> Verdict {
        self.known_reservations.extend(id);
        self.known_commands.extend(id);
        Verdict::Poison(reason)
    }

    fn reserve(&mut self, reserve: &Reserve) -> Verdict {
        let Some(sku) = self.skus.get_mut(&reserve.sku) else {
            return self.poison(Some(reserve.id), PoisonReason::NotHere);
        };
        self.known_reservations.insert(reserve.id);
        let units = self.units.entry((reserve.sku.clone(), reserve.user.clone())).or_insert(0);
        let quantity = i64::from(reserve.quantity.get());
        if let Some(rejection) = rejection_of(sku, *units, quantity, self.log_time) {
            return Verdict::Rejected(rejection);
        }
        sku.reserved += quantity;
        *units += quantity;
        sku.assert_sound();
        assert!(*units <= i64::from(sku.settings.user_limit), "no decision exceeds the limit in force");
        Verdict::Reserved { expires_at: self.log_time.saturating_add(i64::from(sku.settings.hold_seconds) * 1000) }
    }

    fn configure(&mut self, configure: &Configure) -> Verdict {
        if configure.pin != self.partition {
            return self.poison(Some(configure.id), PoisonReason::NotHere);
        }
        let settings_version = match self.skus.get_mut(&configure.sku) {
            None => match created_sku(configure) {
                Ok(sku) => {
                    sku.assert_sound();
                    self.skus.insert(configure.sku.clone(), sku);
                    1
                }
                Err(refusal) => return Verdict::Refused(refusal),
            },
            Some(sku) => {
                if let Some(refusal) = refusal_of_change(sku, configure) {
                    return Verdict::Refused(refusal);
                }
                sku.settings = Settings::clone(&configure.settings);
                sku.settings_version += 1;
                sku.settings_version
            }
        };
        self.known_commands.insert(configure.id);
        Verdict::Configured { created: settings_version == 1, settings_version }
    }

    /// What differs from the snapshot; a SKU whose stock differs gets the number of its next movement.
    fn into_changes(self, snapshot: &Snapshot) -> Changes {
        let mut changes = Changes { log_time: self.log_time, skus: BTreeMap::new(), units: self.units };
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

/// The first reason, by precedence, to refuse a request; `None` = it gets its units.
fn rejection_of(sku: &Sku, units: i64, quantity: i64, log_time: Millis) -> Option<Rejection> {
    let settings = &sku.settings;
    if let Some(starts_at) = settings.starts_at.filter(|starts_at| log_time < *starts_at) {
        return Some(Rejection::SaleNotStarted { starts_at });
    }
    if let Some(ends_at) = settings.ends_at.filter(|ends_at| log_time >= *ends_at) {
        return Some(Rejection::SaleEnded { ends_at });
    }
    // A limit may have been lowered below what the user already has: then nothing remains.
    let remaining = (i64::from(settings.user_limit) - units).max(0);
    if quantity > remaining {
        let remaining = u32::try_from(remaining).expect("at most the limit");
        return Some(Rejection::UserLimit { limit: settings.user_limit, remaining });
    }
    if quantity > sku.available() {
        return Some(Rejection::SoldOut { available: sku.available(), holds_pending: sku.reserved > 0 });
    }
    None
}

/// The SKU that a `configure` creates, or why it can't.
fn created_sku(configure: &Configure) -> Result<Sku, Refusal> {
    match configure.on_hand {
        Some(on_hand) if configure.seen_version == 0 => Ok(Sku {
            on_hand,
            reserved: 0,
            sold: 0,
            settings: configure.settings.clone(),
            settings_version: 1,
            movement_count: 0,
        }),
        // It was meant for a SKU that does not exist here (a database restored from the log would have it): nothing to change.
        _ => Err(Refusal::SettingsChanged { settings_version: 0 }),
    }
}

/// Why new settings for an existing SKU are refused, by precedence.
fn refusal_of_change(sku: &Sku, configure: &Configure) -> Option<Refusal> {
    if configure.seen_version != sku.settings_version {
        return Some(Refusal::SettingsChanged { settings_version: sku.settings_version });
    }
    match configure.on_hand {
        Some(believed) if believed != sku.on_hand => Some(Refusal::StockChanged { on_hand: sku.on_hand }),
        _ => None,
    }
}
