//! Which requests are let in: none before the start is complete, no more at once than the service can serve,
//! and none for longer than its deadline (invariant 8).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::error::RETRY_SOON;
use super::problem::Problem;
use crate::lifecycle::{Lifecycle, Phase};

/// The gate before `/api`.
#[derive(Clone)]
pub(super) struct Admission {
    lifecycle: Lifecycle,
    permits: Arc<Semaphore>,
    deadline: Duration,
}

impl Admission {
    pub(super) fn new(lifecycle: Lifecycle, max_requests: usize, deadline: Duration) -> Self {
        Self { lifecycle, permits: Arc::new(Semaphore::new(max_requests)), deadline }
    }
}

/// The layer.
pub(super) async fn admit(State(gate): State<Admission>, request: Request, next: Next) -> Response {
    if gate.lifecycle.phase() == Phase::Starting {
        return Problem::unavailable("The service is starting.", RETRY_SOON).into_response();
    }
    let Ok(_permit) = gate.permits.try_acquire() else {
        return Problem::unavailable("The service has too much to do.", RETRY_SOON).into_response();
    };
    let is_read = request.method().is_safe();
    timeout(gate.deadline, next.run(request)).await.unwrap_or_else(|_| took_too_long(is_read).into_response())
}

/// A write goes on without its caller.
fn took_too_long(is_read: bool) -> Problem {
    if is_read {
        Problem::unavailable("The request took too long.", RETRY_SOON)
    } else {
        Problem::outcome_unknown(RETRY_SOON)
    }
}
