//! The HTTP API: the route table and the order of the layers.

mod admission;
mod body;
mod conditional;
mod connection;
mod docs;
mod error;
mod extract;
mod health;
mod idempotency;
mod identity;
mod json;
mod management;
mod observe;
mod order_lists;
mod orders;
mod problem;
pub(crate) mod server;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::error;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use docs::{DocsPage, Topics};
pub(crate) use error::RETRY_SOON;
pub(crate) use health::Health;
pub(crate) use identity::GatewaySecrets;
pub(crate) use management::Scrape;
use problem::Problem;

use crate::metrics::Metrics;
use crate::orders::OrderService;

/// The settings of the API.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// The secrets that prove that a request came through the gateway.
    pub gateway_secrets: GatewaySecrets,
    /// The maximum number of concurrent requests.
    pub max_requests: usize,
    /// The timeout for receiving a body.
    pub body_timeout: Duration,
    /// The deadline of a request from its arrival on.
    pub request_deadline: Duration,
    /// Whether the documentation page is served.
    pub docs: DocsPage,
}

/// The routes of the service.
///
/// The layers, outermost first: log line, ids and problem+json; panics; and for `/api` only, admission (identity, body,
/// permit, deadline). There are few layers, because each one costs every request a future.
///
/// `scrape` adds the management routes, if they have no address of their own.
pub fn router(
    orders: OrderService,
    health: Health,
    settings: &ApiSettings,
    topics: &Topics<'_>,
    scrape: Option<Scrape>,
    metrics: &Arc<Metrics>,
) -> Router {
    metrics.orders.create_refusals(problem::kinds::ALL.iter().map(|kind| kind.code));
    let admission = admission::Admission::new(health.lifecycle.clone(), settings);
    let docs = docs::router(openapi, topics, settings.docs);
    let api = Router::from(order_routes())
        // Added before the layers, so it is behind them: unauthenticated callers get 401, not 405.
        .method_not_allowed_fallback(method_not_allowed)
        .route_layer(from_fn_with_state(admission, admission::admit))
        .with_state(Arc::new(orders));
    let health = Router::from(health_routes()).with_state(health);
    let routes = api.merge(health).merge(docs).merge(scrape.map(management::routes).unwrap_or_default());
    observed(routes, metrics)
}

/// The routes of `MANAGEMENT_ADDRESS`: nothing about orders, and no documents.
pub fn management_router(health: Health, scrape: Scrape, metrics: &Arc<Metrics>) -> Router {
    let health = Router::from(health_routes()).with_state(health);
    observed(health.merge(management::routes(scrape)), metrics)
}

/// Adds the layers that all routes have.
fn observed(routes: Router, metrics: &Arc<Metrics>) -> Router {
    routes
        .fallback(async || StatusCode::NOT_FOUND)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(Arc::clone(metrics), observe::observe))
}

/// The order routes. `routes!` accepts only documented handlers, so the `OpenAPI` document has all of them.
fn order_routes() -> OpenApiRouter<Arc<OrderService>> {
    OpenApiRouter::new()
        .routes(routes!(order_lists::list_all, orders::place))
        .routes(routes!(order_lists::list_mine))
        .routes(routes!(orders::get))
        .routes(routes!(orders::change_status))
        .routes(routes!(orders::cancel))
        .routes(routes!(orders::history))
}

/// The health routes.
fn health_routes() -> OpenApiRouter<Health> {
    OpenApiRouter::new().routes(routes!(health::live)).routes(routes!(health::ready))
}

/// The `OpenAPI` document of all routes.
pub fn openapi() -> OpenApi {
    let mut routes = order_routes().into_openapi();
    routes.merge(health_routes().into_openapi());
    docs::openapi::complete(routes)
}

/// The `AsyncAPI` document of both topics.
pub fn asyncapi(topics: &Topics<'_>) -> serde_json::Value {
    docs::asyncapi::document(topics)
}

async fn method_not_allowed() -> StatusCode {
    StatusCode::METHOD_NOT_ALLOWED
}

#[expect(clippy::needless_pass_by_value, reason = "the signature of the layer")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic.downcast_ref::<&str>().copied();
    let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    error!(message = message.unwrap_or("without a message"), "a handler panicked");
    Problem::bug().into_response()
}
