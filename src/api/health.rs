//! Whether the process lives, and whether requests should be sent to it.
//!
//! Ready means: the database answers, its schema is current, and no stop was asked for. Kafka and the Product
//! Service are shown as parts and never take the service out: that would turn their outage into ours.

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

/// That the process lives.
#[derive(Serialize, ToSchema)]
#[schema(as = Liveness)]
struct LiveBody {
    #[schema(example = "live")]
    status: &'static str,
}

/// That requests may be sent.
#[derive(Serialize, ToSchema)]
#[schema(as = Readiness)]
struct ReadyBody {
    #[schema(example = "ready")]
    status: &'static str,
    components: Components,
}

/// The parts that readiness speaks of.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Components {
    /// `up` or `down`.
    #[schema(example = "up")]
    pub(super) database: &'static str,
    /// `current`, `pending` or `unknown`.
    #[schema(example = "current")]
    migrations: &'static str,
    /// What the relay last saw: `up`, `down` or `unknown`.
    #[schema(example = "up")]
    pub(super) kafka: &'static str,
    /// The state of the circuit breaker: `closed`, `open` or `half-open`.
    #[schema(example = "closed")]
    pub(super) product_service: String,
    /// Null where the database did not tell in time.
    stock_work: Option<StockWork>,
    /// Null where the database did not tell in time.
    outbox: Option<Outbox>,
}

/// Stock work that has not come to its end. Each figure stops at 1,000.
#[derive(Serialize, ToSchema)]
struct StockWork {
    open: i64,
    overdue: i64,
    /// Waits for a person.
    parked: i64,
}

/// Events that wait for a person.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Outbox {
    parked_orders: i64,
}

/// Whether the process lives
#[utoipa::path(
    get, path = "/health/live", operation_id = "live", tag = "health",
    responses((status = 200, description = "It lives.", body = LiveBody)),
)]
pub(super) async fn live() -> Result<Response, Problem> {
    answer(&LiveBody { status: "live" })
}

/// Whether requests may be sent
///
/// The database answers, its schema is current, and no stop was asked for. Kafka and the Product Service are shown and
/// never make the service unready.
#[utoipa::path(
    get, path = "/health/ready", operation_id = "ready", tag = "health",
    responses((status = 200, description = "Requests may be sent.", body = ReadyBody)),
    extensions(("x-problems" = json!([kinds::UNAVAILABLE.code]))),
)]
pub(super) async fn ready(State(health): State<Health>) -> Result<Response, Problem> {
    let components = health.check().await?;
    answer(&ReadyBody { status: "ready", components })
}

impl Health {
    /// The parts, where requests may be sent.
    pub(super) async fn check(&self) -> Result<Components, Problem> {
        let phase = self.lifecycle.phase();
        let migrated = self.store.is_migrated().await;
        // A figure that is late must not make the probe late.
        let work = timeout(FIGURES_WITHIN, self.store.unfinished_work()).await.ok().and_then(Result::ok);
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
