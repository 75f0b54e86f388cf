//! The one shape of every answer that is not 2xx or 304: RFC 9457, `application/problem+json`. What is no
//! well-formed HTTP request never gets here: hyper answers it with a bare 400, 414 or 431.
//!
//! A handler returns a [`Problem`]; the outermost layer writes it, because only there the request's path is at
//! hand, and turns the framework's own refusals into the same shape on the way.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use self::kinds::{
    INTERNAL, INVALID_REQUEST, Kind, METHOD_NOT_ALLOWED, NOT_FOUND, OUTCOME_UNKNOWN, TYPE_PREFIX, UNAVAILABLE,
};
use crate::telemetry::error_chain;

pub(super) mod kinds;

/// RFC 9457, section 3.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// An answer that tells the client what is wrong, and never why we could not do better. Boxed, so that the
/// results that may hold one stay small.
#[derive(Clone, Debug)]
pub struct Problem(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    kind: &'static Kind,
    /// That of the kind, unless the framework refused with one of its own.
    status: StatusCode,
    detail: String,
    errors: Vec<FieldError>,
    more: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

/// One thing that is wrong in the request, and where.
#[derive(Clone, Debug, Serialize)]
pub struct FieldError {
    /// A JSON pointer (RFC 6901) into the body, or the name of a header, path or query parameter.
    pub pointer: String,
    /// What is wrong.
    pub detail: String,
    /// More for programs.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl FieldError {
    /// An error without more for programs.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into(), more: Map::new() }
    }
}

/// The document as it is written.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    instance: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(flatten)]
    more: &'a Map<String, Value>,
}

impl Problem {
    /// A problem of this kind; `detail` is about this occurrence.
    pub fn new(kind: &'static Kind, detail: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            kind,
            status: kind.status,
            detail: detail.into(),
            errors: Vec::new(),
            more: Map::new(),
            headers: Vec::new(),
            cause: None,
        }))
    }

    /// 400: the request itself is wrong, at one place.
    pub fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let (pointer, detail) = (pointer.into(), detail.into());
        let whole = if pointer.is_empty() { detail.clone() } else { format!("{pointer}: {detail}") };
        Self::new(&INVALID_REQUEST, whole).with_errors(vec![FieldError::new(pointer, detail)])
    }

    /// 503: we cannot right now.
    pub fn unavailable(detail: &'static str, retry_after: Duration) -> Self {
        Self::new(&UNAVAILABLE, detail).with_retry_after(retry_after)
    }

    /// 503: a write may have happened, and may still. `detail` says how to ask again safely.
    pub fn outcome_unknown(retry_after: Duration) -> Self {
        Self::new(
            &OUTCOME_UNKNOWN,
            "The database did not say in time whether it wrote. Ask again with the same Idempotency-Key; without one, \
             look at GET /api/orders/my, or at the order, before you repeat the request.",
        )
        .with_retry_after(retry_after)
    }

    /// 500: a bug. The client learns nothing of it; the log does.
    pub fn internal(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::bug().with_cause(cause)
    }

    /// 500 without a cause.
    pub fn bug() -> Self {
        Self::new(&INTERNAL, "The service failed; its log says why.")
    }

    /// Names what is wrong, place by place.
    #[must_use]
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.0.errors = errors;
        self
    }

    /// Adds a member to the document.
    #[must_use]
    pub fn with_member(mut self, name: &str, value: Value) -> Self {
        self.0.more.insert(name.to_owned(), value);
        self
    }

    /// Says when trying again makes sense (RFC 9110, 10.2.3; whole seconds, rounded up).
    #[must_use]
    pub fn with_retry_after(self, retry_after: Duration) -> Self {
        let seconds = retry_after.as_millis().div_ceil(1000).max(1);
        self.with_header(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)))
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.0.cause = Some(Arc::new(cause));
        self
    }

    /// What kind of problem it is.
    pub(super) fn kind(&self) -> &'static Kind {
        self.0.kind
    }

    /// The word by which programs know the problem.
    pub fn code(&self) -> &'static str {
        self.0.kind.code
    }

    /// The cause and the causes of the cause, for the log.
    pub fn cause_chain(&self) -> Option<String> {
        self.0.cause.as_deref().map(|cause| error_chain(cause))
    }

    /// A problem for a refusal of the framework, by its status.
    pub(super) fn of_framework(status: StatusCode) -> Self {
        let mut problem = match status {
            StatusCode::NOT_FOUND => Self::new(&NOT_FOUND, "No route has this path."),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(&METHOD_NOT_ALLOWED, "The Allow header names the methods that are.")
            }
            status if status.is_client_error() => Self::new(&INVALID_REQUEST, "The request cannot be read."),
            _ => return Self::bug(),
        };
        problem.0.status = status;
        problem
    }

    /// The document; `instance` says which request it is about.
    pub(super) fn document(&self, instance: &str) -> Vec<u8> {
        let document = Document {
            r#type: format!("{TYPE_PREFIX}{}", self.0.kind.code),
            title: self.0.kind.title,
            status: self.0.status.as_u16(),
            detail: &self.0.detail,
            instance,
            errors: &self.0.errors,
            more: &self.0.more,
        };
        serde_json::to_vec(&document).unwrap_or_default()
    }

    fn write(&self, path: &str) -> Response {
        let body = self.document(path);
        let content_type = [(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))];
        let mut response = (self.0.status, content_type, body).into_response();
        response.headers_mut().extend(self.0.headers.iter().cloned());
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.0.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the problem of an answer, which is about the request with this path; leaves any other answer as it is.
pub(super) fn write_problem(path: &str, response: Response) -> Response {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let problem =
        response.extensions().get::<Problem>().cloned().unwrap_or_else(|| Problem::of_framework(status));
    let mut written = problem.write(path);
    // What the framework said beside its status, such as Allow.
    for (name, value) in response.headers() {
        if name != CONTENT_TYPE && name != axum::http::header::CONTENT_LENGTH {
            written.headers_mut().insert(name, value.clone());
        }
    }
    written.extensions_mut().insert(problem);
    written
}
