//! The W3C trace context (<https://www.w3.org/TR/trace-context/>, version 00): which trace a call belongs to, in one header, `traceparent`.
//!
//! `tracestate` is not carried on: nobody here writes it, and it may be longer than a whole command.

use std::fmt;

/// The header's name, in HTTP and in the log.
pub const TRACEPARENT: &str = "traceparent";

/// What `traceparent` says: the trace, the span that asks, and whether the caller records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Never 0.
    pub trace_id: u128,
    /// The span that a span of ours is the child of. Never 0.
    pub span_id: u64,
    /// Somebody up the line records the trace: so do we.
    pub is_sampled: bool,
}

/// `00-` 32 digits `-` 16 digits `-` 2 digits.
const CHARS: usize = 55;

impl TraceContext {
    /// Reads a `traceparent`; `None` if it can't be one, and then it is as good as absent. Later versions may append members, which are
    /// ignored, as the standard says.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let is_shaped = bytes.len() >= CHARS && [2, 35, 52].iter().all(|at| bytes[*at] == b'-');
        if !is_shaped {
            return None;
        }
        let version = hex(&bytes[..2])?;
        let is_whole = if version == 0 { bytes.len() == CHARS } else { bytes.get(CHARS).is_none_or(|b| *b == b'-') };
        if version == 0xff || !is_whole {
            return None;
        }
        let trace_id = hex(&bytes[3..35]).filter(|id| *id != 0)?;
        let span_id = hex(&bytes[36..52]).filter(|id| *id != 0)?;
        let flags = hex(&bytes[53..55])?;
        Some(Self { trace_id, span_id: u64::try_from(span_id).ok()?, is_sampled: flags & 1 == 1 })
    }
}

/// As the header's value.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.is_sampled))
    }
}

/// Lower-case digits only: the standard forbids the others.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_alike() {
        let read = TraceContext::parse(GOOD).expect("the standard's example");
        assert_eq!((read.trace_id, read.span_id), (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7));
        assert!(read.is_sampled);
        assert_eq!(read.to_string(), GOOD);
        let unsampled = GOOD.replace("-01", "-00");
        assert_eq!(TraceContext::parse(&unsampled).map(|c| c.to_string()), Some(unsampled));
    }

    #[test]
    fn unknown_flags_and_later_versions_are_read_as_far_as_they_are_known() {
        let flags = TraceContext::parse(&GOOD.replace("-01", "-fe")).expect("flags of the future");
        assert!(!flags.is_sampled);
        for later in [GOOD.replacen("00", "01", 1), format!("{}-more", GOOD.replacen("00", "cc", 1))] {
            assert_eq!(TraceContext::parse(&later), TraceContext::parse(GOOD), "{later}");
        }
    }

    #[test]
    fn whatever_else_is_sent_is_as_good_as_nothing() {
        let zero_trace = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let zero_span = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01";
        let upper = GOOD.to_ascii_uppercase();
        let (longer, cut) = (format!("{GOOD}-x"), &GOOD[..54]);
        let joined = format!("{}x", GOOD.replacen("00", "01", 1));
        let version = GOOD.replacen("00", "ff", 1);
        let dashes = GOOD.replace('-', "_");
        let wide = format!("00-{}-00f067aa0ba902b7-01", "é".repeat(16));
        for bad in ["", zero_trace, zero_span, &upper, &longer, cut, &joined, &version, &dashes, &wide] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }
}
