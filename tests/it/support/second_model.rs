//! A second model of the single writer, as naive as can be, to compare `decide` with.
//!
//! It keeps no state: for every command it reads the whole list of what was said before and counts again from the start. It shares the
//! words (commands and verdicts) with `decide` and not one line of code. Slow on purpose; do not make it clever.

use flashsale::ids::SkuId;
use flashsale::inventory::{Command, Configure, Logged, PoisonReason, Refusal, Rejection, Reserve, Verdict};

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
        Ok(Command::Reserve(reserve)) => about_reserve(past, now, reserve),
        Ok(Command::Configure(configure)) => about_configure(partition, past, configure),
        Ok(other) => panic!("not modelled: {other:?}"),
    };
    (next.clone(), now, verdict)
}

/// A reservation's id and an operator's command's are two things; poison, whatever it was, uses up both. Only an operator's refused
/// command leaves its id free.
fn is_used_up(past: &[Said], command: &Command) -> bool {
    past.iter().any(|(logged, _, verdict)| match (&logged.command, verdict) {
        (_, Verdict::Refused(_)) => false,
        (Err(unfit), _) => unfit.id == Some(command.id()),
        (Ok(earlier), Verdict::Poison(_)) => earlier.id() == command.id(),
        (Ok(Command::Reserve(earlier)), _) => matches!(command, Command::Reserve(r) if r.id == earlier.id),
        (Ok(Command::Configure(earlier)), _) => matches!(command, Command::Configure(c) if c.id == earlier.id),
        (Ok(other), _) => panic!("not modelled: {other:?}"),
    })
}

/// The configures of a SKU that took effect: the first created it, the last is in force, their number is the version.
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

/// The requests for a SKU that got their units.
fn winners<'a>(past: &'a [Said], sku: &SkuId) -> Vec<&'a Reserve> {
    let mut winners = Vec::new();
    for (logged, _, verdict) in past {
        if let (Ok(Command::Reserve(r)), Verdict::Reserved { .. }) = (&logged.command, verdict)
            && r.sku == *sku
        {
            winners.push(r);
        }
    }
    winners
}

fn about_reserve(past: &[Said], now: i64, asked: &Reserve) -> Verdict {
    let configures = accepted_configures(past, &asked.sku);
    let (Some(first), Some(last)) = (configures.first(), configures.last()) else {
        return Verdict::Poison(PoisonReason::NotHere);
    };
    let stock: i64 = first.on_hand.unwrap_or_default();
    let promised: i64 = winners(past, &asked.sku).iter().map(|r| i64::from(r.quantity.get())).sum();
    let mine: i64 =
        winners(past, &asked.sku).iter().filter(|r| r.user == asked.user).map(|r| i64::from(r.quantity.get())).sum();
    let wanted = i64::from(asked.quantity.get());
    let limit = i64::from(last.settings.user_limit);

    match (last.settings.starts_at, last.settings.ends_at) {
        (Some(starts_at), _) if starts_at > now => Verdict::Rejected(Rejection::SaleNotStarted { starts_at }),
        (_, Some(ends_at)) if ends_at <= now => Verdict::Rejected(Rejection::SaleEnded { ends_at }),
        _ if mine + wanted > limit => {
            let remaining = if mine > limit { 0 } else { limit - mine };
            let remaining = u32::try_from(remaining).expect("small numbers");
            Verdict::Rejected(Rejection::UserLimit { limit: last.settings.user_limit, remaining })
        }
        _ if promised + wanted > stock => {
            Verdict::Rejected(Rejection::SoldOut { available: stock - promised, holds_pending: promised > 0 })
        }
        _ => Verdict::Reserved { expires_at: now + 1000 * i64::from(last.settings.hold_seconds) },
    }
}

fn about_configure(partition: i32, past: &[Said], asked: &Configure) -> Verdict {
    if asked.pin != partition {
        return Verdict::Poison(PoisonReason::NotHere);
    }
    let configures = accepted_configures(past, &asked.sku);
    let version = i64::try_from(configures.len()).expect("short logs");
    let stock = configures.first().and_then(|first| first.on_hand);
    if asked.seen_version != version || (version == 0 && asked.on_hand.is_none()) {
        return Verdict::Refused(Refusal::SettingsChanged { settings_version: version });
    }
    match (asked.on_hand, stock) {
        (Some(believed), Some(on_hand)) if believed != on_hand => Verdict::Refused(Refusal::StockChanged { on_hand }),
        _ => Verdict::Configured { created: version == 0, settings_version: version + 1 },
    }
}
