//! The bytes of the log: what they are for ever, and that nothing that stands in a log can break its reader.
//!
//! A change that turns one of the golden tests red makes old logs unreadable: it needs a new version number instead.

use std::collections::BTreeSet;

use flashsale::ids::{Metadata, Note, PaymentRef, Quantity, Reference, SkuId, UserId};
use flashsale::inventory::{
    Adjust, Cancel, Command, Configure, Confirm, Extend, LatePayment, Pause, Reserve, Settings, StockChange, Tick,
};
use flashsale::limits;
use flashsale::wire::{DecodeError, EncodeError, Envelope, Sent, VERSION, decode, digest, encode};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use crate::support::goldens::{HEADER_OF_ONE, RESERVE, command_bytes, goldens, hex, record_of, reserve_sent, sku};

// ---- golden bytes of version 1 ------------------------------------------------------------------------------------------------

#[test]
fn wire_golden_commands() {
    for (golden, sent) in goldens() {
        check_golden(&[HEADER_OF_ONE, golden], &[sent]);
    }
}

#[test]
fn wire_every_kind_has_golden_bytes_and_a_generator() {
    let golden: BTreeSet<&str> = goldens().iter().map(|(_, sent)| sent.command.kind()).collect();
    assert_eq!(golden, Command::KINDS.into_iter().collect(), "golden");
    let mut runner = TestRunner::deterministic();
    let mut one = || sent().new_tree(&mut runner).expect("the strategy rejects nothing").current();
    let generated: BTreeSet<&str> = (0..200).map(|_| one().command.kind()).collect();
    assert_eq!(generated, Command::KINDS.into_iter().collect(), "generated");
}

/// The kinds of commands that every build knows which decides version 1, with their number in the log.
const KINDS_OF_VERSION_1: [(&str, u8); 9] = [
    ("reserve", 1),
    ("configure", 2),
    ("confirm", 3),
    ("cancel", 4),
    ("extend", 5),
    ("adjust", 6),
    ("pause", 7),
    ("resume", 7),
    ("tick", 8),
];

#[test]
fn wire_no_kind_comes_or_goes_while_the_version_stays() {
    assert_eq!(VERSION, 1, "a new version: list here what each version has, beside the kinds of version 1");
    let golden = goldens();
    // Each kind has golden bytes; another test says so.
    let known: BTreeSet<(&str, u8)> =
        golden.iter().map(|(golden, sent)| (sent.command.kind(), command_bytes(golden)[0])).collect();
    let listed = BTreeSet::from(KINDS_OF_VERSION_1);
    let (new, gone): (Vec<_>, Vec<_>) = (known.difference(&listed).collect(), listed.difference(&known).collect());
    assert!(
        new.is_empty() && gone.is_empty(),
        "kinds of commands changed while wire::VERSION is still {VERSION}: new {new:?}, gone {gone:?}. An older build decides version \
         {VERSION} and takes a kind that it does not know for poison: in a roll-out it would refuse such commands for ever, instead of \
         leaving their partition to a newer build. Raise wire::VERSION (docs/style.md, \"To add a command\"); only until version \
         {VERSION} is released may a kind be added to this list instead."
    );
}

#[test]
fn wire_golden_record_of_fifty_commands() {
    let mut parts = vec!["4653 01 3200 0a 736e65616b65722d3432"];
    parts.extend([RESERVE; 50]);
    check_golden(&parts, &vec![reserve_sent(); 50]);
}

#[test]
fn wire_golden_record_of_all_kinds() {
    let (texts, sent): (Vec<&str>, Vec<Sent>) = goldens().into_iter().unzip();
    let header = format!("4653 01 {:02x}00 0a 736e65616b65722d3432", texts.len());
    check_golden(&[&[&*header], &texts[..]].concat(), &sent);
}

#[test]
fn wire_golden_digest() {
    // Stored with the position; a build that digests otherwise would halt every partition at its next claim.
    assert_eq!(digest(&hex(&[HEADER_OF_ONE, RESERVE])), DIGEST_OF_RESERVE);
    assert_eq!(digest(b""), DIGEST_OF_NOTHING);
}

const DIGEST_OF_RESERVE: i64 = 8_743_484_909_409_770_474;
const DIGEST_OF_NOTHING: i64 = 6_655_197_997_870_229_985;

// ---- what is written is read --------------------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn wire_reads_what_it_writes(sent in prop::collection::vec(sent(), 1..=limits::RECORD_COMMANDS_MAX)) {
        let bytes = encode(&sku(), sent.iter()).expect("1 to 50 commands of one SKU");
        prop_assert_eq!(decode(&bytes), Ok(record_of(&sent)));
    }
}

#[test]
fn wire_writes_one_to_fifty_commands_of_one_sku() {
    assert_eq!(encode(&sku(), [].iter()), Err(EncodeError::Count));
    assert_eq!(encode(&sku(), vec![reserve_sent(); 51].iter()), Err(EncodeError::Count));
    let other = SkuId::parse("sneaker-43").expect("legal");
    assert_eq!(encode(&other, [reserve_sent()].iter()), Err(EncodeError::OtherSku));
}

#[test]
fn wire_cuts_a_request_id_that_is_too_long_between_characters() {
    for (given, kept) in [
        ("x".repeat(128), "x".repeat(128)),
        ("x".repeat(300), "x".repeat(128)),
        ("ü€".repeat(99), "ü€".repeat(25) + "ü"),
    ] {
        let bytes = encode(&sku(), [Sent { request_id: given, ..reserve_sent() }].iter()).expect("cut, never refused");
        assert_eq!(decode(&bytes), Ok(record_of(&[Sent { request_id: kept, ..reserve_sent() }])));
    }
}

// ---- records that are none ----------------------------------------------------------------------------------------------------

#[test]
fn wire_knows_a_record_of_a_newer_build_by_its_version_alone() {
    for version in 2..=u8::MAX {
        let mut bytes = hex(&[HEADER_OF_ONE, RESERVE]);
        bytes[2] = version;
        assert_eq!(decode(&bytes), Err(DecodeError::UnknownVersion(version)));
        // Whatever follows: only the newer build can say what it means.
        assert_eq!(decode(&bytes[..3]), Err(DecodeError::UnknownVersion(version)));
    }
}

#[test]
fn wire_refuses_bytes_that_are_no_record() {
    let sku = "0a 736e65616b65722d3432";
    let too_many = "4653 01 3300 0a 736e65616b65722d3432";
    for (why, parts) in [
        ("nothing", vec![]),
        ("something else", vec!["7b22736b75223a2241227d"]),
        ("version 0", vec!["4653 00 0100", sku, RESERVE]),
        ("no commands", vec!["4653 01 0000", sku]),
        ("51 commands", [vec![too_many], vec![RESERVE; 51]].concat()),
        ("fewer commands than it says", vec!["4653 01 0200", sku, RESERVE]),
        ("more commands than it says", vec!["4653 01 0100", sku, RESERVE, RESERVE]),
        ("an empty SKU", vec!["4653 01 0100 00", RESERVE]),
        ("a SKU with a space", vec!["4653 01 0100 01 20", RESERVE]),
        ("a SKU that is not UTF-8", vec!["4653 01 0100 01 ff", RESERVE]),
        ("a command longer than the record", vec!["4653 01 0100", sku, "ffff 01"]),
        ("a byte too many", vec![HEADER_OF_ONE, RESERVE, "00"]),
    ] {
        assert!(matches!(decode(&hex(&parts)), Err(DecodeError::Undecodable(_))), "{why}");
    }
}

#[test]
fn wire_refuses_every_record_that_is_cut_off() {
    for golden in golden_records() {
        for len in 0..golden.len() {
            assert!(
                matches!(decode(&golden[..len]), Err(DecodeError::Undecodable(_))),
                "{len} of {} bytes",
                golden.len()
            );
        }
    }
}

// ---- any bytes ----------------------------------------------------------------------------------------------------------------

#[test]
fn wire_never_panics_on_damaged_records() {
    let goldens = golden_records();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut good = 0;
    for _ in 0..60_000 {
        let mut bytes = goldens[random.below(goldens.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.byte(),
                1 => bytes[at] ^= 1 << random.below(8),
                2 => bytes.insert(at, random.byte()),
                _ => drop(bytes.remove(at)),
            }
        }
        good += usize::from(assert_reads_like_its_own(&bytes));
    }
    assert!(good > 1000, "the damage is too heavy to reach the inside of records: {good} read");
}

#[test]
fn wire_never_panics_on_random_bytes() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let headers = [hex(&[]), hex(&["4653 01"]), hex(&["4653 01 0100 01 61"]), hex(&[HEADER_OF_ONE])];
    for _ in 0..60_000 {
        let mut bytes = headers[random.below(headers.len())].clone();
        // Small bytes are lengths, kinds and presence bytes; others are noise.
        let is_small = random.below(2) == 0;
        for _ in 0..random.below(80) {
            bytes.push(if is_small { random.byte() % 8 } else { random.byte() });
        }
        assert_reads_like_its_own(&bytes);
    }
}

/// Reads bytes that may be anything. What was read must be as good as what the front door lets in: written again, it reads the same.
fn assert_reads_like_its_own(bytes: &[u8]) -> bool {
    let Ok(record) = decode(bytes) else { return false };
    let good: Vec<Sent> = record
        .commands
        .into_iter()
        .filter_map(|Envelope { received_at_us, request_id, command }| {
            let command = command.ok()?;
            Some(Sent { received_at_us, request_id, command })
        })
        .collect();
    if good.is_empty() {
        return false;
    }
    let again = decode(&encode(&record.sku, good.iter()).expect("what was read can be written"));
    assert_eq!(again.expect("what was written can be read").commands, record_of(&good).commands, "{bytes:02x?}");
    true
}

// ---- boundaries ---------------------------------------------------------------------------------------------------------------

/// These bytes, for ever: written so, and read so.
#[track_caller]
fn check_golden(parts: &[&str], sent: &[Sent]) {
    let bytes = hex(parts);
    assert_eq!(encode(&sku(), sent.iter()).map(|b| hex_text(&b)), Ok(hex_text(&bytes)), "written: {sent:?}");
    assert_eq!(decode(&bytes), Ok(record_of(sent)), "read");
}

fn hex_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn golden_records() -> Vec<Vec<u8>> {
    let (texts, _): (Vec<&str>, Vec<Sent>) = goldens().into_iter().unzip();
    let all = format!("4653 01 {:02x}00 0a 736e65616b65722d3432", texts.len());
    let mut records: Vec<Vec<u8>> = texts.iter().map(|text| hex(&[HEADER_OF_ONE, text])).collect();
    records.push(hex(&[&[&*all], &texts[..]].concat()));
    records
}

fn sent() -> impl Strategy<Value = Sent> {
    let command = prop_oneof![
        any_reserve(),
        any_change(),
        any_adjust(),
        any_configure(),
        any_pause(),
        any::<u128>().prop_map(|id| Command::Tick(Tick { id: Uuid::from_u128(id), sku: sku() })),
    ];
    let request_id = prop_oneof![Just(String::new()), "[ -~]{1,128}", "\\PC{0,32}"];
    (any::<i64>(), request_id, command).prop_map(|(received_at_us, request_id, command)| Sent {
        received_at_us,
        request_id,
        command,
    })
}

fn any_reserve() -> impl Strategy<Value = Command> {
    let metadata = prop::option::of(prop::collection::btree_map("[a-z]{1,5}", "[ -~]{0,8}", 0..10));
    let body = ("[A-Za-z0-9._:-]{1,64}", 1..=limits::QUANTITY_MAX, metadata);
    (any::<u128>(), body).prop_map(|(id, (user, quantity, metadata))| {
        let user = UserId::parse(&user).expect("legal");
        let quantity = Quantity::new(quantity).expect("legal");
        let metadata = metadata.map(|map| {
            let text = serde_json::to_string(&map).expect("a map of texts");
            Metadata::parse(&text).expect("at most ten small members")
        });
        Command::Reserve(Reserve { id: Uuid::from_u128(id), user, sku: sku(), quantity, metadata })
    })
}

fn any_note() -> impl Strategy<Value = Note> {
    "\\PC{1,200}".prop_filter_map("no control characters", |text| Note::parse(&text).ok())
}

fn any_key_id() -> impl Strategy<Value = Option<Uuid>> {
    prop::option::of(any::<u128>().prop_map(Uuid::from_u128))
}

/// Confirm, cancel or extend.
fn any_change() -> impl Strategy<Value = Command> {
    let body = ("[ -~]{1,128}", prop::option::of(any_note()), 1..=limits::HOLD_SECONDS_MAX);
    let ids = (any::<u128>(), any::<u128>(), any_key_id());
    (0..3u8, ids, body).prop_map(|(kind, (id, reservation, key_id), (payment, note, seconds))| {
        let (id, reservation, sku) = (Uuid::from_u128(id), Uuid::from_u128(reservation), sku());
        let payment_ref = PaymentRef::parse(&payment).expect("legal");
        match kind {
            0 => Command::Confirm(Confirm { id, reservation, sku, payment_ref, key_id }),
            1 => Command::Cancel(Cancel { id, reservation, sku, note }),
            _ => Command::Extend(Extend { id, reservation, sku, seconds }),
        }
    })
}

fn any_adjust() -> impl Strategy<Value = Command> {
    let stock = || 0..=limits::ON_HAND_MAX;
    let change = prop_oneof![
        (1..=limits::ON_HAND_MAX).prop_map(StockChange::By),
        (-limits::ON_HAND_MAX..=-1).prop_map(StockChange::By),
        (stock(), stock()).prop_map(|(compare_on_hand, on_hand)| StockChange::To { compare_on_hand, on_hand }),
    ];
    let names = (any::<u128>(), prop::option::of("[ -~]{1,128}"), any_key_id());
    (names, change, any_note()).prop_map(|((id, reference, key_id), change, note)| {
        let reference = reference.map(|text| Reference::parse(&text).expect("legal"));
        Command::Adjust(Adjust { id: Uuid::from_u128(id), sku: sku(), change, note, reference, key_id })
    })
}

fn any_pause() -> impl Strategy<Value = Command> {
    (any::<u128>(), 1..i64::MAX, any::<bool>(), prop::option::of(any_note())).prop_map(
        |(id, seen_version, pauses, note)| {
            Command::Pause(Pause { id: Uuid::from_u128(id), sku: sku(), seen_version, pauses, note })
        },
    )
}

fn any_configure() -> impl Strategy<Value = Command> {
    let window = (prop::option::of(0..10i64.pow(13)), prop::option::of(1..10i64.pow(10)));
    let settings =
        (1..=limits::USER_LIMIT_MAX, limits::HOLD_SECONDS_MIN..=limits::HOLD_SECONDS_MAX, window, any::<bool>());
    let identity = (any::<u128>(), 0..limits::PARTITIONS_MAX, 1..i64::MAX, prop::option::of(0..=limits::ON_HAND_MAX));
    (identity, settings, prop::option::of(any::<i64>())).prop_map(
        |((id, pin, seen_version, on_hand), (user_limit, hold_seconds, window, is_strict), patch_hash)| {
            let (starts_at, open_for) = window;
            let settings = Settings {
                user_limit,
                hold_seconds,
                starts_at,
                ends_at: open_for.map(|open_for| starts_at.unwrap_or(0) + open_for),
                late_payment: if is_strict { LatePayment::Reject } else { LatePayment::Rereserve },
                ..Settings::default()
            };
            let (id, sku) = (Uuid::from_u128(id), sku());
            Command::Configure(Configure { id, sku, pin, seen_version, on_hand, settings, patch_hash })
        },
    )
}

/// Xorshift: the same bytes in every run, and fast enough for many.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).expect("small")).expect("small")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}
