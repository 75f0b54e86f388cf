//! Who is calling: read from the gateway's headers once, before any handler runs.
//!
//! `admission.rs` asks for it around all of `/api`, so a new route has it without asking; a handler gets the identity
//! through [`Caller`], which refuses where nobody asked.

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
/// RFC 9110, 11.6.1. Callers prove who they are to the gateway with a JWT, as a bearer token (RFC 6750).
const CHALLENGE: &str = "Bearer realm=\"ShopVerse\"";

/// The secrets that prove that a call came through the gateway: the current one, and the one before it while
/// the gateway changes over. None: the proof is not asked for.
#[derive(Clone, Default)]
pub struct GatewaySecrets(Vec<String>);

impl GatewaySecrets {
    /// Takes the secrets that are accepted.
    pub fn new(secrets: Vec<String>) -> Self {
        Self(secrets)
    }

    /// Whether no proof is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares with every secret in constant time, so that the time taken tells nothing about them.
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

/// The caller, or why they are not known.
pub(super) fn identify(headers: &HeaderMap, secrets: &GatewaySecrets) -> Result<Identity, Problem> {
    if !secrets.is_empty() && !secrets.accept(only(headers, SECRET)?) {
        return Err(unauthenticated(SECRET, "is not the gateway's"));
    }
    let customer = CustomerId::parse(only(headers, EMAIL)?).map_err(|rule| unauthenticated(EMAIL, rule))?;
    let role = only(headers, ROLE)?;
    let role = role.parse().map_err(|_| unauthenticated(ROLE, "must be ADMIN or CUSTOMER"))?;
    Ok(Identity { customer, role })
}

/// The value of a header that must be there exactly once: of two, nobody can tell which the gateway set.
fn only<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, Problem> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or_else(|| unauthenticated(name, "is missing"))?;
    if values.next().is_some() {
        return Err(unauthenticated(name, "is there more than once"));
    }
    // Addresses may have other letters than ASCII's (RFC 6531), in UTF-8.
    std::str::from_utf8(value.as_bytes()).map_err(|_| unauthenticated(name, "must be UTF-8"))
}

pub(super) fn unauthenticated(header: &'static str, rule: &str) -> Problem {
    Problem::new(&kinds::UNAUTHENTICATED, format!("{header} {rule}."))
        .with_errors(vec![FieldError::new(header, rule)])
        .with_header(WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE))
}

/// The caller, as a handler sees them.
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
