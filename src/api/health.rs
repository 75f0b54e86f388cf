//! Whether the process lives, and whether requests should be sent to it.
//!
//! Ready means: the database answers, its schema is current, and no stop was asked for. Kafka and the Product
//! Service are shown as parts and never take the service out: that would turn their outage into ours.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::error::RETRY_SOON;
use super::problem::Problem;
use crate::events::KafkaHealth;
use crate::lifecycle::{Lifecycle, Phase};
use crate::products::ProductClient;
use crate::store::Store;

const FIGURES_WITHIN: Duration = Duration::from_secs(1);

/// The parts that readiness speaks of.
#[derive(Clone)]
pub struct Health {
    /// Start, serving or stop.
    pub lifecycle: Lifecycle,
    /// The database.
    pub store: Store,
    /// What the relay last saw of Kafka.
    pub kafka: KafkaHealth,
    /// The client, for the state of its circuit breaker.
    pub products: Arc<ProductClient>,
}

/// `GET /health/live`
pub(super) async fn live() -> Response {
    answer(&json!({"status": "live"}))
}

/// `GET /health/ready`
pub(super) async fn ready(State(health): State<Health>) -> Result<Response, Problem> {
    let phase = health.lifecycle.phase();
    let migrated = health.store.is_migrated().await;
    // A figure that is late must not make the probe late.
    let work = timeout(FIGURES_WITHIN, health.store.unfinished_work()).await.ok().and_then(Result::ok);
    let components = json!({
        "database": if migrated.is_ok() { "up" } else { "down" },
        "migrations": match migrated { Ok(true) => "current", Ok(false) => "pending", Err(_) => "unknown" },
        "kafka": health.kafka.as_str(),
        "productService": health.products.state().to_string(),
        "stockWork": work.map(|work| json!({"open": work.open, "overdue": work.overdue, "parked": work.parked})),
        "outbox": work.map(|work| json!({"parkedOrders": work.parked_orders})),
    });
    let refuse =
        |detail| Problem::unavailable(detail, RETRY_SOON).with_member("components", components.clone());
    match (phase, migrated) {
        (Phase::Starting, _) => Err(refuse("The service is starting.")),
        (Phase::Stopping, _) => Err(refuse("The service is stopping.")),
        (Phase::Serving, Err(error)) => Err(refuse("The database is not available.").with_cause(error)),
        (Phase::Serving, Ok(false)) => Err(refuse("The database schema is not current.")),
        (Phase::Serving, Ok(true)) => Ok(answer(&json!({"status": "ready", "components": components}))),
    }
}

fn answer(body: &Value) -> Response {
    let content_type = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (content_type, body.to_string()).into_response()
}
