//! Ids and other small values that are checked once, where they enter, and cannot be wrong afterwards.
//!
//! Ids made from client input hash **length-prefixed** fields, never joined strings: `:` is legal in ids, so `a:b` + `c` and
//! `a` + `b:c` must not meet.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::limits;

/// Namespace of everything that the public API names: ids of two installations' clients never meet, because keys are theirs.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1a_5c0e_8d3b_5f27_9c44_66b1_a51e_0001);

/// Why a text is not an id. `Display` is fit for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 64 characters of A-Z, a-z, 0-9, '.', '_', ':' and '-'")]
pub struct MalformedId;

fn is_id(text: &str) -> bool {
    (1..=limits::ID_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes 1 to 64 characters of `[A-Za-z0-9._:-]`.
            ///
            /// # Errors
            /// [`MalformedId`] for anything else.
            pub fn parse(text: &str) -> Result<Self, MalformedId> {
                if is_id(text) { Ok(Self(text.into())) } else { Err(MalformedId) }
            }

            /// The id as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

text_id!(
    /// A buyer, as the shop names them.
    UserId
);
text_id!(
    /// A stock-keeping unit: what is sold, and the key of the log.
    SkuId
);

impl UserId {
    /// A stable 64-bit hash, for the index that lists a user's reservations. Equal ids have equal hashes; readers compare the id too.
    pub fn hash64(&self) -> i64 {
        let digest = hash_fields(Uuid::nil(), &[b"user", self.as_str().as_bytes()]);
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_bytes()[..8]);
        i64::from_le_bytes(first)
    }
}

/// Units asked for in one request: 1 to [`limits::QUANTITY_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(u32);

impl Quantity {
    /// `None` unless 1 to [`limits::QUANTITY_MAX`].
    pub fn new(units: u32) -> Option<Self> {
        (1..=limits::QUANTITY_MAX).contains(&units).then_some(Self(units))
    }

    /// The number of units.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// Why a text is not what it should be. `Display` is fit for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedText(&'static str);

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $rule:literal, $is_good:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes a text that keeps the rule above.
            ///
            /// # Errors
            /// [`MalformedText`] says the rule.
            pub fn parse(text: &str) -> Result<Self, MalformedText> {
                let is_good: fn(&str) -> bool = $is_good;
                if is_good(text) { Ok(Self(text.into())) } else { Err(MalformedText($rule)) }
            }

            /// The text as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

fn is_reference(text: &str) -> bool {
    (1..=limits::REFERENCE_CHARS_MAX).contains(&text.len()) && text.bytes().all(|b| (0x20..=0x7e).contains(&b))
}

checked_text!(
    /// A shop's name of a payment: 1 to 128 printable ASCII characters.
    PaymentRef,
    "must be 1 to 128 printable ASCII characters",
    is_reference
);
checked_text!(
    /// A shop's name of what an adjustment belongs to: 1 to 128 printable ASCII characters.
    Reference,
    "must be 1 to 128 printable ASCII characters",
    is_reference
);
checked_text!(
    /// Free text of a person: 1 to 200 characters, no control characters.
    Note,
    "must be 1 to 200 characters without control characters",
    |text| (1..=limits::NOTE_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control)
);
checked_text!(
    /// What a client attached to a reservation: the text of a JSON object of at most 10 strings, at most 500 bytes in all.
    Metadata,
    "must be an object of at most 10 strings, 500 bytes in all",
    |text| {
        text.len() <= limits::METADATA_BYTES_MAX
            && serde_json::from_str::<std::collections::BTreeMap<String, String>>(text)
                .is_ok_and(|members| members.len() <= limits::METADATA_MEMBERS_MAX && !text.contains('\0'))
    }
);

/// A client's name for one operation, to make a repeat safe: 1 to 255 printable ASCII characters.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// Takes a header value: quoted (a structured-field string) or bare; both forms of one key are equal.
    /// `None` if empty, too long, not printable ASCII, or with a broken quotation.
    pub fn parse(header: &str) -> Option<Self> {
        let trimmed = header.trim_matches(' ');
        let text = match trimmed.strip_prefix('"') {
            Some(rest) => unescape(rest.strip_suffix('"')?)?,
            None => trimmed.to_owned(),
        };
        let is_printable = text.bytes().all(|b| (0x20..=0x7e).contains(&b));
        let is_short = (1..=limits::IDEMPOTENCY_KEY_CHARS_MAX).contains(&text.len());
        (is_printable && is_short).then(|| Self(text.into()))
    }

    /// The key without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The inside of a structured-field string (RFC 9651): only `\"` and `\\` are escapes, a bare quote ends it too early.
fn unescape(inside: &str) -> Option<String> {
    let mut text = String::with_capacity(inside.len());
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return None,
            '\\' => match chars.next()? {
                escaped @ ('"' | '\\') => text.push(escaped),
                _ => return None,
            },
            other => text.push(other),
        }
    }
    Some(text)
}

/// Id of the reservation that a keyed request makes: the same user, SKU and key give the same id with no look-up. The SKU is part of
/// it, so that one key used for two SKUs can never be a conflict between two partitions.
pub fn keyed_reservation_id(user: &UserId, sku: &SkuId, key: &IdempotencyKey) -> Uuid {
    hash_fields(NAMESPACE, &[b"reserve", user.as_str().as_bytes(), sku.as_str().as_bytes(), key.as_str().as_bytes()])
}

/// Id of an operator's keyed command on a SKU.
pub fn keyed_sku_command_id(kind: &str, sku: &SkuId, key: &IdempotencyKey) -> Uuid {
    hash_fields(NAMESPACE, &[kind.as_bytes(), sku.as_str().as_bytes(), key.as_str().as_bytes()])
}

/// Id of a named command on a reservation: the same kind, reservation and name (a payment's reference, or a key) give the same id.
pub fn named_reservation_command_id(kind: &str, reservation: Uuid, name: &str) -> Uuid {
    hash_fields(NAMESPACE, &[kind.as_bytes(), reservation.as_bytes(), name.as_bytes()])
}

/// The key id of a confirm, which its payment names: what its key alone would have given.
pub fn confirm_key_id(reservation: Uuid, key: &IdempotencyKey) -> Uuid {
    named_reservation_command_id("confirm-key", reservation, key.as_str())
}

/// Id of a named command on a SKU (an adjustment's reference).
pub fn named_sku_command_id(kind: &str, sku: &SkuId, name: &str) -> Uuid {
    hash_fields(NAMESPACE, &[kind.as_bytes(), sku.as_str().as_bytes(), b"name", name.as_bytes()])
}

/// Name of the marker that one user's key has in Redis, whatever SKU it was used for; written as 32 hexadecimal digits.
pub fn key_marker_name(user: &UserId, key: &IdempotencyKey) -> Uuid {
    hash_fields(NAMESPACE, &[b"marker", user.as_str().as_bytes(), key.as_str().as_bytes()])
}

/// What a keyed request asks for, hashed: another body under the same key has another fingerprint. Written as 16 hexadecimal digits.
pub fn fingerprint(sku: &SkuId, quantity: Quantity) -> u64 {
    let digest = hash_fields(NAMESPACE, &[b"body", sku.as_str().as_bytes(), &quantity.get().to_le_bytes()]);
    digest.as_u64_pair().0
}

/// A stable 64-bit hash of what a named command asks for: another body under the same name has another one.
pub fn body_hash64(kind: &str, body: &[u8]) -> i64 {
    let digest = hash_fields(NAMESPACE, &[b"command body", kind.as_bytes(), body]);
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    i64::from_le_bytes(first)
}

/// Name of a refused command's row: its place in the log, so that a refusal burns nobody's id.
pub fn refused_command_id(partition: i32, place: Place) -> Uuid {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend_from_slice(&partition.to_le_bytes());
    bytes.extend_from_slice(&place.offset.to_le_bytes());
    bytes.extend_from_slice(&place.index.to_le_bytes());
    hash_fields(NAMESPACE, &[b"refused", &bytes])
}

/// UUIDv5 over length-prefixed fields.
fn hash_fields(namespace: Uuid, fields: &[&[u8]]) -> Uuid {
    // What a reserve hashes fits: a key of 255 characters, two ids of 64, a word, and their lengths.
    let mut on_stack = [0; 512];
    let length: usize = fields.iter().map(|f| f.len() + 4).sum();
    let mut on_heap = Vec::new();
    let bytes = match on_stack.get_mut(..length) {
        Some(bytes) => bytes,
        None => {
            on_heap.resize(length, 0);
            &mut on_heap[..]
        }
    };
    let mut rest = &mut *bytes;
    for field in fields {
        let len = u32::try_from(field.len()).expect("fields are checked and short");
        let (head, tail) = rest.split_at_mut(4);
        head.copy_from_slice(&len.to_le_bytes());
        let (body, tail) = tail.split_at_mut(field.len());
        body.copy_from_slice(field);
        rest = tail;
    }
    Uuid::new_v5(&namespace, bytes)
}

/// A fresh id for a request without a key: ordered by time (UUIDv7), so that inserts stay at the right edge of the index.
#[expect(clippy::disallowed_methods, reason = "fresh ids are made here and nowhere else")]
pub fn fresh_id() -> Uuid {
    Uuid::now_v7()
}

/// A random token, e.g. of one claim of a partition: two claims never share one.
#[expect(clippy::disallowed_methods, reason = "fresh ids are made here and nowhere else")]
pub fn fresh_token() -> Uuid {
    Uuid::new_v4()
}

/// A random number, for choices that only have to be fair.
pub fn random_u64() -> u64 {
    fresh_token().as_u64_pair().1 << 2 // without the bits that are the same in all of them
}

/// Where a command stands inside its partition's log: the record's offset, and which of the record's commands it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Kafka's number of the record.
    pub offset: i64,
    /// 0 for the first command of the record.
    pub index: u16,
}

/// Where a request stands in the log, as a client sees it: `partition.offset.index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Kafka's partition.
    pub partition: i32,
    /// The place in it.
    pub place: Place,
}

impl Ticket {
    /// Reads `partition.offset.index`, decimal digits only.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (partition, offset, index) = (parts.next()?, parts.next()?, parts.next()?);
        let is_number = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if parts.next().is_some() || ![partition, offset, index].into_iter().all(is_number) {
            return None;
        }
        let partition = partition.parse().ok().filter(|p| *p < limits::PARTITIONS_MAX)?;
        Some(Self { partition, place: Place { offset: offset.parse().ok()?, index: index.parse().ok()? } })
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.partition, self.place.offset, self.place.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> UserId {
        UserId::parse(text).expect("legal in this test")
    }
    fn sku(text: &str) -> SkuId {
        SkuId::parse(text).expect("legal in this test")
    }
    fn key(text: &str) -> IdempotencyKey {
        IdempotencyKey::parse(text).expect("legal in this test")
    }

    #[test]
    fn ids_are_checked_at_the_door() {
        for good in ["a", "u-1", "A.b_c:d-9", &"x".repeat(64)] {
            assert!(UserId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", " ", "a b", "a/b", "ü", "a\n", &"x".repeat(65)] {
            assert_eq!(SkuId::parse(bad), Err(MalformedId), "{bad}");
        }
    }

    #[test]
    fn quoted_and_bare_keys_are_equal() {
        assert_eq!(key("\"k-1\""), key("k-1"));
        assert_eq!(key(r#""a\"b""#).as_str(), "a\"b");
        for bad in ["", "\"\"", "\"a", "\"a\"b\"", "a\u{7f}", "é", &"x".repeat(256), r#""a\n""#] {
            assert_eq!(IdempotencyKey::parse(bad), None, "{bad}");
        }
        assert!(IdempotencyKey::parse(&"x".repeat(255)).is_some());
    }

    #[test]
    fn keyed_ids_do_not_meet_by_joining_fields() {
        let ids = [
            keyed_reservation_id(&user("a:b"), &sku("c"), &key("k")),
            keyed_reservation_id(&user("a"), &sku("b:c"), &key("k")),
            keyed_reservation_id(&user("a"), &sku("b"), &key("c:k")),
        ];
        assert_ne!(ids[0], ids[1]);
        assert_ne!(ids[1], ids[2]);
        assert_eq!(ids[0], keyed_reservation_id(&user("a:b"), &sku("c"), &key("\"k\"")));
    }

    #[test]
    fn ids_never_change_between_builds() {
        // Golden values: another hash would give a repeated request another id, and so a second effect.
        let id = keyed_reservation_id(&user("u-1"), &sku("sneaker-42"), &key("k-1"));
        insta::assert_snapshot!(
            format!("{id} {} {:016x} {}", user("u-1").hash64(), fingerprint(&sku("s"), Quantity(1)), key_marker_name(&user("u-1"), &key("k-1")).simple()),
            @"b09de7a2-2682-52f5-9774-f1dc3f82c316 6581650531262141298 f040522f5ed5516e c6ae6a1b93d45051ba4e7c7d447d342a"
        );
    }

    #[test]
    fn tickets_are_read_strictly() {
        let ticket = Ticket { partition: 3, place: Place { offset: 1041, index: 0 } };
        assert_eq!(ticket.to_string(), "3.1041.0");
        assert_eq!(Ticket::parse("3.1041.0"), Some(ticket));
        for bad in [
            "",
            "3",
            "3.1",
            "3.1.0.0",
            "+3.1.0",
            "3.-1.0",
            "a.b.c",
            "3..0",
            "3.99999999999999999999.0",
            "2000.1.0",
            "0.0.70000",
        ] {
            assert_eq!(Ticket::parse(bad), None, "{bad}");
        }
    }
}
