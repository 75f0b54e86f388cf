//! Metrics for Prometheus: one registry per running service, read at `/metrics`.
//!
//! The names are `OpenTelemetry`'s for HTTP and the database and Resilience4j's for the circuit breaker. Units are
//! seconds and bytes. Every label has a bounded set of values; no address, id or text of a caller is a label.
//! `metrics/metrics.md` lists all families; a test compares the list with a scrape.

mod process;

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};
use strum::{IntoStaticStr, VariantArray};

use crate::domain::{ActorRole, OrderAggregate, Status};
use process::Process;

/// Labels whose values are known when the service is built.
pub(crate) type Labels<const N: usize> = [(&'static str, &'static str); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;
type Seconds = Gauge<f64, AtomicU64>;
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The media type of a scrape.
pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of one running service.
pub struct Metrics {
    registry: Registry,
    pub(crate) http: Http,
    pub(crate) products: Products,
    pub(crate) database: Database,
    pub(crate) orders: Orders,
    pub(crate) relay: Relay,
    pub(crate) payments: Payments,
    pub(crate) work: Work,
    pub(crate) service: Service,
    process: Process,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        Self {
            http: Http::new(&mut registry),
            products: Products::new(&mut registry),
            database: Database::new(&mut registry),
            orders: Orders::new(&mut registry),
            relay: Relay::new(&mut registry),
            payments: Payments::new(&mut registry),
            work: Work::new(&mut registry),
            service: Service::new(&mut registry),
            process: Process::new(&mut registry),
            registry,
        }
    }
}

impl Metrics {
    /// Renders all samples as `OpenMetrics` text, after it has read those of the process and the age of payments.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        self.process.read();
        self.payments.read_age();
        let mut text = String::with_capacity(64 * 1024);
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Registers a new metric and returns it. The help must not end with a full stop, because the library adds one.
fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    register_metric(registry, name, help, M::default())
}

fn register_metric<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// Adds 1 to a gauge until it is dropped.
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// `OpenTelemetry`'s buckets for durations, in seconds.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn histograms<L: Clone + std::hash::Hash + Eq>(constructor: fn() -> Histogram) -> Histograms<L> {
    Family::new_with_constructor(constructor)
}

/// The HTTP server.
pub(crate) struct Http {
    requests: Histograms<RequestLabels>,
    /// Requests in progress.
    pub(crate) active: Gauge,
    /// Open connections of the gateway's port.
    pub(crate) connections: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "the labels have OpenTelemetry's names")]
struct RequestLabels {
    http_request_method: &'static str,
    http_route: String,
    http_response_status_code: u16,
}

impl Http {
    fn new(registry: &mut Registry) -> Self {
        Self {
            requests: register_metric(
                registry,
                "http_server_request_duration_seconds",
                "Duration from the head of a request to its answer",
                histograms(seconds),
            ),
            active: register(registry, "http_server_active_requests", "Requests in progress"),
            connections: register(
                registry,
                "http_server_connections",
                "Open connections of the gateway's port",
            ),
        }
    }

    /// Measures a request. `route` is the template of the path, never the path itself.
    pub(crate) fn answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        let labels = RequestLabels {
            http_request_method: known_method(method),
            http_route: route.to_owned(),
            http_response_status_code: status,
        };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// The method as `OpenTelemetry` names it in labels and spans: an unknown one is `_OTHER`, because callers can invent
/// methods.
pub(crate) fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("_OTHER")
}

/// The HTTP client of the Product Service, and its circuit breaker.
pub(crate) struct Products {
    requests: Histograms<Labels<2>>,
    breaker: Gauges<2>,
    pub(crate) breaker_calls: BreakerCalls,
}

/// The calls that a circuit breaker counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct BreakerCalls {
    pub(crate) successful: Counter,
    pub(crate) failed: Counter,
    pub(crate) ignored: Counter,
    pub(crate) not_permitted: Counter,
}

impl Products {
    const NAME: (&'static str, &'static str) = ("name", "productService");

    fn new(registry: &mut Registry) -> Self {
        let requests = register_metric(
            registry,
            "http_client_request_duration_seconds",
            "Requests to the Product Service",
            histograms(seconds),
        );
        for operation in ["look_up", "take_stock", "give_back_stock"] {
            drop(requests.get_or_create(&[("operation", operation), ("outcome", "success")]));
        }
        let breaker = register(
            registry,
            "resilience4j_circuitbreaker_state",
            "1 for the present state of the breaker of look-ups",
        );
        let calls: Counters<2> = register(
            registry,
            "resilience4j_circuitbreaker_calls",
            "Look-ups by their result for the breaker",
        );
        let of = |kind| calls.get_or_create_owned(&[Self::NAME, ("kind", kind)]);
        let breaker_calls = BreakerCalls {
            successful: of("successful"),
            failed: of("failed"),
            ignored: of("ignored"),
            not_permitted: of("not_permitted"),
        };
        Self { requests, breaker, breaker_calls }
    }

    pub(crate) fn requested(&self, operation: &'static str, outcome: &'static str, took: Duration) {
        let labels = [("operation", operation), ("outcome", outcome)];
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Shows the state of the breaker: `closed`, `open` or `half_open`.
    pub(crate) fn show_breaker(&self, now: &str) {
        for state in ["closed", "open", "half_open"] {
            let labels = [Self::NAME, ("state", state)];
            self.breaker.get_or_create(&labels).set(i64::from(state == now));
        }
    }
}

/// The purpose of a database operation: the label `db_query_summary` of `OpenTelemetry`. A closed set, so that the
/// label stays bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Query {
    Place,
    #[strum(serialize = "update order")]
    Update,
    #[strum(serialize = "read order")]
    ReadOrder,
    #[strum(serialize = "read history")]
    ReadHistory,
    #[strum(serialize = "list orders")]
    ListOrders,
    #[strum(serialize = "list own orders")]
    ListOwnOrders,
    #[strum(serialize = "find key")]
    FindKey,
    #[strum(serialize = "find recent order")]
    FindRecent,
    #[strum(serialize = "read stock job")]
    ReadStockJob,
    #[strum(serialize = "claim stock jobs")]
    ClaimStockJobs,
    #[strum(serialize = "relay lease")]
    RelayLease,
    #[strum(serialize = "relay read")]
    RelayRead,
    #[strum(serialize = "relay delete")]
    RelayDelete,
    #[strum(serialize = "relay floor")]
    RelayFloor,
    Park,
    #[strum(serialize = "find unpaid orders")]
    FindUnpaid,
    Housekeeping,
    Readiness,
    Scrape,
    Operate,
}

impl Query {
    pub(crate) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// PostgreSQL: pools, statements, and writes that share a commit.
pub(crate) struct Database {
    connections: Gauges<2>,
    max: Gauges<1>,
    pending: Gauges<1>,
    timeouts: Counters<1>,
    /// By [`Query`].
    operations: Vec<Histogram>,
    group_writes: Histograms<Labels<1>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct PoolMetrics {
    pub(crate) idle: Gauge,
    pub(crate) used: Gauge,
    /// Callers that wait for a connection.
    pub(crate) pending: Gauge,
    /// Callers that did not get a connection in time.
    pub(crate) timeouts: Counter,
}

impl Database {
    fn new(registry: &mut Registry) -> Self {
        let durations: Histograms<Labels<1>> = histograms(seconds);
        let operations = Query::VARIANTS
            .iter()
            .map(|query| durations.get_or_create_owned(&[("db_query_summary", query.as_str())]));
        let operations = operations.collect();
        let database = Self {
            connections: register(registry, "db_client_connection_count", "Connections to PostgreSQL"),
            max: register(
                registry,
                "db_client_connection_max",
                "The maximum number of connections to PostgreSQL",
            ),
            pending: register(
                registry,
                "db_client_connection_pending_requests",
                "Database operations that wait for a connection",
            ),
            timeouts: register(
                registry,
                "db_client_connection_timeouts",
                "Database operations that did not get a connection in time",
            ),
            operations,
            group_writes: register_metric(
                registry,
                "group_commit_writes",
                "Writes that shared a commit",
                histograms(|| Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])),
            ),
        };
        register_metric(
            registry,
            "db_client_operation_duration_seconds",
            "Duration of a database operation, including the wait for a connection",
            durations,
        );
        database
    }

    pub(crate) fn pool(&self, name: &'static str, max_connections: u32) -> PoolMetrics {
        let pool = ("pool", name);
        self.max.get_or_create(&[pool]).set(max_connections.into());
        PoolMetrics {
            idle: self.connections.get_or_create_owned(&[pool, ("state", "idle")]),
            used: self.connections.get_or_create_owned(&[pool, ("state", "used")]),
            pending: self.pending.get_or_create_owned(&[pool]),
            timeouts: self.timeouts.get_or_create_owned(&[pool]),
        }
    }

    /// The sizes of the commits of one kind of write.
    pub(crate) fn group_writes(&self, kind: &'static str) -> Histogram {
        self.group_writes.get_or_create_owned(&[("kind", kind)])
    }

    pub(crate) fn used(&self, query: Query, took: Duration) {
        if let Some(operation) = self.operations.get(query as usize) {
            operation.observe(took.as_secs_f64());
        }
    }
}

pub(crate) struct Orders {
    pub(crate) placed: Counter,
    pub(crate) duplicates: Counter,
    refused: Counters<1>,
    status_changes: Counters<3>,
    keys: Counters<1>,
}

/// The result of a request with an `Idempotency-Key`.
#[derive(Clone, Copy, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum KeyResult {
    New,
    Replayed,
    Mismatch,
    InProgress,
}

impl Orders {
    fn new(registry: &mut Registry) -> Self {
        let orders = Self {
            placed: register(registry, "orders_placed", "Orders that were placed"),
            duplicates: register(
                registry,
                "order_duplicates",
                "Requests without a key that repeated a recent order",
            ),
            refused: register(
                registry,
                "orders_refused",
                "Requests to place an order that were refused, by the code of the problem",
            ),
            status_changes: register(registry, "order_status_changes", "Status changes of orders"),
            keys: register(registry, "idempotency_requests", "Requests with an Idempotency-Key"),
        };
        for result in KeyResult::VARIANTS {
            drop(orders.keys.get_or_create(&[("result", result.into())]));
        }
        for &from in Status::VARIANTS {
            for &to in from.reachable() {
                for &actor in ActorRole::VARIANTS {
                    drop(orders.status_changes.get_or_create(&change_labels(from, to, actor)));
                }
            }
        }
        orders
    }

    /// Creates the counters at 0, so that the first refusal is an increase.
    pub(crate) fn create_refusals(&self, codes: impl Iterator<Item = &'static str>) {
        for code in codes {
            drop(self.refused.get_or_create(&[("reason", code)]));
        }
    }

    pub(crate) fn refused(&self, code: &'static str) {
        self.refused.get_or_create(&[("reason", code)]).inc();
    }

    pub(crate) fn key_used(&self, result: KeyResult) {
        self.keys.get_or_create(&[("result", result.into())]).inc();
    }

    /// Counts a committed change, if it changed the status.
    pub(crate) fn changed(&self, aggregate: &OrderAggregate) {
        if let Some(change) = &aggregate.changes.status {
            let labels = change_labels(change.from, aggregate.order.status, change.actor.role);
            self.status_changes.get_or_create(&labels).inc();
        }
    }
}

fn change_labels(from: Status, to: Status, actor: ActorRole) -> Labels<3> {
    [("from", from.as_str()), ("to", to.as_str()), ("actor", actor.into_str())]
}

/// The relay of the outbox.
pub(crate) struct Relay {
    placed: Counter,
    updated: Counter,
    /// Attempts that failed: no broker, or a refused record.
    pub(crate) failures: Counter,
    delay: Histogram,
    /// Buckets that this replica holds.
    pub(crate) buckets: Gauge,
}

impl Relay {
    fn new(registry: &mut Registry) -> Self {
        const DELAYS: [f64; 16] =
            [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];
        let published: Counters<1> = register(registry, "outbox_published", "Events that Kafka acknowledged");
        Self {
            placed: published.get_or_create_owned(&[("type", "ORDER_PLACED")]),
            updated: published.get_or_create_owned(&[("type", "ORDER_STATUS_UPDATED")]),
            failures: register(
                registry,
                "outbox_publish_failures",
                "Failed attempts to publish: no broker, or a refused record",
            ),
            delay: register_metric(
                registry,
                "outbox_publish_delay_seconds",
                "Duration from the insert of an event to Kafka's acknowledgement",
                Histogram::new(DELAYS),
            ),
            buckets: register(
                registry,
                "relay_buckets_held",
                "Buckets of the outbox that this replica relays",
            ),
        }
    }

    /// Measures an event that Kafka acknowledged. The first event of an order is `ORDER_PLACED`, every later one
    /// `ORDER_STATUS_UPDATED`.
    pub(crate) fn published(&self, sequence: i32, delay: Duration) {
        if sequence == 1 { &self.placed } else { &self.updated }.inc();
        self.delay.observe(delay.as_secs_f64());
    }
}

/// The consumer of payments.
pub(crate) struct Payments {
    records: Counters<2>,
    lag: Family<PartitionLabels, Gauge>,
    age: Seconds,
    /// The time of the oldest record that is not applied, in milliseconds since 1970; 0 for none.
    oldest: AtomicI64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PartitionLabels {
    topic: String,
    partition: i32,
}

impl Payments {
    fn new(registry: &mut Registry) -> Self {
        let records: Counters<2> =
            register(registry, "payment_records", "Records of the payment topic by outcome");
        for (event_type, outcome) in [("PAYMENT_SUCCESS", "confirming"), ("PAYMENT_FAILED", "cancelled")] {
            drop(records.get_or_create(&[("type", event_type), ("outcome", outcome)]));
        }
        Self {
            records,
            lag: register(
                registry,
                "payment_consumer_lag_records",
                "Records of a partition that this replica has not applied",
            ),
            age: register(
                registry,
                "payment_consumer_oldest_age_seconds",
                "Age of the oldest record that was read and is not applied; 0 without any",
            ),
            oldest: AtomicI64::new(0),
        }
    }

    pub(crate) fn applied(&self, event_type: &'static str, outcome: &'static str) {
        self.records.get_or_create(&[("type", event_type), ("outcome", outcome)]).inc();
    }

    /// Shows the lag of a partition. `None` if another replica has it, or if it is unknown.
    pub(crate) fn show_lag(&self, topic: &str, partition: i32, lag: Option<i64>) {
        let labels = PartitionLabels { topic: topic.to_owned(), partition };
        match lag {
            Some(lag) => {
                self.lag.get_or_create(&labels).set(lag);
            }
            None => {
                self.lag.remove(&labels);
            }
        }
    }

    /// Sets the time of the oldest record that is not applied, in milliseconds since 1970. `None` if all are applied.
    pub(crate) fn set_oldest(&self, millis: Option<i64>) {
        self.oldest.store(millis.unwrap_or(0), Ordering::Relaxed);
    }

    fn read_age(&self) {
        let age = match u64::try_from(self.oldest.load(Ordering::Relaxed)) {
            Ok(0) | Err(_) => Duration::ZERO,
            Ok(millis) => {
                let written = UNIX_EPOCH + Duration::from_millis(millis);
                SystemTime::now().duration_since(written).unwrap_or_default()
            }
        };
        self.age.set(age.as_secs_f64());
    }
}

/// Counts of unfinished work in the database. Absent until the first read; while the database is down, the latest
/// values.
pub(crate) struct Work {
    pub(crate) outbox_pending: Gauges<0>,
    pub(crate) outbox_oldest: Family<Labels<0>, Seconds>,
    pub(crate) outbox_parked: Gauges<0>,
    pub(crate) parked_payments: Gauges<1>,
    pub(crate) refunds_due: Gauges<1>,
    pub(crate) refunds_oldest: Family<Labels<0>, Seconds>,
    pub(crate) stock_jobs: Gauges<1>,
    pub(crate) stock_overdue: Gauges<0>,
    pub(crate) stock_parked: Gauges<0>,
    pub(crate) stock_oldest: Family<Labels<0>, Seconds>,
    pub(crate) stuck: Gauges<1>,
}

impl Work {
    fn new(registry: &mut Registry) -> Self {
        Self {
            outbox_pending: register(
                registry,
                "outbox_pending_events",
                "Events that Kafka has not acknowledged, counted up to 10000",
            ),
            outbox_parked: register(registry, "outbox_parked_orders", "Parked orders, counted up to 10000"),
            stock_overdue: register(
                registry,
                "stock_jobs_overdue",
                "Stock jobs past their deadline that are not parked",
            ),
            stock_parked: register(registry, "stock_jobs_parked", "Parked stock jobs"),
            parked_payments: register(
                registry,
                "parked_payments",
                "Parked records of the payment topic, counted up to 10000",
            ),
            refunds_due: register(registry, "refunds_due", "Refunds that are due, counted up to 10000"),
            stock_jobs: register(registry, "stock_jobs", "Unfinished stock jobs, counted up to 10000 each"),
            stuck: register(registry, "orders_stuck", "Orders whose stock is not taken by the deadline"),
            outbox_oldest: register(
                registry,
                "outbox_oldest_age_seconds",
                "Age of the oldest event that Kafka has not acknowledged; 0 without any",
            ),
            stock_oldest: register(
                registry,
                "stock_jobs_oldest_age_seconds",
                "Age of the oldest unfinished stock job; 0 without any",
            ),
            refunds_oldest: register(
                registry,
                "refunds_due_oldest_age_seconds",
                "Age of the oldest refund that is due; 0 without any",
            ),
        }
    }
}

/// The service as a whole.
pub(crate) struct Service {
    pub(crate) ready: Gauges<1>,
    pub(crate) database_reachable: Gauge,
}

impl Service {
    fn new(registry: &mut Registry) -> Self {
        let version: Labels<1> = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("order_service_build", "The release of the service", Info::new(version));
        Self {
            ready: register(
                registry,
                "order_service_ready",
                "1 for a ready component; `service` is the result of /health/ready",
            ),
            database_reachable: register(
                registry,
                "order_service_database_reachable",
                "Whether the database answered the latest scrape that read it",
            ),
        }
    }
}
