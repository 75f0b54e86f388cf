//! The headers of the responses in the `OpenAPI` document.

use axum::http::StatusCode;
use serde_json::json;
use utoipa::openapi::header::Header;
use utoipa::openapi::{Components, ObjectBuilder, Ref, RefOr, Response, Type};

use crate::api::problem::kinds;

const RETRY_AFTER: &str = "Retry-After";

/// The text headers of responses: name, description and example.
const HEADERS: &[(&str, &str, &str)] = &[
    (
        "X-Request-Id",
        "The id of the request in the log: that of the caller, or a new one.",
        "0198c1f2-8c2e-7f00-b1c0-1f6f0d1f2a3b",
    ),
    ("Cache-Control", "Private to the caller; caches must revalidate (RFC 9111).", "private, no-cache"),
    (
        "WWW-Authenticate",
        "How callers authenticate at the gateway (RFC 9110, 11.6.1).",
        "Bearer realm=\"ShopVerse\"",
    ),
    ("Allow", "The methods that the path has (RFC 9110, 10.2.1).", "GET,HEAD,POST"),
    ("Accept", "The media type that is accepted.", "application/json"),
    ("Accept-Encoding", "The content coding that is accepted.", "identity"),
];

fn text_header(about: &str, example: &str) -> Header {
    let mut header = Header::new(ObjectBuilder::new().schema_type(Type::String));
    header.description = Some(about.to_owned());
    header.example = Some(json!(example));
    header
}

fn retry_after() -> Header {
    let mut header = Header::new(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)));
    header.description = Some("The seconds to wait before a retry (RFC 9110, 10.2.3).".to_owned());
    header.example = Some(json!(1));
    header
}

fn header(name: &str) -> RefOr<Header> {
    RefOr::Ref(Ref::new(format!("#/components/headers/{name}")))
}

/// The headers of a problem with this status.
pub(super) fn headers_of(status: StatusCode, code: &str) -> &'static [&'static str] {
    match status {
        StatusCode::UNAUTHORIZED => &["WWW-Authenticate"],
        StatusCode::METHOD_NOT_ALLOWED => &["Allow"],
        StatusCode::UNSUPPORTED_MEDIA_TYPE => &["Accept", "Accept-Encoding"],
        StatusCode::SERVICE_UNAVAILABLE => &[RETRY_AFTER],
        _ if code == kinds::REQUEST_IN_PROGRESS.code => &[RETRY_AFTER],
        _ => &[],
    }
}

pub(super) fn add_components(components: &mut Components) {
    for (name, about, example) in HEADERS {
        components.headers.insert((*name).to_owned(), text_header(about, example).into());
    }
    components.headers.insert(RETRY_AFTER.to_owned(), retry_after().into());
}

pub(super) fn add_header(response: &mut Response, name: &str) {
    response.headers.insert(name.to_owned(), header(name));
}
