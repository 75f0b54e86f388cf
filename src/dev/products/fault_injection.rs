//! Injected faults of calls.

use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::ProductState;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Call {
    Read,
    ReduceStock,
    RestoreStock,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Slow(Duration),
    Status(StatusCode),
    Body(String),
    Hang,
    LoseAnswer,
    Endless,
}

impl Fault {
    /// The fault of every call in this state.
    pub(super) const fn of(state: ProductState) -> Option<Self> {
        match state {
            ProductState::Up => None,
            ProductState::Errors => Some(Self::Status(StatusCode::SERVICE_UNAVAILABLE)),
            ProductState::Hangs => Some(Self::Hang),
            ProductState::LosesAnswers => Some(Self::LoseAnswer),
        }
    }
}

/// A fault as a test describes it. One flat struct: serde cannot read numbers of arbitrary precision in
/// tagged enums.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    kind: String,
    millis: Option<u64>,
    status: Option<u16>,
    body: Option<String>,
    times: Option<u64>,
    on: Option<Call>,
}

#[derive(Debug)]
pub(super) struct FaultPlan {
    fault: Fault,
    times_left: Option<u64>,
    on: Option<Call>,
}

impl FaultPlan {
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let given: Description = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let fault = match given.kind.as_str() {
            "slow" => Fault::Slow(Duration::from_millis(given.millis.ok_or("slow needs millis")?)),
            "status" => {
                let status = given.status.ok_or("status needs status")?;
                Fault::Status(StatusCode::from_u16(status).map_err(|error| error.to_string())?)
            }
            "body" => Fault::Body(given.body.ok_or("body needs body")?),
            "hang" => Fault::Hang,
            "lose-answer" => Fault::LoseAnswer,
            "endless" => Fault::Endless,
            _ => return Err("unknown kind".to_owned()),
        };
        Ok(Self { fault, times_left: given.times, on: given.on })
    }

    pub(super) fn next(&mut self, call: Call) -> Option<Fault> {
        if self.is_over() || self.on.is_some_and(|on| on != call) {
            return None;
        }
        self.times_left = self.times_left.map(|left| left - 1);
        Some(self.fault.clone())
    }

    pub(super) fn is_over(&self) -> bool {
        self.times_left == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Call, Fault, FaultPlan, StatusCode};

    #[test]
    fn a_fault_ends_after_its_number_of_calls() -> Result<(), String> {
        let mut plan = FaultPlan::parse(br#"{"kind":"status","status":500,"times":2,"on":"reduce-stock"}"#)?;
        let fault = Some(Fault::Status(StatusCode::INTERNAL_SERVER_ERROR));
        assert_eq!(plan.next(Call::Read), None);
        assert_eq!(plan.next(Call::ReduceStock), fault);
        assert!(!plan.is_over());
        assert_eq!(plan.next(Call::ReduceStock), fault);
        assert!(plan.is_over());
        assert_eq!(plan.next(Call::ReduceStock), None);
        Ok(())
    }

    #[test]
    fn unknown_faults_are_refused() {
        for text in ["", "{}", r#"{"kind":"slow"}"#, r#"{"kind":"fast"}"#, r#"{"kind":"hang","tims":1}"#] {
            assert!(FaultPlan::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
