//! Every refusal of the HTTP interface: a stable code, its status and title, and what a client should do about it.
//!
//! A [`Problem`] becomes `application/problem+json` (RFC 9457) in one place, `frame`, which adds `instance` and `request_id`. The table
//! below is also the errors page (`/errors`), to which `type` points, and the list in the OpenAPI document.

use std::borrow::Cow;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

/// What a client should do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request will fail again.
    Never,
    /// The same request, with the same `Idempotency-Key`, may succeed later.
    SameKey,
    /// The name of the request keeps this answer for ever; under another one it may succeed.
    NewKey,
}

impl Retry {
    /// In one word, for tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Never => "no",
            Self::SameKey => "same key",
            Self::NewKey => "new key",
        }
    }

    /// Advice for people.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Never => "Do not repeat the request unchanged.",
            Self::SameKey => "Repeat the same request later, with the same Idempotency-Key.",
            Self::NewKey => {
                "Try again under another name only (Idempotency-Key, payment_ref): this one keeps its answer."
            }
        }
    }
}

macro_rules! codes {
    ($($(#[doc = $meaning:literal])+ $variant:ident = $code:literal, $status:ident, $retry:ident, $title:literal;)+) => {
        /// A stable code: what programs read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $meaning])+ $variant,)+
        }

        impl Code {
            /// Every code, in the order of the errors page.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// As it stands in `code`.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// The HTTP status that always goes with it.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)+ }
            }

            /// A short summary that never changes.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// What to do about it.
            pub fn retry(self) -> Retry {
                match self { $(Self::$variant => Retry::$retry,)+ }
            }

            /// What it means, for the errors page.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($meaning),+).trim_ascii(),)+ }
            }
        }
    };
}

codes! {
    /// The body is not JSON, has a key twice, or is nested too deep.
    MalformedBody = "MALFORMED_BODY", BAD_REQUEST, Never, "The body is not well-formed JSON.";
    /// `Idempotency-Key` is empty, over 255 characters, not printable ASCII, or was sent twice.
    InvalidIdempotencyKey = "INVALID_IDEMPOTENCY_KEY", BAD_REQUEST, Never, "The Idempotency-Key can't be used.";
    /// `ticket` is not `partition.offset.index`.
    InvalidTicket = "INVALID_TICKET", BAD_REQUEST, Never, "The ticket can't be read.";
    /// A query parameter is unknown, missing or out of range; `parameter` names it.
    InvalidParameter = "INVALID_PARAMETER", BAD_REQUEST, Never, "A query parameter can't be used.";
    /// The admin token is missing or wrong.
    Unauthenticated = "UNAUTHENTICATED", UNAUTHORIZED, Never, "Credentials are required.";
    /// The sale starts later: `starts_at` says when.
    SaleNotStarted = "SALE_NOT_STARTED", FORBIDDEN, SameKey, "The sale has not started.";
    /// The sale is over since `ends_at`.
    SaleEnded = "SALE_ENDED", FORBIDDEN, Never, "The sale has ended.";
    /// There is nothing at this path.
    NotFound = "NOT_FOUND", NOT_FOUND, Never, "There is nothing here.";
    /// No SKU of this name is on sale.
    UnknownSku = "UNKNOWN_SKU", NOT_FOUND, Never, "There is no such SKU.";
    /// No reservation has this id, or the ticket does not belong to it.
    UnknownReservation = "UNKNOWN_RESERVATION", NOT_FOUND, Never, "There is no such reservation.";
    /// No command has this id, or the ticket does not belong to it.
    UnknownCommand = "UNKNOWN_COMMAND", NOT_FOUND, Never, "There is no such command.";
    /// The path exists, the method does not; `Allow` lists those that do.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", METHOD_NOT_ALLOWED, Never, "The method is not allowed here.";
    /// The body did not arrive in time.
    RequestTimeout = "REQUEST_TIMEOUT", REQUEST_TIMEOUT, SameKey, "The request took too long to arrive.";
    /// Fewer units are left than asked for: `available` says how many, `holds_pending` whether some may come back.
    SoldOut = "SOLD_OUT", CONFLICT, SameKey, "Not enough units are left.";
    /// The user would hold or own more than `limit`; `remaining` may still be asked for.
    UserLimit = "USER_LIMIT", CONFLICT, SameKey, "The user's limit does not allow it.";
    /// The reservation is confirmed already, with another payment or before it was to be cancelled or extended.
    AlreadyConfirmed = "ALREADY_CONFIRMED", CONFLICT, Never, "The reservation is confirmed.";
    /// The reservation is cancelled already.
    AlreadyCancelled = "ALREADY_CANCELLED", CONFLICT, Never, "The reservation is cancelled.";
    /// The reservation is not decided yet, and its SKU can't be known now.
    NotReservedYet = "NOT_RESERVED_YET", CONFLICT, SameKey, "The reservation is not decided yet.";
    /// The reservation was rejected: it never held units.
    ReservationRejected = "RESERVATION_REJECTED", CONFLICT, Never, "The reservation was rejected.";
    /// The hold has ended.
    HoldExpired = "HOLD_EXPIRED", CONFLICT, Never, "The hold has expired.";
    /// The payment came after the end of the hold and its units are gone: give the money back. Another payment is another try.
    PaidUnfulfilled = "PAID_UNFULFILLED", CONFLICT, NewKey, "The payment can't be fulfilled.";
    /// The hold can't be extended by so much: `extensions_left` and `seconds_left` say what is left.
    ExtensionLimit = "EXTENSION_LIMIT", CONFLICT, Never, "The hold can't be extended that far.";
    /// The stock would fall below what is reserved and sold: `minimum`.
    BelowCommitted = "BELOW_COMMITTED", CONFLICT, SameKey, "The stock is promised already.";
    /// The stock would exceed a billion units: `on_hand` is the present value.
    AboveMaximum = "ABOVE_MAXIMUM", CONFLICT, Never, "The stock would be too large.";
    /// The stock is not what the request says: `on_hand` is the present value.
    StockChanged = "STOCK_CHANGED", CONFLICT, Never, "The stock is another one.";
    /// The settings changed since they were read for this request.
    SettingsChanged = "SETTINGS_CHANGED", CONFLICT, SameKey, "The settings changed meanwhile.";
    /// The body is over 16 KiB, of many reservations over 128 KiB.
    BodyTooLarge = "BODY_TOO_LARGE", PAYLOAD_TOO_LARGE, Never, "The body is too large.";
    /// The body is not declared as `application/json`.
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", UNSUPPORTED_MEDIA_TYPE, Never, "The body must be application/json.";
    /// Members are missing, unknown, of a wrong type or out of range; `errors` lists all of them.
    InvalidField = "INVALID_FIELD", UNPROCESSABLE_ENTITY, Never, "The body has invalid fields.";
    /// The same key, or the same `reference`, was used for another request; this one was not made.
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", UNPROCESSABLE_ENTITY, Never, "The Idempotency-Key belongs to another request.";
    /// Request line and headers together are over 16 KiB.
    HeadersTooLarge = "HEADERS_TOO_LARGE", REQUEST_HEADER_FIELDS_TOO_LARGE, Never, "The headers are too large.";
    /// A bug; the request id finds it in the logs.
    Internal = "INTERNAL", INTERNAL_SERVER_ERROR, SameKey, "Something went wrong here.";
    /// An operator paused the sale: it may go on later. Confirm, cancel and extend still work.
    SalePaused = "SALE_PAUSED", SERVICE_UNAVAILABLE, SameKey, "The sale is paused.";
    /// The sale stands still until an operator looked at it.
    Halted = "HALTED", SERVICE_UNAVAILABLE, SameKey, "The sale is halted.";
    /// More is asked than can be taken in.
    Overloaded = "OVERLOADED", SERVICE_UNAVAILABLE, SameKey, "The service is overloaded.";
    /// The log can't be reached. With `outcome: unknown` the request may have been taken; `status_url` tells.
    QueueUnavailable = "QUEUE_UNAVAILABLE", SERVICE_UNAVAILABLE, SameKey, "The queue is unavailable.";
    /// The state can't be read now.
    StatusUnavailable = "STATUS_UNAVAILABLE", SERVICE_UNAVAILABLE, SameKey, "The status is unavailable.";
}

impl Code {
    /// The problem's `type`: a place on the errors page, e.g. `/errors#sold-out`.
    pub fn type_uri(self) -> String {
        format!("/errors#{}", self.anchor())
    }

    /// Its place on the errors page.
    pub fn anchor(self) -> String {
        self.word().to_ascii_lowercase().replace('_', "-")
    }
}

/// What a 503 says about the request's effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The request had none and never will.
    None,
    /// It may have been taken.
    Unknown,
}

/// One refusal, on its way to a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem(Box<Inner>);

#[derive(Clone, Debug, PartialEq)]
struct Inner {
    code: Code,
    detail: Cow<'static, str>,
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(flatten)]
    members: &'a Map<String, Value>,
}

impl Problem {
    /// A problem with this explanation of the present case.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { code, detail: detail.into(), members: Map::new(), headers: Vec::new() }))
    }

    /// A 503 that says whether the request had an effect and when to come back.
    pub fn unavailable(code: Code, effect: Effect, detail: impl Into<Cow<'static, str>>) -> Self {
        let outcome = match effect {
            Effect::None => "none",
            Effect::Unknown => "unknown",
        };
        Self::new(code, detail).with("outcome", outcome).retry_after(1)
    }

    /// Adds a member of this code.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.members.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Tells the client to come back in so many seconds.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        self.header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// Its code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What is wrong in this case.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The body, in the order of the contract. `asked` = path and request id; absent for a problem inside another answer.
    fn body<'a>(&'a self, asked: Option<(&'a str, &'a str)>) -> Body<'a> {
        let code = self.0.code;
        Body {
            r#type: code.type_uri(),
            title: code.title(),
            status: code.status().as_u16(),
            detail: &self.0.detail,
            code: code.word(),
            instance: asked.map(|(instance, _)| instance),
            request_id: asked.map(|(_, request_id)| request_id),
            members: &self.0.members,
        }
    }

    /// The body of a problem inside another answer (a command's status, one of many), which has a path and a request id of its own.
    pub fn nested_body(&self) -> Value {
        serde_json::to_value(self.body(None)).expect("plain values always become JSON")
    }

    /// The same, to be written at once.
    pub(super) fn nested(&self) -> impl Serialize + '_ {
        self.body(None)
    }

    /// Seconds after which the client is to come back, if that is said.
    pub(super) fn retry_after_seconds(&self) -> Option<u64> {
        let (_, value) = self.0.headers.iter().find(|(name, _)| *name == header::RETRY_AFTER)?;
        value.to_str().ok()?.parse().ok()
    }

    /// The answer, complete. Called by `frame` for every problem that passes it.
    pub fn render(&self, instance: &str, request_id: &str) -> Response {
        let body =
            serde_json::to_vec(&self.body(Some((instance, request_id)))).expect("plain values always become JSON");
        let mut response = Response::new(body.into());
        *response.status_mut() = self.0.code.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        for (name, value) in &self.0.headers {
            headers.append(name, value.clone());
        }
        response
    }
}

/// The problem travels in the response's extensions until `frame`, which knows path and request id, writes its body.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.0.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The errors page: every code with its meaning, as HTML.
pub fn errors_page() -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Errors</title>\
         <style>body{font:16px/1.5 sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}</style><h1>Errors</h1>\
         <p>Every error is <code>application/problem+json</code>; programs read <code>code</code>.</p>",
    );
    for code in Code::ALL {
        let (anchor, word, status) = (code.anchor(), code.word(), code.status().as_u16());
        let (title, meaning, advice) = (code.title(), code.meaning(), code.retry().advice());
        page.push_str(&format!(
            "<h2 id=\"{anchor}\">{status} {word}</h2><p><b>{title}</b> {meaning}</p><p>{advice}</p>\n"
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{PoisonReason, Rejection};

    #[test]
    fn every_code_is_spelled_once_and_is_an_error() {
        let words: std::collections::BTreeSet<_> = Code::ALL.iter().map(|c| c.word()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{code:?}");
            assert!(errors_page().contains(&format!("id=\"{}\"", code.anchor())));
        }
    }

    /// The table of `docs/errors.md`.
    fn table() -> String {
        let line = |code: &Code| {
            let (word, status) = (code.word(), code.status().as_u16());
            format!("| {status} | `{word}` | {} | {} |\n", code.meaning(), code.retry().word())
        };
        Code::ALL.iter().map(line).collect()
    }

    #[test]
    fn the_page_on_errors_says_what_the_code_says() {
        let page = include_str!("../../docs/errors.md");
        let lines: String = page.lines().filter(|line| line.starts_with("| 4") || line.starts_with("| 5")).fold(
            String::new(),
            |mut all, line| {
                all.push_str(line);
                all.push('\n');
                all
            },
        );
        assert_eq!(lines, table(), "docs/errors.md");
        for retry in [Retry::Never, Retry::SameKey, Retry::NewKey] {
            assert!(page.contains(&format!("- **{}**: {}", retry.word(), retry.advice())), "{retry:?}");
        }
        // The reasons of a REJECTED reservation, as the pure core and the poison table spell them.
        let no = Rejection::SaleNotStarted { starts_at: 0 };
        let over = Rejection::SaleEnded { ends_at: 0 };
        let limit = Rejection::UserLimit { limit: 1, remaining: 0 };
        let out = Rejection::SoldOut { available: 0, holds_pending: false };
        let reasons = [Rejection::SalePaused, no, over, limit, out].map(|rejection| rejection.code());
        let poison = [PoisonReason::Malformed, PoisonReason::NotHere, PoisonReason::ProcessingError];
        for reason in reasons.into_iter().chain(poison.map(PoisonReason::public_reason)) {
            assert!(page.contains(&format!("| `{reason}` | ")), "{reason}");
        }
    }

    #[test]
    fn a_problem_tells_everything_that_the_contract_asks_for() {
        let problem = Problem::unavailable(Code::QueueUnavailable, Effect::None, "the log can't be reached");
        insta::assert_json_snapshot!(problem.body(Some(("/v1/reservations", "r-1"))));
        assert_eq!(problem.render("/", "r").headers()[header::RETRY_AFTER], "1");
    }
}
