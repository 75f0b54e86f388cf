//! The composition root: builds the parts, starts them in order, and stops them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt;
use prometheus_client::metrics::gauge::Gauge;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::api::{self, Health, Scrape, Topics, server};
use crate::config::Config;
use crate::events::{KafkaHealth, PaymentConsumer, PublishError, Publisher, Relay, UnpaidOrders};
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;
use crate::orders::OrderService;
use crate::products::ProductClient;
use crate::store::migrate::{MigrationError, migrate};
use crate::store::{Store, StoreError};
use crate::telemetry::error_chain;

/// Why the service did not start, or failed.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AppError {
    #[error("cannot listen on {0} {1}")]
    Bind(&'static str, SocketAddr, #[source] std::io::Error),
    #[error("the Kafka client refuses the KAFKA_ settings")]
    Kafka(#[from] PublishError),
    #[error("the HTTP client of the Product Service cannot be created")]
    Products(#[from] reqwest::Error),
    #[error("the database cannot be migrated")]
    Migration(#[from] MigrationError),
    #[error("migrations are pending and MIGRATE_ON_START is false: run `order-service migrate` first")]
    NotMigrated,
    #[error("the database did not answer within STARTUP_TIMEOUT_MS")]
    NoDatabase(#[source] StoreError),
    /// The database answers, but cannot be used.
    #[error("the database of DATABASE_URL cannot be used")]
    Database(#[from] StoreError),
    #[error("the {0} ended unexpectedly")]
    PartEnded(&'static str),
    #[error("a part of the service crashed")]
    Crashed(#[from] JoinError),
    /// The stop took too long. Other replicas, or the next start, continue the unfinished work.
    #[error("the stop took longer than SHUTDOWN_TIMEOUT_MS")]
    ShutdownTimeout,
}

/// A running service.
pub struct App {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The address of metrics and health, if it is a separate one.
    pub management_address: Option<SocketAddr>,
    lifecycle: Lifecycle,
    stop: CancellationToken,
    running: JoinHandle<Result<(), AppError>>,
}

/// The parts, before they are started.
struct Parts {
    config: Config,
    listener: (TcpListener, SocketAddr),
    management: Option<((TcpListener, SocketAddr), Router)>,
    metrics: Arc<Metrics>,
    lifecycle: Lifecycle,
    stores: [Store; 4],
    /// Ends when the schema is current. It runs while the other parts are built.
    schema: AbortOnDropHandle<Result<(), AppError>>,
    relay: Relay,
    orders: OrderService,
    background: OrderService,
    payments: Option<PaymentConsumer>,
    router: Router,
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), AppError> {
    let failed = |error| AppError::Bind(setting, address, error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

impl App {
    /// Listens, and starts all parts. Until the schema is current, requests get 503, so that callers can tell a slow
    /// database from a dead process.
    pub async fn start(config: Config) -> Result<Self, AppError> {
        let parts = Parts::assemble(config).await?;
        let address = parts.listener.1;
        let management_address = parts.management.as_ref().map(|((_, address), _)| *address);
        // Logged before the parts run, so that "serving" never comes first.
        info!(%address, "listening");
        if let Some(address) = management_address {
            info!(%address, "metrics and health are on a separate address");
        }
        let stop = CancellationToken::new();
        let lifecycle = parts.lifecycle.clone();
        let running = tokio::spawn(parts.run(stop.clone()));
        Ok(Self { address, management_address, lifecycle, stop, running })
    }

    /// Waits for the end of the start. Returns whether the service serves orders.
    pub async fn ready(&self) -> bool {
        while self.lifecycle.phase() == Phase::Starting && !self.running.is_finished() {
            sleep(Duration::from_millis(5)).await;
        }
        self.lifecycle.phase() == Phase::Serving
    }

    /// Stops the service, and waits for its end.
    pub async fn stop(self) -> Result<(), AppError> {
        self.stop.cancel();
        self.running.await?
    }

    /// Runs until `stop` resolves, then stops. Returns early if the service fails.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), AppError> {
        let Self { stop: token, mut running, .. } = self;
        tokio::select! {
            ended = &mut running => return ended?,
            () = stop => token.cancel(),
        }
        running.await?
    }
}

impl Parts {
    async fn assemble(config: Config) -> Result<Self, AppError> {
        // The relay, the workers and the requests have separate pools, so that they do not starve each other (P26). The
        // relay's lanes share its connections.
        const RELAY_CONNECTIONS: u32 = 3;
        const WORKER_CONNECTIONS: u32 = 4;
        let (lifecycle, metrics) = (Lifecycle::default(), Arc::<Metrics>::default());
        let listener = bind("BIND_ADDRESS", config.bind_address).await?;
        let products = Arc::new(ProductClient::new(config.products.clone(), &metrics)?);
        let store = Store::new(&config.database, config.stock, &metrics);
        let relay_store = store.for_relay(RELAY_CONNECTIONS);
        let worker_store = store.with_own_pool(WORKER_CONNECTIONS);
        let kafka = KafkaHealth::default();
        let publisher = Publisher::new(config.kafka.clone(), kafka.clone())?;
        let relay = Relay::new(relay_store.clone(), publisher, config.relay.clone(), &metrics);
        // Runs concurrently with the rest, because the database may not answer yet.
        let schema = AbortOnDropHandle::new(tokio::spawn(prepare_schema(config.clone(), store.clone())));
        let orders = OrderService::new(store.clone(), Arc::clone(&products), &config.orders, &metrics);
        let background = orders.with_store(worker_store.clone());
        let payments = config
            .kafka
            .payments
            .enabled
            .then(|| PaymentConsumer::new(&config.kafka, background.clone(), &metrics));
        let payments = payments.transpose().map_err(PublishError::from)?;
        let health = Health { lifecycle: lifecycle.clone(), store: store.clone(), kafka, products };
        let topics = Topics { orders: &config.kafka.topic, payments: &config.kafka.payments.topic };
        let scrape = Scrape::new(&metrics, &health);
        let stores = [store, relay_store, worker_store, scrape.store().clone()];
        let (scrape, management) = match config.management_address {
            None => (Some(scrape), None),
            Some(address) => {
                let listener = bind("MANAGEMENT_ADDRESS", address).await?;
                (None, Some((listener, api::management_router(health.clone(), scrape, &metrics))))
            }
        };
        let router = api::router(orders.clone(), health, &config.api, &topics, scrape, &metrics);
        Ok(Self {
            config,
            listener,
            management,
            metrics,
            lifecycle,
            stores,
            schema,
            relay,
            orders,
            background,
            payments,
            router,
        })
    }

    async fn run(self, stop: CancellationToken) -> Result<(), AppError> {
        if let Some(warning) = self.config.warning() {
            warn!("{warning}");
        }
        for line in &self.config.unknown {
            warn!("{line}");
        }
        let (server_stop, work_stop, relay_stop) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        // On an early return, the drop of the set aborts its tasks.
        let mut parts: JoinSet<&'static str> = JoinSet::new();
        let ((listener, _), router) = (self.listener, self.router);
        let (settings, stopping) = (self.config.server.clone(), server_stop.clone());
        let connections = self.metrics.http.connections.clone();
        parts.spawn(async move {
            server::serve(listener, router, &settings, &stopping, connections).await;
            "server"
        });
        // Serves until the very end, so that a scrape can observe the stop.
        let serve = |((listener, _), router)| serve_management(listener, router, &self.config.server);
        let _management = self.management.map(serve);

        tokio::select! {
            ready = self.schema => ready??,
            () = stop.cancelled() => {
                self.lifecycle.stopping();
                info!("stopped before the start was complete");
                return Ok(());
            }
        }
        self.lifecycle.serving();
        spawn_workers(&mut parts, &self.config, &self.background, self.payments, &work_stop);
        let mut relay = AbortOnDropHandle::new(tokio::spawn(self.relay.run(relay_stop.clone())));
        info!("serving");
        tokio::select! {
            () = stop.cancelled() => {}
            Some(ended) = parts.join_next() => return Err(AppError::PartEnded(ended?)),
            ended = &mut relay => return Err(ended.err().map_or(AppError::PartEnded("relay"), AppError::from)),
        }

        self.lifecycle.stopping();
        info!("stopping");
        sleep(self.config.timing.shutdown_delay).await;
        let drain = async {
            server_stop.cancel();
            work_stop.cancel();
            while let Some(ended) = parts.join_next().await {
                ended?;
            }
            self.orders.drain().await;
            relay_stop.cancel();
            relay.await?;
            for store in &self.stores {
                store.close().await;
            }
            info!("stopped");
            Ok(())
        };
        timeout(self.config.timing.shutdown_timeout, drain).await.unwrap_or(Err(AppError::ShutdownTimeout))
    }
}

/// Serves metrics and health until the handle is dropped.
fn serve_management(
    listener: TcpListener,
    router: Router,
    settings: &server::ServerSettings,
) -> AbortOnDropHandle<()> {
    /// Enough for scrapers and probes.
    const CONNECTIONS: usize = 64;
    let settings = server::ServerSettings { max_connections: CONNECTIONS, ..settings.clone() };
    let serving = async move {
        server::serve(listener, router, &settings, &CancellationToken::new(), Gauge::default()).await;
    };
    AbortOnDropHandle::new(tokio::spawn(serving))
}

fn spawn_workers(
    parts: &mut JoinSet<&'static str>,
    config: &Config,
    orders: &OrderService,
    payments: Option<PaymentConsumer>,
    stop: &CancellationToken,
) {
    let worker = orders.clone().run_stock_worker(stop.clone());
    parts.spawn(worker.map(|()| "stock worker"));
    let housekeeping = orders.clone().run_housekeeping(config.housekeeping, stop.clone());
    parts.spawn(housekeeping.map(|()| "housekeeping"));
    if let Some(ttl) = config.housekeeping.unpaid_order_ttl {
        let interval = config.housekeeping.interval;
        let unpaid = UnpaidOrders::new(&config.kafka, orders.clone(), ttl, interval);
        parts.spawn(unpaid.run(stop.clone()).map(|()| "unpaid orders"));
    }
    if let Some(payments) = payments {
        parts.spawn(payments.run(stop.clone()).map(|()| "payment consumer"));
    }
}

/// Waits for the database, then migrates the schema or checks that it is current.
async fn prepare_schema(config: Config, store: Store) -> Result<(), AppError> {
    const PAUSE: Duration = Duration::from_millis(500);
    let give_up = Instant::now() + config.timing.startup_timeout;
    loop {
        let error = match try_schema(&config, &store).await {
            Ok(()) => return Ok(()),
            Err(AppError::Database(error)) if error.is_transient() => error,
            Err(error) => return Err(error),
        };
        if Instant::now() + PAUSE > give_up {
            return Err(AppError::NoDatabase(error));
        }
        warn!(error = error_chain(&error), "waiting for the database");
        sleep(PAUSE).await;
    }
}

async fn try_schema(config: &Config, store: &Store) -> Result<(), AppError> {
    if config.migrate_on_start {
        return match migrate(&config.database).await {
            Ok(version) => {
                info!(version, "the schema is current");
                Ok(())
            }
            Err(MigrationError::Unavailable(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        };
    }
    if store.is_migrated().await? { Ok(()) } else { Err(AppError::NotMigrated) }
}
