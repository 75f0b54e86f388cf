//! Liveness and readiness.
//!
//! The service is ready if the database answers, its schema is current, and no stop was requested. The answer shows
//! Kafka and the Product Service, but neither makes the service unready: their outage must not become ours.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::error::RETRY_SOON;
use super::orders::json;
use super::problem::{Problem, kinds};
use crate::events::KafkaHealth;
use crate::lifecycle::{Lifecycle, Phase};
use crate::products::ProductClient;
use crate::store::Store;

const COUNTS_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of the health routes.
#[derive(Clone)]
pub struct Health {
    pub lifecycle: Lifecycle,
    pub store: Store,
    /// The state of Kafka, as last seen by the relay.
    pub kafka: KafkaHealth,
    /// The client, for the state of its circuit breaker.
    pub products: Arc<ProductClient>,
}

/// The process is alive.
#[derive(Serialize, ToSchema)]
#[schema(as = Liveness)]
struct LiveBody {
    #[schema(example = "live")]
    status: &'static str,
}

/// The service accepts requests.
#[derive(Serialize, ToSchema)]
#[schema(as = Readiness)]
struct ReadyBody {
    #[schema(example = "ready")]
    status: &'static str,
    components: Components,
}

/// The components of the service.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Components {
    /// `up` or `down`.
    #[schema(example = "up")]
    pub(super) database: &'static str,
    /// `current`, `pending` or `unknown`.
    #[schema(example = "current")]
    migrations: &'static str,
    /// As last seen by the relay: `up`, `down` or `unknown`.
    #[schema(example = "up")]
    pub(super) kafka: &'static str,
    /// The state of the circuit breaker: `closed`, `open` or `half_open`.
    #[schema(example = "closed")]
    pub(super) product_service: String,
    /// Null if the database did not answer in time.
    stock_work: Option<StockWork>,
    /// Null if the database did not answer in time.
    outbox: Option<Outbox>,
}

/// Unfinished stock jobs. Each count stops at 1,000.
#[derive(Serialize, ToSchema)]
struct StockWork {
    open: i64,
    overdue: i64,
    /// Jobs that wait for an operator.
    parked: i64,
}

/// Events that wait for an operator.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Outbox {
    parked_orders: i64,
}

/// Liveness
#[utoipa::path(
    get, path = "/health/live", operation_id = "live", tag = "health",
    responses((status = 200, description = "The process is alive.", body = LiveBody)),
)]
pub(super) async fn live() -> Result<Response, Problem> {
    answer(&LiveBody { status: "live" })
}

/// Readiness
///
/// Ready if the database answers, its schema is current, and no stop was requested. Kafka and the Product Service are
/// shown, but never make the service unready.
#[utoipa::path(
    get, path = "/health/ready", operation_id = "ready", tag = "health",
    responses((status = 200, description = "The service accepts requests.", body = ReadyBody)),
    extensions(("x-problems" = json!([kinds::UNAVAILABLE.code]))),
)]
pub(super) async fn ready(State(health): State<Health>) -> Result<Response, Problem> {
    let components = health.check().await?;
    answer(&ReadyBody { status: "ready", components })
}

impl Health {
    /// The components, if the service is ready for requests.
    pub(super) async fn check(&self) -> Result<Components, Problem> {
        let phase = self.lifecycle.phase();
        let migrated = self.store.is_migrated().await;
        // Slow counts must not delay the probe.
        let work = timeout(COUNTS_TIMEOUT, self.store.unfinished_work()).await.ok().and_then(Result::ok);
        let components = Components {
            database: if migrated.is_ok() { "up" } else { "down" },
            migrations: match migrated {
                Ok(true) => "current",
                Ok(false) => "pending",
                Err(_) => "unknown",
            },
            kafka: self.kafka.as_str(),
            product_service: self.products.state().to_string(),
            stock_work: work.map(|work| StockWork {
                open: work.open,
                overdue: work.overdue,
                parked: work.parked,
            }),
            outbox: work.map(|work| Outbox { parked_orders: work.parked_orders }),
        };
        let refuse = |detail| {
            Problem::unavailable(detail, RETRY_SOON).with_member("components", serde_json::json!(components))
        };
        match (phase, migrated) {
            (Phase::Starting, _) => Err(refuse("The service is starting.")),
            (Phase::Stopping, _) => Err(refuse("The service is stopping.")),
            (Phase::Serving, Err(error)) => Err(refuse("The database is not available.").with_cause(error)),
            (Phase::Serving, Ok(false)) => Err(refuse("The database schema is not current.")),
            (Phase::Serving, Ok(true)) => Ok(components),
        }
    }
}

pub(super) fn answer<T: Serialize>(body: &T) -> Result<Response, Problem> {
    Ok(json(body)?.into_response())
}
