//! Authentication: reads the identity from the gateway's headers.
//!
//! `admission.rs` authenticates every request to `/api`, new routes included. Handlers get the identity by [`Caller`],
//! which refuses a request that was not authenticated.

use std::fmt;

use axum::extract::FromRequestParts;
use axum::http::header::WWW_AUTHENTICATE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;

use super::problem::{FieldError, Problem, kinds};
use crate::domain::{CustomerId, Identity};

const EMAIL: &str = "X-User-Email";
const ROLE: &str = "X-User-Role";
const SECRET: &str = "X-Gateway-Secret";
/// The challenge of a 401 (RFC 9110, 11.6.1). Callers authenticate at the gateway with a bearer token (RFC 6750).
const CHALLENGE: &str = "Bearer realm=\"ShopVerse\"";

/// The secrets that prove that a request came through the gateway: the current one, and the previous one during a
/// rotation. Without secrets, no proof is required.
#[derive(Clone, Default)]
pub struct GatewaySecrets(Vec<String>);

impl GatewaySecrets {
    pub fn new(secrets: Vec<String>) -> Self {
        Self(secrets)
    }

    /// Whether no proof is required.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares with every secret in constant time, so that the duration reveals nothing.
    fn accept(&self, presented: &str) -> bool {
        let matches = self.0.iter().map(|secret| secret.as_bytes().ct_eq(presented.as_bytes()));
        bool::from(matches.fold(subtle::Choice::from(0), |any, matches| any | matches))
    }
}

impl fmt::Debug for GatewaySecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GatewaySecrets({} hidden)", self.0.len())
    }
}

/// Authenticates the caller.
pub(super) fn identify(headers: &HeaderMap, secrets: &GatewaySecrets) -> Result<Identity, Problem> {
    if !secrets.is_empty() && !secrets.accept(only(headers, SECRET)?) {
        return Err(unauthenticated(SECRET, "is not the gateway's secret"));
    }
    let customer = CustomerId::parse(only(headers, EMAIL)?).map_err(|rule| unauthenticated(EMAIL, rule))?;
    let role = only(headers, ROLE)?;
    let role = role.parse().map_err(|_| unauthenticated(ROLE, "must be ADMIN or CUSTOMER"))?;
    Ok(Identity { customer, role })
}

/// The value of a header that must be present exactly once: of two, it is unclear which one the gateway set.
fn only<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, Problem> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or_else(|| unauthenticated(name, "is missing"))?;
    if values.next().is_some() {
        return Err(unauthenticated(name, "is repeated"));
    }
    // Addresses may contain non-ASCII letters, in UTF-8 (RFC 6531).
    std::str::from_utf8(value.as_bytes()).map_err(|_| unauthenticated(name, "must be UTF-8"))
}

pub(super) fn unauthenticated(header: &'static str, rule: &str) -> Problem {
    Problem::new(&kinds::UNAUTHENTICATED, format!("{header} {rule}."))
        .with_errors(vec![FieldError::new(header, rule)])
        .with_header(WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE))
}

/// The authenticated caller, for handlers.
pub(super) struct Caller(pub(super) Identity);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.remove().map(Self).ok_or_else(|| unauthenticated(EMAIL, "is missing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configured_secret_is_accepted_and_nothing_else() {
        let secrets = GatewaySecrets::new(vec!["current".into(), "previous".into()]);
        assert!(secrets.accept("current") && secrets.accept("previous"));
        for wrong in ["", "curren", "currentx", "Current"] {
            assert!(!secrets.accept(wrong), "{wrong}");
        }
        assert_eq!(format!("{secrets:?}"), "GatewaySecrets(2 hidden)");
    }
}
