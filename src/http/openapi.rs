//! The OpenAPI documents: request bodies, the problems of each call, and what both listeners have in common.

mod params;

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use super::problem::Code;

pub(super) use params::{ChangeKey, PageQuery, ReservationPath, SkuPath, TicketQuery};

/// Body of a reservation request.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used; bodies are read strictly by `json`")]
pub(super) struct ReserveBody {
    /// Who buys, as the shop names them.
    #[schema(example = "u-1", min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._:-]+$")]
    user_id: String,
    /// What.
    #[schema(example = "sneaker-42", min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._:-]+$")]
    sku_id: String,
    /// Units: all or nothing.
    #[schema(example = 1, minimum = 1, maximum = 1000)]
    quantity: u32,
    /// Whatever the client wants to find in every answer: at most 10 strings, 500 bytes in all as JSON.
    #[schema(nullable = false)]
    metadata: Option<std::collections::BTreeMap<String, String>>,
}

/// Many reservation requests.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used; bodies are read strictly by `json`")]
pub(super) struct ReserveManyBody {
    /// 1 to 250 of them.
    #[schema(min_items = 1, max_items = 250)]
    items: Vec<ReserveManyItemBody>,
}

/// One of many reservation requests.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used; bodies are read strictly by `json`")]
pub(super) struct ReserveManyItemBody {
    /// Who buys, as the shop names them.
    #[schema(example = "u-1", min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._:-]+$")]
    user_id: String,
    /// What.
    #[schema(example = "sneaker-42", min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._:-]+$")]
    sku_id: String,
    /// Units: all or nothing.
    #[schema(example = 1, minimum = 1, maximum = 1000)]
    quantity: u32,
    /// Name of this request, as the header `Idempotency-Key` of the call for one has it, quoted or bare: printable ASCII.
    #[schema(example = "order-7", min_length = 1, max_length = 512, nullable = false)]
    idempotency_key: Option<String>,
    /// Whatever the client wants to find in every answer: at most 10 strings, 500 bytes in all as JSON.
    #[schema(nullable = false)]
    metadata: Option<std::collections::BTreeMap<String, String>>,
}

/// Settings of a SKU, complete: what is left out gets its default.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used; bodies are read strictly by `json`")]
pub(super) struct PutSkuBody {
    /// Units in the sale: required on creation, afterwards only compared.
    #[schema(example = 100, minimum = 0, maximum = 1_000_000_000, nullable = false)]
    on_hand: Option<i64>,
    /// Units that one user may hold or own.
    #[schema(default = 1, minimum = 1, maximum = 1000, nullable = false)]
    user_limit: Option<u32>,
    /// Seconds that a hold lasts.
    #[schema(default = 120, minimum = 10, maximum = 14400, nullable = false)]
    hold_seconds: Option<u32>,
    /// Start of the sale; none = open at once.
    #[schema(format = DateTime)]
    starts_at: Option<String>,
    /// End of the sale; none = no end.
    #[schema(format = DateTime)]
    ends_at: Option<String>,
    /// What happens to a payment after the end of its hold: `rereserve` or `reject`.
    #[schema(default = "rereserve", pattern = "^(rereserve|reject)$", nullable = false)]
    late_payment: Option<String>,
    /// Extensions that one hold may have.
    #[schema(default = 3, minimum = 0, maximum = 100, nullable = false)]
    extensions_max: Option<u32>,
    /// Seconds that all extensions of one hold may add.
    #[schema(default = 600, minimum = 0, maximum = 86400, nullable = false)]
    extension_seconds_max: Option<u32>,
}

/// Some settings of a SKU: what is left out stays, `null` brings the default back.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used; bodies are read strictly by `json`")]
pub(super) struct PatchSkuBody {
    /// Units in the sale: only compared.
    #[schema(minimum = 0, maximum = 1_000_000_000, nullable = false)]
    on_hand: Option<i64>,
    /// Units that one user may hold or own.
    #[schema(minimum = 1, maximum = 1000)]
    user_limit: Option<u32>,
    /// Seconds that a hold lasts.
    #[schema(example = 60, minimum = 10, maximum = 14400)]
    hold_seconds: Option<u32>,
    /// Start of the sale.
    #[schema(format = DateTime)]
    starts_at: Option<String>,
    /// End of the sale.
    #[schema(format = DateTime)]
    ends_at: Option<String>,
    /// `rereserve` or `reject`.
    #[schema(pattern = "^(rereserve|reject)$")]
    late_payment: Option<String>,
    /// Extensions that one hold may have.
    #[schema(minimum = 0, maximum = 100)]
    extensions_max: Option<u32>,
    /// Seconds that all extensions of one hold may add.
    #[schema(minimum = 0, maximum = 86400)]
    extension_seconds_max: Option<u32>,
}

/// A payment.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used; bodies are read strictly by `json`")]
pub(super) struct ConfirmBody {
    /// The shop's name of the payment: printable ASCII.
    #[schema(example = "pay-9", min_length = 1, max_length = 128)]
    payment_ref: String,
}

/// Why a reservation is cancelled, if that is to be kept.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used; bodies are read strictly by `json`")]
pub(super) struct CancelBody {
    /// For people; no control characters.
    #[schema(min_length = 1, max_length = 200, nullable = false)]
    note: Option<String>,
}

/// By how much a hold is to be extended.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used; bodies are read strictly by `json`")]
pub(super) struct ExtendBody {
    /// The hold ends so many seconds later.
    #[schema(example = 60, minimum = 1, maximum = 14400)]
    seconds: u32,
}

/// A change of the stock: `delta`, or `compare_on_hand` and `on_hand`.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used; bodies are read strictly by `json`")]
pub(super) struct AdjustmentBody {
    /// So many units more, or fewer; not 0.
    #[schema(example = 5, minimum = -1_000_000_000, maximum = 1_000_000_000, nullable = false)]
    delta: Option<i64>,
    /// The stock that the operator believes in.
    #[schema(minimum = 0, maximum = 1_000_000_000, nullable = false)]
    compare_on_hand: Option<i64>,
    /// The stock that was counted.
    #[schema(minimum = 0, maximum = 1_000_000_000, nullable = false)]
    on_hand: Option<i64>,
    /// Why, for people; no control characters.
    #[schema(example = "restock", min_length = 1, max_length = 200)]
    note: String,
    /// The shop's name of what it belongs to: printable ASCII. Names the adjustment.
    #[schema(example = "po-77", min_length = 1, max_length = 128, nullable = false)]
    reference: Option<String>,
}

/// Why, if that is to be kept.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used; bodies are read strictly by `json`")]
pub(super) struct NoteBody {
    /// For people; no control characters.
    #[schema(min_length = 1, max_length = 200, nullable = false)]
    note: Option<String>,
}

/// An error (RFC 9457). Programs read `code`; some codes have members of their own.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[allow(dead_code, reason = "only its schema is used")]
struct ProblemSchema {
    /// The code's place on the errors page.
    #[schema(example = "/errors#sold-out")]
    r#type: String,
    /// A short summary of the code.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What is wrong in this case.
    detail: String,
    /// The stable code.
    #[schema(value_type = ProblemCode)]
    code: String,
    /// The path that was asked for.
    instance: String,
    /// Finds the request in logs.
    request_id: String,
    /// 503: whether the request had an effect.
    #[schema(pattern = "^(none|unknown)$", nullable = false)]
    outcome: Option<String>,
    /// `INVALID_FIELD`: every mistake.
    #[schema(nullable = false)]
    errors: Option<Vec<FieldErrorSchema>>,
}

/// One mistake in a body.
#[derive(ToSchema)]
#[schema(as = FieldError)]
#[allow(dead_code, reason = "only its schema is used")]
struct FieldErrorSchema {
    /// JSON pointer.
    pointer: String,
    /// What it must be.
    detail: String,
}

/// Every code; more may come.
struct ProblemCode;

impl PartialSchema for ProblemCode {
    fn schema() -> RefOr<utoipa::openapi::Schema> {
        let words: Vec<&str> = Code::ALL.iter().map(|code| code.word()).collect();
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("A stable code. Clients must tolerate new ones."))
            .enum_values(Some(words))
            .into()
    }
}

impl ToSchema for ProblemCode {}

/// Problems that every call can have.
const COMMON: &[Code] = &[Code::HeadersTooLarge, Code::Internal, Code::Overloaded];
/// Problems of every call with a body.
const BODY: &[Code] =
    &[Code::MalformedBody, Code::RequestTimeout, Code::BodyTooLarge, Code::UnsupportedMediaType, Code::InvalidField];

/// Problems of every change of a reservation.
const CHANGE: &[Code] = &[
    Code::InvalidIdempotencyKey,
    Code::InvalidTicket,
    Code::InvalidParameter,
    Code::UnknownReservation,
    Code::AlreadyConfirmed,
    Code::AlreadyCancelled,
    Code::NotReservedYet,
    Code::ReservationRejected,
    Code::HoldExpired,
    Code::IdempotencyKeyReused,
    Code::QueueUnavailable,
    Code::StatusUnavailable,
];
/// Problems of every change of a SKU.
const CHANGE_SKU: &[Code] = &[
    Code::Unauthenticated,
    Code::InvalidIdempotencyKey,
    Code::IdempotencyKeyReused,
    Code::InvalidParameter,
    Code::UnknownSku,
    Code::QueueUnavailable,
    Code::StatusUnavailable,
];

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident = $($codes:expr),+;)+) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                let lists: &[&[Code]] = &[COMMON, $($codes),+];
                responses_of(&lists.concat())
            }
        }
    )+};
}

problems! {
    /// Of `POST /v1/reservations`.
    ReserveProblems = BODY, &[
        Code::InvalidIdempotencyKey, Code::InvalidParameter, Code::SaleNotStarted, Code::SaleEnded, Code::UnknownSku, Code::SoldOut,
        Code::UserLimit, Code::IdempotencyKeyReused, Code::Halted, Code::SalePaused, Code::QueueUnavailable, Code::StatusUnavailable];
    /// Of `POST /v1/reservations/batch`, as a whole.
    ReserveManyProblems = BODY, &[Code::InvalidIdempotencyKey, Code::InvalidParameter, Code::QueueUnavailable];
    /// Of `GET /v1/reservations`.
    ReservationsProblems = &[Code::InvalidParameter, Code::StatusUnavailable];
    /// Of `GET /v1/reservations/{id}`.
    ReservationProblems = &[Code::InvalidTicket, Code::InvalidParameter, Code::UnknownReservation, Code::StatusUnavailable];
    /// Of `GET /v1/reservations/{id}/events`.
    EventsProblems = &[Code::InvalidTicket, Code::InvalidParameter, Code::UnknownReservation, Code::StatusUnavailable];
    /// Of `POST /v1/reservations/{id}/confirm`.
    ConfirmProblems = BODY, CHANGE, &[Code::PaidUnfulfilled];
    /// Of `POST /v1/reservations/{id}/cancel`.
    CancelProblems = BODY, CHANGE;
    /// Of `POST /v1/reservations/{id}/extend`.
    ExtendProblems = BODY, CHANGE, &[Code::ExtensionLimit];
    /// Of a reservation's command's status.
    ReservationCommandProblems = &[
        Code::InvalidTicket, Code::InvalidParameter, Code::UnknownReservation, Code::UnknownCommand, Code::StatusUnavailable];
    /// Of `GET /v1/users/{user}/limits`.
    LimitsProblems = &[Code::InvalidParameter, Code::InvalidField, Code::UnknownSku, Code::StatusUnavailable];
    /// Of `GET /v1/users/{user}/reservations`.
    UserListProblems = &[Code::InvalidParameter, Code::InvalidField, Code::StatusUnavailable];
    /// Of `GET /v1/skus/{sku}`.
    SkuProblems = &[Code::InvalidParameter, Code::UnknownSku, Code::StatusUnavailable];
    /// Of every call of an operator.
    OperatorProblems = &[Code::Unauthenticated];
    /// Of `PUT /v1/admin/skus/{sku}`.
    PutSkuProblems = BODY, CHANGE_SKU, &[Code::StockChanged, Code::SettingsChanged];
    /// Of `PATCH /v1/admin/skus/{sku}`.
    PatchSkuProblems = BODY, CHANGE_SKU, &[Code::StockChanged, Code::SettingsChanged];
    /// Of a pause and its end.
    PauseProblems = BODY, CHANGE_SKU, &[Code::SettingsChanged];
    /// Of `POST /v1/admin/skus/{sku}/adjustments`.
    AdjustProblems = BODY, CHANGE_SKU, &[Code::StockChanged, Code::BelowCommitted, Code::AboveMaximum];
    /// Of `GET /v1/admin/skus/{sku}`.
    AdminReadProblems = &[Code::Unauthenticated, Code::InvalidParameter, Code::UnknownSku, Code::StatusUnavailable];
    /// Of `GET /v1/admin/skus` and `GET /v1/admin/reservations`.
    AdminListProblems = &[Code::Unauthenticated, Code::InvalidParameter, Code::StatusUnavailable];
    /// Of a command's status.
    CommandProblems = &[
        Code::Unauthenticated, Code::InvalidTicket, Code::InvalidParameter, Code::UnknownSku, Code::UnknownCommand,
        Code::StatusUnavailable];
}

/// One response per status; its description names the codes.
fn responses_of(codes: &[Code]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<String, Vec<Code>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status().as_u16().to_string()).or_default().push(*code);
    }
    let response = |codes: Vec<Code>| {
        let lines: Vec<String> = codes.iter().map(|c| format!("`{}`: {}", c.word(), c.meaning())).collect();
        let example = json!({"type": codes[0].type_uri(), "title": codes[0].title(), "status": codes[0].status().as_u16(),
            "detail": codes[0].meaning(), "code": codes[0].word(), "instance": "/", "request_id": "r-1"});
        let content =
            ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).example(Some(example)).build();
        let response =
            ResponseBuilder::new().description(lines.join("\n\n")).content("application/problem+json", content);
        RefOr::T(response.build())
    };
    by_status.into_iter().map(|(status, codes)| (status, response(codes))).collect()
}

/// A document without calls: title, version, and the schemas that problems refer to. `routes` add the rest.
pub(super) fn base(title: &str) -> OpenApi {
    let info = InfoBuilder::new()
        .title(title)
        .version(crate::telemetry::VERSION)
        .description(Some(format!(
            "{} Besides the answers listed, unknown paths are 404 `NOT_FOUND` and unknown methods 405 `METHOD_NOT_ALLOWED`. \
             Clients must tolerate new members, codes and statuses.",
            env!("CARGO_PKG_DESCRIPTION")
        )));
    let schemas = utoipa::openapi::ComponentsBuilder::new()
        .schema("Problem", ProblemSchema::schema())
        .schema("FieldError", FieldErrorSchema::schema())
        .schema("ProblemCode", ProblemCode::schema());
    OpenApiBuilder::new().info(info.build()).components(Some(schemas.build())).build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::http::{admin_openapi, public_openapi};

    fn documents() -> [Value; 2] {
        [public_openapi(), admin_openapi()].map(|d| serde_json::to_value(d).expect("plain values always become JSON"))
    }

    /// `METHOD path: statuses`.
    fn calls(document: &Value) -> Vec<String> {
        let paths = document["paths"].as_object().expect("paths are an object");
        let calls = paths.iter().flat_map(|(path, item)| {
            item.as_object().expect("a path item is an object").iter().map(move |(method, call)| {
                let statuses: Vec<&String> = call["responses"].as_object().expect("responses").keys().collect();
                format!("{} {path}: {statuses:?}", method.to_uppercase())
            })
        });
        calls.collect()
    }

    #[test]
    fn every_call_is_documented_with_its_statuses() {
        insta::assert_json_snapshot!(documents().each_ref().map(calls));
    }

    #[test]
    fn every_code_is_documented() {
        let text = documents().each_ref().map(Value::to_string).join(" ");
        let missing: BTreeSet<_> =
            Code::ALL.iter().map(|c| c.word()).filter(|c| !text.contains(&format!("`{c}`"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
        for document in documents() {
            assert_eq!(document["openapi"], "3.1.0");
            let words = &document["components"]["schemas"]["ProblemCode"]["enum"];
            assert_eq!(words.as_array().map(Vec::len), Some(Code::ALL.len()), "{words}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        for document in documents() {
            let schemas = document["components"]["schemas"].as_object().expect("schemas are an object");
            let text = document.to_string();
            let names = text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next());
            for name in names {
                assert!(schemas.contains_key(name), "{name} is not among {:?}", schemas.keys());
            }
        }
    }
}
