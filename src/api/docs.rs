//! The `OpenAPI` document, a page that shows it, and the `AsyncAPI` document.
//!
//! Each document is rendered once, at its first request, so that it does not delay the start. The routes need no
//! identity, take no permit (so a slow client does not block others) and show no data of orders.

pub(super) mod asyncapi;
mod headers;
pub(super) mod openapi;
mod problems;

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};
use utoipa::openapi::OpenApi;

/// Whether the page is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocsPage {
    /// No page; the documents are still served.
    Off,
    /// A page.
    On,
    /// A page with a demo customer filled in, for `order-service dev`.
    Dev,
}

/// A document that is constant for the process.
struct Document {
    body: Bytes,
    etag: HeaderValue,
    headers: Headers,
}

type Headers = &'static [(HeaderName, &'static str)];

const JSON: Headers = &[(CONTENT_TYPE, "application/json")];

/// The page loads nothing from other hosts, and must not be framed.
const HTML: Headers = &[
    (CONTENT_TYPE, "text/html; charset=utf-8"),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
];

const SCRIPT: Headers = &[(CONTENT_TYPE, "text/javascript; charset=utf-8")];
const PACKED_SCRIPT: Headers =
    &[(CONTENT_TYPE, "text/javascript; charset=utf-8"), (CONTENT_ENCODING, "gzip")];
const PACKED_STYLE: Headers = &[(CONTENT_TYPE, "text/css; charset=utf-8"), (CONTENT_ENCODING, "gzip")];

const INDEX: &str = include_str!("docs/page/index.html");
const PAGE_SCRIPT: &str = include_str!("docs/page/page.js");
/// The script is sent compressed, because every browser accepts gzip.
const SWAGGER_UI: &[u8] = include_bytes!("docs/page/swagger-ui-bundle.js.gz");
const SWAGGER_UI_STYLE: &[u8] = include_bytes!("docs/page/swagger-ui.css.gz");

/// The names of the topics.
#[derive(Clone, Copy, Debug)]
pub struct Topics<'a> {
    /// The topic of the order events.
    pub orders: &'a str,
    /// The topic of the payment events.
    pub payments: &'a str,
}

/// A document that is rendered at its first request.
type Rendered = Arc<LazyLock<Document, Box<dyn FnOnce() -> Document + Send>>>;

/// The routes of the documents and of the page.
pub(super) fn router(openapi: fn() -> OpenApi, topics: &Topics<'_>, page: DocsPage) -> Router {
    let openapi = rendered(move || Document::new(openapi().to_json().unwrap_or_default(), JSON));
    let (orders, payments) = (topics.orders.to_owned(), topics.payments.to_owned());
    let asyncapi = rendered(move || {
        let document = asyncapi::document(&Topics { orders: &orders, payments: &payments });
        Document::new(document.to_string(), JSON)
    });
    let documents = serve("/openapi.json", Arc::clone(&openapi))
        .merge(serve("/v3/api-docs", openapi))
        .merge(serve("/asyncapi.json", asyncapi));
    let caller = match page {
        DocsPage::Off => return documents,
        DocsPage::On => "",
        DocsPage::Dev => "dev",
    };
    let fixed = |body: &'static [u8], headers| rendered(move || Document::new(body, headers));
    documents
        .merge(serve("/docs", rendered(move || Document::new(INDEX.replace("CALLER", caller), HTML))))
        .merge(serve("/docs/page.js", fixed(PAGE_SCRIPT.as_bytes(), SCRIPT)))
        .merge(serve("/docs/swagger-ui-bundle.js", fixed(SWAGGER_UI, PACKED_SCRIPT)))
        .merge(serve("/docs/swagger-ui.css", fixed(SWAGGER_UI_STYLE, PACKED_STYLE)))
}

fn rendered(render: impl FnOnce() -> Document + Send + 'static) -> Rendered {
    Arc::new(LazyLock::new(Box::new(render)))
}

fn serve(path: &str, document: Rendered) -> Router {
    let answer = async |State(document): State<Rendered>, headers: HeaderMap| document.answer(&headers);
    Router::new().route(path, get(answer)).with_state(document)
}

impl Document {
    fn new(body: impl Into<Bytes>, headers: Headers) -> Self {
        let body = body.into();
        let digest = Sha256::digest(&body);
        let hash = u64::from_be_bytes(std::array::from_fn(|at| digest[at]));
        let etag =
            HeaderValue::from_str(&format!("\"{hash:016x}\"")).unwrap_or(HeaderValue::from_static("\"\""));
        Self { body, etag, headers }
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let mut response = if self.is_known(headers) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            Response::new(self.body.clone().into())
        };
        let headers = response.headers_mut();
        headers
            .extend(self.headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // Caches must revalidate with the ETag, because another version of the service has another document.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(ETAG, self.etag.clone());
        response
    }

    /// Whether the client has this version (RFC 9110, 13.1.2; weak comparison).
    fn is_known(&self, headers: &HeaderMap) -> bool {
        let tags = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut tags = tags.flat_map(|value| value.split(',')).map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == self.etag.as_bytes())
    }
}
