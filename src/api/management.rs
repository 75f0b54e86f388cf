//! What platforms ask of a service beside its API: metrics, and health under the paths of Spring Boot's actuator.
//!
//! On `MANAGEMENT_ADDRESS` where that is set, else on the gateway's port. No route needs an identity, and none shows an
//! order, an address or a secret. They answer while the database is away, with what is known.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use strum::VariantNames;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::health::{Components, Health, answer};
use super::problem::Problem;
use crate::domain::payments::ParkReason;
use crate::lifecycle::Phase;
use crate::metrics::{Metrics, OPEN_METRICS};
use crate::store::Store;
use crate::store::work::{REFUND_REASONS, UndoneWork};

/// How long the database may take for a scrape.
const DATABASE_DEADLINE: Duration = Duration::from_secs(1);
/// How often the database is asked for scrapes, however many there are.
const ASK_DATABASE_EVERY: Duration = Duration::from_secs(1);

/// What a scrape shows, and the parts that it asks.
pub struct Scrape {
    metrics: Arc<Metrics>,
    health: Health,
    store: Store,
    /// When the database was asked last.
    asked: Mutex<Option<Instant>>,
}

impl Scrape {
    /// A scrape asks the database on a connection of its own.
    pub fn new(metrics: &Arc<Metrics>, health: &Health) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            health: health.clone(),
            store: health.store.for_scrapes(DATABASE_DEADLINE),
            asked: Mutex::default(),
        }
    }

    /// The store, for closing it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// All samples, as of now.
    async fn text(&self) -> Result<String, Problem> {
        let breaker = self.health.products.state().as_str();
        self.metrics.products.show_breaker(breaker);
        self.show_ready("product_service", breaker != "open");
        self.show_ready("kafka", self.health.kafka.as_str() == "up");
        self.look_at_database().await;
        self.metrics.text().map_err(Problem::internal)
    }

    /// Scrapes that come together wait for one look.
    async fn look_at_database(&self) {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|asked| asked.elapsed() < ASK_DATABASE_EVERY) {
            return;
        }
        let migrated = self.store.is_migrated().await;
        self.show_readiness(migrated.as_ref().ok().copied());
        if matches!(migrated, Ok(true))
            && let Ok(work) = self.store.undone_work().await
        {
            self.show_work(&work);
        }
        *asked = Some(Instant::now());
    }

    /// `is_migrated`: nothing where the database is away.
    fn show_readiness(&self, is_migrated: Option<bool>) {
        let is_current = is_migrated == Some(true);
        self.show_ready("service", is_current && self.health.lifecycle.phase() == Phase::Serving);
        self.show_ready("database", is_migrated.is_some());
        self.show_ready("migrations", is_current);
        self.metrics.service.database_reachable.set(is_migrated.is_some().into());
    }

    fn show_ready(&self, component: &'static str, is_ready: bool) {
        self.metrics.service.ready.get_or_create(&[("component", component)]).set(is_ready.into());
    }

    fn show_work(&self, undone: &UndoneWork) {
        let UndoneWork { outbox, stock, parked_payments, refunds_due, .. } = undone;
        let work = &self.metrics.work;
        work.refunds_oldest.get_or_create(&[]).set(undone.oldest_refund_seconds);
        let count = |counts: &[(String, i64)], reason| {
            counts.iter().find(|(known, _)| known == reason).map_or(0, |(_, count)| *count)
        };
        work.outbox_pending.get_or_create(&[]).set(outbox.pending);
        work.outbox_oldest.get_or_create(&[]).set(outbox.oldest_seconds);
        work.outbox_parked.get_or_create(&[]).set(outbox.parked_orders);
        work.stock_oldest.get_or_create(&[]).set(stock.oldest_seconds);
        work.stock_overdue.get_or_create(&[]).set(stock.overdue);
        work.stock_parked.get_or_create(&[]).set(stock.parked);
        for (state, count) in [("TAKING", stock.taking), ("RETURNING", stock.returning)] {
            work.stock_jobs.get_or_create(&[("state", state)]).set(count);
        }
        let stuck =
            [("paid_not_confirmed", stock.paid_not_confirmed), ("taking_overdue", stock.taking_overdue)];
        for (kind, count) in stuck {
            work.stuck.get_or_create(&[("kind", kind)]).set(count);
        }
        for &reason in ParkReason::VARIANTS {
            work.parked_payments.get_or_create(&[("reason", reason)]).set(count(parked_payments, reason));
        }
        for reason in REFUND_REASONS {
            work.refunds_due.get_or_create(&[("reason", reason)]).set(count(refunds_due, reason));
        }
    }
}

/// The routes. They are in no `OpenAPI` document: they are not the gateway's.
pub(super) fn routes(scrape: Scrape) -> Router {
    let health = Router::new()
        .route("/actuator/health", get(health))
        .route("/actuator/health/readiness", get(health))
        .with_state(scrape.health.clone());
    Router::new()
        .route("/metrics", get(metrics))
        .route("/actuator/prometheus", get(metrics))
        .with_state(Arc::new(scrape))
        .merge(health)
        .route("/actuator/health/liveness", get(async || answer(&json!({"status": "UP"}))))
        .route("/actuator/info", get(info))
}

async fn metrics(State(scrape): State<Arc<Scrape>>) -> Result<Response, Problem> {
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], scrape.text().await?).into_response())
}

/// Ready as `/health/ready` says, in the words of Spring Boot.
async fn health(State(health): State<Health>) -> Result<Response, Problem> {
    let Components { database, kafka, product_service, .. } = health.check().await?;
    let breaker = product_service.to_uppercase();
    let product_service = if breaker == "OPEN" { "DOWN" } else { "UP" };
    answer(&json!({
        "status": "UP",
        "groups": ["liveness", "readiness"],
        "components": {
            "db": {"status": database.to_uppercase()},
            "kafka": {"status": kafka.to_uppercase()},
            "productService": {"status": product_service, "details": {"state": breaker}},
        },
    }))
}

async fn info() -> Result<Response, Problem> {
    let build: Value = json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")});
    answer(&json!({"build": build}))
}
