//! An event as other services read it: CloudEvents 1.0, JSON, structured mode. Pure. `docs/events.md` shows one of each kind.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::clock::{Millis, rfc3339};
use crate::inventory::{
    Event, Happening, LatePayment, LifeChange, Origin, ReservationEvent, Settings, SkuEvent, SkuHappening,
};

/// The media type of a record's value, as its `content-type` header says.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

/// Where events of a log come from: with the id it names an event among those of all services.
pub fn source(topic: &str) -> String {
    format!("/flashsale/{topic}")
}

/// The value of an event's record. `source` = that of its log, `partition` = the log's.
pub fn to_json(source: &str, partition: i32, event: &Event) -> Vec<u8> {
    JsonWriter::new(source, partition).write(event)
}

/// Writes the events of one partition. Written by hand, field by field: a relay does it for every reservation, and the events of a batch share
/// their times.
#[derive(Debug)]
pub struct JsonWriter {
    /// As JSON.
    source: Vec<u8>,
    partition: i32,
    at: TimeText,
    expires_at: TimeText,
}

/// The time that was written last, and its text.
#[derive(Debug)]
struct TimeText(Millis, String);

impl TimeText {
    fn new() -> Self {
        Self(0, rfc3339(0))
    }

    fn of(&mut self, at: Millis) -> &str {
        if self.0 != at {
            *self = Self(at, rfc3339(at));
        }
        &self.1
    }
}

impl JsonWriter {
    /// For the events of a log and one of its partitions.
    pub fn new(source: &str, partition: i32) -> Self {
        let mut json = Vec::new();
        put_json(&mut json, source);
        Self { source: json, partition, at: TimeText::new(), expires_at: TimeText::new() }
    }

    /// The value of an event's record.
    pub fn write(&mut self, event: &Event) -> Vec<u8> {
        let mut to = Vec::with_capacity(JSON_BYTES_TYPICAL);
        to.extend_from_slice(br#"{"specversion":"1.0","id":""#);
        self.put_id(&mut to, event);
        to.extend_from_slice(br#"","source":"#);
        to.extend_from_slice(&self.source);
        put_text(&mut to, "type", event.kind());
        to.extend_from_slice(br#","subject":""#);
        match &event.what {
            Happening::Reservation(of) => put_uuid(&mut to, of.reservation),
            Happening::Sku(_) => to.extend_from_slice(event.sku.as_str().as_bytes()),
        }
        to.push(b'"');
        put_text(&mut to, "time", self.at.of(event.at));
        put_text(&mut to, "datacontenttype", "application/json");
        put_text(&mut to, "partitionkey", event.sku.as_str());
        if let Origin::Command { place, n } = event.origin {
            // A text that sorts as the events of a SKU do. The end of a hold has none: its place among the others is not fixed by the log.
            to.extend_from_slice(br#","sequence":""#);
            put_number(&mut to, place.offset.unsigned_abs(), 19);
            to.push(b'.');
            put_number(&mut to, place.index.into(), 5);
            to.push(b'.');
            put_number(&mut to, n.into(), 3);
            to.push(b'"');
        }
        to.extend_from_slice(br#","data":"#);
        match &event.what {
            Happening::Reservation(of) => self.put_reservation(&mut to, event, of),
            Happening::Sku(of) => put_json(&mut to, &sku(event, of)),
        }
        to.push(b'}');
        to
    }

    /// [`Event::id`], without a text of its own.
    fn put_id(&self, to: &mut Vec<u8>, event: &Event) {
        let Origin::Command { place, n } = event.origin else {
            return to.extend_from_slice(event.id(self.partition).as_bytes());
        };
        put_number(to, self.partition.unsigned_abs().into(), 1);
        to.push(b'.');
        put_number(to, place.offset.unsigned_abs(), 1);
        to.push(b'.');
        put_number(to, place.index.into(), 1);
        to.push(b'.');
        put_number(to, n.into(), 1);
    }

    fn put_reservation(&mut self, to: &mut Vec<u8>, event: &Event, of: &ReservationEvent) {
        to.extend_from_slice(br#"{"reservation_id":""#);
        put_uuid(to, of.reservation);
        to.push(b'"');
        put_text(to, "sku_id", event.sku.as_str());
        put_text(to, "user_id", of.user.as_str());
        to.extend_from_slice(br#","quantity":"#);
        put_number(to, of.quantity.get().into(), 1);
        to.extend_from_slice(br#","version":"#);
        put_number(to, of.version.unsigned_abs().into(), 1);
        match &of.change {
            LifeChange::Reserved { expires_at, metadata } => {
                put_text(to, "expires_at", self.expires_at.of(*expires_at));
                if let Some(metadata) = metadata {
                    let object: Value = serde_json::from_str(metadata.as_str()).expect("checked when it was parsed");
                    to.extend_from_slice(br#","metadata":"#);
                    put_json(to, &object);
                }
            }
            LifeChange::Confirmed { payment_ref, is_late } => {
                put_free_text(to, "payment_ref", payment_ref.as_str());
                to.extend_from_slice(if *is_late { br#","late":true"# } else { br#","late":false"# });
            }
            LifeChange::Cancelled { note: Some(note) } => put_free_text(to, "note", note.as_str()),
            LifeChange::Extended { expires_at } => put_text(to, "expires_at", self.expires_at.of(*expires_at)),
            LifeChange::PaidUnfulfilled { payment_ref } => put_free_text(to, "payment_ref", payment_ref.as_str()),
            LifeChange::Cancelled { note: None } | LifeChange::Expired => {}
        }
        to.push(b'}');
    }
}

/// Bytes of a usual event, for sizing the buffer.
const JSON_BYTES_TYPICAL: usize = 512;

/// A member that follows others; its value has no character that JSON would escape: ids and times.
fn put_text(to: &mut Vec<u8>, name: &str, text: &str) {
    put_name(to, name);
    to.push(b'"');
    to.extend_from_slice(text.as_bytes());
    to.push(b'"');
}

/// The same for text of people.
fn put_free_text(to: &mut Vec<u8>, name: &str, text: &str) {
    put_name(to, name);
    put_json(to, text);
}

fn put_name(to: &mut Vec<u8>, name: &str) {
    to.extend_from_slice(b",\"");
    to.extend_from_slice(name.as_bytes());
    to.extend_from_slice(b"\":");
}

fn put_json<T: Serialize + ?Sized>(to: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(to, value).expect("plain values always become JSON");
}

fn put_uuid(to: &mut Vec<u8>, id: Uuid) {
    to.extend_from_slice(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
}

/// Decimal digits, zeros before them up to `width`.
fn put_number(to: &mut Vec<u8>, mut number: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    while number > 0 {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8; // one digit
        number /= 10;
    }
    to.extend_from_slice(&digits[at.min(digits.len() - width)..]);
}

#[derive(Serialize)]
struct SkuData<'e> {
    sku_id: &'e str,
    on_hand: i64,
    reserved: i64,
    sold: i64,
    available: i64,
    settings_version: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    holds_pending: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<SettingsData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<&'e str>,
}

#[derive(Serialize)]
struct SettingsData {
    user_limit: u32,
    hold_seconds: u32,
    starts_at: Option<String>,
    ends_at: Option<String>,
    late_payment: &'static str,
    extensions_max: u32,
    extension_seconds_max: u32,
}

fn sku<'e>(event: &'e Event, of: &'e SkuEvent) -> SkuData<'e> {
    let mut data = SkuData {
        sku_id: event.sku.as_str(),
        on_hand: of.on_hand,
        reserved: of.reserved,
        sold: of.sold,
        available: of.on_hand - of.reserved - of.sold,
        settings_version: of.settings_version,
        holds_pending: None,
        settings: None,
        delta: None,
        note: None,
        reference: None,
    };
    match &of.change {
        SkuHappening::Created(settings) | SkuHappening::Configured(settings) => {
            data.settings = Some(settings_data(settings));
        }
        SkuHappening::Paused { note } | SkuHappening::Resumed { note } => {
            data.note = note.as_ref().map(|note| note.as_str());
        }
        SkuHappening::Adjusted { delta, note, reference } => {
            (data.delta, data.note) = (Some(*delta), Some(note.as_str()));
            data.reference = reference.as_ref().map(|reference| reference.as_str());
        }
        SkuHappening::SoldOut => data.holds_pending = Some(of.reserved > 0),
        SkuHappening::BackInStock => {}
    }
    data
}

fn settings_data(settings: &Settings) -> SettingsData {
    let optional = |at: Option<Millis>| at.map(rfc3339);
    SettingsData {
        user_limit: settings.user_limit,
        hold_seconds: settings.hold_seconds,
        starts_at: optional(settings.starts_at),
        ends_at: optional(settings.ends_at),
        late_payment: match settings.late_payment {
            LatePayment::Rereserve => "rereserve",
            LatePayment::Reject => "reject",
        },
        extensions_max: settings.extensions_max,
        extension_seconds_max: settings.extension_seconds_max,
    }
}
