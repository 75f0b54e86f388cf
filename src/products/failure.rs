//! Why a look-up failed, whether to retry it, and what it means for the circuit breaker.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use thiserror::Error;

use super::circuit_breaker::CallResult;
use crate::telemetry::error_chain;

/// Why a look-up failed. Cloned for each placement that shared the look-up.
#[derive(Clone, Debug, Error)]
pub(super) enum Failure {
    #[error("not sent: the circuit breaker is not closed")]
    NotPermitted,
    #[error("not sent: too many look-ups were in flight until the deadline")]
    Overloaded,
    #[error("no answer within {after:?}")]
    TimedOut { after: Duration },
    #[error("the connection failed")]
    Connection(#[source] Arc<reqwest::Error>),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("the answer is invalid")]
    InvalidAnswer(#[source] Arc<InvalidAnswer>),
}

/// Why an answer is invalid.
#[derive(Debug, Error)]
pub(super) enum InvalidAnswer {
    #[error("it is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("it is not JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("it is not a product")]
    Malformed(#[source] serde_json::Error),
    #[error("it is about another product")]
    OtherProduct,
}

impl Failure {
    /// The maximum length of a log text, in bytes. A serde error quotes its input, which may be the whole body.
    const MAX_CHAIN: usize = 500;

    /// Whether a retry may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Connection(_) => true,
            Self::Status(status) => matches!(status.as_u16(), 502..=504),
            Self::NotPermitted | Self::Overloaded | Self::InvalidAnswer(_) => false,
        }
    }

    /// The outcome of the request in the metrics.
    pub(super) const fn metric_outcome(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } => "timeout",
            Self::InvalidAnswer(_) => "invalid",
            Self::NotPermitted | Self::Overloaded | Self::Connection(_) | Self::Status(_) => "error",
        }
    }

    /// What the circuit breaker counts. It ignores an answer that is invalid for one product only. A body that is not
    /// JSON (a proxy's error page) and 408 and 429 are failures of the Product Service.
    pub(super) fn call_result(&self) -> CallResult {
        match self {
            Self::InvalidAnswer(answer)
                if matches!(**answer, InvalidAnswer::Malformed(_) | InvalidAnswer::OtherProduct) =>
            {
                CallResult::Ignored
            }
            Self::Status(status) if status.is_client_error() && !matches!(status.as_u16(), 408 | 429) => {
                CallResult::Ignored
            }
            _ => CallResult::Failure,
        }
    }

    /// The `error.type` of a span; a bounded set.
    pub(super) const fn error_type(&self) -> &'static str {
        match self {
            Self::NotPermitted => "circuit_breaker_open",
            Self::Overloaded => "too_many_in_flight",
            Self::TimedOut { .. } => "timeout",
            Self::Connection(_) => "connection",
            Self::Status(_) => "status",
            Self::InvalidAnswer(_) => "invalid_answer",
        }
    }

    /// The failure and its causes, in one line.
    pub(super) fn chain(&self) -> String {
        let mut text = error_chain(self);
        if text.len() > Self::MAX_CHAIN {
            text.truncate(text.floor_char_boundary(Self::MAX_CHAIN));
            text.push('…');
        }
        text
    }
}

/// Drops the URL, which may contain a password.
impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self::Connection(Arc::new(error.without_url()))
    }
}

impl From<InvalidAnswer> for Failure {
    fn from(answer: InvalidAnswer) -> Self {
        Self::InvalidAnswer(Arc::new(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transient_failures_are_retried() {
        for status in [502, 503, 504] {
            assert!(Failure::Status(StatusCode::from_u16(status).unwrap()).is_transient(), "{status}");
        }
        for status in [204, 302, 400, 401, 403, 429, 500, 501] {
            assert!(!Failure::Status(StatusCode::from_u16(status).unwrap()).is_transient(), "{status}");
        }
        assert!(Failure::TimedOut { after: Duration::ZERO }.is_transient());
        assert!(!Failure::from(InvalidAnswer::TooLong { limit: 1 }).is_transient());
        assert!(!Failure::NotPermitted.is_transient() && !Failure::Overloaded.is_transient());
    }

    #[test]
    fn the_log_text_names_the_cause_and_is_short() {
        let bad = serde_json::from_str::<u8>(&format!("\"{}\"", "é".repeat(10_000))).unwrap_err();
        let chain = Failure::from(InvalidAnswer::Malformed(bad)).chain();
        assert!(chain.starts_with("the answer is invalid: it is not a product: invalid type"));
        assert!(chain.len() <= Failure::MAX_CHAIN + '…'.len_utf8(), "{}", chain.len());
    }
}
