//! An operator's commands: create and configure a SKU, change its stock, pause and resume.

use super::State;
use crate::inventory::command::{Adjust, Configure, Pause, PoisonReason, Settings, StockChange};
use crate::inventory::decision::{Refusal, Verdict};
use crate::inventory::event::SkuHappening;
use crate::inventory::snapshot::Sku;
use crate::limits;

impl State {
    pub(super) fn adjust(&mut self, adjust: &Adjust) -> Verdict {
        let sku = self.skus.get_mut(&adjust.sku).expect("looked up before");
        match adjusted_on_hand(sku, adjust.change) {
            Err(refusal) => Verdict::Refused(refusal),
            Ok(on_hand) => {
                let delta = on_hand - sku.on_hand;
                sku.on_hand = on_hand;
                sku.assert_sound();
                let verdict = Verdict::Adjusted { on_hand, reserved: sku.reserved, sold: sku.sold };
                let (note, reference) = (adjust.note.clone(), adjust.reference.clone());
                self.tell_sku(&adjust.sku, SkuHappening::Adjusted { delta, note, reference });
                verdict
            }
        }
    }

    pub(super) fn pause(&mut self, pause: &Pause) -> Verdict {
        let sku = self.skus.get_mut(&pause.sku).expect("looked up before");
        if pause.seen_version != sku.settings_version {
            return Verdict::Refused(Refusal::SettingsChanged { settings_version: sku.settings_version });
        }
        sku.is_paused = pause.pauses;
        sku.settings_version += 1;
        let settings_version = sku.settings_version;
        let note = pause.note.clone();
        let change = if pause.pauses { SkuHappening::Paused { note } } else { SkuHappening::Resumed { note } };
        self.tell_sku(&pause.sku, change);
        Verdict::Configured { created: false, settings_version }
    }

    pub(super) fn configure(&mut self, configure: &Configure) -> Verdict {
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
        let (created, settings) = (settings_version == 1, configure.settings.clone());
        let change = if created { SkuHappening::Created(settings) } else { SkuHappening::Configured(settings) };
        self.tell_sku(&configure.sku, change);
        Verdict::Configured { created, settings_version }
    }
}

/// The stock after an adjustment, or why it is refused, by precedence.
fn adjusted_on_hand(sku: &Sku, change: StockChange) -> Result<i64, Refusal> {
    let on_hand = match change {
        StockChange::By(delta) => sku.on_hand.saturating_add(delta),
        StockChange::To { compare_on_hand, .. } if compare_on_hand != sku.on_hand => {
            return Err(Refusal::StockChanged { on_hand: sku.on_hand });
        }
        StockChange::To { on_hand, .. } => on_hand,
    };
    let minimum = sku.reserved + sku.sold;
    if on_hand < minimum {
        return Err(Refusal::BelowCommitted { minimum });
    }
    if on_hand > limits::ON_HAND_MAX {
        return Err(Refusal::AboveMaximum { on_hand: sku.on_hand });
    }
    Ok(on_hand)
}

/// The SKU that a `configure` creates, or why it can't.
fn created_sku(configure: &Configure) -> Result<Sku, Refusal> {
    match configure.on_hand {
        Some(on_hand) if configure.seen_version == 0 => Ok(Sku {
            on_hand,
            reserved: 0,
            sold: 0,
            expired_through: 0,
            is_paused: false,
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
