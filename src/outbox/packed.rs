//! The bytes of a row of `outbox`: a version and the events of one batch. Pure.
//!
//! Version 1. Numbers are varints (LEB128: seven bits a byte, lowest first, the high bit says that more follow), signed ones zigzag; texts a
//! length as varint and that many bytes; optional texts are empty when absent; `?` = a presence byte 0 or 1 before the value:
//! ```text
//! row          "FE"  version u8  partition  offset  at signed  sku_count { text }*  event_count { event }*
//! event        kind u8  sku (number in the row's list)  at signed (less the row's)  origin  body
//! origin       0 = the end of a hold; n + 1 = the n-th event of a command, then: offset (less the row's)  index
//! reservation  id 16 bytes  user text  quantity  version  ...
//!   1 reserved expires_at signed (less the event's), metadata text   2 confirmed payment_ref text, is_late u8   3 cancelled note text
//!   4 extended expires_at signed (less the event's)   5 expired   6 paid_unfulfilled payment_ref text
//! sku          on_hand  reserved  sold  settings_version  ...
//!   16 created, 17 configured: user_limit  hold_seconds  starts_at? signed  ends_at? signed  late_payment u8  extensions_max
//!                              extension_seconds_max
//!   18 paused, 19 resumed: note text   20 adjusted: delta signed, note text, reference text   21 sold_out   22 back_in_stock
//! ```
//! A new field or kind is a new version: a relay that does not know it leaves the row where it is, for a newer one.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::clock::Millis;
use crate::ids::{Metadata, Note, PaymentRef, Place, Quantity, Reference, SkuId, UserId};
use crate::inventory::{
    Event, Happening, LatePayment, LifeChange, Origin, ReservationEvent, Settings, SkuEvent, SkuHappening,
};
use crate::wire::Reader;

/// The newest version that this build reads, and the one that it writes.
pub const VERSION: u8 = 1;
const MAGIC: [u8; 2] = *b"FE";

const RESERVED: u8 = 1;
const CONFIRMED: u8 = 2;
const CANCELLED: u8 = 3;
const EXTENDED: u8 = 4;
const EXPIRED: u8 = 5;
const PAID_UNFULFILLED: u8 = 6;
const CREATED: u8 = 16;
const CONFIGURED: u8 = 17;
const PAUSED: u8 = 18;
const RESUMED: u8 = 19;
const ADJUSTED: u8 = 20;
const SOLD_OUT: u8 = 21;
const BACK_IN_STOCK: u8 = 22;

/// Bytes of a usual event, for sizing the buffer.
const EVENT_BYTES_TYPICAL: usize = 48;

/// Why bytes are no events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// A newer build wrote them and must read them.
    #[error("events of version {0}, this build reads up to {VERSION}")]
    UnknownVersion(u8),
    /// They are not what this build writes.
    #[error("not events: {0}")]
    Malformed(&'static str),
}

/// A row's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The partition of the log that they come from.
    pub partition: i32,
    /// In order.
    pub events: Vec<Event>,
}

/// The SKUs of some events, each once, sorted: what a row says about itself.
pub fn skus_of(events: &[Event]) -> Vec<SkuId> {
    let mut skus: Vec<SkuId> = Vec::new();
    for event in events {
        // Nearly all batches have one SKU or a handful, and their events come in runs.
        if skus.last() != Some(&event.sku) && !skus.contains(&event.sku) {
            skus.push(event.sku.clone());
        }
    }
    skus.sort_unstable();
    skus
}

/// Writes the events of one batch.
///
/// # Panics
/// If `partition` is negative.
pub fn pack(partition: i32, events: &[Event]) -> Vec<u8> {
    let skus = skus_of(events);
    let numbers: BTreeMap<&SkuId, u64> = skus.iter().zip(0..).collect();
    let places = events.iter().filter_map(|event| place_of(event.origin));
    let first_offset = places.map(|place| place.offset).min().unwrap_or(0);
    let first_at = events.iter().map(|event| event.at).min().unwrap_or(0);
    let mut to = Writer(Vec::with_capacity(64 + EVENT_BYTES_TYPICAL * events.len()));
    to.0.extend_from_slice(&MAGIC);
    to.0.push(VERSION);
    to.number(u64::try_from(partition).expect("a partition is never negative"));
    to.number(u64::try_from(first_offset).expect("an offset is never negative"));
    to.signed(first_at);
    to.number(skus.len() as u64);
    skus.iter().for_each(|sku| to.text(sku.as_str()));
    to.number(events.len() as u64);
    for event in events {
        to.0.push(kind_of(&event.what));
        to.number(numbers[&event.sku]);
        to.signed(event.at.wrapping_sub(first_at));
        match event.origin {
            Origin::EndOfHold => to.number(0),
            Origin::Command { place, n } => {
                to.number(u64::from(n) + 1);
                to.number((place.offset - first_offset).unsigned_abs());
                to.number(place.index.into());
            }
        }
        to.happening(event.at, &event.what);
    }
    to.0
}

fn place_of(origin: Origin) -> Option<Place> {
    match origin {
        Origin::Command { place, .. } => Some(place),
        Origin::EndOfHold => None,
    }
}

fn kind_of(what: &Happening) -> u8 {
    match what {
        Happening::Reservation(event) => match event.change {
            LifeChange::Reserved { .. } => RESERVED,
            LifeChange::Confirmed { .. } => CONFIRMED,
            LifeChange::Cancelled { .. } => CANCELLED,
            LifeChange::Extended { .. } => EXTENDED,
            LifeChange::Expired => EXPIRED,
            LifeChange::PaidUnfulfilled { .. } => PAID_UNFULFILLED,
        },
        Happening::Sku(event) => match event.change {
            SkuHappening::Created(_) => CREATED,
            SkuHappening::Configured(_) => CONFIGURED,
            SkuHappening::Paused { .. } => PAUSED,
            SkuHappening::Resumed { .. } => RESUMED,
            SkuHappening::Adjusted { .. } => ADJUSTED,
            SkuHappening::SoldOut => SOLD_OUT,
            SkuHappening::BackInStock => BACK_IN_STOCK,
        },
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80); // The low seven bits; the cast cuts the rest off.
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn signed(&mut self, number: i64) {
        self.number(((number << 1) ^ (number >> 63)) as u64);
    }

    fn units(&mut self, units: i64) {
        self.number(u64::try_from(units).expect("counters and versions are never negative"));
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn optional_text(&mut self, text: Option<&str>) {
        self.text(text.unwrap_or(""));
    }

    fn optional(&mut self, at: Option<Millis>) {
        self.0.push(u8::from(at.is_some()));
        if let Some(at) = at {
            self.signed(at);
        }
    }

    fn happening(&mut self, at: Millis, what: &Happening) {
        match what {
            Happening::Reservation(event) => self.reservation(at, event),
            Happening::Sku(event) => self.sku(event),
        }
    }

    fn reservation(&mut self, at: Millis, event: &ReservationEvent) {
        self.0.extend_from_slice(event.reservation.as_bytes());
        self.text(event.user.as_str());
        self.number(event.quantity.get().into());
        self.units(event.version.into());
        match &event.change {
            LifeChange::Reserved { expires_at, metadata } => {
                self.signed(expires_at.wrapping_sub(at));
                self.optional_text(metadata.as_ref().map(Metadata::as_str));
            }
            LifeChange::Confirmed { payment_ref, is_late } => {
                self.text(payment_ref.as_str());
                self.0.push(u8::from(*is_late));
            }
            LifeChange::Cancelled { note } => self.optional_text(note.as_ref().map(Note::as_str)),
            LifeChange::Extended { expires_at } => self.signed(expires_at.wrapping_sub(at)),
            LifeChange::Expired => {}
            LifeChange::PaidUnfulfilled { payment_ref } => self.text(payment_ref.as_str()),
        }
    }

    fn sku(&mut self, event: &SkuEvent) {
        for units in [event.on_hand, event.reserved, event.sold, event.settings_version] {
            self.units(units);
        }
        match &event.change {
            SkuHappening::Created(settings) | SkuHappening::Configured(settings) => self.settings(settings),
            SkuHappening::Paused { note } | SkuHappening::Resumed { note } => {
                self.optional_text(note.as_ref().map(Note::as_str));
            }
            SkuHappening::Adjusted { delta, note, reference } => {
                self.signed(*delta);
                self.text(note.as_str());
                self.optional_text(reference.as_ref().map(Reference::as_str));
            }
            SkuHappening::SoldOut | SkuHappening::BackInStock => {}
        }
    }

    fn settings(&mut self, settings: &Settings) {
        let Settings {
            user_limit,
            hold_seconds,
            starts_at,
            ends_at,
            late_payment,
            extensions_max,
            extension_seconds_max,
        } = settings;
        self.number((*user_limit).into());
        self.number((*hold_seconds).into());
        self.optional(*starts_at);
        self.optional(*ends_at);
        self.0.push(match late_payment {
            LatePayment::Rereserve => 0,
            LatePayment::Reject => 1,
        });
        self.number((*extensions_max).into());
        self.number((*extension_seconds_max).into());
    }
}

/// Reads what [`pack`] wrote.
///
/// # Errors
/// [`UnpackError`]: nobody vouches for the bytes.
pub fn unpack(bytes: &[u8]) -> Result<Unpacked, UnpackError> {
    let mut from = Reader(bytes);
    if from.take(2) != Some(&MAGIC[..]) {
        return Err(UnpackError::Malformed("no magic number"));
    }
    match from.u8() {
        Some(VERSION) => {}
        None | Some(0) => return Err(UnpackError::Malformed("no version")),
        Some(newer) => return Err(UnpackError::UnknownVersion(newer)),
    }
    let row = read_row(&mut from).ok_or(UnpackError::Malformed("an event that can't be read"))?;
    if from.0.is_empty() { Ok(row) } else { Err(UnpackError::Malformed("bytes after the last event")) }
}

fn read_row(from: &mut Reader<'_>) -> Option<Unpacked> {
    let partition = i32::try_from(number(from)?).ok()?;
    let first_offset = i64::try_from(number(from)?).ok()?;
    let first_at = signed(from)?;
    let sku_count = count(from)?;
    let skus: Vec<SkuId> = (0..sku_count).map(|_| SkuId::parse(text(from)?).ok()).collect::<Option<_>>()?;
    let event_count = count(from)?;
    let mut events = Vec::with_capacity(event_count);
    for _ in 0..event_count {
        let kind = from.u8()?;
        let sku = skus.get(usize::try_from(number(from)?).ok()?)?.clone();
        let at = first_at.checked_add(signed(from)?)?;
        let origin = match number(from)? {
            0 => Origin::EndOfHold,
            n => {
                let offset = first_offset.checked_add(i64::try_from(number(from)?).ok()?)?;
                let index = u16::try_from(number(from)?).ok()?;
                Origin::Command { place: Place { offset, index }, n: u8::try_from(n - 1).ok()? }
            }
        };
        // Only the end of a hold has no place in the log.
        if (kind == EXPIRED) != (origin == Origin::EndOfHold) {
            return None;
        }
        let what = if kind < CREATED {
            Happening::Reservation(read_reservation(from, kind, at)?)
        } else {
            Happening::Sku(read_sku(from, kind)?)
        };
        events.push(Event { origin, at, sku, what });
    }
    Some(Unpacked { partition, events })
}

fn read_reservation(from: &mut Reader<'_>, kind: u8, at: Millis) -> Option<ReservationEvent> {
    let reservation: Uuid = from.uuid()?;
    let user = UserId::parse(text(from)?).ok()?;
    let quantity = Quantity::new(u32::try_from(number(from)?).ok()?)?;
    let version = i32::try_from(number(from)?).ok()?;
    let change = match kind {
        RESERVED => {
            let expires_at = at.checked_add(signed(from)?)?;
            LifeChange::Reserved { expires_at, metadata: optional_text(from, |text| Metadata::parse(text).ok())? }
        }
        CONFIRMED => {
            let payment_ref = PaymentRef::parse(text(from)?).ok()?;
            LifeChange::Confirmed { payment_ref, is_late: flag(from)? }
        }
        CANCELLED => LifeChange::Cancelled { note: optional_text(from, |text| Note::parse(text).ok())? },
        EXTENDED => LifeChange::Extended { expires_at: at.checked_add(signed(from)?)? },
        EXPIRED => LifeChange::Expired,
        PAID_UNFULFILLED => LifeChange::PaidUnfulfilled { payment_ref: PaymentRef::parse(text(from)?).ok()? },
        _ => return None,
    };
    Some(ReservationEvent { reservation, user, quantity, version, change })
}

fn read_sku(from: &mut Reader<'_>, kind: u8) -> Option<SkuEvent> {
    let (on_hand, reserved, sold, settings_version) = (units(from)?, units(from)?, units(from)?, units(from)?);
    let note = |from: &mut Reader<'_>| optional_text(from, |text| Note::parse(text).ok());
    let change = match kind {
        CREATED => SkuHappening::Created(read_settings(from)?),
        CONFIGURED => SkuHappening::Configured(read_settings(from)?),
        PAUSED => SkuHappening::Paused { note: note(from)? },
        RESUMED => SkuHappening::Resumed { note: note(from)? },
        ADJUSTED => SkuHappening::Adjusted {
            delta: signed(from)?,
            note: Note::parse(text(from)?).ok()?,
            reference: optional_text(from, |text| Reference::parse(text).ok())?,
        },
        SOLD_OUT => SkuHappening::SoldOut,
        BACK_IN_STOCK => SkuHappening::BackInStock,
        _ => return None,
    };
    Some(SkuEvent { on_hand, reserved, sold, settings_version, change })
}

fn read_settings(from: &mut Reader<'_>) -> Option<Settings> {
    let small = |from: &mut Reader<'_>| u32::try_from(number(from)?).ok();
    let optional = |from: &mut Reader<'_>| if flag(from)? { signed(from).map(Some) } else { Some(None) };
    Some(Settings {
        user_limit: small(from)?,
        hold_seconds: small(from)?,
        starts_at: optional(from)?,
        ends_at: optional(from)?,
        late_payment: if flag(from)? { LatePayment::Reject } else { LatePayment::Rereserve },
        extensions_max: small(from)?,
        extension_seconds_max: small(from)?,
    })
}

fn number(from: &mut Reader<'_>) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = from.u8()?;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has one bit left; and a number has one spelling, without zeros at its end.
        if bits.leading_zeros() < shift || (byte == 0 && shift > 0) {
            return None;
        }
        number |= bits << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn signed(from: &mut Reader<'_>) -> Option<i64> {
    let number = number(from)?;
    Some((number >> 1) as i64 ^ -((number & 1) as i64))
}

fn units(from: &mut Reader<'_>) -> Option<i64> {
    i64::try_from(number(from)?).ok()
}

/// How many follow. Each takes a byte at least, so that a made-up number reserves no memory.
fn count(from: &mut Reader<'_>) -> Option<usize> {
    usize::try_from(number(from)?).ok().filter(|count| *count <= from.0.len())
}

fn flag(from: &mut Reader<'_>) -> Option<bool> {
    match from.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn text<'a>(from: &mut Reader<'a>) -> Option<&'a str> {
    let len = usize::try_from(number(from)?).ok()?;
    std::str::from_utf8(from.take(len)?).ok()
}

/// Empty = absent. Outer `None`: broken.
fn optional_text<T>(from: &mut Reader<'_>, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    let text = text(from)?;
    if text.is_empty() { Some(None) } else { parse(text).map(Some) }
}
