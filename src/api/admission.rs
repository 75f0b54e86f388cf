//! Admission control of `/api` (invariant 8): refuses requests before the start is complete, without an identity, and
//! beyond the maximum number of concurrent requests; ends requests at their deadline.
//!
//! A request takes its permit after its body has arrived, so that slow clients hold no permits.

use std::sync::Arc;

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
use super::identity::identify;
use super::problem::Problem;
use crate::lifecycle::{Lifecycle, Phase};

/// The state of the layer.
pub(super) struct Admission {
    lifecycle: Lifecycle,
    settings: ApiSettings,
    permits: Semaphore,
}

pub(super) async fn admit(State(admission): State<Arc<Admission>>, request: Request, next: Next) -> Response {
    let mut response = admission.serve(request, next).await.unwrap_or_else(IntoResponse::into_response);
    // Responses are private to the caller; caches must revalidate with the ETag (RFC 9111, 5.2.2).
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    response
}

impl Admission {
    pub(super) fn new(lifecycle: Lifecycle, settings: &ApiSettings) -> Arc<Self> {
        let permits = Semaphore::new(settings.max_requests);
        Arc::new(Self { lifecycle, settings: settings.clone(), permits })
    }

    async fn serve(&self, mut request: Request, next: Next) -> Result<Response, Problem> {
        if self.lifecycle.phase() == Phase::Starting {
            return Err(Problem::unavailable("The service is starting.", RETRY_SOON));
        }
        let identity = identify(request.headers(), &self.settings.gateway_secrets)?;
        request.extensions_mut().insert(identity);
        self.receive(&mut request).await;
        let Ok(_permit) = self.permits.try_acquire() else {
            return Err(Problem::unavailable("The service is overloaded.", RETRY_SOON));
        };
        let is_read = request.method().is_safe();
        timeout(self.settings.request_deadline, next.run(request)).await.map_err(|_| deadline_passed(is_read))
    }

    /// Receives the body. Meanwhile the connection counts as waiting, and may be closed for others.
    async fn receive(&self, request: &mut Request) {
        let activity = request.extensions().get::<Arc<Activity>>().cloned();
        if let Some(activity) = &activity {
            activity.wait_for_request();
        }
        let received = receive(request, self.settings.body_timeout).await;
        if let Some(activity) = &activity {
            activity.work();
        }
        request.extensions_mut().insert(received);
    }
}

/// A write continues after the deadline, so its outcome is unknown.
fn deadline_passed(is_read: bool) -> Problem {
    if is_read {
        Problem::unavailable("The request took too long.", RETRY_SOON)
    } else {
        Problem::outcome_unknown(RETRY_SOON)
    }
}
