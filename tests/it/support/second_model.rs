//! A second model of the single writer, as naive as can be, to compare `decide` with.
//!
//! It keeps no state: for every command it reads the whole list of what was said before and counts again from the start. It shares the
//! words (commands and verdicts) with `decide` and not one line of code. Slow on purpose; do not make it clever.

use flashsale::ids::SkuId;
use flashsale::inventory::{
    Adjust, Cancel, Command, Configure, Confirm, Extend, LatePayment, Logged, Pause, PoisonReason, Refusal, Rejection,
    Reserve, Settings, StockChange, Verdict,
};
use uuid::Uuid;

/// A command, the log time of its decision, and the decision.
pub type Said = (Logged, i64, Verdict);

/// All that must be said about a log that starts in an empty partition.
pub fn predict_all(partition: i32, log: &[Logged]) -> Vec<Said> {
    let mut past = Vec::new();
    for next in log {
        let said = predict(partition, &past, next);
        past.push(said);
    }
    past
}

/// What must be said about `next` after all that was said in the `past`.
fn predict(partition: i32, past: &[Said], next: &Logged) -> Said {
    let mut now = next.at.max(0);
    for (earlier, _, _) in past {
        if earlier.at > now {
            now = earlier.at;
        }
    }
    let verdict = match &next.command {
        Err(unfit) => Verdict::Poison(unfit.reason),
        Ok(command) if is_used_up(past, command) => Verdict::Duplicate,
        Ok(command) if is_nowhere(past, command) => Verdict::Poison(PoisonReason::NotHere),
        Ok(command) if had_its_key(past, command) => Verdict::Refused(Refusal::KeyReused),
        Ok(Command::Configure(configure)) => about_configure(partition, past, configure),
        Ok(Command::Reserve(reserve)) => about_reserve(past, now, reserve),
        Ok(Command::Confirm(confirm)) => about_confirm(past, now, confirm),
        Ok(Command::Cancel(cancel)) => about_cancel(past, now, cancel),
        Ok(Command::Extend(extend)) => about_extend(past, now, extend),
        Ok(Command::Adjust(adjust)) => about_adjust(past, now, adjust),
        Ok(Command::Pause(pause)) => about_pause(past, pause),
        Ok(Command::Tick(tick)) => Verdict::Ticked { released: released_by(past, now, &tick.sku) },
    };
    (next.clone(), now, verdict)
}

/// Whether it is about a SKU that nobody created here.
fn is_nowhere(past: &[Said], command: &Command) -> bool {
    !matches!(command, Command::Configure(_)) && accepted_configures(past, command.sku()).is_empty()
}

/// A reservation's id and a command's are two things; poison, whatever it was, uses up a reservation's. Ticks may be repeated for ever.
fn is_used_up(past: &[Said], command: &Command) -> bool {
    if matches!(command, Command::Tick(_)) {
        return false;
    }
    let makes_a_reservation = |c: &Command| matches!(c, Command::Reserve(_));
    past.iter().any(|(logged, _, verdict)| match (&logged.command, verdict) {
        (Err(unfit), _) => makes_a_reservation(command) && unfit.id == Some(command.id()),
        (Ok(earlier), Verdict::Poison(_)) => makes_a_reservation(command) && earlier.id() == command.id(),
        (Ok(Command::Tick(_)), _) | (Ok(_), Verdict::Duplicate) => false,
        (Ok(earlier), Verdict::Refused(refusal)) => {
            stands_for_ever(refusal) && !makes_a_reservation(command) && earlier.id() == command.id()
        }
        (Ok(earlier), _) => {
            makes_a_reservation(earlier) == makes_a_reservation(command) && earlier.id() == command.id()
        }
    })
}

/// The ids under which a command's key can be found: the one that it carries beside its name, and its name, if that is a key.
fn names_of_key(command: &Command) -> Vec<Uuid> {
    let beside = match command {
        Command::Confirm(confirm) => confirm.key_id,
        Command::Adjust(adjust) => adjust.key_id,
        _ => None,
    };
    [beside, Some(command.id())].into_iter().flatten().collect()
}

/// Whether an earlier command, whose answer stands, had the key of this one. (That both have the same name is asked before.)
fn had_its_key(past: &[Said], command: &Command) -> bool {
    if matches!(command, Command::Reserve(_) | Command::Tick(_)) {
        return false;
    }
    let mine = names_of_key(command);
    past.iter().any(|(logged, _, verdict)| {
        let theirs = match (&logged.command, verdict) {
            (_, Verdict::Poison(_)) | (Err(_), _) => vec![],
            (Ok(Command::Reserve(_) | Command::Tick(_)), _) | (Ok(_), Verdict::Duplicate) => vec![],
            (Ok(_), Verdict::Refused(refusal)) if !stands_for_ever(refusal) => vec![],
            (Ok(earlier), _) => names_of_key(earlier),
        };
        theirs.iter().any(|id| mine.contains(id))
    })
}

/// The refusals that occupy their command's id: those of a reservation whose life is over.
fn stands_for_ever(refusal: &Refusal) -> bool {
    ["ALREADY_CONFIRMED", "ALREADY_CANCELLED", "HOLD_EXPIRED", "PAID_UNFULFILLED"].contains(&refusal.code())
}

// ---- reading the past ---------------------------------------------------------------------------------------------------------

/// What has become of a reservation, told again from its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    pub request: Reserve,
    /// The word in every answer.
    pub status: &'static str,
    /// How often it changed, the beginning included.
    pub version: i32,
    pub ends: Option<i64>,
    pub extensions: u32,
    pub seconds: u32,
    pub changed_at: Option<i64>,
    pub payment: Option<String>,
    pub is_late: bool,
    pub note: Option<String>,
}

/// The story of a reservation up to `now`; nothing, if it was never decided.
pub fn story_of(past: &[Said], id: Uuid, now: i64) -> Option<Story> {
    let mut story: Option<Story> = None;
    for (logged, at, verdict) in past {
        let Ok(command) = &logged.command else { continue };
        if let (Command::Reserve(request), Verdict::Reserved { .. } | Verdict::Rejected(_)) = (command, verdict)
            && request.id == id
        {
            story = Some(begun(request, verdict));
        }
        let Some(told) = story.as_mut().filter(|_| command.target() == Some(id)) else { continue };
        let was_over = told.ends.is_some_and(|ends| ends <= *at);
        match (command, verdict) {
            // The same payment again is told the same and changes nothing.
            (Command::Confirm(_), Verdict::Confirmed { .. }) if told.status == "CONFIRMED" => {}
            (Command::Confirm(confirm), Verdict::Confirmed { .. }) => {
                told.status = "CONFIRMED";
                told.version += if was_over { 2 } else { 1 };
                told.is_late = was_over;
                told.changed_at = Some(*at);
                told.payment = Some(confirm.payment_ref.as_str().to_owned());
            }
            (Command::Cancel(_), Verdict::Cancelled) if told.status == "CANCELLED" => {}
            (Command::Cancel(cancel), Verdict::Cancelled) => {
                told.status = "CANCELLED";
                told.version += 1;
                told.changed_at = Some(*at);
                told.note = cancel.note.as_ref().map(|note| note.as_str().to_owned());
            }
            (Command::Extend(extend), Verdict::Extended { .. }) => {
                told.version += 1;
                told.extensions += 1;
                told.seconds += extend.seconds;
                told.ends = told.ends.map(|ends| ends + 1000 * i64::from(extend.seconds));
            }
            _ => {}
        }
    }
    if let Some(told) = &mut story
        && told.status == "RESERVED"
        && told.ends.is_some_and(|ends| ends <= now)
    {
        told.status = "EXPIRED";
        told.version += 1;
    }
    story
}

fn begun(request: &Reserve, verdict: &Verdict) -> Story {
    let (status, ends) = match verdict {
        Verdict::Reserved { expires_at } => ("RESERVED", Some(*expires_at)),
        _ => ("REJECTED", None),
    };
    Story {
        request: request.clone(),
        status,
        version: 1,
        ends,
        extensions: 0,
        seconds: 0,
        changed_at: None,
        payment: None,
        is_late: false,
        note: None,
    }
}

/// The stories of all reservations of a SKU.
pub fn stories(past: &[Said], sku: &SkuId, now: i64) -> Vec<Story> {
    let mut stories = Vec::new();
    for (logged, _, verdict) in past {
        if let (Ok(Command::Reserve(request)), Verdict::Reserved { .. } | Verdict::Rejected(_)) =
            (&logged.command, verdict)
            && request.sku == *sku
        {
            stories.extend(story_of(past, request.id, now));
        }
    }
    stories
}

fn units_in(stories: &[Story], status: &str) -> i64 {
    stories.iter().filter(|story| story.status == status).map(|story| i64::from(story.request.quantity.get())).sum()
}

/// Stock, held and sold units of a SKU.
pub fn counters(past: &[Said], sku: &SkuId, now: i64) -> [i64; 3] {
    let mut stock = 0;
    for (logged, _, verdict) in past {
        match (&logged.command, verdict) {
            (Ok(Command::Configure(c)), Verdict::Configured { created: true, .. }) if c.sku == *sku => {
                stock = c.on_hand.unwrap_or_default();
            }
            (Ok(Command::Adjust(a)), Verdict::Adjusted { .. }) if a.sku == *sku => match a.change {
                StockChange::By(delta) => stock += delta,
                StockChange::To { on_hand, .. } => stock = on_hand,
            },
            _ => {}
        }
    }
    let stories = stories(past, sku, now);
    [stock, units_in(&stories, "RESERVED"), units_in(&stories, "CONFIRMED")]
}

/// The configures of a SKU that took effect: the first created it, the last is in force.
fn accepted_configures<'a>(past: &'a [Said], sku: &SkuId) -> Vec<&'a Configure> {
    let mut accepted = Vec::new();
    for (logged, _, verdict) in past {
        if let (Ok(Command::Configure(c)), Verdict::Configured { .. }) = (&logged.command, verdict)
            && c.sku == *sku
        {
            accepted.push(c);
        }
    }
    accepted
}

fn settings_of<'a>(past: &'a [Said], sku: &SkuId) -> &'a Settings {
    &accepted_configures(past, sku).last().expect("asked only about SKUs that exist").settings
}

/// The pauses and resumes of a SKU that took effect.
fn accepted_pauses<'a>(past: &'a [Said], sku: &SkuId) -> Vec<&'a Pause> {
    let mut accepted = Vec::new();
    for (logged, _, verdict) in past {
        if let (Ok(Command::Pause(p)), Verdict::Configured { .. }) = (&logged.command, verdict)
            && p.sku == *sku
        {
            accepted.push(p);
        }
    }
    accepted
}

fn settings_version(past: &[Said], sku: &SkuId) -> i64 {
    i64::try_from(accepted_configures(past, sku).len() + accepted_pauses(past, sku).len()).expect("short logs")
}

fn units_of_user(past: &[Said], now: i64, asked: &Reserve) -> i64 {
    let mut mine = stories(past, &asked.sku, now);
    mine.retain(|story| story.request.user == asked.user);
    units_in(&mine, "RESERVED") + units_in(&mine, "CONFIRMED")
}

// ---- the answers --------------------------------------------------------------------------------------------------------------

fn about_reserve(past: &[Said], now: i64, asked: &Reserve) -> Verdict {
    let settings = settings_of(past, &asked.sku);
    let [stock, held, sold] = counters(past, &asked.sku, now);
    let mine = units_of_user(past, now, asked);
    let wanted = i64::from(asked.quantity.get());
    let limit = i64::from(settings.user_limit);
    let is_paused = accepted_pauses(past, &asked.sku).last().is_some_and(|last| last.pauses);

    match (settings.starts_at, settings.ends_at) {
        _ if is_paused => Verdict::Rejected(Rejection::SalePaused),
        (Some(starts_at), _) if starts_at > now => Verdict::Rejected(Rejection::SaleNotStarted { starts_at }),
        (_, Some(ends_at)) if ends_at <= now => Verdict::Rejected(Rejection::SaleEnded { ends_at }),
        _ if mine + wanted > limit => {
            let remaining = if mine > limit { 0 } else { limit - mine };
            let remaining = u32::try_from(remaining).expect("small numbers");
            Verdict::Rejected(Rejection::UserLimit { limit: settings.user_limit, remaining })
        }
        _ if held + sold + wanted > stock => {
            Verdict::Rejected(Rejection::SoldOut { available: stock - held - sold, holds_pending: held > 0 })
        }
        _ => Verdict::Reserved { expires_at: now + 1000 * i64::from(settings.hold_seconds) },
    }
}

/// The reservation that a command is about, if it is one of the SKU that the command names.
fn target_of(past: &[Said], now: i64, id: Uuid, sku: &SkuId) -> Option<Story> {
    let story = story_of(past, id, now)?;
    if story.request.sku == *sku { Some(story) } else { None }
}

fn about_confirm(past: &[Said], now: i64, asked: &Confirm) -> Verdict {
    let Some(story) = target_of(past, now, asked.reservation, &asked.sku) else {
        return Verdict::Refused(Refusal::NotReservedYet);
    };
    let is_same_payment = story.payment.as_deref() == Some(asked.payment_ref.as_str());
    match story.status {
        "REJECTED" => Verdict::Refused(Refusal::ReservationRejected),
        "RESERVED" => Verdict::Confirmed { is_late: false },
        "CANCELLED" => Verdict::Refused(Refusal::AlreadyCancelled),
        "CONFIRMED" if is_same_payment => Verdict::Confirmed { is_late: story.is_late },
        "CONFIRMED" => Verdict::Refused(Refusal::AlreadyConfirmed),
        _ => {
            let settings = settings_of(past, &asked.sku);
            let [stock, held, sold] = counters(past, &asked.sku, now);
            let wanted = i64::from(story.request.quantity.get());
            let mine = units_of_user(past, now, &story.request);
            if settings.late_payment == LatePayment::Reject {
                Verdict::Refused(Refusal::HoldExpired)
            } else if held + sold + wanted > stock || mine + wanted > i64::from(settings.user_limit) {
                Verdict::Refused(Refusal::PaidUnfulfilled)
            } else {
                Verdict::Confirmed { is_late: true }
            }
        }
    }
}

fn about_cancel(past: &[Said], now: i64, asked: &Cancel) -> Verdict {
    match target_of(past, now, asked.reservation, &asked.sku).map(|story| story.status) {
        None => Verdict::Refused(Refusal::NotReservedYet),
        Some("REJECTED") => Verdict::Refused(Refusal::ReservationRejected),
        Some("CONFIRMED") => Verdict::Refused(Refusal::AlreadyConfirmed),
        Some("EXPIRED") => Verdict::Refused(Refusal::HoldExpired),
        Some(_) => Verdict::Cancelled,
    }
}

fn about_extend(past: &[Said], now: i64, asked: &Extend) -> Verdict {
    let Some(story) = target_of(past, now, asked.reservation, &asked.sku) else {
        return Verdict::Refused(Refusal::NotReservedYet);
    };
    let settings = settings_of(past, &asked.sku);
    match story.status {
        "REJECTED" => Verdict::Refused(Refusal::ReservationRejected),
        "CONFIRMED" => Verdict::Refused(Refusal::AlreadyConfirmed),
        "CANCELLED" => Verdict::Refused(Refusal::AlreadyCancelled),
        "EXPIRED" => Verdict::Refused(Refusal::HoldExpired),
        _ if story.extensions + 1 > settings.extensions_max
            || story.seconds + asked.seconds > settings.extension_seconds_max =>
        {
            Verdict::Refused(Refusal::ExtensionLimit {
                extensions_left: settings.extensions_max.saturating_sub(story.extensions),
                seconds_left: settings.extension_seconds_max.saturating_sub(story.seconds),
            })
        }
        _ => Verdict::Extended { expires_at: story.ends.expect("a hold ends") + 1000 * i64::from(asked.seconds) },
    }
}

fn about_adjust(past: &[Said], now: i64, asked: &Adjust) -> Verdict {
    let [stock, reserved, sold] = counters(past, &asked.sku, now);
    let on_hand = match asked.change {
        StockChange::By(delta) => stock + delta,
        StockChange::To { compare_on_hand, on_hand } => {
            if compare_on_hand != stock {
                return Verdict::Refused(Refusal::StockChanged { on_hand: stock });
            }
            on_hand
        }
    };
    if on_hand < reserved + sold {
        Verdict::Refused(Refusal::BelowCommitted { minimum: reserved + sold })
    } else if on_hand > 1_000_000_000 {
        Verdict::Refused(Refusal::AboveMaximum { on_hand: stock })
    } else {
        Verdict::Adjusted { on_hand, reserved, sold }
    }
}

fn about_pause(past: &[Said], asked: &Pause) -> Verdict {
    let version = settings_version(past, &asked.sku);
    if asked.seen_version == version {
        Verdict::Configured { created: false, settings_version: version + 1 }
    } else {
        Verdict::Refused(Refusal::SettingsChanged { settings_version: version })
    }
}

fn about_configure(partition: i32, past: &[Said], asked: &Configure) -> Verdict {
    if asked.pin != partition {
        return Verdict::Poison(PoisonReason::NotHere);
    }
    let version = settings_version(past, &asked.sku);
    if asked.seen_version != version || (version == 0 && asked.on_hand.is_none()) {
        return Verdict::Refused(Refusal::SettingsChanged { settings_version: version });
    }
    // Holds don't matter for the stock.
    let [stock, _, _] = counters(past, &asked.sku, 0);
    match asked.on_hand {
        Some(believed) if version > 0 && believed != stock => {
            Verdict::Refused(Refusal::StockChanged { on_hand: stock })
        }
        _ => Verdict::Configured { created: version == 0, settings_version: version + 1 },
    }
}

/// Units of the holds of a SKU that are over now and were not when the SKU had its last command before.
fn released_by(past: &[Said], now: i64, sku: &SkuId) -> i64 {
    let before = last_command_of(past, sku).unwrap_or(0);
    let mut over = stories(past, sku, now);
    over.retain(|story| story.ends.is_some_and(|ends| ends > before));
    units_in(&over, "EXPIRED")
}

/// Log time of the last command of a SKU, whatever was said about it.
pub fn last_command_of(past: &[Said], sku: &SkuId) -> Option<i64> {
    let of_sku = past.iter().filter(|(logged, _, _)| logged.command.as_ref().is_ok_and(|c| c.sku() == sku));
    of_sku.map(|(_, at, _)| *at).next_back()
}
