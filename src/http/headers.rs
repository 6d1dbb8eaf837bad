//! Request headers, read into types: `X-Request-Id`, `Idempotency-Key`, `Prefer: wait=N`, `If-None-Match`, `Last-Event-ID`; and the query
//! string.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::problem::{Code, Problem};
use crate::ids::{self, IdempotencyKey, SkuId, Ticket};
use crate::limits;

/// `X-Request-Id`, in and out.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `Idempotency-Key`, in.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// `Idempotent-Replayed: true`, out: this answer repeats an earlier one.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// `Prefer`, in.
pub const PREFER: HeaderName = HeaderName::from_static("prefer");
/// `Last-Event-ID`, in: the last event that a client of a stream has seen.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// `Preference-Applied`, out.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The name under which a request is found in logs: the caller's, or ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The caller's, if it is 1 to [`limits::REQUEST_ID_CHARS_MAX`] printable ASCII characters, else a new one.
    pub fn of(headers: &HeaderMap) -> Self {
        let is_good = |text: &&str| {
            (1..=limits::REQUEST_ID_CHARS_MAX).contains(&text.len()) && text.bytes().all(|b| (0x20..=0x7e).contains(&b))
        };
        match headers.get(X_REQUEST_ID).and_then(|v| v.to_str().ok()).filter(is_good) {
            Some(text) => Self(text.into()),
            None => Self(ids::fresh_id().to_string().into()),
        }
    }

    /// As a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text, held together with this.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// As a header.
    pub fn to_header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("printable ASCII, checked or made here")
    }
}

/// The request's `Idempotency-Key`, if it has one.
///
/// # Errors
/// 400 `INVALID_IDEMPOTENCY_KEY` if it can't be used or was sent twice: guessing which one was meant could buy twice.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let refuse = |detail| Err(Problem::new(Code::InvalidIdempotencyKey, detail));
    let mut sent = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(first) = sent.next() else {
        return Ok(None);
    };
    if sent.next().is_some() {
        return refuse("Idempotency-Key was sent more than once");
    }
    match first.to_str().ok().and_then(IdempotencyKey::parse) {
        Some(key) => Ok(Some(key)),
        None => refuse("Idempotency-Key must be 1 to 255 printable ASCII characters, quoted or bare"),
    }
}

/// The wait that `Prefer` asks for (RFC 7240): whole seconds, at most [`limits::PREFER_WAIT_SECONDS_MAX`]. The first one counts;
/// whatever can't be read is ignored, and so is a wait of 0.
pub fn prefer_wait(headers: &HeaderMap) -> Option<Wait> {
    let preferences = headers.get_all(PREFER).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    for preference in preferences {
        let setting = preference.split(';').next().unwrap_or_default();
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        if !name.trim().eq_ignore_ascii_case("wait") {
            continue;
        }
        let value = value.trim();
        let digits = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        // More digits than a u64 has is just a very long wait.
        let seconds = digits.parse().unwrap_or(u64::MAX).min(limits::PREFER_WAIT_SECONDS_MAX);
        return (seconds > 0).then_some(Wait { seconds });
    }
    None
}

/// A client's wish to wait for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    seconds: u64,
}

impl Wait {
    /// How long.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// The value of `Preference-Applied`.
    pub fn applied(self) -> HeaderValue {
        HeaderValue::from_str(&format!("wait={}", self.seconds)).expect("digits are legal in a header")
    }
}

/// What a client already has (RFC 9110, weak comparison).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IfNoneMatch {
    /// No header: nothing.
    #[default]
    Absent,
    /// `*`: any version.
    Any,
    /// These tags, without quotes and weakness.
    Tags(Vec<String>),
}

impl IfNoneMatch {
    /// Reads the header, also when it is spread over several lines. What can't be read matches nothing.
    pub fn of(headers: &HeaderMap) -> Self {
        let lines: Vec<&str> = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok()).collect();
        if lines.is_empty() {
            return Self::Absent;
        }
        if lines.iter().any(|line| line.trim() == "*") {
            return Self::Any;
        }
        Self::Tags(lines.iter().flat_map(|line| line.split(',')).filter_map(tag_of).collect())
    }

    /// Whether the client has this version of a decided reservation already.
    pub fn matches(&self, version: i32) -> bool {
        match self {
            Self::Absent => false,
            Self::Any => true,
            Self::Tags(tags) => tags.contains(&version.to_string()),
        }
    }
}

/// The version that a client of a stream has seen last, by `Last-Event-ID`. What can't be one is ignored: the client is told the present state.
pub fn last_version_seen(headers: &HeaderMap) -> Option<i32> {
    let mut sent = headers.get_all(LAST_EVENT_ID).iter();
    let (Some(only), None) = (sent.next(), sent.next()) else { return None };
    let text = only.to_str().ok()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Our tags are numbers, so a list can be cut at its commas.
fn tag_of(text: &str) -> Option<String> {
    let text = text.trim();
    let strong = text.strip_prefix("W/").unwrap_or(text);
    Some(strong.strip_prefix('"')?.strip_suffix('"')?.to_owned())
}

/// The `ETag` of a version.
pub fn etag(version: i32) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).expect("digits are legal in a header")
}

/// The `ticket` in a query string, if there is one. No other parameter is known here.
///
/// # Errors
/// 400 `INVALID_TICKET`, also if it is there twice; 400 `INVALID_PARAMETER` for any other name.
pub fn ticket_of(query: Option<&str>) -> Result<Option<Ticket>, Problem> {
    let mut ticket = None;
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if name != "ticket" {
            return Err(unknown_parameter(&name));
        }
        let read = Ticket::parse(&value).filter(|_| ticket.is_none());
        ticket = Some(read.ok_or_else(|| {
            Problem::new(Code::InvalidTicket, "ticket must be partition.offset.index, once, as the 202 gave it")
        })?);
    }
    Ok(ticket)
}

/// The `ticket` in a query string where it can't be left out.
///
/// # Errors
/// As [`ticket_of`]; 400 `INVALID_TICKET` without one.
pub fn required_ticket_of(query: Option<&str>) -> Result<Ticket, Problem> {
    ticket_of(query)?.ok_or_else(|| Problem::new(Code::InvalidTicket, "ticket is required, as the 202 gave it"))
}

/// Refuses every query parameter.
///
/// # Errors
/// 400 `INVALID_PARAMETER` if there is one.
pub fn no_parameters(query: Option<&str>) -> Result<(), Problem> {
    match url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).next() {
        Some((name, _)) => Err(unknown_parameter(&name)),
        None => Ok(()),
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Items at most.
    pub limit: usize,
    /// Only what comes after this SKU.
    pub after: Option<SkuId>,
}

/// `limit` and `cursor` of a list of SKUs.
///
/// # Errors
/// 400 `INVALID_PARAMETER` for anything out of range, given twice, or of another name.
pub fn page_of(query: Option<&str>) -> Result<Page, Problem> {
    let (mut limit, mut after) = (None, None);
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match name.as_ref() {
            "limit" if limit.is_none() => {
                let items = value.parse().ok().filter(|n| (1..=limits::PAGE_ITEMS_MAX).contains(n));
                limit = Some(items.ok_or_else(|| invalid_parameter("limit", "must be 1 to 500"))?);
            }
            "cursor" if after.is_none() => {
                let sku = SkuId::parse(&value);
                after = Some(sku.map_err(|_| invalid_parameter("cursor", "must be next_cursor of an earlier page"))?);
            }
            "limit" | "cursor" => return Err(invalid_parameter(&name, "may be given once")),
            _ => return Err(unknown_parameter(&name)),
        }
    }
    Ok(Page { limit: limit.unwrap_or(limits::PAGE_ITEMS_DEFAULT), after })
}

fn invalid_parameter(name: &str, detail: &'static str) -> Problem {
    Problem::new(Code::InvalidParameter, detail).with("parameter", name)
}

fn unknown_parameter(name: &str) -> Problem {
    Problem::new(Code::InvalidParameter, "the query parameter is not known here").with("parameter", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).expect("legal in this test");
        lines.iter().map(|(name, text)| (name.clone(), value(text))).collect()
    }

    #[test]
    fn request_ids_are_taken_over_only_if_printable_and_short() {
        let of = |text: &str| RequestId::of(&headers(&[(X_REQUEST_ID, text)])).as_str().to_owned();
        for good in ["a", "req 1/2:3", &"x".repeat(128)] {
            assert_eq!(of(good), good);
        }
        for bad in ["", "é", "a\tb", &"x".repeat(129)] {
            assert_eq!(of(bad).len(), 36, "{bad} is replaced");
        }
        assert_eq!(RequestId::of(&HeaderMap::new()).as_str().len(), 36);
    }

    #[test]
    fn idempotency_keys_are_quoted_or_bare_and_sent_once() {
        let of = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|l| (IDEMPOTENCY_KEY, *l)).collect();
            idempotency_key(&headers(&lines)).map(|k| k.map(|k| k.as_str().to_owned())).map_err(|p| p.code().word())
        };
        let long = "x".repeat(255);
        assert_eq!(of(&[]), Ok(None));
        for (sent, key) in [("k-1", "k-1"), ("\"k-1\"", "k-1"), ("\"a b\"", "a b"), (&long, &long)] {
            assert_eq!(of(&[sent]), Ok(Some(key.to_owned())));
        }
        for bad in [&["k", "k"][..], &[""], &["\"\""], &["\"k"], &["é"], &["a\tb"], &[&"x".repeat(256)]] {
            assert_eq!(of(bad), Err("INVALID_IDEMPOTENCY_KEY"), "{bad:?}");
        }
    }

    #[test]
    fn prefer_is_read_as_the_rfc_says_and_ignored_when_it_cannot_be() {
        let of = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|l| (PREFER, *l)).collect();
            prefer_wait(&headers(&lines)).map(|w| w.duration().as_secs())
        };
        for (lines, seconds) in [
            (&["wait=5"][..], 5),
            (&["wait=30"], 30),
            (&["wait=31"], 30),
            (&["wait=99999999999999999999999"], 30),
            (&["Wait = \"7\""], 7),
            (&["respond-async, wait=10; foo=bar"], 10),
            (&["respond-async", "wait=3"], 3),
            (&["wait=2, wait=9"], 2),
        ] {
            assert_eq!(of(lines), Some(seconds), "{lines:?}");
        }
        for lines in [
            &[][..],
            &["wait"],
            &["wait="],
            &["wait=-1"],
            &["wait=1.5"],
            &["wait=x"],
            &["wait=0"],
            &["waiting=5"],
            &["é=1"],
        ] {
            assert_eq!(of(lines), None, "{lines:?}");
        }
        assert_eq!(
            prefer_wait(&headers(&[(PREFER, "wait=60")])).map(|w| w.applied()),
            Some(HeaderValue::from_static("wait=30"))
        );
    }

    #[test]
    fn entity_tags_match_in_lists_weak_and_by_star() {
        let of = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|l| (header::IF_NONE_MATCH, *l)).collect();
            IfNoneMatch::of(&headers(&lines)).matches(2)
        };
        for lines in
            [&["\"2\""][..], &["W/\"2\""], &["\"1\", \"2\""], &["\"1\"", "\"2\""], &["*"], &["\"1\" , W/\"2\" "]]
        {
            assert!(of(lines), "{lines:?}");
        }
        for lines in [&[][..], &["\"1\""], &["2"], &["\"22\""], &[""], &["\"2"], &["w/\"2\""]] {
            assert!(!of(lines), "{lines:?}");
        }
    }

    #[test]
    fn queries_know_the_ticket_alone() {
        let of = |query: &str| ticket_of(Some(query)).map(|t| t.map(|t| t.to_string())).map_err(|p| p.code().word());
        assert_eq!(of(""), Ok(None));
        assert_eq!(of("ticket=3.1041.0"), Ok(Some("3.1041.0".into())));
        assert_eq!(of("ticket=3%2E1041%2e0"), Ok(Some("3.1041.0".into())));
        for bad in ["ticket=", "ticket", "ticket=3", "ticket=1.1.1&ticket=1.1.1", "ticket=%ff"] {
            assert_eq!(of(bad), Err("INVALID_TICKET"), "{bad}");
        }
        assert_eq!(of("tiket=1.1.1"), Err("INVALID_PARAMETER"));
        let page = |query: &str| {
            page_of(Some(query)).map(|p| (p.limit, p.after.map(|s| s.to_string()))).map_err(|p| p.code().word())
        };
        assert_eq!(page(""), Ok((50, None)));
        assert_eq!(page("limit=500&cursor=a%3Ab"), Ok((500, Some("a:b".into()))));
        for bad in ["limit=0", "limit=501", "limit=x", "limit=1&limit=2", "cursor=", "cursor=a%20b", "page=2"] {
            assert_eq!(page(bad), Err("INVALID_PARAMETER"), "{bad}");
        }
        assert!(no_parameters(None).is_ok() && no_parameters(Some("")).is_ok() && no_parameters(Some("a=b")).is_err());
    }
}
