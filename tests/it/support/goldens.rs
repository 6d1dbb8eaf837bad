//! Golden bytes of the log: what commands look like for ever, at least one of each kind.

use flashsale::ids::{Metadata, Note, PaymentRef, Quantity, Reference, SkuId, UserId};
use flashsale::inventory::{
    Adjust, Cancel, Command, Configure, Confirm, Extend, LatePayment, Pause, Reserve, Settings, StockChange, Tick,
};
use flashsale::wire::{Envelope, Record, Sent};
use uuid::Uuid;

pub const HEADER_OF_ONE: &str = "
    4653                     # FS
    01                       # version
    0100                     # one command
    0a 736e65616b65722d3432  # sneaker-42
";

pub const RESERVE: &str = "
    2700                              # 39 bytes follow
    01                                # reserve
    01990000 0000 7000 8000 000000000001
    01287a6cc6600600                  # received 2026-11-21T10:00:00.000001Z, in microseconds
    05 7265712d31                     # req-1
    03 752d31                         # u-1
    02000000                          # 2 units
";

pub const RESERVE_WITH_METADATA: &str = "
    3500                              # 53 bytes follow
    01
    01990000 0000 7000 8000 000000000001
    01287a6cc6600600
    05 7265712d31
    03 752d31
    02000000
    0c00 7b2263617274223a2237227d     # {\"cart\":\"7\"}
";

pub const CONFIGURE_WITH_EVERYTHING: &str = "
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

pub const CONFIGURE_WITH_NOTHING_OPTIONAL: &str = "
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

pub const CONFIGURE_OF_A_PATCH: &str = "
    4100                              # 65 bytes follow
    02
    01990000 0000 7000 8000 000000000003
    0000000000000000
    00
    0000
    0700000000000000
    00
    01000000 0a000000
    00
    00
    00
    00000000 00000000
    01 feffffffffffffff               # the hash of what was to change
";

pub const CONFIRM: &str = "
    3500                              # 53 bytes follow
    03                                # confirm
    01990000 0000 7000 8000 000000000004
    01287a6cc6600600
    05 7265712d31
    01990000 0000 7000 8000 000000000001
    05 7061792d39                     # pay-9
";

pub const CONFIRM_WITH_KEY: &str = "
    4600                              # 70 bytes follow
    03
    01990000 0000 7000 8000 000000000004
    01287a6cc6600600
    05 7265712d31
    01990000 0000 7000 8000 000000000001
    05 7061792d39
    01 01990000 0000 7000 8000 00000000000a   # what its key alone would have given
";

pub const CANCEL: &str = "
    3100                              # 49 bytes follow
    04                                # cancel
    01990000 0000 7000 8000 000000000005
    01287a6cc6600600
    05 7265712d31
    01990000 0000 7000 8000 000000000001
    0000                              # no note
";

pub const CANCEL_WITH_NOTE: &str = "
    3800                              # 56 bytes follow
    04
    01990000 0000 7000 8000 000000000005
    01287a6cc6600600
    05 7265712d31
    01990000 0000 7000 8000 000000000001
    0700 77687920 e282ac              # why, and a character of three bytes
";

pub const EXTEND: &str = "
    3300                              # 51 bytes follow
    05                                # extend
    01990000 0000 7000 8000 000000000006
    01287a6cc6600600
    05 7265712d31
    01990000 0000 7000 8000 000000000001
    3c000000                          # by 60 s
";

pub const ADJUST_BY: &str = "
    3200                              # 50 bytes follow
    06                                # adjust
    01990000 0000 7000 8000 000000000007
    01287a6cc6600600
    05 7265712d31
    00 fbffffffffffffff               # whatever the stock is: 5 units less
    0700 726573746f636b               # restock
    00                                # no reference
";

pub const ADJUST_TO: &str = "
    3f00                              # 63 bytes follow
    06
    01990000 0000 7000 8000 000000000007
    01287a6cc6600600
    05 7265712d31
    01 6400000000000000               # if there are 100
    6200000000000000                  # then 98
    0700 7265636f756e74               # recount
    05 706f2d3737                     # po-77
";

pub const ADJUST_WITH_KEY: &str = "
    5000                              # 80 bytes follow
    06
    01990000 0000 7000 8000 000000000007
    01287a6cc6600600
    05 7265712d31
    01 6400000000000000
    6200000000000000
    0700 7265636f756e74
    05 706f2d3737                     # po-77
    01 01990000 0000 7000 8000 00000000000a   # what its key alone would have given
";

pub const PAUSE: &str = "
    2a00                              # 42 bytes follow
    07                                # pause
    01990000 0000 7000 8000 000000000008
    01287a6cc6600600
    05 7265712d31
    0300000000000000                  # saw version 3
    01                                # pause
    0000                              # no note
";

pub const RESUME: &str = "
    2c00                              # 44 bytes follow
    07
    01990000 0000 7000 8000 000000000008
    01287a6cc6600600
    05 7265712d31
    0400000000000000                  # saw version 4
    00                                # resume
    0200 676f                         # go
";

pub const TICK: &str = "
    1f00                              # 31 bytes follow
    08                                # tick
    01990000 0000 7000 8000 000000000009
    01287a6cc6600600
    05 7265712d31
";

/// Golden commands that end where others go on with a field that was appended later, with those others.
pub const SHORTER: [(&str, &str); 4] = [
    (RESERVE, RESERVE_WITH_METADATA),
    (CONFIGURE_WITH_NOTHING_OPTIONAL, CONFIGURE_OF_A_PATCH),
    (CONFIRM, CONFIRM_WITH_KEY),
    (ADJUST_TO, ADJUST_WITH_KEY),
];

/// Every golden command: its bytes, and what they say.
pub fn goldens() -> Vec<(&'static str, Sent)> {
    vec![
        (RESERVE, reserve_sent()),
        (RESERVE_WITH_METADATA, of(Command::Reserve(Reserve { metadata: Some(cart()), ..reserve() }))),
        (CONFIGURE_WITH_EVERYTHING, configure_sent()),
        (CONFIGURE_WITH_NOTHING_OPTIONAL, bare_configure_sent(None)),
        (CONFIGURE_OF_A_PATCH, bare_configure_sent(Some(-2))),
        (CONFIRM, of(Command::Confirm(confirm()))),
        (CONFIRM_WITH_KEY, of(Command::Confirm(Confirm { key_id: Some(golden_id(10)), ..confirm() }))),
        (CANCEL, of(Command::Cancel(Cancel { note: None, ..cancel() }))),
        (CANCEL_WITH_NOTE, of(Command::Cancel(cancel()))),
        (EXTEND, of(Command::Extend(extend()))),
        (ADJUST_BY, of(Command::Adjust(Adjust { change: StockChange::By(-5), ..adjust("restock", None) }))),
        (ADJUST_TO, of(Command::Adjust(adjust("recount", Some("po-77"))))),
        (
            ADJUST_WITH_KEY,
            of(Command::Adjust(Adjust { key_id: Some(golden_id(10)), ..adjust("recount", Some("po-77")) })),
        ),
        (PAUSE, of(Command::Pause(pause()))),
        (RESUME, of(Command::Pause(Pause { seen_version: 4, pauses: false, note: Some(note("go")), ..pause() }))),
        (TICK, of(Command::Tick(Tick { id: golden_id(9), sku: sku() }))),
    ]
}

/// Hexadecimal digits; spaces mean nothing, and what follows `#` on a line is a comment.
pub fn hex(parts: &[&str]) -> Vec<u8> {
    let lines = parts.iter().flat_map(|part| part.lines()).map(|line| line.split('#').next().unwrap_or(""));
    let digits: Vec<u8> =
        lines.flat_map(str::chars).filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).expect("under 16")).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A golden command without its size.
pub fn command_bytes(golden: &str) -> Vec<u8> {
    hex(&[golden]).split_off(2)
}

/// A record of commands that may be anything.
pub fn record_bytes(commands: &[&[u8]]) -> Vec<u8> {
    let count = u16::try_from(commands.len()).expect("few");
    let mut bytes = [b"FS\x01", &count.to_le_bytes()[..], b"\x0asneaker-42"].concat();
    for command in commands {
        bytes.extend(u16::try_from(command.len()).expect("short").to_le_bytes());
        bytes.extend_from_slice(command);
    }
    bytes
}

/// What is read where this was written.
pub fn record_of(sent: &[Sent]) -> Record {
    let commands = sent.iter().map(|sent| Envelope {
        received_at_us: sent.received_at_us,
        request_id: sent.request_id.clone(),
        command: Ok(sent.command.clone()),
    });
    Record { sku: sku(), commands: commands.collect() }
}

pub fn sku() -> SkuId {
    SkuId::parse("sneaker-42").expect("legal")
}

pub fn golden_id(last: u128) -> Uuid {
    Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0000 + last)
}

pub fn note(text: &str) -> Note {
    Note::parse(text).expect("legal")
}

fn of(command: Command) -> Sent {
    Sent { received_at_us: 1_795_255_200_000_001, request_id: "req-1".to_owned(), command }
}

fn cart() -> Metadata {
    Metadata::parse(r#"{"cart":"7"}"#).expect("legal")
}

pub fn reserve() -> Reserve {
    let user = UserId::parse("u-1").expect("legal");
    let quantity = Quantity::new(2).expect("legal");
    Reserve { id: golden_id(1), user, sku: sku(), quantity, metadata: None }
}

pub fn reserve_sent() -> Sent {
    of(Command::Reserve(reserve()))
}

pub fn confirm() -> Confirm {
    let payment_ref = PaymentRef::parse("pay-9").expect("legal");
    Confirm { id: golden_id(4), reservation: golden_id(1), sku: sku(), payment_ref, key_id: None }
}

pub fn cancel() -> Cancel {
    Cancel { id: golden_id(5), reservation: golden_id(1), sku: sku(), note: Some(note("why €")) }
}

pub fn extend() -> Extend {
    Extend { id: golden_id(6), reservation: golden_id(1), sku: sku(), seconds: 60 }
}

/// To 98 units, if there are 100.
pub fn adjust(text: &str, reference: Option<&str>) -> Adjust {
    let reference = reference.map(|text| Reference::parse(text).expect("legal"));
    let change = StockChange::To { compare_on_hand: 100, on_hand: 98 };
    Adjust { id: golden_id(7), sku: sku(), change, note: note(text), reference, key_id: None }
}

pub fn pause() -> Pause {
    Pause { id: golden_id(8), sku: sku(), seen_version: 3, pauses: true, note: None }
}

pub fn configure() -> Configure {
    let settings = Settings {
        user_limit: 2,
        hold_seconds: 120,
        starts_at: Some(1_795_255_200_000),
        ends_at: Some(1_795_258_800_001),
        late_payment: LatePayment::Reject,
        extensions_max: 3,
        extension_seconds_max: 600,
    };
    Configure { id: golden_id(2), sku: sku(), pin: 9, seen_version: 1, on_hand: Some(100), settings, patch_hash: None }
}

pub fn configure_sent() -> Sent {
    of(Command::Configure(configure()))
}

fn bare_configure_sent(patch_hash: Option<i64>) -> Sent {
    let settings = Settings {
        user_limit: 1,
        hold_seconds: 10,
        starts_at: None,
        ends_at: None,
        late_payment: LatePayment::Rereserve,
        extensions_max: 0,
        extension_seconds_max: 0,
    };
    let bare = Configure { id: golden_id(3), sku: sku(), pin: 0, seen_version: 7, on_hand: None, settings, patch_hash };
    Sent { received_at_us: 0, request_id: String::new(), command: Command::Configure(bare) }
}
