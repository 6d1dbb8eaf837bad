//! The packed bytes of events: golden, read back as they were written, and never trusted; and the JSON that other services read.

use flashsale::ids::{Metadata, Note, PaymentRef, Place, Quantity, Reference, SkuId, UserId};
use flashsale::inventory::{
    Event, Happening, LatePayment, LifeChange, Origin, ReservationEvent, Settings, SkuEvent, SkuHappening,
};
use flashsale::limits;
use flashsale::outbox::cloud_event;
use flashsale::outbox::packed::{UnpackError, Unpacked, pack, skus_of, unpack};
use proptest::prelude::*;
use uuid::Uuid;

// ---- one of each --------------------------------------------------------------------------------------------------------------

fn note(text: &str) -> Note {
    Note::parse(text).expect("legal")
}

fn payment(text: &str) -> PaymentRef {
    PaymentRef::parse(text).expect("legal")
}

const AT: i64 = 1_795_255_200_000; // 2026-11-21T10:00:00Z

fn settings() -> Settings {
    Settings { user_limit: 2, starts_at: Some(AT), ends_at: Some(AT + 3_600_000), ..Settings::default() }
}

/// One event of each kind, as `docs/events.md` shows them.
fn one_of_each() -> Vec<Event> {
    let reservation = |change, version| {
        Happening::Reservation(ReservationEvent {
            reservation: Uuid::from_u128(0x019a_a5f1_2c00_7000_8000_0000_0000_0001),
            user: UserId::parse("user-7").expect("legal"),
            quantity: Quantity::new(2).expect("legal"),
            version,
            change,
        })
    };
    let sku = |[reserved, sold]: [i64; 2], settings_version, change| {
        Happening::Sku(SkuEvent { on_hand: 100, reserved, sold, settings_version, change })
    };
    let metadata = Some(Metadata::parse(r#"{"cart":"c-1"}"#).expect("legal"));
    let expires_at = AT + 120_000;
    let reference = Some(Reference::parse("po-17").expect("legal"));
    let happenings = [
        sku([0, 0], 1, SkuHappening::Created(settings())),
        reservation(LifeChange::Reserved { expires_at, metadata }, 1),
        reservation(LifeChange::Extended { expires_at: expires_at + 60_000 }, 2),
        reservation(LifeChange::Confirmed { payment_ref: payment("pay-99"), is_late: false }, 3),
        reservation(LifeChange::Cancelled { note: Some(note("changed my mind")) }, 2),
        reservation(LifeChange::Expired, 2),
        reservation(LifeChange::PaidUnfulfilled { payment_ref: payment("pay-99") }, 2),
        sku([40, 60], 1, SkuHappening::SoldOut),
        sku([38, 60], 1, SkuHappening::BackInStock),
        sku([38, 60], 1, SkuHappening::Adjusted { delta: -20, note: note("damaged"), reference }),
        sku([38, 60], 2, SkuHappening::Paused { note: Some(note("price is wrong")) }),
        sku([38, 60], 3, SkuHappening::Resumed { note: None }),
        sku([38, 60], 4, SkuHappening::Configured(Settings { late_payment: LatePayment::Reject, ..settings() })),
    ];
    let event = |(n, what): (usize, Happening)| {
        let is_end = matches!(&what, Happening::Reservation(e) if e.change == LifeChange::Expired);
        let place = Place { offset: 1042 + n as i64, index: 7 };
        let origin = if is_end { Origin::EndOfHold } else { Origin::Command { place, n: 0 } };
        let at = if is_end { expires_at } else { AT + 1_000 * n as i64 };
        Event { origin, at, sku: SkuId::parse("console").expect("legal"), what }
    };
    happenings.into_iter().enumerate().map(event).collect()
}

#[test]
fn outbox_bytes_never_change() {
    // Rows of an earlier build are read by a later one: what stands here may be added to, never edited.
    let golden = concat!(
        "46450103920880a4e3d8bf680107636f6e736f6c650d1000000100076400000102780180a4e3d8bf680180de9adcbf680003",
        "d8040100d00f010107019aa5f12c007000800000000000000106757365722d370201b0c30e0e7b2263617274223a22632d31",
        "227d0400a01f010207019aa5f12c007000800000000000000106757365722d370202a0dd150200f02e010307019aa5f12c00",
        "7000800000000000000106757365722d370203067061792d3939000300c03e010407019aa5f12c0070008000000000000001",
        "06757365722d3702020f6368616e676564206d79206d696e64050080d30e00019aa5f12c0070008000000000000001067573",
        "65722d3702020600e05d010607019aa5f12c007000800000000000000106757365722d370202067061792d39391500b06d01",
        "070764283c011600807d01080764263c011400d08c0101090764263c01270764616d6167656405706f2d31371200a09c0101",
        "0a0764263c020e70726963652069732077726f6e671300f0ab01010b0764263c03001100c0bb01010c0764263c0402780180",
        "a4e3d8bf680180de9adcbf680103d804",
    );
    let hex: String = pack(3, &one_of_each()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden);
}

// ---- there and back -----------------------------------------------------------------------------------------------------------

fn ids(chars: &'static str) -> impl Strategy<Value = String> {
    proptest::string::string_regex(chars).expect("a legal pattern")
}

fn notes() -> impl Strategy<Value = Note> {
    proptest::string::string_regex("[ -~äß€😀]{1,60}").expect("a legal pattern").prop_map(|text| note(&text))
}

fn references() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ -~]{1,128}").expect("a legal pattern")
}

fn metadata() -> impl Strategy<Value = Metadata> {
    proptest::collection::btree_map("[a-z]{1,8}", "[ -~ä\n]{0,20}", 0..10).prop_map(|members| {
        Metadata::parse(&serde_json::to_string(&members).expect("plain")).expect("within the bounds")
    })
}

fn times() -> impl Strategy<Value = i64> {
    prop_oneof![0..=4_102_444_800_000i64, Just(0), Just(i64::MAX / 4)]
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let late = prop_oneof![Just(LatePayment::Rereserve), Just(LatePayment::Reject)];
    (
        1..=1000u32,
        10..=14_400u32,
        proptest::option::of(times()),
        proptest::option::of(times()),
        late,
        0..=100u32,
        any::<u32>(),
    )
        .prop_map(
            |(user_limit, hold_seconds, starts_at, ends_at, late_payment, extensions_max, extension_seconds_max)| {
                Settings {
                    user_limit,
                    hold_seconds,
                    starts_at,
                    ends_at,
                    late_payment,
                    extensions_max,
                    extension_seconds_max,
                }
            },
        )
}

fn reservation_events() -> impl Strategy<Value = ReservationEvent> {
    let change = prop_oneof![
        (times(), proptest::option::of(metadata()))
            .prop_map(|(expires_at, metadata)| LifeChange::Reserved { expires_at, metadata }),
        (references(), any::<bool>())
            .prop_map(|(text, is_late)| LifeChange::Confirmed { payment_ref: payment(&text), is_late }),
        proptest::option::of(notes()).prop_map(|note| LifeChange::Cancelled { note }),
        times().prop_map(|expires_at| LifeChange::Extended { expires_at }),
        Just(LifeChange::Expired),
        references().prop_map(|text| LifeChange::PaidUnfulfilled { payment_ref: payment(&text) }),
    ];
    (any::<u128>(), ids("[A-Za-z0-9._:-]{1,64}"), 1..=limits::QUANTITY_MAX, 1..=i32::MAX, change).prop_map(
        |(id, user, quantity, version, change)| ReservationEvent {
            reservation: Uuid::from_u128(id),
            user: UserId::parse(&user).expect("legal"),
            quantity: Quantity::new(quantity).expect("legal"),
            version,
            change,
        },
    )
}

fn sku_events() -> impl Strategy<Value = SkuEvent> {
    let optional_note = || proptest::option::of(notes());
    let reference = proptest::option::of(references().prop_map(|text| Reference::parse(&text).expect("legal")));
    let change = prop_oneof![
        any_settings().prop_map(SkuHappening::Created),
        any_settings().prop_map(SkuHappening::Configured),
        optional_note().prop_map(|note| SkuHappening::Paused { note }),
        optional_note().prop_map(|note| SkuHappening::Resumed { note }),
        (any::<i64>(), notes(), reference).prop_map(|(delta, note, reference)| SkuHappening::Adjusted {
            delta,
            note,
            reference
        }),
        Just(SkuHappening::SoldOut),
        Just(SkuHappening::BackInStock),
    ];
    let units = || 0..=limits::ON_HAND_MAX;
    (units(), units(), units(), 1..=i64::MAX, change).prop_map(|(on_hand, reserved, sold, settings_version, change)| {
        SkuEvent { on_hand, reserved, sold, settings_version, change }
    })
}

fn events() -> impl Strategy<Value = Event> {
    let what =
        prop_oneof![reservation_events().prop_map(Happening::Reservation), sku_events().prop_map(Happening::Sku),];
    let place = (0..=i64::MAX / 2, any::<u16>(), 0..=254u8);
    (place, times(), ids("[a-c]{1,2}"), what).prop_map(|((offset, index, n), at, sku, what)| {
        let is_end = matches!(&what, Happening::Reservation(e) if e.change == LifeChange::Expired);
        let origin = if is_end { Origin::EndOfHold } else { Origin::Command { place: Place { offset, index }, n } };
        Event { origin, at, sku: SkuId::parse(&sku).expect("legal"), what }
    })
}

fn rows() -> impl Strategy<Value = (i32, Vec<Event>)> {
    (0..limits::PARTITIONS_MAX, proptest::collection::vec(events(), 1..20))
}

proptest! {
    #[test]
    fn outbox_events_come_back_as_they_were((partition, events) in rows()) {
        prop_assert_eq!(unpack(&pack(partition, &events)), Ok(Unpacked { partition, events }));
    }

    #[test]
    fn outbox_bytes_that_are_cut_or_changed_never_panic((partition, events) in rows(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = pack(partition, &events);
        let at = at.index(bytes.len());
        prop_assert!(unpack(&bytes[..at]).is_err(), "cut off at {}", at);
        bytes[at] = byte;
        if let Ok(row) = unpack(&bytes) {
            prop_assert!(!pack(row.partition, &row.events).is_empty());
        }
    }

    #[test]
    fn outbox_bytes_of_nobody_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = unpack(&[b"FE\x01".as_slice(), &bytes].concat());
        let _ = unpack(&bytes);
    }

    // The library sorts the members; otherwise it would write the same characters: no more of them, and none escaped that need not be.
    #[test]
    fn outbox_json_is_written_as_the_library_would(event in events()) {
        let written = cloud_event::to_json("/flashsale/t", 3, &event);
        let read: serde_json::Value = serde_json::from_slice(&written).expect("JSON");
        let sorted = |mut bytes: Vec<u8>| { bytes.sort_unstable(); bytes };
        prop_assert_eq!(sorted(serde_json::to_vec(&read).expect("plain")), sorted(written));
        prop_assert_eq!(read["id"].as_str(), Some(&*event.id(3)));
        prop_assert_eq!(read["time"].as_str(), Some(&*flashsale::clock::rfc3339(event.at)));
    }

    #[test]
    fn outbox_events_fit_the_bound_that_the_topic_is_made_for(event in events()) {
        prop_assert!(cloud_event::to_json("/flashsale/t", 0, &event).len() <= limits::EVENT_BYTES_MAX);
    }
}

#[test]
fn outbox_bytes_of_a_newer_build_are_told_apart_from_rubbish() {
    assert_eq!(unpack(b"FE\x02anything"), Err(UnpackError::UnknownVersion(2)));
    for rubbish in [&b""[..], b"F", b"FS\x01", b"FE", b"FE\x00"] {
        assert!(matches!(unpack(rubbish), Err(UnpackError::Malformed(_))), "{rubbish:?}");
    }
    let mut longer = pack(0, &one_of_each());
    longer.push(0);
    assert!(matches!(unpack(&longer), Err(UnpackError::Malformed(_))), "bytes after the last event");
}

#[test]
fn outbox_rows_name_each_sku_once() {
    let mut events = one_of_each();
    for (event, sku) in events.iter_mut().zip(["b", "b", "a", "b", "c", "a"]) {
        event.sku = SkuId::parse(sku).expect("legal");
    }
    events.truncate(6);
    assert_eq!(skus_of(&events).iter().map(SkuId::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
}

// ---- what other services read -------------------------------------------------------------------------------------------------

#[test]
fn outbox_page_shows_every_event_as_it_is() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/events.md")).expect("a page");
    let shown: Vec<serde_json::Value> = page
        .split("```json\n")
        .skip(1)
        .map(|block| serde_json::from_str(block.split("```").next().expect("it ends")).expect("JSON"))
        .collect();
    let source = cloud_event::source("reservation-requests");
    let said = |event: &Event| serde_json::from_slice(&cloud_event::to_json(&source, 3, event)).expect("JSON");
    let expected: Vec<serde_json::Value> = one_of_each().iter().map(said).collect();
    for event in &expected {
        let pretty = serde_json::to_string_pretty(event).expect("plain");
        assert!(shown.contains(event), "docs/events.md does not show:\n{pretty}");
        let kind = event["type"].as_str().expect("a text");
        assert!(page.contains(&format!("## {kind}\n")), "no heading for {kind}");
    }
    assert_eq!(shown.len(), expected.len(), "the page shows something else");
}

/// Members in this order, nothing between them: consumers that hash or compare records see the same bytes from every build.
#[test]
fn outbox_json_never_changes() {
    let events = one_of_each();
    let written = |event: &Event| String::from_utf8(cloud_event::to_json("/flashsale/t", 3, event)).expect("text");
    assert_eq!(
        written(&events[1]),
        r#"{"specversion":"1.0","id":"3.1043.7.0","source":"/flashsale/t","type":"reservation.reserved","subject":"019aa5f1-2c00-7000-8000-000000000001","time":"2026-11-21T10:00:01.000Z","datacontenttype":"application/json","partitionkey":"console","sequence":"0000000000000001043.00007.000","data":{"reservation_id":"019aa5f1-2c00-7000-8000-000000000001","sku_id":"console","user_id":"user-7","quantity":2,"version":1,"expires_at":"2026-11-21T10:02:00.000Z","metadata":{"cart":"c-1"}}}"#
    );
    assert_eq!(
        written(&events[5]),
        r#"{"specversion":"1.0","id":"019aa5f1-2c00-7000-8000-000000000001.expired","source":"/flashsale/t","type":"reservation.expired","subject":"019aa5f1-2c00-7000-8000-000000000001","time":"2026-11-21T10:02:00.000Z","datacontenttype":"application/json","partitionkey":"console","data":{"reservation_id":"019aa5f1-2c00-7000-8000-000000000001","sku_id":"console","user_id":"user-7","quantity":2,"version":2}}"#
    );
}
