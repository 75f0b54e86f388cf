//! Problem details (RFC 9457) of every response that is not 2xx or 304. A malformed HTTP request never gets here: hyper
//! answers it with a bare 400, 414 or 431.
//!
//! A handler returns a [`Problem`]. The outermost layer renders it, because it knows the path of the request. It also
//! converts the rejections of the framework.

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

/// The media type (RFC 9457, section 3).
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// A problem response. It describes the error, but not its cause in the service. Boxed, so that `Result`s stay small.
#[derive(Clone, Debug)]
pub(crate) struct Problem(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    kind: &'static Kind,
    /// The status of the kind, or of the rejection by the framework.
    status: StatusCode,
    detail: String,
    errors: Vec<FieldError>,
    more: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

/// An error in one place of the request.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FieldError {
    /// A JSON pointer (RFC 6901) into the body, or the name of a header, path or query parameter.
    pub pointer: String,
    pub detail: String,
    /// More members, for programs.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl FieldError {
    /// An error without more members.
    pub(crate) fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into(), more: Map::new() }
    }
}

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
    /// A problem of this kind; `detail` describes this occurrence.
    pub(crate) fn new(kind: &'static Kind, detail: impl Into<String>) -> Self {
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

    /// 400: the request is invalid, in one place.
    pub(crate) fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let (pointer, detail) = (pointer.into(), detail.into());
        let whole = if pointer.is_empty() { detail.clone() } else { format!("{pointer}: {detail}") };
        Self::new(&INVALID_REQUEST, whole).with_errors(vec![FieldError::new(pointer, detail)])
    }

    /// 503: temporarily unavailable.
    pub(crate) fn unavailable(detail: &'static str, retry_after: Duration) -> Self {
        Self::new(&UNAVAILABLE, detail).with_retry_after(retry_after)
    }

    /// 503: the write may have happened, or may still happen. `detail` says how to retry safely.
    pub(crate) fn outcome_unknown(retry_after: Duration) -> Self {
        Self::new(
            &OUTCOME_UNKNOWN,
            "The database did not confirm in time whether it wrote. Repeat the request with the same Idempotency-Key; \
             without one, check GET /api/orders/my, or the order, before you repeat the request.",
        )
        .with_retry_after(retry_after)
    }

    /// 500: a bug. Only the log shows the cause.
    pub(crate) fn internal(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::bug().with_cause(cause)
    }

    /// 500 without a cause.
    pub(crate) fn bug() -> Self {
        Self::new(&INTERNAL, "The service failed; its log shows the cause.")
    }

    #[must_use]
    pub(crate) fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.0.errors = errors;
        self
    }

    #[must_use]
    pub(crate) fn with_member(mut self, name: &str, value: Value) -> Self {
        self.0.more.insert(name.to_owned(), value);
        self
    }

    /// Adds `Retry-After` (RFC 9110, 10.2.3; whole seconds, rounded up).
    #[must_use]
    pub(crate) fn with_retry_after(self, retry_after: Duration) -> Self {
        let seconds = retry_after.as_millis().div_ceil(1000).max(1);
        self.with_header(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)))
    }

    #[must_use]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub(crate) fn with_cause(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.0.cause = Some(Arc::new(cause));
        self
    }

    pub(super) fn kind(&self) -> &'static Kind {
        self.0.kind
    }

    pub(crate) fn code(&self) -> &'static str {
        self.0.kind.code
    }

    /// The chain of causes, for the log.
    pub(crate) fn cause_chain(&self) -> Option<String> {
        self.0.cause.as_deref().map(|cause| error_chain(cause))
    }

    /// The problem of a rejection by the framework.
    pub(super) fn of_framework(status: StatusCode) -> Self {
        let mut problem = match status {
            StatusCode::NOT_FOUND => Self::new(&NOT_FOUND, "No route has this path."),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(&METHOD_NOT_ALLOWED, "The Allow header lists the allowed methods.")
            }
            status if status.is_client_error() => Self::new(&INVALID_REQUEST, "The request cannot be read."),
            _ => return Self::bug(),
        };
        problem.0.status = status;
        problem
    }

    /// Renders the document; `instance` is the path of the request.
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

/// Renders the problem of a response to the request with this path. Other responses stay unchanged.
pub(super) fn write_problem(path: &str, response: Response) -> Response {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let problem =
        response.extensions().get::<Problem>().cloned().unwrap_or_else(|| Problem::of_framework(status));
    let mut written = problem.write(path);
    // Keeps the other headers of the framework, such as Allow.
    for (name, value) in response.headers() {
        if name != CONTENT_TYPE && name != axum::http::header::CONTENT_LENGTH {
            written.headers_mut().insert(name, value.clone());
        }
    }
    written.extensions_mut().insert(problem);
    written
}
