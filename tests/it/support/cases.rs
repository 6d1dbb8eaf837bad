//! Cases for `decide`, as text. Each line is a command and, after the arrow, what the writer must say about it.
//!
//! ```text
//! sku A on_hand=2 limit=1        a SKU that exists before the case; also hold= starts= ends= version= late=reject ext= ext_seconds= paused
//! held u1 A 1 / sold u1 A 1      units that a user already holds / owns
//! log_time 500                   the partition's last log time
//! r1 u1 A 1 -> RESERVED          reserve command r1: user u1 wants 1 of A
//! confirm k1 r1 A pay-1 -> CONFIRMED         command k1 pays for r1; also `cancel k2 r1 A note=...` and `extend k3 r1 A 60`;
//!                                            a confirm or an adjust that something else names says its key: `key=k9`
//! adjust a1 A by=5 -> ADJUSTED on_hand=7 reserved=1 sold=0           or `is=2 to=7`: to 7 units, if there are 2
//! configure c1 A seen=0 ... -> CREATED version=1
//! pause p1 A seen=1 -> CHANGED version=2     or `resume`
//! tick A -> TICKED released=1
//! bytes x1 -> MALFORMED          bytes that are no command, with an id that could be read (or without)
//! @700 r2 ...                    the record's log timestamp, in milliseconds; from here on (0 at first)
//! ---                            the batch ends here
//! settle                         the batch ends here, and the rows of ended holds say so
//! A is on_hand=2 reserved=1 sold=0 version=1 movements=2       the batch ends here, and that is what everybody reads then
//! r1 is RESERVED version=1 until=10000                         likewise
//! ```
//! `until=` (end of the hold) and `at=` (log time of the decision) of a verdict are compared where a line names them. Every case is decided
//! in each [`Cut`]; all must say the same.

use flashsale::ids::{Metadata, Note, PaymentRef, Place, Quantity, SkuId, UserId};
use flashsale::inventory::{
    Adjust, Cancel, Command, Configure, Confirm, Decision, Extend, LatePayment, Logged, Pause, PoisonReason, Refusal,
    Rejection, Reservation, Reserve, Settings, Sku, Status, StockChange, Tick, Unfit, Verdict,
};
use uuid::Uuid;

use super::memory::MemoryStore;

/// How a case is cut into batches, and when rows of ended holds are settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// In the batches shown, settled where shown.
    AsShown,
    /// Each command in a batch of its own.
    OneByOne,
    /// Likewise, and every ended hold is settled at once.
    SettledAtOnce,
}

/// All of them.
pub const CUTS: [Cut; 3] = [Cut::AsShown, Cut::OneByOne, Cut::SettledAtOnce];

/// Decides the commands of a case and compares what is said with what the case says.
#[track_caller]
pub fn check(case: &str) {
    let lines: Vec<String> = case.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected = lines.join("\n");
    assert_eq!(said(&lines, Cut::AsShown), expected, "in the batches shown");
    for cut in [Cut::OneByOne, Cut::SettledAtOnce] {
        assert_eq!(without_movements(&said(&lines, cut)), without_movements(&expected), "{cut:?}");
    }
}

/// Movements are cut by batch, so a case decided one by one counts them differently.
fn without_movements(text: &str) -> String {
    let without = |line: &str| -> String {
        line.split(' ').filter(|word| !word.starts_with("movements=")).collect::<Vec<_>>().join(" ")
    };
    text.lines().map(without).collect::<Vec<_>>().join("\n")
}

/// The case again, with what `decide` really says.
pub fn said(lines: &[String], cut: Cut) -> String {
    let mut case = Case { cut, store: MemoryStore::default(), at: 0, offset: 0, batch: Vec::new(), said: Vec::new() };
    for line in lines {
        case.read(line);
        if cut != Cut::AsShown {
            case.flush();
        }
        if cut == Cut::SettledAtOnce {
            case.store.settle(|_| true);
        }
    }
    case.flush();
    case.said.join("\n")
}

struct Case {
    cut: Cut,
    store: MemoryStore,
    at: i64,
    offset: i64,
    /// Commands of the running batch, and the line that each came from.
    batch: Vec<(Logged, usize)>,
    said: Vec<String>,
}

impl Case {
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match &words[..] {
            ["sku", id, ..] => drop(self.store.skus.insert(sku_id(id), sku_from(line))),
            ["held", user, sku, units] => self.own(user, sku, units, Status::Reserved),
            ["sold", user, sku, units] => self.own(user, sku, units, Status::Confirmed),
            ["log_time", at] => self.store.log_time = number(at),
            ["---"] => self.flush(),
            ["settle"] => {
                self.flush();
                self.store.settle(|_| true);
            }
            [name, "is", ..] => {
                self.flush();
                let is_sku = name.starts_with(|c: char| c.is_ascii_uppercase());
                let text = if is_sku { sku_text(name, &self.store) } else { reservation_text(name, &self.store) };
                self.said.push(text);
                return;
            }
            _ => self.queue(line),
        }
        self.said.push(line.to_owned());
    }

    fn own(&mut self, user: &str, sku: &str, units: &str, status: Status) {
        let (sku, units) = (sku_id(sku), number(units));
        let stock = self.store.skus.get_mut(&sku).expect("`sku` comes before `held` and `sold`");
        match status {
            Status::Reserved => stock.reserved += units,
            _ => stock.sold += units,
        }
        let row = Reservation {
            user: user_id(user),
            sku,
            quantity: u32::try_from(units).ok().and_then(Quantity::new).expect("1 to 1000 units"),
            status,
            version: 1,
            expires_at: Some(i64::MAX),
            extensions: 0,
            extension_seconds: 0,
            changed_at: None,
            payment_ref: (status == Status::Confirmed).then(|| payment("before")),
            is_late: false,
            note: None,
            metadata: None,
        };
        let id = Uuid::from_u128(u128::MAX - self.store.reservations.len() as u128);
        self.store.reservations.insert(id, row);
    }

    fn queue(&mut self, line: &str) {
        let (asked, _) = line.split_once(" -> ").unwrap_or_else(|| panic!("an arrow and a verdict: {line}"));
        let mut words: Vec<&str> = asked.split(' ').collect();
        if let Some(at) = words[0].strip_prefix('@') {
            self.at = number(at);
            words.remove(0);
        }
        let command = match words[..] {
            ["bytes"] => Err(Unfit { id: None, reason: PoisonReason::Malformed }),
            ["bytes", id] => Err(Unfit { id: Some(named_id(id)), reason: PoisonReason::Malformed }),
            _ => Ok(command_from(&words, asked)),
        };
        let place = Place { offset: self.offset, index: 0 };
        self.offset += 1;
        self.batch.push((Logged { place, at: self.at, command }, self.said.len()));
    }

    fn flush(&mut self) {
        let (commands, lines): (Vec<Logged>, Vec<usize>) = std::mem::take(&mut self.batch).into_iter().unzip();
        for (decision, line) in self.store.run(&commands).iter().zip(lines) {
            let (asked, expected) = self.said[line].split_once(" -> ").expect("was looked at when it was read");
            self.said[line] = format!("{asked} -> {}", verdict_text(decision, expected));
        }
        if self.cut == Cut::SettledAtOnce {
            self.store.settle(|_| true);
        }
    }
}

// ---- commands from words ------------------------------------------------------------------------------------------------------

fn command_from(words: &[&str], asked: &str) -> Command {
    let note = text_of(asked, "note");
    let key_id = text_of(asked, "key").map(named_id);
    match *words {
        ["confirm", id, reservation, sku, payment_ref, ..] => Command::Confirm(Confirm {
            id: named_id(id),
            reservation: named_id(reservation),
            sku: sku_id(sku),
            payment_ref: payment(payment_ref),
            key_id,
        }),
        ["cancel", id, reservation, sku, ..] => Command::Cancel(Cancel {
            id: named_id(id),
            reservation: named_id(reservation),
            sku: sku_id(sku),
            note: note.map(|note| Note::parse(note).expect("a legal note")),
        }),
        ["extend", id, reservation, sku, seconds] => Command::Extend(Extend {
            id: named_id(id),
            reservation: named_id(reservation),
            sku: sku_id(sku),
            seconds: seconds.parse().expect("seconds"),
        }),
        ["adjust", id, sku, ..] => Command::Adjust(Adjust {
            id: named_id(id),
            sku: sku_id(sku),
            change: match (value(asked, "by"), value(asked, "is"), value(asked, "to")) {
                (Some(delta), None, None) => StockChange::By(delta),
                (None, Some(compare_on_hand), Some(on_hand)) => StockChange::To { compare_on_hand, on_hand },
                _ => panic!("`by=` or `is=` and `to=`: {asked}"),
            },
            note: Note::parse("counted").expect("a legal note"),
            reference: None,
            key_id,
        }),
        ["configure", id, sku, ..] => Command::Configure(configure_from(id, sku, asked)),
        [verb @ ("pause" | "resume"), id, sku, ..] => Command::Pause(Pause {
            id: named_id(id),
            sku: sku_id(sku),
            seen_version: value(asked, "seen").expect("a pause says which version it saw"),
            pauses: verb == "pause",
            note: None,
        }),
        ["tick", sku] => Command::Tick(Tick { id: named_id("tick"), sku: sku_id(sku) }),
        [id, user, sku, units, ..] => Command::Reserve(Reserve {
            id: named_id(id),
            user: user_id(user),
            sku: sku_id(sku),
            quantity: u32::try_from(number(units)).ok().and_then(Quantity::new).expect("1 to 1000 units"),
            metadata: text_of(asked, "metadata").map(|text| Metadata::parse(text).expect("legal metadata")),
        }),
        _ => panic!("no such line: {asked}"),
    }
}

fn sku_from(line: &str) -> Sku {
    Sku {
        on_hand: value(line, "on_hand").expect("a SKU has a stock"),
        reserved: 0,
        sold: 0,
        expired_through: 0,
        is_paused: line.ends_with(" paused"),
        settings: settings_from(line),
        settings_version: value(line, "version").unwrap_or(1),
        movement_count: 1,
    }
}

fn configure_from(id: &str, sku: &str, asked: &str) -> Configure {
    Configure {
        id: named_id(id),
        sku: sku_id(sku),
        pin: value(asked, "pin").map_or(0, |pin| i32::try_from(pin).expect("a small number")),
        seen_version: value(asked, "seen").expect("a configure says which version it saw"),
        on_hand: value(asked, "on_hand"),
        settings: settings_from(asked),
        patch_hash: None,
    }
}

fn settings_from(line: &str) -> Settings {
    let small = |name| value(line, name).map(|n| u32::try_from(n).expect("a small number"));
    let defaults = Settings::default();
    Settings {
        user_limit: small("limit").unwrap_or(defaults.user_limit),
        hold_seconds: small("hold").unwrap_or(defaults.hold_seconds),
        starts_at: value(line, "starts"),
        ends_at: value(line, "ends"),
        late_payment: match text_of(line, "late") {
            Some("reject") => LatePayment::Reject,
            _ => LatePayment::Rereserve,
        },
        extensions_max: small("ext").unwrap_or(defaults.extensions_max),
        extension_seconds_max: small("ext_seconds").unwrap_or(defaults.extension_seconds_max),
    }
}

/// The text after `name=`.
fn text_of<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The number after `name=`.
fn value(line: &str, name: &str) -> Option<i64> {
    text_of(line, name).map(number)
}

fn number(text: &str) -> i64 {
    text.parse().unwrap_or_else(|_| panic!("a number, not {text}"))
}

/// The same word is the same id.
fn named_id(word: &str) -> Uuid {
    Uuid::from_u128(word.bytes().fold(0, |id, byte| id << 8 | u128::from(byte)))
}

fn payment(text: &str) -> PaymentRef {
    PaymentRef::parse(text).expect("a legal reference")
}

fn user_id(text: &str) -> UserId {
    UserId::parse(text).expect("a legal user id")
}

fn sku_id(text: &str) -> SkuId {
    SkuId::parse(text).expect("a legal SKU id")
}

// ---- words from verdicts and rows ---------------------------------------------------------------------------------------------

fn verdict_text(decision: &Decision, expected: &str) -> String {
    let mut text = match &decision.verdict {
        Verdict::Reserved { expires_at } if expected.contains("until=") => format!("RESERVED until={expires_at}"),
        Verdict::Reserved { .. } => "RESERVED".to_owned(),
        Verdict::Rejected(rejection) => format!("{}{}", rejection.code(), rejection_text(rejection)),
        Verdict::Confirmed { is_late: false } => "CONFIRMED".to_owned(),
        Verdict::Confirmed { is_late: true } => "CONFIRMED late".to_owned(),
        Verdict::Cancelled => "CANCELLED".to_owned(),
        Verdict::Extended { expires_at } => format!("EXTENDED until={expires_at}"),
        Verdict::Adjusted { on_hand, reserved, sold } => {
            format!("ADJUSTED on_hand={on_hand} reserved={reserved} sold={sold}")
        }
        Verdict::Ticked { released } => format!("TICKED released={released}"),
        Verdict::Configured { created: true, settings_version } => format!("CREATED version={settings_version}"),
        Verdict::Configured { created: false, settings_version } => format!("CHANGED version={settings_version}"),
        Verdict::Refused(refusal) => format!("{}{}", refusal.code(), refusal_text(refusal)),
        Verdict::Duplicate => "DUPLICATE".to_owned(),
        Verdict::Poison(reason) => reason.code().to_owned(),
    };
    if expected.contains(" at=") {
        text.push_str(&format!(" at={}", decision.at));
    }
    text
}

fn rejection_text(rejection: &Rejection) -> String {
    match rejection {
        Rejection::SalePaused => String::new(),
        Rejection::SaleNotStarted { starts_at } => format!(" starts={starts_at}"),
        Rejection::SaleEnded { ends_at } => format!(" ends={ends_at}"),
        Rejection::UserLimit { limit, remaining } => format!(" limit={limit} remaining={remaining}"),
        Rejection::SoldOut { available, holds_pending: true } => format!(" available={available} holds_pending"),
        Rejection::SoldOut { available, holds_pending: false } => format!(" available={available}"),
    }
}

fn refusal_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::SettingsChanged { settings_version } => format!(" version={settings_version}"),
        Refusal::StockChanged { on_hand } | Refusal::AboveMaximum { on_hand } => format!(" on_hand={on_hand}"),
        Refusal::BelowCommitted { minimum } => format!(" minimum={minimum}"),
        Refusal::ExtensionLimit { extensions_left, seconds_left } => {
            format!(" extensions_left={extensions_left} seconds_left={seconds_left}")
        }
        Refusal::KeyReused
        | Refusal::NotReservedYet
        | Refusal::ReservationRejected
        | Refusal::AlreadyConfirmed
        | Refusal::AlreadyCancelled
        | Refusal::HoldExpired
        | Refusal::PaidUnfulfilled => String::new(),
    }
}

fn sku_text(name: &str, store: &MemoryStore) -> String {
    let Some(sku) = store.skus.get(&sku_id(name)) else { return format!("{name} is unknown") };
    let Sku { on_hand, reserved, sold, settings_version, movement_count, .. } = sku;
    let paused = if sku.is_paused { " paused" } else { "" };
    format!(
        "{name} is on_hand={on_hand} reserved={reserved} sold={sold} version={settings_version} movements={movement_count}{paused}"
    )
}

fn reservation_text(name: &str, store: &MemoryStore) -> String {
    let Some(row) = store.now(&named_id(name)) else { return format!("{name} is unknown") };
    let mut text = format!("{name} is {} version={}", row.status.word(), row.version);
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!(" {name}={value}"));
        }
    };
    add("until", row.expires_at.map(|ends| ends.to_string()));
    add("extended", (row.extensions > 0).then(|| format!("{}/{}", row.extensions, row.extension_seconds)));
    add("changed", row.changed_at.map(|at| at.to_string()));
    add("payment", row.payment_ref.map(|payment| payment.as_str().to_owned()));
    add("note", row.note.map(|note| note.as_str().to_owned()));
    add("metadata", row.metadata.map(|metadata| metadata.as_str().to_owned()));
    if row.is_late { text + " late" } else { text }
}
