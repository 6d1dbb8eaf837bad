//! Where a record stands against the position stored in Postgres.

/// A record's offset, seen from the next offset to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Decided before: a rewind of the client library, or a rest of an earlier assignment. To be dropped.
    Below,
    /// The next one.
    Next,
    /// Offsets are missing. Our topic is dense (no compaction, no transactions), so the log or the client lost records: halt.
    Gap,
}

/// Compares an arriving record's offset with the offset expected next.
pub fn arrival_of(offset: i64, expected: i64) -> Arrival {
    assert!(expected >= 0, "a position is never negative");
    match offset {
        o if o < expected => Arrival::Below,
        o if o == expected => Arrival::Next,
        _ => Arrival::Gap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_expected_offset_is_decided() {
        assert_eq!(arrival_of(4, 5), Arrival::Below);
        assert_eq!(arrival_of(5, 5), Arrival::Next);
        assert_eq!(arrival_of(6, 5), Arrival::Gap);
        assert_eq!(arrival_of(0, 0), Arrival::Next);
    }
}
