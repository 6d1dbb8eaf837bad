//! What an operator may ask of a SKU, and the command that it becomes: its name, its settings, its hash. **PURE**, fresh ids apart.
//!
//! A change with a key or a reference is named by it, so a repeat is the same command, and another body under that name is seen by its
//! fingerprint: what was **asked for** goes into that, never what was seen of the SKU, which others change in between.

use super::ChangeSkuError;
use crate::clock::Millis;
use crate::ids::{self, IdempotencyKey, Note, Reference, SkuId};
use crate::inventory::{Adjust, Command, Configure, LatePayment, Pause, Settings, StockChange};
use crate::origin::Origin;
use crate::store::CatalogueEntry;

/// One change of one SKU.
#[derive(Clone, Debug)]
pub struct ChangeSku {
    /// Which.
    pub sku: SkuId,
    /// What is asked for.
    pub change: SkuChange,
    /// The operator's name for this call.
    pub key: Option<IdempotencyKey>,
    /// Finds the call in logs and traces.
    pub origin: Origin,
}

/// What an operator may ask of a SKU.
#[derive(Clone, Debug)]
pub enum SkuChange {
    /// Create it, or replace all its settings.
    Put {
        /// Units in the sale: required on creation, afterwards only compared.
        on_hand: Option<i64>,
        /// The settings, complete; checked by [`Settings::check`] before.
        settings: Settings,
    },
    /// Change some of its settings.
    Patch(SettingsPatch),
    /// Stop taking reserves, or take them again.
    Pause {
        /// True = stop.
        pauses: bool,
        /// Why.
        note: Option<Note>,
    },
    /// Change its stock. Named by the reference, also with a key.
    Adjust {
        /// How.
        change: StockChange,
        /// Why.
        note: Note,
        /// What it belongs to.
        reference: Option<Reference>,
    },
}

/// Some settings; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsPatch {
    /// Units in the sale: only compared.
    pub on_hand: Option<i64>,
    /// See [`Settings`], as all below.
    pub user_limit: Option<u32>,
    /// In seconds.
    pub hold_seconds: Option<u32>,
    /// Inner `None`: open at once.
    pub starts_at: Option<Option<Millis>>,
    /// Inner `None`: no end.
    pub ends_at: Option<Option<Millis>>,
    /// The policy.
    pub late_payment: Option<LatePayment>,
    /// Of one hold.
    pub extensions_max: Option<u32>,
    /// Of one hold, in seconds.
    pub extension_seconds_max: Option<u32>,
}

/// The command of a change, over what was seen of the SKU. Without a key or a reference nobody can repeat it.
pub(super) fn command_of(
    sku: SkuId,
    change: SkuChange,
    key: Option<&IdempotencyKey>,
    known: Option<&CatalogueEntry>,
    pin: i32,
) -> Result<Command, ChangeSkuError> {
    let seen_version = known.map_or(0, |entry| entry.sku.settings_version);
    let keyed_id = |kind: &str| key.map(|key| ids::keyed_sku_command_id(kind, &sku, key));
    let id_of = |kind: &str| keyed_id(kind).unwrap_or_else(ids::fresh_id);
    Ok(match change {
        SkuChange::Put { on_hand, settings } => {
            let id = id_of("configure");
            Command::Configure(Configure { id, sku, pin, seen_version, on_hand, settings, patch_hash: None })
        }
        SkuChange::Patch(patch) => {
            let id = id_of("patch");
            let entry = known.ok_or(ChangeSkuError::UnknownSku)?;
            let (on_hand, settings) = (patch.on_hand, patch.over(&entry.sku.settings));
            let patch_hash = Some(patch.hash64());
            Command::Configure(Configure { id, sku, pin, seen_version, on_hand, settings, patch_hash })
        }
        SkuChange::Pause { pauses, note } => {
            let id = id_of(if pauses { "pause" } else { "resume" });
            Command::Pause(Pause { id, sku, seen_version, pauses, note })
        }
        SkuChange::Adjust { change, note, reference } => {
            let (id, key_id) = match &reference {
                Some(name) => (ids::named_sku_command_id("adjust", &sku, name.as_str()), keyed_id("adjust")),
                None => (id_of("adjust"), None),
            };
            Command::Adjust(Adjust { id, sku, change, note, reference, key_id })
        }
    })
}

/// The settings of a command that would be none: only a patch can lead there, what replaces them all was checked before.
pub(super) fn out_of_bounds(command: &Command) -> Vec<(&'static str, &'static str)> {
    match command {
        Command::Configure(configure) => configure.settings.check(),
        _ => Vec::new(),
    }
}

impl SettingsPatch {
    /// A stable hash of what is to change: another patch under the same key has another one. Never changes between builds.
    pub fn hash64(&self) -> i64 {
        let Self {
            on_hand,
            user_limit,
            hold_seconds,
            starts_at,
            ends_at,
            late_payment,
            extensions_max,
            extension_seconds_max,
        } = self;
        let small = |number: &Option<u32>| number.map(|n| Some(i64::from(n)));
        let late_payment = late_payment.map(|policy| match policy {
            LatePayment::Rereserve => Some(0),
            LatePayment::Reject => Some(1),
        });
        let mut body = Vec::with_capacity(64);
        for field in [
            on_hand.map(Some),
            small(user_limit),
            small(hold_seconds),
            *starts_at,
            *ends_at,
            late_payment,
            small(extensions_max),
            small(extension_seconds_max),
        ] {
            // Left out, cleared, set: the three never meet.
            let (state, number) = field.map_or((0, 0), |to| to.map_or((1, 0), |number| (2, number)));
            body.push(state);
            body.extend_from_slice(&number.to_le_bytes());
        }
        ids::body_hash64("patch", &body)
    }

    /// These settings with the patch laid over them.
    pub fn over(&self, settings: &Settings) -> Settings {
        Settings {
            user_limit: self.user_limit.unwrap_or(settings.user_limit),
            hold_seconds: self.hold_seconds.unwrap_or(settings.hold_seconds),
            starts_at: self.starts_at.unwrap_or(settings.starts_at),
            ends_at: self.ends_at.unwrap_or(settings.ends_at),
            late_payment: self.late_payment.unwrap_or(settings.late_payment),
            extensions_max: self.extensions_max.unwrap_or(settings.extensions_max),
            extension_seconds_max: self.extension_seconds_max.unwrap_or(settings.extension_seconds_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Sku;

    #[test]
    fn a_patch_leaves_what_it_does_not_name() {
        let settings = Settings { user_limit: 5, starts_at: Some(7), ..Settings::default() };
        assert_eq!(SettingsPatch::default().over(&settings), settings);
        let patch = SettingsPatch { hold_seconds: Some(60), starts_at: Some(None), ..SettingsPatch::default() };
        assert_eq!(patch.over(&settings), Settings { hold_seconds: 60, starts_at: None, ..settings });
    }

    #[test]
    fn a_patch_is_hashed_by_what_it_names_and_nothing_else() {
        let none = SettingsPatch::default;
        let patches = [
            none(),
            SettingsPatch { on_hand: Some(0), ..none() },
            SettingsPatch { user_limit: Some(1), ..none() },
            SettingsPatch { hold_seconds: Some(60), ..none() },
            SettingsPatch { starts_at: Some(None), ..none() },
            SettingsPatch { starts_at: Some(Some(0)), ..none() },
            SettingsPatch { ends_at: Some(None), ..none() },
            SettingsPatch { ends_at: Some(Some(0)), ..none() },
            SettingsPatch { late_payment: Some(LatePayment::Rereserve), ..none() },
            SettingsPatch { late_payment: Some(LatePayment::Reject), ..none() },
            SettingsPatch { extensions_max: Some(0), ..none() },
            SettingsPatch { extension_seconds_max: Some(0), ..none() },
        ];
        let mut hashes: Vec<i64> = patches.iter().map(SettingsPatch::hash64).collect();
        // Golden: rows of earlier builds are compared with it.
        assert_eq!(hashes[3], -8_910_745_349_614_204_584);
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), patches.len(), "every field counts, and whether it is left out, cleared or set");
    }

    fn entry(settings_version: i64, settings: Settings) -> CatalogueEntry {
        let sku = Sku {
            on_hand: 9,
            reserved: 0,
            sold: 0,
            expired_through: 0,
            is_paused: false,
            settings,
            settings_version,
            movement_count: 1,
        };
        CatalogueEntry { sku_id: SkuId::parse("s").expect("legal"), partition: 0, sku }
    }

    /// What a change becomes for somebody who saw this of the SKU.
    fn made(change: &SkuChange, key: Option<&str>, seen: &CatalogueEntry) -> Command {
        let key = key.map(|key| IdempotencyKey::parse(key).expect("legal"));
        command_of(seen.sku_id.clone(), change.clone(), key.as_ref(), Some(seen), 0).expect("a known SKU")
    }

    #[test]
    fn an_honest_repeat_is_no_other_body_because_of_what_others_changed_since() {
        let note = |text: &str| Note::parse(text).expect("legal");
        let before = entry(1, Settings::default());
        let after = entry(7, Settings { user_limit: 9, ends_at: Some(5), ..Settings::default() });
        let changes = [
            SkuChange::Put { on_hand: Some(9), settings: Settings::default() },
            SkuChange::Patch(SettingsPatch { hold_seconds: Some(60), ..SettingsPatch::default() }),
            SkuChange::Pause { pauses: true, note: Some(note("why")) },
            SkuChange::Pause { pauses: false, note: None },
            SkuChange::Adjust { change: StockChange::By(1), note: note("why"), reference: None },
        ];
        for change in changes {
            let (first, again) = (made(&change, Some("k"), &before), made(&change, Some("k"), &after));
            assert_eq!((first.id(), first.fingerprint()), (again.id(), again.fingerprint()), "{change:?}");
        }
    }

    #[test]
    fn another_body_has_another_fingerprint() {
        let note = |text: &str| Note::parse(text).expect("legal");
        let seen = entry(1, Settings::default());
        let patch = |hold_seconds| SkuChange::Patch(SettingsPatch { hold_seconds, ..SettingsPatch::default() });
        let adjust =
            |delta, text| SkuChange::Adjust { change: StockChange::By(delta), note: note(text), reference: None };
        let pause = |text: Option<&str>| SkuChange::Pause { pauses: true, note: text.map(note) };
        let pairs = [
            (patch(Some(60)), patch(Some(61))),
            // Both leave the settings as they are.
            (patch(None), patch(Some(120))),
            (adjust(1, "a"), adjust(2, "a")),
            (adjust(1, "a"), adjust(1, "b")),
            (pause(None), pause(Some("a"))),
        ];
        for (one, other) in pairs {
            let (one, other) = (made(&one, Some("k"), &seen), made(&other, Some("k"), &seen));
            assert_eq!(one.id(), other.id());
            assert_ne!(one.fingerprint(), other.fingerprint(), "{one:?} {other:?}");
        }
    }

    #[test]
    fn an_adjustment_with_a_reference_keeps_its_key_beside_its_name() {
        let seen = entry(1, Settings::default());
        let adjust = |reference: Option<&str>, key| {
            let reference = reference.map(|text| Reference::parse(text).expect("legal"));
            let note = Note::parse("why").expect("legal");
            made(&SkuChange::Adjust { change: StockChange::By(1), note, reference }, key, &seen)
        };
        let (keyed, both) = (adjust(None, Some("k")), adjust(Some("r"), Some("k")));
        assert_eq!(both.key_id(), Some(keyed.id()), "what the key alone would have given");
        assert_eq!(both.id(), adjust(Some("r"), None).id(), "the reference names it");
        assert_eq!((keyed.key_id(), adjust(Some("r"), None).key_id()), (None, None));
        assert_ne!(keyed.id(), adjust(Some("k"), None).id(), "a key is no reference");
        assert_ne!(adjust(None, None).id(), adjust(None, None).id(), "new each time");
    }
}
