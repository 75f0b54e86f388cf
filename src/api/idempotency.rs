//! The `Idempotency-Key` header (draft-ietf-httpapi-idempotency-key-header-07).

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};

use super::problem::Problem;

const NAME: &str = "Idempotency-Key";
/// Marks the response to a repeated request.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The key of a request, or the error of the header.
pub(super) struct IdempotencyKey(pub(super) Result<Option<String>, Problem>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(key(&parts.headers)))
    }
}

/// Parses the key. The draft defines a quoted string, but many clients send it bare; both are the same key.
fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let refuse = || Problem::invalid(NAME, "must be sent once, with 1 to 255 visible ASCII characters");
    let mut values = headers.get_all(NAME).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().map_err(|_| refuse())?.trim();
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let legal = (1..=255).contains(&bare.len()) && bare.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
    if !legal || values.next().is_some() {
        return Err(refuse());
    }
    Ok(Some(bare.to_owned()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(values: &[&'static str]) -> Result<Option<String>, ()> {
        let name = HeaderName::from_static("idempotency-key");
        let headers = values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect();
        key(&headers).map_err(|_| ())
    }

    #[test]
    fn a_key_may_be_quoted_or_bare() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["8e03978e-40d5"]), Ok(Some("8e03978e-40d5".into())));
        assert_eq!(read(&["\"8e03978e-40d5\""]), Ok(Some("8e03978e-40d5".into())));
    }

    #[test]
    fn an_invalid_key_is_refused() {
        let long: &'static str = Box::leak("k".repeat(256).into_boxed_str());
        for bad in [&[""][..], &["\"\""], &["a b"], &["a\"b"], &["\"a"], &["a", "a"], &[long]] {
            assert_eq!(read(bad), Err(()), "{bad:?}");
        }
    }
}
