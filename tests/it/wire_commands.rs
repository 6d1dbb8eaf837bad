//! One command of a record: every field is checked as at the front door, and a bad one costs its neighbours nothing.

use flashsale::inventory::{Adjust, Command, Configure, Confirm, PoisonReason, Reserve, Settings, Unfit};
use flashsale::wire::{Sent, decode, encode};
use uuid::Uuid;

use crate::support::goldens::{
    ADJUST_BY, ADJUST_TO, CANCEL_WITH_NOTE, CONFIGURE_WITH_EVERYTHING, CONFIRM, EXTEND, PAUSE, RESERVE, SHORTER,
    command_bytes, configure, configure_sent, goldens, hex, record_bytes, record_of, reserve_sent, sku,
};

/// Where the body of a golden command begins: after kind, id, time and request id.
const BODY: usize = 31;
/// Where the body of one that names a reservation goes on.
const AFTER_RESERVATION: usize = BODY + 16;

#[test]
fn wire_lets_a_bad_command_cost_none_of_its_neighbours() {
    let good = command_bytes(RESERVE);
    for (why, bad) in [
        ("no units", changed(&good, good.len() - 4, &[0; 4])),
        ("1001 units", changed(&good, good.len() - 4, &1001u32.to_le_bytes())),
        ("a user with a space", changed(&good, good.len() - 5, b" ")),
        ("a user that is not UTF-8", changed(&good, good.len() - 5, &[0xff])),
        ("a user without a name", changed(&good, good.len() - 8, &[0])),
        ("a request id that is not UTF-8", changed(&good, 30, &[0xff])),
    ] {
        check_bad_command(why, &bad, Some(reserve_sent().command.id()));
    }
}

#[test]
fn wire_knows_no_kind_without_golden_bytes() {
    let known: Vec<u8> = goldens().iter().map(|(golden, _)| command_bytes(golden)[0]).collect();
    for kind in (0..=u8::MAX).filter(|kind| !known.contains(kind)) {
        for (golden, sent) in goldens() {
            check_bad_command(
                &format!("kind {kind}"),
                &changed(&command_bytes(golden), 0, &[kind]),
                Some(sent.command.id()),
            );
        }
    }
}

#[test]
fn wire_takes_no_part_of_a_command_for_a_command() {
    for (golden, sent) in goldens() {
        let good = command_bytes(golden);
        let shorter =
            SHORTER.iter().find(|(_, longer)| *longer == golden).map(|(shorter, _)| command_bytes(shorter).len());
        for len in (0..good.len()).filter(|len| Some(*len) != shorter) {
            let id = (len >= 17).then_some(sent.command.id());
            check_bad_command(&format!("{len} of {} bytes of {}", good.len(), sent.command.kind()), &good[..len], id);
        }
    }
    // 7 bytes stand where 8 of a time should, and happen to read like a request id, a user and a quantity.
    let id = "01990000 0000 7000 8000 000000000001";
    let short = hex(&["01", id, "00 01 61 01000000"]);
    check_bad_command("no time", &short, Some(Uuid::from_slice(&short[1..17]).expect("16 bytes")));
    // A request id longer than the rest, which happens to read like a user and a quantity.
    let long = hex(&["01", id, "01287a6cc6600600", "ff", "01 61 01000000"]);
    check_bad_command("a request id cut off", &long, Some(Uuid::from_slice(&long[1..17]).expect("16 bytes")));
}

/// Tails that may stand in a field of free text.
fn bad_notes() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a note of 201 characters", long("x".repeat(201).as_bytes())),
        ("a note with a line feed", long(b"a\nb")),
        ("a note with a zero", long(b"a\0b")),
        ("a note with a control character of two bytes", long("a\u{85}".as_bytes())),
        ("a note that is not UTF-8", long(&[0xc3])),
        ("a note longer than its command", vec![9, 0, b'a']),
        ("a note with half a length", vec![0]),
        ("no note, not even its length", vec![]),
    ]
}

#[test]
fn wire_takes_no_metadata_on_trust() {
    let good = command_bytes(RESERVE);
    let with = |metadata: &[u8]| [&good[..], &long(metadata)].concat();
    let members = |count: usize| {
        let members: Vec<String> = (0..count).map(|n| format!("\"{n}\":\"\"")).collect();
        format!("{{{}}}", members.join(","))
    };
    let of_bytes = |count: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(count - 8));
    for (why, metadata) in
        [("an empty object", "{}".to_owned()), ("ten members", members(10)), ("500 bytes", of_bytes(500))]
    {
        check_good_command(why, &with(metadata.as_bytes()));
    }
    for (why, metadata) in [
        ("no object", b"[]".to_vec()),
        ("not JSON", b"{".to_vec()),
        ("a number", b"{\"a\":1}".to_vec()),
        ("an object inside", b"{\"a\":{}}".to_vec()),
        ("a null", b"{\"a\":null}".to_vec()),
        ("eleven members", members(11).into_bytes()),
        ("501 bytes", of_bytes(501).into_bytes()),
        ("not UTF-8", b"{\"a\":\"\xff\"}".to_vec()),
        ("something behind it", b"{}{}".to_vec()),
    ] {
        check_bad_command(why, &with(&metadata), Some(reserve_sent().command.id()));
    }
    check_bad_command(
        "longer than its command",
        &[&good[..], &[9, 0, b'{']].concat(),
        Some(reserve_sent().command.id()),
    );
    // As earlier builds wrote it, and explicitly none: both are none.
    assert_eq!(read(&good), read(&with(b"")));
    assert_eq!(read(&good), Ok(reserve_sent().command));
}

#[test]
fn wire_takes_no_payment_on_trust() {
    let with = |payment_ref: &[u8]| [&command_bytes(CONFIRM)[..AFTER_RESERVATION], &short(payment_ref)].concat();
    for good in ["x", " ", "~", &"x".repeat(128), "pay 9"] {
        check_good_command(good, &with(good.as_bytes()));
    }
    for bad in ["", &"x".repeat(129), "a\n", "a\0", "\u{7f}", "é"] {
        check_bad_body(bad, &with(bad.as_bytes()));
    }
    check_bad_body("not UTF-8", &with(&[0xff]));
    check_bad_body("longer than its command", &[&command_bytes(CONFIRM)[..AFTER_RESERVATION], &[9, b'a']].concat());
}

#[test]
fn wire_takes_no_key_and_no_patch_on_trust() {
    for (shorter, longer) in &SHORTER[1..] {
        let (bare, whole) = (command_bytes(shorter), command_bytes(longer));
        check_bad_body("a presence of 2", &changed(&whole, bare.len(), &[2]));
        assert_eq!(read(&[&bare[..], &[0]].concat()), read(&bare), "explicitly none is none");
    }
}

#[test]
fn wire_takes_no_cancel_on_trust() {
    let head = command_bytes(CANCEL_WITH_NOTE)[..AFTER_RESERVATION].to_vec();
    for (why, bad) in bad_notes() {
        check_bad_body(why, &[&head[..], &bad].concat());
    }
    for good in ["x".repeat(200), "\u{1f600}".repeat(200), " ".to_owned()] {
        check_good_command("a note of 1 to 200 characters", &[&head[..], &long(good.as_bytes())].concat());
    }
}

#[test]
fn wire_takes_no_extension_on_trust() {
    let with = |seconds: u32| changed(&command_bytes(EXTEND), AFTER_RESERVATION, &seconds.to_le_bytes());
    check_good_command("1 s", &with(1));
    check_good_command("4 h", &with(14_400));
    for bad in [0, 14_401, u32::MAX] {
        check_bad_body(&format!("{bad} s"), &with(bad));
    }
}

#[test]
fn wire_takes_no_adjustment_on_trust() {
    const MAX: i64 = 1_000_000_000;
    let by = |delta: i64| changed(&command_bytes(ADJUST_BY), BODY + 1, &delta.to_le_bytes());
    for good in [1, -1, MAX, -MAX] {
        check_good_command(&format!("by {good}"), &by(good));
    }
    for bad in [0, MAX + 1, -MAX - 1, i64::MAX, i64::MIN, i64::MIN + 1] {
        check_bad_body(&format!("by {bad}"), &by(bad));
    }
    let to = |is: i64, to: i64| {
        let counted = changed(&command_bytes(ADJUST_TO), BODY + 1, &is.to_le_bytes());
        changed(&counted, BODY + 9, &to.to_le_bytes())
    };
    for (is, then) in [(0, 0), (0, MAX), (MAX, 0), (5, 5)] {
        check_good_command(&format!("from {is} to {then}"), &to(is, then));
    }
    for (is, then) in [(-1, 5), (5, -1), (MAX + 1, 5), (5, MAX + 1), (i64::MIN, 5), (5, i64::MAX)] {
        check_bad_body(&format!("from {is} to {then}"), &to(is, then));
    }
    check_bad_body("a presence of 2", &changed(&command_bytes(ADJUST_TO), BODY, &[2]));

    let head = command_bytes(ADJUST_BY)[..BODY + 9].to_vec();
    let with = |note: &[u8], reference: &[u8]| [&head[..], note, reference].concat();
    for (why, bad) in bad_notes() {
        let is_cut_off = bad.len() < 2 || why.contains("longer");
        check_bad_body(why, &with(&bad, if is_cut_off { &[] } else { b"\0" }));
    }
    check_bad_body("no note", &with(&long(b""), &short(b"")));
    check_good_command("a reference of 128 characters", &with(&long(b"why"), &short("x".repeat(128).as_bytes())));
    for bad in ["x".repeat(129), "é".to_owned(), "a\n".to_owned()] {
        check_bad_body("a reference", &with(&long(b"why"), &short(bad.as_bytes())));
    }
    check_bad_body("no reference, not even its length", &with(&long(b"why"), b""));
}

#[test]
fn wire_takes_no_pause_on_trust() {
    let good = command_bytes(PAUSE);
    for version in [1, i64::MAX] {
        check_good_command("a version", &changed(&good, BODY, &version.to_le_bytes()));
    }
    for version in [0, -1, i64::MIN] {
        check_bad_body("a version", &changed(&good, BODY, &version.to_le_bytes()));
    }
    check_bad_body("neither pause nor resume", &changed(&good, BODY + 8, &[2]));
    for (why, bad) in bad_notes() {
        check_bad_body(why, &[&good[..BODY + 9], &bad].concat());
    }
}

#[test]
fn wire_takes_no_settings_on_trust() {
    let good = || Configure { seen_version: 0, on_hand: Some(5), ..configure() };
    let with = |settings: Settings| Configure { settings, ..good() };
    let usual = Settings::default;
    check_settings("the usual ones", &with(usual()), true);
    check_settings("limit 0", &with(Settings { user_limit: 0, ..usual() }), false);
    check_settings("limit 1000", &with(Settings { user_limit: 1000, ..usual() }), true);
    check_settings("limit 1001", &with(Settings { user_limit: 1001, ..usual() }), false);
    check_settings("hold 9 s", &with(Settings { hold_seconds: 9, ..usual() }), false);
    check_settings("hold 10 s", &with(Settings { hold_seconds: 10, ..usual() }), true);
    check_settings("hold 4 h", &with(Settings { hold_seconds: 14_400, ..usual() }), true);
    check_settings("hold over 4 h", &with(Settings { hold_seconds: 14_401, ..usual() }), false);
    check_settings("100 extensions", &with(Settings { extensions_max: 100, ..usual() }), true);
    check_settings("101 extensions", &with(Settings { extensions_max: 101, ..usual() }), false);
    check_settings("a day of extensions", &with(Settings { extension_seconds_max: 86_400, ..usual() }), true);
    check_settings("over a day of extensions", &with(Settings { extension_seconds_max: 86_401, ..usual() }), false);
    check_settings("open for 1 ms", &with(Settings { starts_at: Some(7), ends_at: Some(8), ..usual() }), true);
    check_settings("open for 0 ms", &with(Settings { starts_at: Some(8), ends_at: Some(8), ..usual() }), false);
    check_settings("ends before it starts", &with(Settings { starts_at: Some(9), ends_at: Some(8), ..usual() }), false);
    check_settings("starts in year 9999", &with(Settings { starts_at: Some(253_402_300_799_999), ..usual() }), true);
    check_settings(
        "starts after year 9999",
        &with(Settings { starts_at: Some(253_402_300_800_000), ..usual() }),
        false,
    );
    check_settings("starts before year 0", &with(Settings { starts_at: Some(-62_167_219_200_001), ..usual() }), false);
    check_settings("ends after all time", &with(Settings { ends_at: Some(i64::MAX), ..usual() }), false);
    check_settings("ends before all time", &with(Settings { ends_at: Some(i64::MIN), ..usual() }), false);
    check_settings("stock 0", &Configure { on_hand: Some(0), ..good() }, true);
    check_settings("stock below 0", &Configure { on_hand: Some(-1), ..good() }, false);
    check_settings("stock of 10^9", &Configure { on_hand: Some(1_000_000_000), ..good() }, true);
    check_settings("stock over 10^9", &Configure { on_hand: Some(1_000_000_001), ..good() }, false);
    check_settings("a creation without stock", &Configure { on_hand: None, ..good() }, false);
    check_settings("a change without stock", &Configure { seen_version: 1, on_hand: None, ..good() }, true);
    check_settings("a version below 0", &Configure { seen_version: -1, ..good() }, false);

    let bytes = command_bytes(CONFIGURE_WITH_EVERYTHING);
    let id = Uuid::from_slice(&bytes[1..17]).expect("16 bytes");
    check_bad_command("a third kind of late payment", &changed(&bytes, bytes.len() - 9, &[2]), Some(id));
    check_bad_command("a presence of 2", &changed(&bytes, 41, &[2]), Some(id));
}

#[test]
fn wire_skips_fields_that_a_later_build_appended() {
    for (golden, sent) in goldens() {
        // What may be left out at the end is written by such a build: no metadata, no key, no patch.
        let absent = match sent.command {
            Command::Reserve(Reserve { metadata: None, .. }) => &[0, 0][..],
            Command::Confirm(Confirm { key_id: None, .. })
            | Command::Adjust(Adjust { key_id: None, .. })
            | Command::Configure(Configure { patch_hash: None, .. }) => &[0],
            _ => &[],
        };
        let whole = [&command_bytes(golden)[..], absent].concat();
        for appended in [&[0][..], &[0xff; 3], b"anything at all"] {
            let longer = [&whole[..], appended].concat();
            let bytes = record_bytes(&[&command_bytes(RESERVE), &longer, &command_bytes(RESERVE)]);
            assert_eq!(decode(&bytes), Ok(record_of(&[reserve_sent(), sent.clone(), reserve_sent()])));
        }
    }
}

// ---- boundaries ---------------------------------------------------------------------------------------------------------------

/// Between two good commands, this one is unfit and the others are not.
#[track_caller]
fn check_bad_command(why: &str, bad: &[u8], id: Option<Uuid>) {
    let bytes = record_bytes(&[&command_bytes(RESERVE), bad, &command_bytes(CONFIGURE_WITH_EVERYTHING)]);
    let record = decode(&bytes).unwrap_or_else(|error| panic!("{why}: {error}"));
    let good = record_of(&[reserve_sent(), configure_sent()]).commands;
    assert_eq!([&record.commands[0], &record.commands[2]], [&good[0], &good[1]], "{why}: the neighbours");
    assert_eq!(record.commands[1].command, Err(Unfit { id, reason: PoisonReason::Malformed }), "{why}");
}

/// A command whose head is whole and whose body is bad.
#[track_caller]
fn check_bad_body(why: &str, bad: &[u8]) {
    check_bad_command(why, bad, Some(Uuid::from_slice(&bad[1..17]).expect("16 bytes")));
}

/// Read, and written again as it is.
#[track_caller]
fn check_good_command(why: &str, good: &[u8]) {
    let command = read(good).unwrap_or_else(|unfit| panic!("{why}: {unfit:?}"));
    let sent = Sent { command, ..reserve_sent() };
    assert_eq!(encode(&sku(), [sent].iter()), Ok(record_bytes(&[good])), "{why}");
}

fn read(command: &[u8]) -> Result<Command, Unfit> {
    decode(&record_bytes(&[command])).expect("a whole record").commands.remove(0).command
}

#[track_caller]
fn check_settings(why: &str, configure: &Configure, is_good: bool) {
    let command = Command::Configure(configure.clone());
    let sent = Sent { received_at_us: 0, request_id: String::new(), command: command.clone() };
    let record = decode(&encode(&sku(), [sent].iter()).expect("the writer trusts its caller")).expect("a whole record");
    let expected =
        if is_good { Ok(command) } else { Err(Unfit { id: Some(configure.id), reason: PoisonReason::Malformed }) };
    assert_eq!(record.commands[0].command, expected, "{why}");
}

fn changed(bytes: &[u8], at: usize, to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("short")], text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    [&u16::try_from(text.len()).expect("short").to_le_bytes()[..], text].concat()
}
