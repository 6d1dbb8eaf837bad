//! The message of one batch on the channel `decisions`: what was decided, and what changed of which SKU.
//!
//! Version 2, integers little-endian:
//! ```text
//! "FE"  version u8  partition i32  epoch i64  position i64
//! count u32  { id 16 bytes  kind u8  for kinds above 0: offset i64  index u16  log time i64 (ms)  detail i64  more i32 }*
//! count u16  { length u8  SKU  available i64  flags u8 (1 = holds pending, 2 = configured) }*
//! ```
//! | kind | what | detail | more |
//! |---|---|---|---|
//! | 0 | has changed: read again | | |
//! | 1 | RESERVED | end of the hold (ms) | extensions that are left |
//! | 2 | `SALE_PAUSED` | 0 | 0 |
//! | 3 | `SALE_NOT_STARTED` | start (ms) | 0 |
//! | 4 | `SALE_ENDED` | end (ms) | 0 |
//! | 5 | `USER_LIMIT` | limit | units that remain |
//! | 6 | `SOLD_OUT` | available | 1 = holds pending |
//!
//! Version 1 had ids alone. A process that meets another version than its own ignores the message, which costs its waiters what a lost
//! message costs: while two builds run side by side, answers come by the sweep. Decoding never panics and takes nothing on trust.

use uuid::Uuid;

use crate::effects::{BatchEffects, DecidedId, FirstDecision, FirstVerdict, SkuHint};
use crate::ids::{Place, SkuId};
use crate::inventory::Rejection;
use crate::limits;
use crate::wire::Reader;

const MAGIC: [u8; 2] = *b"FE";
const VERSION: u8 = 2;
const HOLDS_PENDING: u8 = 1;
const CONFIGURED: u8 = 2;
/// Bytes of a decided id, at least and at most.
const DECIDED_BYTES_MIN: usize = 17;
const DECIDED_BYTES_MAX: usize = 47;

/// A decoded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Kafka's partition.
    pub partition: i32,
    /// The writer's epoch.
    pub epoch: i64,
    /// The position after the batch.
    pub position: i64,
    /// Ids that have their decision.
    pub decided: Vec<DecidedId>,
    /// SKUs that changed.
    pub skus: Vec<SkuHint>,
}

/// Writes the message of a batch.
pub fn encode(effects: &BatchEffects) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32 + DECIDED_BYTES_MAX * effects.decided.len() + 80 * effects.skus.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&effects.partition.to_le_bytes());
    bytes.extend_from_slice(&effects.epoch.to_le_bytes());
    bytes.extend_from_slice(&effects.position.to_le_bytes());
    let decided = u32::try_from(effects.decided.len()).expect("a batch is bounded far below 2^32");
    bytes.extend_from_slice(&decided.to_le_bytes());
    for DecidedId { id, first } in &effects.decided {
        bytes.extend_from_slice(id.as_bytes());
        match first {
            Some(first) => put_first(&mut bytes, first),
            None => bytes.push(0),
        }
    }
    let skus = u16::try_from(effects.skus.len()).expect("a batch of at most 4096 commands names no more SKUs");
    bytes.extend_from_slice(&skus.to_le_bytes());
    for hint in &effects.skus {
        let sku = hint.sku.as_str();
        bytes.push(u8::try_from(sku.len()).expect("a SKU id has at most 64 characters"));
        bytes.extend_from_slice(sku.as_bytes());
        bytes.extend_from_slice(&hint.available.to_le_bytes());
        let holds = if hint.holds_pending { HOLDS_PENDING } else { 0 };
        let configured = if hint.is_configured { CONFIGURED } else { 0 };
        bytes.push(holds | configured);
    }
    bytes
}

fn put_first(bytes: &mut Vec<u8>, first: &FirstDecision) {
    // Limits and what is left of them are below 2^31 by their bounds.
    let small = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let (kind, detail, more) = match first.verdict {
        FirstVerdict::Reserved { expires_at, extensions_left } => (1, expires_at, small(extensions_left)),
        FirstVerdict::Rejected(Rejection::SalePaused) => (2, 0, 0),
        FirstVerdict::Rejected(Rejection::SaleNotStarted { starts_at }) => (3, starts_at, 0),
        FirstVerdict::Rejected(Rejection::SaleEnded { ends_at }) => (4, ends_at, 0),
        FirstVerdict::Rejected(Rejection::UserLimit { limit, remaining }) => (5, i64::from(limit), small(remaining)),
        FirstVerdict::Rejected(Rejection::SoldOut { available, holds_pending }) => {
            (6, available, i32::from(holds_pending))
        }
    };
    bytes.push(kind);
    bytes.extend_from_slice(&first.place.offset.to_le_bytes());
    bytes.extend_from_slice(&first.place.index.to_le_bytes());
    bytes.extend_from_slice(&first.at.to_le_bytes());
    bytes.extend_from_slice(&detail.to_le_bytes());
    bytes.extend_from_slice(&more.to_le_bytes());
}

/// Reads a message; `None` if these bytes are none that this build knows.
pub fn decode(bytes: &[u8]) -> Option<Message> {
    if bytes.len() > limits::MESSAGE_BYTES_MAX {
        return None;
    }
    let mut from = Reader(bytes);
    if from.array::<2>()? != MAGIC || from.array::<1>()? != [VERSION] {
        return None;
    }
    let partition = i32::from_le_bytes(from.array()?);
    let epoch = from.i64()?;
    let position = from.i64()?;
    let count = usize::try_from(from.u32()?).ok()?;
    // A count that the bytes can't hold allocates nothing.
    if from.0.len() < count.checked_mul(DECIDED_BYTES_MIN)? {
        return None;
    }
    let decided = (0..count).map(|_| read_decided(&mut from)).collect::<Option<_>>()?;
    let count = from.u16()?;
    let skus = (0..count).map(|_| read_hint(&mut from)).collect::<Option<_>>()?;
    from.0.is_empty().then_some(Message { partition, epoch, position, decided, skus })
}

fn read_decided(from: &mut Reader<'_>) -> Option<DecidedId> {
    let id = Uuid::from_bytes(from.array()?);
    let kind = from.u8()?;
    if kind == 0 {
        return Some(DecidedId::changed(id));
    }
    let place = Place { offset: from.i64()?, index: from.u16()? };
    let (at, detail, more) = (from.i64()?, from.i64()?, i32::from_le_bytes(from.array()?));
    let rejected = |rejection| Some(FirstVerdict::Rejected(rejection));
    let verdict = match kind {
        1 => Some(FirstVerdict::Reserved { expires_at: detail, extensions_left: u32::try_from(more).ok()? }),
        2 => rejected(Rejection::SalePaused),
        3 => rejected(Rejection::SaleNotStarted { starts_at: detail }),
        4 => rejected(Rejection::SaleEnded { ends_at: detail }),
        5 => {
            let (limit, remaining) = (u32::try_from(detail).ok()?, u32::try_from(more).ok()?);
            rejected(Rejection::UserLimit { limit, remaining })
        }
        6 => rejected(Rejection::SoldOut { available: detail, holds_pending: more != 0 }),
        _ => None,
    };
    Some(DecidedId { id, first: Some(FirstDecision { place, at, verdict: verdict? }) })
}

fn read_hint(from: &mut Reader<'_>) -> Option<SkuHint> {
    let sku = SkuId::parse(from.text()?).ok()?;
    let available = from.i64()?;
    let flags = from.u8()?;
    Some(SkuHint { sku, available, holds_pending: flags & HOLDS_PENDING != 0, is_configured: flags & CONFIGURED != 0 })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn hint() -> impl Strategy<Value = SkuHint> {
        ("[A-Za-z0-9._:-]{1,64}", any::<i64>(), any::<bool>(), any::<bool>()).prop_map(
            |(sku, available, holds_pending, is_configured)| SkuHint {
                sku: SkuId::parse(&sku).expect("legal by its pattern"),
                available,
                holds_pending,
                is_configured,
            },
        )
    }

    fn verdict() -> impl Strategy<Value = FirstVerdict> {
        let units = 0..=i32::MAX as u32;
        prop_oneof![
            (any::<i64>(), units.clone())
                .prop_map(|(expires_at, extensions_left)| FirstVerdict::Reserved { expires_at, extensions_left }),
            Just(FirstVerdict::Rejected(Rejection::SalePaused)),
            any::<i64>().prop_map(|starts_at| FirstVerdict::Rejected(Rejection::SaleNotStarted { starts_at })),
            any::<i64>().prop_map(|ends_at| FirstVerdict::Rejected(Rejection::SaleEnded { ends_at })),
            (units.clone(), units)
                .prop_map(|(limit, remaining)| { FirstVerdict::Rejected(Rejection::UserLimit { limit, remaining }) }),
            (any::<i64>(), any::<bool>()).prop_map(|(available, holds_pending)| {
                FirstVerdict::Rejected(Rejection::SoldOut { available, holds_pending })
            }),
        ]
    }

    fn decided() -> impl Strategy<Value = DecidedId> {
        let first = (any::<i64>(), any::<u16>(), any::<i64>(), verdict())
            .prop_map(|(offset, index, at, verdict)| FirstDecision { place: Place { offset, index }, at, verdict });
        (any::<u128>(), proptest::option::of(first))
            .prop_map(|(id, first)| DecidedId { id: Uuid::from_u128(id), first })
    }

    fn message() -> impl Strategy<Value = Message> {
        (any::<i32>(), any::<i64>(), any::<i64>(), vec(decided(), 0..300), vec(hint(), 0..8)).prop_map(
            |(partition, epoch, position, decided, skus)| Message { partition, epoch, position, decided, skus },
        )
    }

    fn encoded(message: &Message) -> Vec<u8> {
        let Message { partition, epoch, position, decided, skus } = message.clone();
        encode(&BatchEffects { partition, epoch, position, decided, skus, ..BatchEffects::default() })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message in message()) {
            prop_assert_eq!(decode(&encoded(&message)), Some(message));
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in vec(any::<u8>(), 0..200)) {
            decode(&bytes);
        }

        #[test]
        fn no_damage_makes_decoding_panic(message in message(), at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
            let mut bytes = encoded(&message);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            decode(&bytes);
            prop_assert_eq!(decode(&encoded(&message)[..cut.index(bytes.len())]), None, "a cut message is none");
        }
    }
}
