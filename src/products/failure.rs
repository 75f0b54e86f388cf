//! Why an attempt brought no answer: for the log, and to tell what is worth another attempt.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use thiserror::Error;

use super::answer::Nonsense;
use super::breaker::Outcome;
use crate::telemetry::chain;

/// Why an attempt brought no answer. Cloned for each placement that shared the attempt.
#[derive(Clone, Debug, Error)]
pub(super) enum Failure {
    #[error("not asked, because the circuit breaker is not closed")]
    Refused,
    #[error("not asked, because too many look-ups were in flight until the deadline")]
    Crowded,
    #[error("no answer within {after:?}")]
    Late { after: Duration },
    #[error("the connection failed")]
    Connection(#[source] Arc<reqwest::Error>),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("the answer makes no sense")]
    Nonsense(#[source] Arc<Nonsense>),
}

impl Failure {
    /// A serde error quotes what it does not like, which may be the whole body.
    const MAX_CHAIN: usize = 500;

    /// Whether the same GET may well be answered a moment later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Late { .. } | Self::Connection(_) => true,
            Self::Status(status) => matches!(status.as_u16(), 502..=504),
            Self::Refused | Self::Crowded | Self::Nonsense(_) => false,
        }
    }

    /// The outcome of the request, as a metric has it.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Late { .. } => "timeout",
            Self::Nonsense(_) => "invalid",
            Self::Refused | Self::Crowded | Self::Connection(_) | Self::Status(_) => "error",
        }
    }

    /// What it says of the Product Service as a whole. An answer that is wrong for its product says nothing of
    /// the others; what is no answer of a Product Service (a proxy's page), or asks for a pause, does.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Nonsense(nonsense)
                if matches!(**nonsense, Nonsense::Malformed(_) | Nonsense::OtherProduct) =>
            {
                Outcome::Ignored
            }
            Self::Status(status) if status.is_client_error() && !matches!(status.as_u16(), 408 | 429) => {
                Outcome::Ignored
            }
            _ => Outcome::Failure,
        }
    }

    /// A word for it, of a bounded set (`error.type` of a span).
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Refused => "circuit_breaker_open",
            Self::Crowded => "too_many_in_flight",
            Self::Late { .. } => "timeout",
            Self::Connection(_) => "connection",
            Self::Status(_) => "status",
            Self::Nonsense(_) => "invalid_answer",
        }
    }

    /// The failure and what is behind it, in one line.
    pub(super) fn chain(&self) -> String {
        let mut text = chain(self);
        if text.len() > Self::MAX_CHAIN {
            text.truncate(text.floor_char_boundary(Self::MAX_CHAIN));
            text.push('…');
        }
        text
    }
}

/// Without the URL: it may hold more than a log should, and the product is named next to it.
impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self::Connection(Arc::new(error.without_url()))
    }
}

impl From<Nonsense> for Failure {
    fn from(nonsense: Nonsense) -> Self {
        Self::Nonsense(Arc::new(nonsense))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_that_may_pass_is_worth_another_attempt() {
        for status in [502, 503, 504] {
            assert!(Failure::Status(StatusCode::from_u16(status).unwrap()).may_pass(), "{status}");
        }
        for status in [204, 302, 400, 401, 403, 429, 500, 501] {
            assert!(!Failure::Status(StatusCode::from_u16(status).unwrap()).may_pass(), "{status}");
        }
        assert!(Failure::Late { after: Duration::ZERO }.may_pass());
        assert!(!Failure::from(Nonsense::TooLong).may_pass());
        assert!(!Failure::Refused.may_pass() && !Failure::Crowded.may_pass());
    }

    #[test]
    fn the_log_line_of_a_failure_names_its_cause_and_stays_short() {
        let bad = serde_json::from_str::<u8>(&format!("\"{}\"", "é".repeat(10_000))).unwrap_err();
        let chain = Failure::from(Nonsense::Malformed(bad)).chain();
        assert!(
            chain.starts_with("the answer makes no sense: it is not what a product looks like: invalid type")
        );
        assert!(chain.len() <= Failure::MAX_CHAIN + '…'.len_utf8(), "{}", chain.len());
    }
}
