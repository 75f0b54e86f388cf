//! Management routes: metrics, and health under the paths of Spring Boot's actuator.
//!
//! Served on `MANAGEMENT_ADDRESS` if that is set, else on the gateway's port. The routes need no identity, and show no
//! order, no e-mail address and no secret. Without the database, they answer with the latest known values.

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
use crate::domain::aggregate::reason;
use crate::domain::payments::ParkReason;
use crate::lifecycle::Phase;
use crate::metrics::{Metrics, OPEN_METRICS};
use crate::store::Store;
use crate::store::work::{OTHER_REASON, UnfinishedWork};

/// The deadline of the database queries of a scrape.
const DATABASE_DEADLINE: Duration = Duration::from_secs(1);
/// The minimum interval between two reads of the database, for any number of scrapes.
const DATABASE_INTERVAL: Duration = Duration::from_secs(1);

/// The sources of a scrape.
pub struct Scrape {
    metrics: Arc<Metrics>,
    health: Health,
    store: Store,
    /// The time of the latest read of the database.
    database_read: Mutex<Option<Instant>>,
}

impl Scrape {
    /// The sources of a scrape, which reads the database on its own connection.
    pub fn new(metrics: &Arc<Metrics>, health: &Health) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            health: health.clone(),
            store: health.store.for_scrapes(DATABASE_DEADLINE),
            database_read: Mutex::default(),
        }
    }

    /// The store, for closing it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Renders all current samples.
    async fn text(&self) -> Result<String, Problem> {
        let breaker = self.health.products.state().as_str();
        self.metrics.products.show_breaker(breaker);
        self.show_ready("product_service", breaker != "open");
        self.show_ready("kafka", self.health.kafka.as_str() == "up");
        self.read_database().await;
        self.metrics.text().map_err(Problem::internal)
    }

    /// Reads the counts of the database, at most once per interval. Concurrent scrapes share a read.
    async fn read_database(&self) {
        let mut latest = self.database_read.lock().await;
        if latest.is_some_and(|latest| latest.elapsed() < DATABASE_INTERVAL) {
            return;
        }
        let migrated = self.store.is_migrated().await;
        self.show_readiness(migrated.as_ref().ok().copied());
        if matches!(migrated, Ok(true))
            && let Ok(work) = self.store.count_unfinished_work().await
        {
            self.show_work(&work);
        }
        *latest = Some(Instant::now());
    }

    /// `is_migrated` is `None` if the database did not answer.
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

    fn show_work(&self, unfinished: &UnfinishedWork) {
        let UnfinishedWork { outbox, stock, parked_payments, refunds_due, .. } = unfinished;
        let work = &self.metrics.work;
        work.refunds_oldest.get_or_create(&[]).set(unfinished.oldest_refund_seconds);
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
        for reason in reason::ALL.into_iter().chain([OTHER_REASON]) {
            work.refunds_due.get_or_create(&[("reason", reason)]).set(count(refunds_due, reason));
        }
    }
}

/// The routes. The `OpenAPI` document omits them, because the gateway does not forward to them.
pub(super) fn routes(scrape: Scrape) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/actuator/prometheus", get(metrics))
        .route("/actuator/health", get(health))
        .route("/actuator/health/readiness", get(health))
        .route("/actuator/health/liveness", get(async || answer(&json!({"status": "UP"}))))
        .route("/actuator/info", get(info))
        .with_state(Arc::new(scrape))
}

async fn metrics(State(scrape): State<Arc<Scrape>>) -> Result<Response, Problem> {
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], scrape.text().await?).into_response())
}

/// The readiness of `/health/ready` in the format of Spring Boot.
async fn health(State(scrape): State<Arc<Scrape>>) -> Result<Response, Problem> {
    let Components { database, kafka, product_service, .. } = scrape.health.check().await?;
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
