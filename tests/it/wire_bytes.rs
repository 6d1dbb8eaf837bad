//! The bytes of the log: what they are for ever, and that nothing that stands in a log can break its reader.
//!
//! A change that turns one of the golden tests red makes old logs unreadable: it needs a new version number instead.

use flashsale::ids::{Quantity, SkuId, UserId};
use flashsale::inventory::{Command, Configure, LatePayment, PoisonReason, Reserve, Settings, Unfit};
use flashsale::limits;
use flashsale::wire::{DecodeError, EncodeError, Envelope, Record, Sent, decode, digest, encode};
use proptest::prelude::*;
use uuid::Uuid;

// ---- golden bytes of version 1 ------------------------------------------------------------------------------------------------

const HEADER_OF_ONE: &str = "
    4653                     # FS
    01                       # version
    0100                     # one command
    0a 736e65616b65722d3432  # sneaker-42
";

const RESERVE: &str = "
    2700                              # 39 bytes follow
    01                                # reserve
    01990000 0000 7000 8000 000000000001
    01287a6cc6600600                  # received 2026-11-21T10:00:00.000001Z, in microseconds
    05 7265712d31                     # req-1
    03 752d31                         # u-1
    02000000                          # 2 units
";

const CONFIGURE_WITH_EVERYTHING: &str = "
    5500                              # 85 bytes follow
    02                                # configure
    01990000 0000 7000 8000 000000000002
    01287a6cc6600600
    05 7265712d31                     # req-1
    0900                              # pinned to partition 9
    0100000000000000                  # saw version 1
    01 6400000000000000               # 100 units
    02000000 78000000                 # limit 2, hold 120 s
    01 00698cfda1010000               # starts 2026-11-21T10:00:00.000Z, in milliseconds
    01 8157c3fda1010000               # ends an hour and a millisecond later
    01                                # late payments are rejected
    03000000 58020000                 # 3 extensions, 600 s
";

const CONFIGURE_WITH_NOTHING_OPTIONAL: &str = "
    3800                              # 56 bytes follow
    02
    01990000 0000 7000 8000 000000000003
    0000000000000000
    00                                # no request id
    0000                              # pinned to partition 0
    0700000000000000                  # saw version 7
    00                                # stock not stated
    01000000 0a000000                 # limit 1, hold 10 s
    00                                # open at once
    00                                # no end
    00                                # late payments are reserved again
    00000000 00000000                 # no extensions
";

#[test]
fn wire_golden_reserve() {
    check_golden(&[HEADER_OF_ONE, RESERVE], &[reserve_sent()]);
}

#[test]
fn wire_golden_configure() {
    check_golden(&[HEADER_OF_ONE, CONFIGURE_WITH_EVERYTHING], &[configure_sent()]);
    check_golden(&[HEADER_OF_ONE, CONFIGURE_WITH_NOTHING_OPTIONAL], &[bare_configure_sent()]);
}

#[test]
fn wire_golden_record_of_fifty_commands() {
    let mut parts = vec!["4653 01 3200 0a 736e65616b65722d3432"];
    parts.extend([RESERVE; 50]);
    check_golden(&parts, &vec![reserve_sent(); 50]);
}

#[test]
fn wire_golden_record_of_both_kinds() {
    let parts =
        ["4653 01 0300 0a 736e65616b65722d3432", CONFIGURE_WITH_EVERYTHING, RESERVE, CONFIGURE_WITH_NOTHING_OPTIONAL];
    check_golden(&parts, &[configure_sent(), reserve_sent(), bare_configure_sent()]);
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
    for golden in goldens() {
        for len in 0..golden.len() {
            assert!(
                matches!(decode(&golden[..len]), Err(DecodeError::Undecodable(_))),
                "{len} of {} bytes",
                golden.len()
            );
        }
    }
}

// ---- one bad command ----------------------------------------------------------------------------------------------------------

#[test]
fn wire_lets_a_bad_command_cost_none_of_its_neighbours() {
    let good = command_bytes(RESERVE);
    for (why, bad) in [
        ("an unknown kind", changed(&good, 0, &[9])),
        ("kind 0", changed(&good, 0, &[0])),
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
fn wire_takes_no_part_of_a_command_for_a_command() {
    for golden in [RESERVE, CONFIGURE_WITH_EVERYTHING, CONFIGURE_WITH_NOTHING_OPTIONAL] {
        let good = command_bytes(golden);
        let id = Uuid::from_slice(&good[1..17]).expect("16 bytes");
        for len in 0..good.len() {
            check_bad_command(&format!("{len} of {} bytes", good.len()), &good[..len], (len >= 17).then_some(id));
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
    for (golden, sent) in [
        (RESERVE, reserve_sent()),
        (CONFIGURE_WITH_EVERYTHING, configure_sent()),
        (CONFIGURE_WITH_NOTHING_OPTIONAL, bare_configure_sent()),
    ] {
        for appended in [&[0][..], &[0xff; 3], b"anything at all"] {
            let longer = [&command_bytes(golden)[..], appended].concat();
            let bytes = record_bytes(&[&command_bytes(RESERVE), &longer, &command_bytes(RESERVE)]);
            assert_eq!(decode(&bytes), Ok(record_of(&[reserve_sent(), sent.clone(), reserve_sent()])));
        }
    }
}

// ---- any bytes ----------------------------------------------------------------------------------------------------------------

#[test]
fn wire_never_panics_on_damaged_records() {
    let goldens = goldens();
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
    assert_eq!(encode(&sku(), sent.iter()).map(|b| hex_text(&b)), Ok(hex_text(&bytes)), "written");
    assert_eq!(decode(&bytes), Ok(record_of(sent)), "read");
}

/// Between two good commands, this one is unfit and the others are not.
#[track_caller]
fn check_bad_command(why: &str, bad: &[u8], id: Option<Uuid>) {
    let bytes = record_bytes(&[&command_bytes(RESERVE), bad, &command_bytes(CONFIGURE_WITH_EVERYTHING)]);
    let record = decode(&bytes).unwrap_or_else(|error| panic!("{why}: {error}"));
    let good = record_of(&[reserve_sent(), configure_sent()]).commands;
    assert_eq!([&record.commands[0], &record.commands[2]], [&good[0], &good[1]], "{why}: the neighbours");
    assert_eq!(record.commands[1].command, Err(Unfit { id, reason: PoisonReason::Malformed }), "{why}");
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

/// Hexadecimal digits; spaces mean nothing, and what follows `#` on a line is a comment.
fn hex(parts: &[&str]) -> Vec<u8> {
    let lines = parts.iter().flat_map(|part| part.lines()).map(|line| line.split('#').next().unwrap_or(""));
    let digits: Vec<u8> =
        lines.flat_map(str::chars).filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).expect("under 16")).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn hex_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn goldens() -> Vec<Vec<u8>> {
    let mixed =
        ["4653 01 0300 0a 736e65616b65722d3432", RESERVE, CONFIGURE_WITH_EVERYTHING, CONFIGURE_WITH_NOTHING_OPTIONAL];
    vec![hex(&[HEADER_OF_ONE, RESERVE]), hex(&[HEADER_OF_ONE, CONFIGURE_WITH_EVERYTHING]), hex(&mixed)]
}

/// A golden command without its size.
fn command_bytes(golden: &str) -> Vec<u8> {
    hex(&[golden]).split_off(2)
}

fn record_bytes(commands: &[&[u8]]) -> Vec<u8> {
    let count = u16::try_from(commands.len()).expect("few");
    let mut bytes = [b"FS\x01", &count.to_le_bytes()[..], b"\x0asneaker-42"].concat();
    for command in commands {
        bytes.extend(u16::try_from(command.len()).expect("short").to_le_bytes());
        bytes.extend_from_slice(command);
    }
    bytes
}

fn changed(bytes: &[u8], at: usize, to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

fn record_of(sent: &[Sent]) -> Record {
    let commands = sent.iter().map(|sent| Envelope {
        received_at_us: sent.received_at_us,
        request_id: sent.request_id.clone(),
        command: Ok(sent.command.clone()),
    });
    Record { sku: sku(), commands: commands.collect() }
}

fn sku() -> SkuId {
    SkuId::parse("sneaker-42").expect("legal")
}

fn golden_id(last: u128) -> Uuid {
    Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0000 + last)
}

fn reserve_sent() -> Sent {
    let user = UserId::parse("u-1").expect("legal");
    let quantity = Quantity::new(2).expect("legal");
    let command = Command::Reserve(Reserve { id: golden_id(1), user, sku: sku(), quantity, metadata: None });
    Sent { received_at_us: 1_795_255_200_000_001, request_id: "req-1".to_owned(), command }
}

fn configure() -> Configure {
    let settings = Settings {
        user_limit: 2,
        hold_seconds: 120,
        starts_at: Some(1_795_255_200_000),
        ends_at: Some(1_795_258_800_001),
        late_payment: LatePayment::Reject,
        extensions_max: 3,
        extension_seconds_max: 600,
    };
    Configure { id: golden_id(2), sku: sku(), pin: 9, seen_version: 1, on_hand: Some(100), settings }
}

fn configure_sent() -> Sent {
    Sent { command: Command::Configure(configure()), ..reserve_sent() }
}

fn bare_configure_sent() -> Sent {
    let settings = Settings {
        user_limit: 1,
        hold_seconds: 10,
        starts_at: None,
        ends_at: None,
        late_payment: LatePayment::Rereserve,
        extensions_max: 0,
        extension_seconds_max: 0,
    };
    let bare = Configure { id: golden_id(3), sku: sku(), pin: 0, seen_version: 7, on_hand: None, settings };
    Sent { received_at_us: 0, request_id: String::new(), command: Command::Configure(bare) }
}

fn sent() -> impl Strategy<Value = Sent> {
    let command = prop_oneof![any_reserve(), any_configure()];
    let request_id = prop_oneof![Just(String::new()), "[ -~]{1,128}", "\\PC{0,32}"];
    (any::<i64>(), request_id, command).prop_map(|(received_at_us, request_id, command)| Sent {
        received_at_us,
        request_id,
        command,
    })
}

fn any_reserve() -> impl Strategy<Value = Command> {
    (any::<u128>(), "[A-Za-z0-9._:-]{1,64}", 1..=limits::QUANTITY_MAX).prop_map(|(id, user, quantity)| {
        let user = UserId::parse(&user).expect("legal");
        let quantity = Quantity::new(quantity).expect("legal");
        Command::Reserve(Reserve { id: Uuid::from_u128(id), user, sku: sku(), quantity, metadata: None })
    })
}

fn any_configure() -> impl Strategy<Value = Command> {
    let window = (prop::option::of(0..10i64.pow(13)), prop::option::of(1..10i64.pow(10)));
    let settings =
        (1..=limits::USER_LIMIT_MAX, limits::HOLD_SECONDS_MIN..=limits::HOLD_SECONDS_MAX, window, any::<bool>());
    let identity = (any::<u128>(), 0..limits::PARTITIONS_MAX, 1..i64::MAX, prop::option::of(0..=limits::ON_HAND_MAX));
    (identity, settings).prop_map(
        |((id, pin, seen_version, on_hand), (user_limit, hold_seconds, window, is_strict))| {
            let (starts_at, open_for) = window;
            let settings = Settings {
                user_limit,
                hold_seconds,
                starts_at,
                ends_at: open_for.map(|open_for| starts_at.unwrap_or(0) + open_for),
                late_payment: if is_strict { LatePayment::Reject } else { LatePayment::Rereserve },
                ..Settings::default()
            };
            Command::Configure(Configure { id: Uuid::from_u128(id), sku: sku(), pin, seen_version, on_hand, settings })
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
