//! Reads a request's body: declared as JSON (or as a merge patch of it), at most [`limits::BODY_BYTES_MAX`], within [`limits::BODY_READ_DEADLINE`].

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
        declared_json(request, JSON).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequest<S> for MergePatchBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        declared_json(request, MERGE_PATCH).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequest<S> for OptionalJsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body).await?;
        if bytes.is_empty() {
            return Ok(Self(Json::Object(Vec::new())));
        }
        check_type(&parts.headers, JSON)?;
        json::parse(&bytes).map(Self)
    }
}

async fn declared_json(request: Request, types: &[&'static str]) -> Result<Json, Problem> {
    let (parts, body) = request.into_parts();
    check_type(&parts.headers, types)?;
    json::parse(&read(&parts.headers, body).await?)
}

fn check_type(headers: &HeaderMap, types: &[&'static str]) -> Result<(), Problem> {
    let declared = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if types.contains(&&*essence) {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, format!("Content-Type must be {}", types.join(" or "))))
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Problem> {
    let too_large =
        || Problem::new(Code::BodyTooLarge, format!("the body must be at most {} bytes", limits::BODY_BYTES_MAX));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > limits::BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let reading = Limited::new(body, limits::BODY_BYTES_MAX).collect();
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
