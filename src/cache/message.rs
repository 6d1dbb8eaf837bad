//! The message of one batch on the channel `decisions`: who may read again, and what changed of which SKU.
//!
//! Version 1, integers little-endian:
//! ```text
//! "FE"  version u8  partition i32  epoch i64  position i64
//! count u32  { id 16 bytes }*
//! count u16  { length u8  SKU  available i64  flags u8 (1 = holds pending, 2 = configured) }*
//! ```
//! Decoding never panics and takes nothing on trust; what can't be read is ignored, and costs what a lost message costs.

use uuid::Uuid;

use crate::effects::{BatchEffects, SkuHint};
use crate::ids::SkuId;
use crate::limits;
use crate::wire::Reader;

const MAGIC: [u8; 2] = *b"FE";
const VERSION: u8 = 1;
const HOLDS_PENDING: u8 = 1;
const CONFIGURED: u8 = 2;

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
    pub decided: Vec<Uuid>,
    /// SKUs that changed.
    pub skus: Vec<SkuHint>,
}

/// Writes the message of a batch.
pub fn encode(effects: &BatchEffects) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32 + 16 * effects.decided.len() + 48 * effects.skus.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&effects.partition.to_le_bytes());
    bytes.extend_from_slice(&effects.epoch.to_le_bytes());
    bytes.extend_from_slice(&effects.position.to_le_bytes());
    let decided = u32::try_from(effects.decided.len()).expect("a batch is bounded far below 2^32");
    bytes.extend_from_slice(&decided.to_le_bytes());
    for id in &effects.decided {
        bytes.extend_from_slice(id.as_bytes());
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
    // Taken as one piece first: a count that the bytes don't hold allocates nothing.
    let ids = from.take(count.checked_mul(16)?)?;
    let decided = ids.chunks_exact(16).map(|id| Uuid::from_slice(id).expect("a chunk is 16 bytes")).collect();
    let count = from.u16()?;
    let skus = (0..count).map(|_| read_hint(&mut from)).collect::<Option<_>>()?;
    from.0.is_empty().then_some(Message { partition, epoch, position, decided, skus })
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

    fn message() -> impl Strategy<Value = Message> {
        let ids = vec(any::<u128>().prop_map(Uuid::from_u128), 0..300);
        (any::<i32>(), any::<i64>(), any::<i64>(), ids, vec(hint(), 0..8)).prop_map(
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
