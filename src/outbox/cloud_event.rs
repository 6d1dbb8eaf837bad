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
    let (subject, data) = match &event.what {
        Happening::Reservation(of) => (of.reservation.to_string(), Data::Reservation(reservation(event, of))),
        Happening::Sku(of) => (event.sku.as_str().to_owned(), Data::Sku(Box::new(sku(event, of)))),
    };
    let cloud_event = CloudEvent {
        specversion: "1.0",
        id: event.id(partition),
        source,
        r#type: event.kind(),
        subject,
        time: rfc3339(event.at),
        datacontenttype: "application/json",
        partitionkey: event.sku.as_str(),
        sequence: sequence(event.origin),
        data,
    };
    serde_json::to_vec(&cloud_event).expect("plain values always become JSON")
}

/// Texts that sort as the events of a SKU do. The end of a hold has none: its place among the others is not fixed by the log.
fn sequence(origin: Origin) -> Option<String> {
    match origin {
        Origin::Command { place, n } => Some(format!("{:019}.{:05}.{n:03}", place.offset, place.index)),
        Origin::EndOfHold => None,
    }
}

#[derive(Serialize)]
struct CloudEvent<'e> {
    specversion: &'static str,
    id: String,
    source: &'e str,
    r#type: &'static str,
    subject: String,
    time: String,
    datacontenttype: &'static str,
    partitionkey: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<String>,
    data: Data<'e>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'e> {
    Reservation(ReservationData<'e>),
    Sku(Box<SkuData<'e>>),
}

#[derive(Serialize)]
struct ReservationData<'e> {
    reservation_id: Uuid,
    sku_id: &'e str,
    user_id: &'e str,
    quantity: u32,
    version: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_ref: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    late: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'e str>,
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

fn reservation<'e>(event: &'e Event, of: &'e ReservationEvent) -> ReservationData<'e> {
    let mut data = ReservationData {
        reservation_id: of.reservation,
        sku_id: event.sku.as_str(),
        user_id: of.user.as_str(),
        quantity: of.quantity.get(),
        version: of.version,
        expires_at: None,
        metadata: None,
        payment_ref: None,
        late: None,
        note: None,
    };
    match &of.change {
        LifeChange::Reserved { expires_at, metadata } => {
            data.expires_at = Some(rfc3339(*expires_at));
            let object = |text: &str| serde_json::from_str(text).expect("checked when it was parsed");
            data.metadata = metadata.as_ref().map(|metadata| object(metadata.as_str()));
        }
        LifeChange::Confirmed { payment_ref, is_late } => {
            (data.payment_ref, data.late) = (Some(payment_ref.as_str()), Some(*is_late));
        }
        LifeChange::Cancelled { note } => data.note = note.as_ref().map(|note| note.as_str()),
        LifeChange::Extended { expires_at } => data.expires_at = Some(rfc3339(*expires_at)),
        LifeChange::Expired => {}
        LifeChange::PaidUnfulfilled { payment_ref } => data.payment_ref = Some(payment_ref.as_str()),
    }
    data
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
