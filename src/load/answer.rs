//! Answers, read from bytes. **PURE**. Only what a buyer looks at is read: the generator must cost less than what it measures.

/// Headers of one answer; ours has a dozen.
const HEADERS_MAX: usize = 48;

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub status: u16,
    /// Bytes of the head.
    pub head_bytes: usize,
    /// Bytes of the body.
    pub body_bytes: usize,
    /// Seconds.
    pub retry_after: Option<u64>,
    /// The server closes the connection behind it.
    pub is_last: bool,
}

/// Reads a head; `None` while it is not complete.
///
/// # Errors
/// What is wrong with it: not HTTP/1.1, or without a length.
pub(super) fn head_of(bytes: &[u8]) -> Result<Option<Head>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = match response.parse(bytes) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("an answer is not HTTP/1.1"),
    };
    let status = response.code.ok_or("an answer has no status")?;
    let find = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let body_bytes = match find("content-length") {
        Some(length) => length.trim().parse().map_err(|_| "an answer has a bad length")?,
        None if status == 304 || status == 204 => 0,
        None => return Err("an answer does not say how long it is"),
    };
    let is_last = find("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok(Some(Head {
        status,
        head_bytes,
        body_bytes,
        retry_after: find("retry-after").and_then(|s| s.parse().ok()),
        is_last,
    }))
}

/// The text of a member of a JSON object that has no blanks around its colons and no escapes in it, as the service writes ids, states and
/// codes. `None` for anything else.
pub(super) fn member<'b>(body: &'b [u8], name: &str) -> Option<&'b str> {
    let body = std::str::from_utf8(body).ok()?;
    let mut rest = body;
    loop {
        let at = rest.find(name)?;
        let (before, after) = (&rest[..at], &rest[at + name.len()..]);
        if before.ends_with('"')
            && let Some(value) = after.strip_prefix("\":\"")
        {
            return value.split('"').next();
        }
        rest = after;
    }
}

/// One item of an answer to a call of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item<'b> {
    pub status: u16,
    /// Seconds.
    pub retry_after: Option<u64>,
    /// What the call for one would have had as its body, and what stands around it.
    pub body: &'b [u8],
}

/// The items of an answer, in their order. No text can look like the beginning of one: in a text a quotation mark is escaped.
pub(super) fn items(body: &[u8]) -> impl Iterator<Item = Item<'_>> {
    let text = std::str::from_utf8(body).unwrap_or_default();
    text.split("{\"http_status\":").skip(1).filter_map(|item| {
        let status = item.get(..3)?.parse().ok()?;
        // Beside the status, before what may hold a text of a client.
        let (around, _) = item.split_once('{').unwrap_or((item, ""));
        let retry_after = around
            .split_once("\"retry_after\":")
            .and_then(|(_, seconds)| seconds.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        Some(Item { status, retry_after, body: item.as_bytes() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTED: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 4\r\nretry-after: 1\r\nx: y\r\n\r\nbody";

    #[test]
    fn a_head_is_read_when_it_is_complete() {
        let head = head_of(ACCEPTED).expect("HTTP").expect("complete");
        assert_eq!((head.status, head.body_bytes, head.retry_after, head.is_last), (202, 4, Some(1), false));
        assert_eq!(&ACCEPTED[head.head_bytes..], b"body");
        for cut in 0..head.head_bytes {
            assert_eq!(head_of(&ACCEPTED[..cut]), Ok(None), "{cut}");
        }
        let closing = head_of(b"HTTP/1.1 503 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").expect("HTTP");
        assert!(closing.is_some_and(|head| head.is_last));
    }

    #[test]
    fn what_can_not_be_read_is_told() {
        for bad in [&b"nonsense"[..], b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"] {
            assert!(head_of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn items_are_found_in_their_order_whatever_clients_attached() {
        let body = br#"{"items":[{"http_status":202,"reservation":{"id":"7","status":"QUEUED","status_url":"/v1/x"}},
            {"http_status":200,"replayed":true,"reservation":{"id":"8","status":"RESERVED","metadata":{"a":"{\"http_status\":503"}}},
            {"http_status":503,"retry_after":12,"problem":{"status":503,"code":"OVERLOADED","outcome":"none"}}]}"#;
        let found: Vec<_> =
            items(body).map(|item| (item.status, item.retry_after, member(item.body, "status"))).collect();
        assert_eq!(found, [(202, None, Some("QUEUED")), (200, None, Some("RESERVED")), (503, Some(12), None)]);
        let last = items(body).last().expect("three");
        assert_eq!([member(last.body, "code"), member(last.body, "outcome")], [Some("OVERLOADED"), Some("none")]);
        for nothing in [&b""[..], b"{}", b"\xff", br#"{"items":[{"http_status":x}]}"#, br#"{"items":[{"http_status":"#]
        {
            assert_eq!(items(nothing).count(), 0, "{nothing:?}");
        }
    }

    #[test]
    fn members_are_found_by_their_whole_names() {
        let body =
            br#"{"id":"7","status":"QUEUED","status_url":"/v1/x","n":1,"metadata":{"k":"reason"},"reason":"SOLD_OUT"}"#;
        assert_eq!(
            ["id", "status", "status_url", "reason"].map(|name| member(body, name)),
            [Some("7"), Some("QUEUED"), Some("/v1/x"), Some("SOLD_OUT")]
        );
        assert_eq!(["n", "code", "metadata"].map(|name| member(body, name)), [None; 3]);
    }
}
