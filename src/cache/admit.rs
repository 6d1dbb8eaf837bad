//! The admission call: many requests, one script (`admit.lua`), one deadline, behind the breaker.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::Value;
use tracing::warn;
use uuid::Uuid;

use super::breaker::Breaker;
use super::connection::{ScriptCall, within};
use super::{AdmissionAnswer, AdmissionItem, AdmissionRead, CacheError, Inner, KeyMarker};
use crate::ids::Ticket;
use crate::limits;

const ATTEMPT: &str = "check admissions";

pub(super) async fn call(
    inner: &Inner,
    items: &[AdmissionItem],
    is_memory_new: bool,
) -> Result<AdmissionRead, CacheError> {
    assert!(items.len() <= limits::ADMISSION_CALL_MAX, "a call that takes longer than its deadline helps nobody");
    if !breaker(inner).may_call(Instant::now()) {
        return Err(CacheError::Spared);
    }
    let script = script_call(inner, items, is_memory_new);
    let answered = within(inner.deadline, ATTEMPT, script.run::<Vec<Value>>(inner.front.clone())).await;
    let read =
        answered.and_then(|values| read(&values, items.len()).ok_or(CacheError::Unreadable { attempt: ATTEMPT }));
    report(inner, &read);
    read
}

/// The lock is held for a few instructions, never across an await.
fn breaker(inner: &Inner) -> MutexGuard<'_, Breaker> {
    inner.breaker.lock().unwrap_or_else(PoisonError::into_inner)
}

fn report(inner: &Inner, read: &Result<AdmissionRead, CacheError>) {
    match read {
        Ok(_) => breaker(inner).succeeded(),
        Err(error) => {
            if breaker(inner).failed(Instant::now()) {
                warn!(error = error as &dyn std::error::Error, "redis keeps failing; admitting unchecked");
            }
        }
    }
}

fn script_call<'a>(inner: &'a Inner, items: &[AdmissionItem], is_memory_new: bool) -> ScriptCall<'a> {
    let mut call = ScriptCall::new(&inner.scripts.admit, &inner.prefix);
    call.arg(u8::from(is_memory_new));
    call.arg(limits::PROVISIONAL_TTL.as_secs()).arg(limits::KEY_MARKER_TTL.as_secs()).arg(limits::PROVISIONAL_MINUTES);
    for group in items.chunk_by(is_alike) {
        let AdmissionItem { sku, limit, minute, refused_already, .. } = &group[0];
        call.arg(sku.as_str()).arg(*limit).arg(*minute).arg(u8::from(*refused_already)).arg(group.len());
        for item in group {
            call.arg(item.user.as_str()).arg(item.quantity.get());
            match &item.key {
                Some(key) => call.arg(format!("{}k:{}", inner.prefix, key.name.simple())).arg(id_and_fingerprint(key)),
                None => call.arg("").arg(""),
            };
        }
    }
    call
}

/// Whether two requests are of one group: a crowd's are, and what they have in common is said once.
fn is_alike(a: &AdmissionItem, b: &AdmissionItem) -> bool {
    a.sku == b.sku && a.limit == b.limit && a.minute == b.minute && a.refused_already == b.refused_already
}

fn id_and_fingerprint(key: &KeyMarker) -> String {
    format!("{}{:016x}", key.id.simple(), key.fingerprint)
}

/// Marker name, then id and fingerprint in one; both empty without a key.
pub(super) fn marker_args(call: &mut ScriptCall<'_>, key: Option<&KeyMarker>) {
    match key {
        Some(key) => call.arg(key.name.simple().to_string()).arg(id_and_fingerprint(key)),
        None => call.arg("").arg(""),
    };
}

fn read(values: &[Value], count: usize) -> Option<AdmissionRead> {
    let (first, rest) = values.split_first()?;
    let Value::Int(age) = first else { return None };
    let memory_age = Duration::from_millis(u64::try_from(*age).ok()?);
    let answers: Vec<_> = rest.iter().map(read_answer).collect::<Option<_>>()?;
    (answers.len() == count).then_some(AdmissionRead { answers, memory_age })
}

fn read_answer(value: &Value) -> Option<AdmissionAnswer> {
    match value {
        Value::Int(0) => Some(AdmissionAnswer::Ok),
        Value::Int(2) => Some(AdmissionAnswer::KeyReused),
        Value::Int(3) => Some(AdmissionAnswer::Absent),
        Value::BulkString(known) => {
            let known = std::str::from_utf8(known).ok()?;
            // Neither letter is a digit of an id.
            if let Some(units) = known.strip_prefix('L') {
                let (decided, undecided) = units.split_once(' ')?;
                return Some(AdmissionAnswer::OverLimit {
                    decided: decided.parse().ok()?,
                    undecided: undecided.parse().ok()?,
                });
            }
            if let Some(minute) = known.strip_prefix('P') {
                return Some(AdmissionAnswer::Pending { minute: minute.parse().ok()? });
            }
            let (id, ticket) = known.split_at_checked(32)?;
            Some(AdmissionAnswer::Replay { id: Uuid::try_parse(id).ok()?, ticket: Ticket::parse(ticket) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_strictly() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        assert_eq!(read_answer(&text("L2 1")), Some(AdmissionAnswer::OverLimit { decided: 2, undecided: 1 }));
        assert_eq!(read_answer(&text("P29000000")), Some(AdmissionAnswer::Pending { minute: 29_000_000 }));
        for bad in [
            Value::Int(1),
            Value::Int(4),
            Value::Int(-1),
            Value::Int(i64::MAX),
            Value::Nil,
            text("abc"),
            text("P"),
            text("Pabc"),
            text("L2"),
            text("L2 -1"),
            text("L 1"),
        ] {
            assert_eq!(read_answer(&bad), None, "{bad:?}");
        }
        let id = Uuid::from_u128(7);
        let known = |ticket: &str| Value::BulkString(format!("{}{ticket}", id.simple()).into_bytes());
        let ticket = Ticket::parse("1.2.3");
        assert_eq!(read_answer(&known("1.2.3")), Some(AdmissionAnswer::Replay { id, ticket }));
        assert_eq!(read_answer(&known("")), Some(AdmissionAnswer::Replay { id, ticket: None }));
    }

    #[test]
    fn an_answer_per_request_or_none_at_all() {
        let values = [Value::Int(5), Value::Int(0), Value::Int(3)];
        let answers = vec![AdmissionAnswer::Ok, AdmissionAnswer::Absent];
        assert_eq!(read(&values, 2), Some(AdmissionRead { answers, memory_age: Duration::from_millis(5) }));
        assert_eq!(read(&values, 3), None);
        assert_eq!(read(&[], 0), None);
        assert_eq!(read(&[Value::Int(-1)], 0), None);
    }
}
