//! How a SKU is sold, and the command that says so.

use uuid::Uuid;

use crate::clock::{self, Millis};
use crate::ids::{self, SkuId};
use crate::limits;

/// Create a SKU, or replace all its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configure {
    /// Id of the command.
    pub id: Uuid,
    /// The SKU.
    pub sku: SkuId,
    /// The partition that the SKU is pinned to: carried so that the log alone can restore the catalogue.
    pub pin: i32,
    /// The settings version that the operator saw; 0 = none, i.e. this creates the SKU.
    pub seen_version: i64,
    /// Units in the sale. Required on creation; afterwards it only states what the operator believes (stock moves by adjustments).
    pub on_hand: Option<i64>,
    /// The new settings, complete.
    pub settings: Settings,
    /// If these are other settings with some changed: the hash of what was to change. The result alone does not tell what was asked for.
    pub patch_hash: Option<i64>,
}

impl Configure {
    /// What its operator asks for, hashed and stored: the same key with another body is told so. Neither the pin nor the version that was
    /// seen are part of it, nor settings that a patch leaves alone, because a repeat of the same call may see others. Never changes
    /// between builds.
    pub fn fingerprint(&self) -> i64 {
        if let Some(hash) = self.patch_hash {
            return hash;
        }
        let Settings {
            user_limit,
            hold_seconds,
            starts_at,
            ends_at,
            late_payment,
            extensions_max,
            extension_seconds_max,
        } = &self.settings;
        let mut body = Vec::with_capacity(64);
        for optional in [self.on_hand, *starts_at, *ends_at] {
            body.push(u8::from(optional.is_some()));
            body.extend_from_slice(&optional.unwrap_or_default().to_le_bytes());
        }
        for number in [*user_limit, *hold_seconds, *extensions_max, *extension_seconds_max] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.push(match late_payment {
            LatePayment::Rereserve => 0,
            LatePayment::Reject => 1,
        });
        ids::body_hash64("configure", &body)
    }
}

/// How a SKU is sold. Bounds are in [`Settings::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Units that one user may hold or own.
    pub user_limit: u32,
    /// Seconds that a hold lasts.
    pub hold_seconds: u32,
    /// Requests before this log time are refused; absent = open at once.
    pub starts_at: Option<Millis>,
    /// Requests at or after this log time are refused; absent = no end.
    pub ends_at: Option<Millis>,
    /// What happens to a payment that comes after its hold ended.
    pub late_payment: LatePayment,
    /// Extensions that one hold may have.
    pub extensions_max: u32,
    /// Seconds that all extensions of one hold may add.
    pub extension_seconds_max: u32,
}

impl Default for Settings {
    /// The defaults of the contract: limit 1, hold 120 s, open at once, no end, re-reserve late payments, 3 extensions, 600 s in all.
    fn default() -> Self {
        Self {
            user_limit: 1,
            hold_seconds: 120,
            starts_at: None,
            ends_at: None,
            late_payment: LatePayment::Rereserve,
            extensions_max: 3,
            extension_seconds_max: 600,
        }
    }
}

impl Settings {
    /// Every field that is out of bounds, with what it must be: `(field, detail)`. Empty = good.
    pub fn check(&self) -> Vec<(&'static str, &'static str)> {
        let mut wrong = Vec::new();
        if !(1..=limits::USER_LIMIT_MAX).contains(&self.user_limit) {
            wrong.push(("user_limit", "must be 1 to 1000"));
        }
        if !(limits::HOLD_SECONDS_MIN..=limits::HOLD_SECONDS_MAX).contains(&self.hold_seconds) {
            wrong.push(("hold_seconds", "must be 10 to 14400"));
        }
        if self.extensions_max > limits::EXTENSIONS_MAX {
            wrong.push(("extensions_max", "must be 0 to 100"));
        }
        if self.extension_seconds_max > limits::EXTENSION_SECONDS_MAX {
            wrong.push(("extension_seconds_max", "must be 0 to 86400"));
        }
        // A time that the database would store as another one would be decided by another one after the next load.
        let is_writable = |at: Option<Millis>| at.is_none_or(|at| (clock::EARLIEST..=clock::LATEST).contains(&at));
        if !is_writable(self.starts_at) {
            wrong.push(("starts_at", "must be in the years 0 to 9999"));
        }
        if !is_writable(self.ends_at) {
            wrong.push(("ends_at", "must be in the years 0 to 9999"));
        }
        if let (Some(starts), Some(ends)) = (self.starts_at, self.ends_at)
            && ends <= starts
        {
            wrong.push(("ends_at", "must be after starts_at"));
        }
        wrong
    }
}

/// What a confirm after the end of its hold gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatePayment {
    /// Allocate again if stock and limit allow.
    Rereserve,
    /// Refuse.
    Reject,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_what_was_asked_for_and_nothing_else() {
        let configure = |on_hand, settings| Configure {
            id: Uuid::nil(),
            sku: SkuId::parse("s").expect("legal"),
            pin: 0,
            seen_version: 1,
            on_hand,
            settings,
            patch_hash: None,
        };
        let plain = configure(Some(0), Settings::default());
        // Golden: rows of earlier builds are compared with it.
        assert_eq!(plain.fingerprint(), -1_706_165_303_396_847_011);
        assert_eq!(Configure { pin: 7, seen_version: 9, ..plain.clone() }.fingerprint(), plain.fingerprint());
        let patched = Configure { patch_hash: Some(7), ..plain.clone() };
        assert_eq!(patched.fingerprint(), 7, "of a patch, the patch alone");
        let default = Settings::default;
        let others = [
            configure(None, default()),
            configure(Some(1), default()),
            configure(Some(0), Settings { user_limit: 2, ..default() }),
            configure(Some(0), Settings { hold_seconds: 60, ..default() }),
            configure(Some(0), Settings { starts_at: Some(0), ..default() }),
            configure(Some(0), Settings { ends_at: Some(0), ..default() }),
            configure(Some(0), Settings { late_payment: LatePayment::Reject, ..default() }),
            configure(Some(0), Settings { extensions_max: 0, ..default() }),
            configure(Some(0), Settings { extension_seconds_max: 0, ..default() }),
        ];
        let mut seen: Vec<i64> = others.iter().map(Configure::fingerprint).chain([plain.fingerprint()]).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), others.len() + 1, "every field counts");
    }
}
