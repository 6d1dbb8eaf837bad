//! The bytes of a record: a version, one SKU, and one to [`limits::RECORD_COMMANDS_MAX`] commands of it.
//!
//! Version 1, integers little-endian, texts as one length byte and that many bytes (long ones as two; empty = absent), `?` = a presence byte
//! 0 or 1 before the value, `[...]` = nothing at all where a command has none, as the builds before it wrote (whoever appends a field after
//! it writes it always: an empty text, a 0):
//! ```text
//! record   "FS"  version u8  count u16  sku text  { size u16  command }*
//! command  kind u8  id 16 bytes  received_at_us i64  request_id text  body
//! reserve    (1)  user text  quantity u32  [metadata long]
//! confirm    (3)  reservation 16 bytes  payment_ref text  [key_id ?16 bytes]
//! cancel     (4)  reservation 16 bytes  note long
//! extend     (5)  reservation 16 bytes  seconds u32
//! adjust     (6)  compare_on_hand ?i64  delta or on_hand i64  note long  reference text  [key_id ?16 bytes]
//! pause      (7)  seen_version i64  pauses u8  note long
//! tick       (8)
//! configure  (2)  pin u16  seen_version i64  on_hand ?i64  user_limit u32  hold_seconds u32  starts_at ?i64  ends_at ?i64
//!                 late_payment u8  extensions_max u32  extension_seconds_max u32  [patch_hash ?i64]
//! ```
//! Each command carries its size, so that one bad command never costs its neighbours, and so that a later build may append fields that
//! this one skips. Anything that an older build must not skip gets a new version, which an older build does not decide.
//! Decoding never panics and takes nothing on trust: it is the same check as at the front door, because the log has other doors.

mod reader;

use uuid::Uuid;

use crate::ids::{Metadata, Note, PaymentRef, Quantity, Reference, SkuId, UserId};
use crate::inventory::{
    Adjust, Cancel, Command, Configure, Confirm, Extend, LatePayment, Pause, PoisonReason, Reserve, Settings,
    StockChange, Tick, Unfit,
};
use crate::limits;

pub(crate) use reader::Reader;

const MAGIC: [u8; 2] = *b"FS";
/// The version that this build writes, and the newest that it decides.
pub const VERSION: u8 = 1;

const KIND_RESERVE: u8 = 1;
const KIND_CONFIGURE: u8 = 2;
const KIND_CONFIRM: u8 = 3;
const KIND_CANCEL: u8 = 4;
const KIND_EXTEND: u8 = 5;
const KIND_ADJUST: u8 = 6;
const KIND_PAUSE: u8 = 7;
const KIND_TICK: u8 = 8;

/// A command on its way, with what people and metrics want to know about it; no decision reads that part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// When the API accepted it, by the API's clock: microseconds since 1970-01-01 UTC.
    pub received_at_us: i64,
    /// The request id that its client was told, to find it in logs.
    pub request_id: String,
    /// The command, or why it can't be decided.
    pub command: Result<Command, Unfit>,
}

/// Why a whole record can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer build: this one gives the partition up instead of guessing.
    #[error("record version {0} is newer than this build's {VERSION}")]
    UnknownVersion(u8),
    /// Not one of our records: poison as a whole.
    #[error("not a record: {0}")]
    Undecodable(&'static str),
}

/// Why commands can't be written as one record: a bug of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// None, or more than fit.
    #[error("a record takes 1 to {} commands", limits::RECORD_COMMANDS_MAX)]
    Count,
    /// A command of another SKU than the record's.
    #[error("a record takes commands of one SKU")]
    OtherSku,
}

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The SKU of all its commands.
    pub sku: SkuId,
    /// The commands, in order.
    pub commands: Vec<Envelope>,
}

/// Writes a record.
///
/// # Errors
/// [`EncodeError`] if `commands` is not 1 to [`limits::RECORD_COMMANDS_MAX`] commands of `sku`.
pub fn encode<'a>(sku: &SkuId, commands: impl ExactSizeIterator<Item = &'a Sent>) -> Result<Vec<u8>, EncodeError> {
    let count = commands.len();
    if !(1..=limits::RECORD_COMMANDS_MAX).contains(&count) {
        return Err(EncodeError::Count);
    }
    let mut bytes = Vec::with_capacity(RECORD_BYTES_TYPICAL / limits::RECORD_COMMANDS_MAX * count);
    begin(&mut bytes, sku);
    for sent in commands {
        if sent.command.sku() != sku {
            return Err(EncodeError::OtherSku);
        }
        put(&mut bytes, sent);
    }
    finish(&mut bytes, count);
    Ok(bytes)
}

/// Begins a record of `sku` that is written command by command: [`put`] each, which must be of that SKU, then [`finish`].
pub fn begin(bytes: &mut Vec<u8>, sku: &SkuId) {
    bytes.extend_from_slice(&MAGIC);
    bytes.push(VERSION);
    put_u16(bytes, 0); // until it is finished
    put_text(bytes, sku.as_str());
}

/// Appends one command to a record that was begun.
pub fn put(bytes: &mut Vec<u8>, sent: &Sent) {
    let size_at = bytes.len();
    bytes.extend_from_slice(&[0, 0]);
    put_command(bytes, sent);
    let size = u16::try_from(bytes.len() - size_at - 2).expect("a command is a few hundred bytes at most");
    bytes[size_at..size_at + 2].copy_from_slice(&size.to_le_bytes());
}

/// Completes a record of `count` commands, 1 to [`limits::RECORD_COMMANDS_MAX`].
pub fn finish(bytes: &mut [u8], count: usize) {
    assert!((1..=limits::RECORD_COMMANDS_MAX).contains(&count), "a record of {count} commands");
    let count = u16::try_from(count).expect("just found to be small");
    bytes[3..5].copy_from_slice(&count.to_le_bytes());
}

/// A full record of reserve commands with usual ids, for sizing a buffer.
pub const RECORD_BYTES_TYPICAL: usize = 8 + 96 * limits::RECORD_COMMANDS_MAX;

/// A command as its sender holds it: always a good one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// See [`Envelope::received_at_us`].
    pub received_at_us: i64,
    /// See [`Envelope::request_id`]; at most [`limits::REQUEST_ID_CHARS_MAX`] bytes are written.
    pub request_id: String,
    /// The command.
    pub command: Command,
}

/// Reads a record.
///
/// # Errors
/// [`DecodeError`]. A single bad command is no error: it is an [`Unfit`] in its place.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let mut from = Reader(bytes);
    if from.take(2) != Some(&MAGIC[..]) {
        return Err(DecodeError::Undecodable("no magic number"));
    }
    match from.u8() {
        None => return Err(DecodeError::Undecodable("cut off")),
        Some(0) => return Err(DecodeError::Undecodable("version 0")),
        Some(VERSION) => {}
        Some(newer) => return Err(DecodeError::UnknownVersion(newer)),
    }
    let count = usize::from(from.u16().ok_or(DecodeError::Undecodable("cut off"))?);
    if !(1..=limits::RECORD_COMMANDS_MAX).contains(&count) {
        return Err(DecodeError::Undecodable("number of commands out of bounds"));
    }
    let sku = from.text().and_then(|t| SkuId::parse(t).ok()).ok_or(DecodeError::Undecodable("no SKU"))?;
    let mut commands = Vec::with_capacity(count);
    for _ in 0..count {
        let size = from.u16().ok_or(DecodeError::Undecodable("cut off between commands"))?;
        let command = from.take(usize::from(size)).ok_or(DecodeError::Undecodable("cut off inside a command"))?;
        commands.push(read_envelope(command, &sku));
    }
    if !from.0.is_empty() {
        return Err(DecodeError::Undecodable("bytes after the last command"));
    }
    Ok(Record { sku, commands })
}

/// A fingerprint of a record's bytes. A partition stores that of its last decided record; a claim that reads the record back and finds
/// another one knows that the log was rewritten.
pub fn digest(bytes: &[u8]) -> i64 {
    let hash = Uuid::new_v5(&Uuid::nil(), bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    i64::from_le_bytes(first)
}

fn put_command(bytes: &mut Vec<u8>, sent: &Sent) {
    let kind = match &sent.command {
        Command::Reserve(_) => KIND_RESERVE,
        Command::Configure(_) => KIND_CONFIGURE,
        Command::Confirm(_) => KIND_CONFIRM,
        Command::Cancel(_) => KIND_CANCEL,
        Command::Extend(_) => KIND_EXTEND,
        Command::Adjust(_) => KIND_ADJUST,
        Command::Pause(_) => KIND_PAUSE,
        Command::Tick(_) => KIND_TICK,
    };
    bytes.push(kind);
    bytes.extend_from_slice(sent.command.id().as_bytes());
    bytes.extend_from_slice(&sent.received_at_us.to_le_bytes());
    put_text(bytes, start_of(&sent.request_id, limits::REQUEST_ID_CHARS_MAX));
    match &sent.command {
        Command::Reserve(reserve) => {
            put_text(bytes, reserve.user.as_str());
            bytes.extend_from_slice(&reserve.quantity.get().to_le_bytes());
            if let Some(metadata) = &reserve.metadata {
                put_long_text(bytes, metadata.as_str());
            }
        }
        Command::Confirm(confirm) => {
            bytes.extend_from_slice(confirm.reservation.as_bytes());
            put_text(bytes, confirm.payment_ref.as_str());
            put_key_id(bytes, confirm.key_id);
        }
        Command::Cancel(cancel) => {
            bytes.extend_from_slice(cancel.reservation.as_bytes());
            put_long_text(bytes, cancel.note.as_ref().map_or("", Note::as_str));
        }
        Command::Extend(extend) => {
            bytes.extend_from_slice(extend.reservation.as_bytes());
            bytes.extend_from_slice(&extend.seconds.to_le_bytes());
        }
        Command::Adjust(adjust) => put_adjust(bytes, adjust),
        Command::Configure(configure) => put_configure(bytes, configure),
        Command::Pause(pause) => {
            bytes.extend_from_slice(&pause.seen_version.to_le_bytes());
            bytes.push(u8::from(pause.pauses));
            put_long_text(bytes, pause.note.as_ref().map_or("", Note::as_str));
        }
        Command::Tick(_) => {}
    }
}

fn put_adjust(bytes: &mut Vec<u8>, adjust: &Adjust) {
    let (compare, number) = match adjust.change {
        StockChange::By(delta) => (None, delta),
        StockChange::To { compare_on_hand, on_hand } => (Some(compare_on_hand), on_hand),
    };
    put_optional(bytes, compare);
    bytes.extend_from_slice(&number.to_le_bytes());
    put_long_text(bytes, adjust.note.as_str());
    put_text(bytes, adjust.reference.as_ref().map_or("", Reference::as_str));
    put_key_id(bytes, adjust.key_id);
}

fn put_configure(bytes: &mut Vec<u8>, configure: &Configure) {
    let Settings { user_limit, hold_seconds, starts_at, ends_at, late_payment, extensions_max, extension_seconds_max } =
        &configure.settings;
    put_u16(bytes, usize::try_from(configure.pin).expect("a partition is never negative"));
    bytes.extend_from_slice(&configure.seen_version.to_le_bytes());
    put_optional(bytes, configure.on_hand);
    bytes.extend_from_slice(&user_limit.to_le_bytes());
    bytes.extend_from_slice(&hold_seconds.to_le_bytes());
    put_optional(bytes, *starts_at);
    put_optional(bytes, *ends_at);
    bytes.push(match late_payment {
        LatePayment::Rereserve => 0,
        LatePayment::Reject => 1,
    });
    bytes.extend_from_slice(&extensions_max.to_le_bytes());
    bytes.extend_from_slice(&extension_seconds_max.to_le_bytes());
    if configure.patch_hash.is_some() {
        put_optional(bytes, configure.patch_hash);
    }
}

fn put_key_id(bytes: &mut Vec<u8>, key_id: Option<Uuid>) {
    if let Some(key_id) = key_id {
        bytes.push(1);
        bytes.extend_from_slice(key_id.as_bytes());
    }
}

fn put_u16(bytes: &mut Vec<u8>, number: usize) {
    let number = u16::try_from(number).expect("bounded far below 65536");
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn put_optional(bytes: &mut Vec<u8>, number: Option<i64>) {
    bytes.push(u8::from(number.is_some()));
    if let Some(number) = number {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(u8::try_from(text.len()).expect("ids and request ids are shorter than 256 bytes"));
    bytes.extend_from_slice(text.as_bytes());
}

fn put_long_text(bytes: &mut Vec<u8>, text: &str) {
    put_u16(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

/// The whole characters in the first `len_max` bytes: a request id is cut, never refused.
fn start_of(text: &str, len_max: usize) -> &str {
    let mut len = text.len().min(len_max);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    &text[..len]
}

fn read_envelope(bytes: &[u8], sku: &SkuId) -> Envelope {
    let mut from = Reader(bytes);
    let kind = from.u8();
    let id = from.take(16).map(|id| Uuid::from_slice(id).expect("16 bytes were taken"));
    let received_at_us = from.i64();
    // Only after a whole time: the bytes after a broken field are not where they should be and could still read like a command.
    let request_id = received_at_us.and_then(|_| from.text());
    let command = match (kind, id, request_id) {
        (Some(KIND_RESERVE), Some(id), Some(_)) => read_reserve(&mut from, id, sku),
        (Some(KIND_CONFIGURE), Some(id), Some(_)) => read_configure(&mut from, id, sku),
        (Some(KIND_CONFIRM), Some(id), Some(_)) => read_confirm(&mut from, id, sku),
        (Some(KIND_CANCEL), Some(id), Some(_)) => read_cancel(&mut from, id, sku),
        (Some(KIND_EXTEND), Some(id), Some(_)) => read_extend(&mut from, id, sku),
        (Some(KIND_ADJUST), Some(id), Some(_)) => read_adjust(&mut from, id, sku),
        (Some(KIND_PAUSE), Some(id), Some(_)) => read_pause(&mut from, id, sku),
        (Some(KIND_TICK), Some(id), Some(_)) => Some(Command::Tick(Tick { id, sku: sku.clone() })),
        _ => None,
    };
    Envelope {
        received_at_us: received_at_us.unwrap_or(0),
        request_id: request_id.unwrap_or("").to_owned(),
        command: command.ok_or(Unfit { id, reason: PoisonReason::Malformed }),
    }
}

fn read_reserve(from: &mut Reader<'_>, id: Uuid, sku: &SkuId) -> Option<Command> {
    let user = UserId::parse(from.text()?).ok()?;
    let quantity = Quantity::new(from.u32()?)?;
    // Appended after the first build: where it is missing, there is none.
    let metadata = if from.0.is_empty() { "" } else { from.long_text()? };
    let metadata = optional_text(metadata, |text| Metadata::parse(text).ok())?;
    Some(Command::Reserve(Reserve { id, user, sku: sku.clone(), quantity, metadata }))
}

fn read_confirm(from: &mut Reader<'_>, id: Uuid, sku: &SkuId) -> Option<Command> {
    let reservation = from.uuid()?;
    let payment_ref = PaymentRef::parse(from.text()?).ok()?;
    let key_id = appended(from, Reader::optional_uuid)?;
    Some(Command::Confirm(Confirm { id, reservation, sku: sku.clone(), payment_ref, key_id }))
}

fn read_cancel(from: &mut Reader<'_>, id: Uuid, sku: &SkuId) -> Option<Command> {
    let reservation = from.uuid()?;
    let note = optional_text(from.long_text()?, |text| Note::parse(text).ok())?;
    Some(Command::Cancel(Cancel { id, reservation, sku: sku.clone(), note }))
}

fn read_extend(from: &mut Reader<'_>, id: Uuid, sku: &SkuId) -> Option<Command> {
    let reservation = from.uuid()?;
    let seconds = from.u32().filter(|seconds| (1..=limits::HOLD_SECONDS_MAX).contains(seconds))?;
    Some(Command::Extend(Extend { id, reservation, sku: sku.clone(), seconds }))
}

fn read_adjust(from: &mut Reader<'_>, id: Uuid, sku: &SkuId) -> Option<Command> {
    let compare = from.optional()?;
    let number = from.i64()?;
    let is_stock = |units: i64| (0..=limits::ON_HAND_MAX).contains(&units);
    let change = match compare {
        None if number != 0 && is_stock(number.checked_abs()?) => StockChange::By(number),
        Some(compare_on_hand) if is_stock(compare_on_hand) && is_stock(number) => {
            StockChange::To { compare_on_hand, on_hand: number }
        }
        _ => return None,
    };
    let note = Note::parse(from.long_text()?).ok()?;
    let reference = optional_text(from.text()?, |text| Reference::parse(text).ok())?;
    let key_id = appended(from, Reader::optional_uuid)?;
    Some(Command::Adjust(Adjust { id, sku: sku.clone(), change, note, reference, key_id }))
}

fn read_pause(from: &mut Reader<'_>, id: Uuid, sku: &SkuId) -> Option<Command> {
    let seen_version = from.i64().filter(|v| *v > 0)?;
    let pauses = match from.u8()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let note = optional_text(from.long_text()?, |text| Note::parse(text).ok())?;
    Some(Command::Pause(Pause { id, sku: sku.clone(), seen_version, pauses, note }))
}

/// A field that was appended after the first build: where it is missing, there is none. Outer `None`: broken.
fn appended<'b, T>(
    from: &mut Reader<'b>,
    read: impl FnOnce(&mut Reader<'b>) -> Option<Option<T>>,
) -> Option<Option<T>> {
    if from.0.is_empty() { Some(None) } else { read(from) }
}

/// Empty = absent. Outer `None`: broken.
fn optional_text<T>(text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if text.is_empty() { Some(None) } else { parse(text).map(Some) }
}

fn read_configure(from: &mut Reader<'_>, id: Uuid, sku: &SkuId) -> Option<Command> {
    let pin = i32::from(from.u16()?);
    let seen_version = from.i64().filter(|v| *v >= 0)?;
    let on_hand = from.optional()?;
    let settings = Settings {
        user_limit: from.u32()?,
        hold_seconds: from.u32()?,
        starts_at: from.optional()?,
        ends_at: from.optional()?,
        late_payment: match from.u8()? {
            0 => LatePayment::Rereserve,
            1 => LatePayment::Reject,
            _ => return None,
        },
        extensions_max: from.u32()?,
        extension_seconds_max: from.u32()?,
    };
    let patch_hash = appended(from, Reader::optional)?;
    let is_bounded = on_hand.is_none_or(|units| (0..=limits::ON_HAND_MAX).contains(&units));
    let is_creation_complete = seen_version > 0 || on_hand.is_some();
    let is_good = is_bounded && is_creation_complete && settings.check().is_empty();
    let sku = sku.clone();
    is_good.then_some(Command::Configure(Configure { id, sku, pin, seen_version, on_hand, settings, patch_hash }))
}
