//! Extractors for path, query and JSON body, which reject with a [`Problem`].

use std::fmt::Display;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::body::Received;
use super::json::{WellFormed, pointer};
use super::problem::{Problem, kinds};
use crate::domain::OrderId;
use crate::json::Object;

/// The `{orderId}` of a path.
pub(super) struct OrderIdPath(pub(super) OrderId);

impl<S: Send + Sync> FromRequestParts<S> for OrderIdPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::invalid("orderId", "must be UTF-8"))?;
        OrderId::parse(&text).map(Self).map_err(|rule| Problem::invalid("orderId", rule))
    }
}

pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(mut request: Request, _: &S) -> Result<Self, Problem> {
        expect_json(request.headers())?;
        parse(&received(&mut request)?).map(Self)
    }
}

/// An optional JSON body. An empty body may have any `Content-Type`.
pub(super) struct OptionalJson<T>(pub(super) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(mut request: Request, _: &S) -> Result<Self, Problem> {
        let is_json = expect_json(request.headers());
        let body = received(&mut request)?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        is_json?;
        parse(&body).map(Self)
    }
}

/// Refuses other media types and content codings (RFC 9110, 8.3, 8.4 and 15.5.16).
fn expect_json(headers: &HeaderMap) -> Result<(), Problem> {
    let refuse = |detail, header, value| {
        let problem = Problem::new(&kinds::UNSUPPORTED_MEDIA_TYPE, detail);
        Err(problem.with_header(header, HeaderValue::from_static(value)))
    };
    if !is_json(headers) {
        return refuse("Content-Type must be application/json, in UTF-8.", ACCEPT, "application/json");
    }
    if headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return refuse("The body must have no Content-Encoding.", ACCEPT_ENCODING, "identity");
    }
    Ok(())
}

/// JSON is UTF-8 (RFC 8259, 8.1), so `charset=utf-8` is accepted and no other charset.
fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next().and_then(|value| value.to_str().ok()), values.next()) else {
        return false;
    };
    let mut parts = value.split(';').map(str::trim);
    let is_utf8 = |parameter: &str| {
        parameter.split_once('=').is_none_or(|(name, value)| {
            !name.trim().eq_ignore_ascii_case("charset")
                || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
    };
    parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) && parts.all(is_utf8)
}

fn received(request: &mut Request) -> Result<Bytes, Problem> {
    let missing = || Problem::invalid("", "the body was not received");
    request.extensions_mut().remove().map_or_else(|| Err(missing()), |Received(body)| body)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut strict = serde_json::Deserializer::from_slice(body);
    WellFormed::deserialize(&mut strict)
        .and_then(|_| strict.end())
        .map_err(|error| Problem::invalid("", describe(&error)))?;
    let typed = serde_json::from_slice(body);
    typed.map(|Object(value)| value).map_err(|error| refuse::<T>(body, &error))
}

/// Finds the place of the error in the body. Parses the body a second time, because tracking the place in every request
/// would cost more.
fn refuse<T: DeserializeOwned>(body: &[u8], error: &serde_json::Error) -> Problem {
    let mut typed = serde_json::Deserializer::from_slice(body);
    match serde_path_to_error::deserialize::<_, Object<T>>(&mut typed) {
        Err(error) => Problem::invalid(pointer(error.path()), describe(error.inner())),
        Ok(_) => Problem::invalid("", describe(error)),
    }
}

/// The error of serde, shortened, because it may quote the body.
fn describe(error: &serde_json::Error) -> String {
    const LONGEST: usize = 160;
    let text = error.to_string();
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((cut, _)) => format!("{}…", &text[..cut]),
    }
}

/// The query parameters, each at most once. Unknown parameters are ignored, like unknown fields of a body.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// The value of a parameter.
    pub(super) fn get(&self, name: &'static str) -> Result<Option<&str>, Problem> {
        let mut values = self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let value = values.next();
        match values.next() {
            None => Ok(value),
            Some(_) => Err(Problem::invalid(name, "must not be repeated")),
        }
    }

    /// The value of a parameter, read by `read`. The error of `read` is the detail of the problem.
    pub(super) fn parse<T, E: Display>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        self.get(name)?.map(read).transpose().map_err(|rule| Problem::invalid(name, rule.to_string()))
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect()))
    }
}
