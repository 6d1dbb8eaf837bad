//! Reads a request's body: declared as JSON (or as a merge patch of it), at most [`limits::BODY_BYTES_MAX`] (of many reservations
//! [`limits::RESERVATIONS_BODY_BYTES_MAX`]), within [`limits::BODY_READ_DEADLINE`].

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::json::{self, Json};
use super::problem::{Code, Problem};
use crate::limits;

/// What a merge patch (RFC 7396) may be declared as.
const MERGE_PATCH: &[&str] = &["application/merge-patch+json", "application/json"];
const JSON: &[&str] = &["application/json"];

/// A body that is JSON, of whatever shape.
#[derive(Debug)]
pub struct JsonBody(pub Json);

/// The same; nothing at all is an object without members.
#[derive(Debug)]
pub struct OptionalJsonBody(pub Json);

/// A JSON Merge Patch.
#[derive(Debug)]
pub struct MergePatchBody(pub Json);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        declared_json(request, JSON, limits::BODY_BYTES_MAX).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequest<S> for MergePatchBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        declared_json(request, MERGE_PATCH, limits::BODY_BYTES_MAX).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequest<S> for OptionalJsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body, limits::BODY_BYTES_MAX).await?;
        if bytes.is_empty() {
            return Ok(Self(Json::Object(Vec::new())));
        }
        check_type(&parts.headers, JSON)?;
        json::parse(&bytes).map(Self)
    }
}

/// The body of a call about many reservations: read by its handler, which takes a place for it first.
///
/// # Errors
/// 400, 408, 413, 415: as of every other body.
pub(super) async fn json_of_many(headers: &HeaderMap, body: Body) -> Result<Json, Problem> {
    check_type(headers, JSON)?;
    json::parse(&read(headers, body, limits::RESERVATIONS_BODY_BYTES_MAX).await?)
}

async fn declared_json(request: Request, types: &[&'static str], bytes_max: usize) -> Result<Json, Problem> {
    let (parts, body) = request.into_parts();
    check_type(&parts.headers, types)?;
    json::parse(&read(&parts.headers, body, bytes_max).await?)
}

fn check_type(headers: &HeaderMap, types: &[&'static str]) -> Result<(), Problem> {
    let declared = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if types.contains(&&*essence) {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, format!("Content-Type must be {}", types.join(" or "))))
}

async fn read(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Vec<u8>, Problem> {
    let too_large = || Problem::new(Code::BodyTooLarge, format!("the body must be at most {bytes_max} bytes"));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(too_large());
    }
    let reading = Limited::new(body, bytes_max).collect();
    match tokio::time::timeout(limits::BODY_READ_DEADLINE, reading).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().to_vec()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Problem::new(Code::MalformedBody, "the body could not be read to its end")),
        Err(_) => {
            let seconds = limits::BODY_READ_DEADLINE.as_secs();
            Err(Problem::new(Code::RequestTimeout, format!("the body did not arrive within {seconds} s"))
                .header(header::CONNECTION, axum::http::HeaderValue::from_static("close")))
        }
    }
}
