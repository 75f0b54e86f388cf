//! Which requests are let in: none before the start is complete, none without an identity, no more at once than the
//! service can serve, and none for longer than its deadline (invariant 8).
//!
//! A permit is taken once the whole request is there: a client that sends slowly keeps nobody else out.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::header::CACHE_CONTROL;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::ApiSettings;
use super::body::receive;
use super::connection::Activity;
use super::error::RETRY_SOON;
use super::identity::{GatewaySecrets, identify};
use super::problem::Problem;
use crate::lifecycle::{Lifecycle, Phase};

/// What stands before `/api`. Cheap to clone.
#[derive(Clone)]
pub(super) struct Admission(Arc<Parts>);

struct Parts {
    lifecycle: Lifecycle,
    secrets: GatewaySecrets,
    permits: Semaphore,
    body_timeout: Duration,
    deadline: Duration,
}

impl Admission {
    pub(super) fn new(lifecycle: Lifecycle, settings: &ApiSettings) -> Self {
        Self(Arc::new(Parts {
            lifecycle,
            secrets: settings.gateway_secrets.clone(),
            permits: Semaphore::new(settings.max_requests),
            body_timeout: settings.body_timeout,
            deadline: settings.request_deadline,
        }))
    }
}

/// The layer.
pub(super) async fn admit(State(admission): State<Admission>, request: Request, next: Next) -> Response {
    let mut response = admission.0.serve(request, next).await.unwrap_or_else(IntoResponse::into_response);
    // What is said of orders is for one caller, and may be kept only to ask again with its `ETag` (RFC 9111, 5.2.2).
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    response
}

impl Parts {
    async fn serve(&self, mut request: Request, next: Next) -> Result<Response, Problem> {
        if self.lifecycle.phase() == Phase::Starting {
            return Err(Problem::unavailable("The service is starting.", RETRY_SOON));
        }
        let identity = identify(request.headers(), &self.secrets)?;
        request.extensions_mut().insert(identity);
        self.receive(&mut request).await;
        let Ok(_permit) = self.permits.try_acquire() else {
            return Err(Problem::unavailable("The service has too much to do.", RETRY_SOON));
        };
        let is_read = request.method().is_safe();
        timeout(self.deadline, next.run(request)).await.map_err(|_| took_too_long(is_read))
    }

    /// Waits for the body. Meanwhile the connection may be closed to make room for others.
    async fn receive(&self, request: &mut Request) {
        let activity = request.extensions().get::<Arc<Activity>>().cloned();
        if let Some(activity) = &activity {
            activity.wait_for_request();
        }
        let received = receive(request, self.body_timeout).await;
        if let Some(activity) = &activity {
            activity.work();
        }
        request.extensions_mut().insert(received);
    }
}

/// A write goes on without its caller.
fn took_too_long(is_read: bool) -> Problem {
    if is_read {
        Problem::unavailable("The request took too long.", RETRY_SOON)
    } else {
        Problem::outcome_unknown(RETRY_SOON)
    }
}
