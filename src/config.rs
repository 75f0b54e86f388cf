//! Reads all settings once from the environment, and validates them. Each error names its variable.
//!
//! `.env.example` explains each setting in a sentence; a test compares the two.

mod environment;
mod in_force;
mod kafka;
mod products;
#[cfg(test)]
mod tests;
mod traces;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::Url;
use sqlx::postgres::PgConnectOptions;
use tracing_subscriber::EnvFilter;

pub use environment::{Environment, InvalidConfig};
pub use in_force::{Setting, settings_in_force};
use kafka::kafka;
pub use kafka::parse_topic;
pub(crate) use kafka::{ORDER_EVENTS, PAYMENT_EVENTS};
use products::products;
use traces::traces;

use crate::api::server::ServerSettings;
use crate::api::{ApiSettings, DocsPage, GatewaySecrets, RETRY_SOON};
use crate::events::{KafkaSettings, RelaySettings};
use crate::orders::{ConfirmSettings, DuplicateSettings, HousekeepingSettings, OrderSettings};
use crate::products::ProductSettings;
use crate::store::{DatabaseSettings, StockTimes};
use crate::telemetry::otlp::TraceSettings;
pub use crate::telemetry::{LogConfig, LogFormat};

/// All settings of `serve`.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the types say it")]
pub struct Config {
    /// The address to listen on.
    pub bind_address: SocketAddr,
    /// The separate address of metrics and health. `None`: they are on `bind_address`.
    pub management_address: Option<SocketAddr>,
    pub server: ServerSettings,
    pub api: ApiSettings,
    pub orders: OrderSettings,
    pub stock: StockTimes,
    pub housekeeping: HousekeepingSettings,
    pub database: DatabaseSettings,
    /// Whether `serve` applies pending migrations. If not, it refuses to start while there are any.
    pub migrate_on_start: bool,
    pub kafka: KafkaSettings,
    pub relay: RelaySettings,
    pub products: ProductSettings,
    /// The export of spans. `None`: no spans.
    pub traces: Option<TraceSettings>,
    pub timing: LifecycleSettings,
    /// One line for each variable that is probably a misspelt setting.
    pub unknown: Vec<String>,
}

/// The time limits of the start and the stop.
#[derive(Clone, Debug)]
pub struct LifecycleSettings {
    /// How long the start waits for the database.
    pub startup_timeout: Duration,
    /// How long the service still accepts requests after it reported that it is not ready.
    pub shutdown_delay: Duration,
    /// The time limit of the stop after that.
    pub shutdown_timeout: Duration,
}

/// The default address: this machine only.
const DEFAULT_BIND_ADDRESS: &str = "127.0.0.1:8080";

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

/// The minimum retention: longer than any work on an order, and than the usual retention of the payment topic.
const SHORTEST_RETENTION: Duration = Duration::from_hours(30 * 24);

impl Config {
    /// Reads all settings, and reports all errors at once.
    pub fn read(env: &Environment) -> Result<Self, InvalidConfig> {
        let delivery_timeout = delivery_timeout(env);
        let (api, database) = (api(env), database(env));
        let longest_commit = database.deadline + database.acquire_timeout;
        let config = products(env).map(|products| Self {
            bind_address: bind_address(env),
            management_address: management_address(env),
            server: server(env, &api),
            api,
            orders: orders(env, longest_commit),
            stock: stock(env),
            housekeeping: housekeeping(env),
            database,
            migrate_on_start: env.flag("MIGRATE_ON_START", true),
            kafka: kafka(env, delivery_timeout),
            relay: relay(env, delivery_timeout),
            products,
            traces: traces(env),
            timing: timing(env),
            // Other code reads these.
            unknown: env.unknown(&["LOG_FORMAT", "LOG_FILTER", "DEMO_PRODUCTS_ADDRESS"]),
        });
        if let Some(config) = &config {
            config.refuse_dangerous_combinations(env);
        }
        env.finish(config)
    }

    /// Refuses settings that are valid alone but not in combination.
    fn refuse_dangerous_combinations(&self, env: &Environment) {
        if self.bind_address.port() != 0 && self.management_address == Some(self.bind_address) {
            env.refuse(
                "MANAGEMENT_ADDRESS",
                "must differ from BIND_ADDRESS: leave it empty to use one port for both",
            );
        }
        if self.relay.lease <= self.relay.delivery_timeout * 2 {
            env.refuse("RELAY_LEASE_MS", "must be more than twice KAFKA_DELIVERY_TIMEOUT_MS");
        }
        if self.products.attempt_timeout > self.products.deadline {
            env.refuse("PRODUCT_ATTEMPT_TIMEOUT_MS", "must not be more than PRODUCT_DEADLINE_MS");
        }
        if self.stock.lease <= self.products.stock.timeout * 2 {
            env.refuse("STOCK_LEASE_MS", "must be more than twice PRODUCT_STOCK_TIMEOUT_MS");
        }
        if self.api.request_deadline <= self.orders.confirmation.wait {
            env.refuse("REQUEST_DEADLINE_MS", "must be more than STOCK_WAIT_MS");
        }
        if self.kafka.payments.enabled && self.kafka.payments.topic == self.kafka.topic {
            env.refuse("PAYMENT_EVENTS_TOPIC", "must not be ORDER_EVENTS_TOPIC");
        }
        if self.housekeeping.unpaid_order_ttl.is_some() && !self.kafka.payments.enabled {
            env.refuse(
                "UNPAID_ORDER_TTL",
                "needs PAYMENT_EVENTS_ENABLED=true: the service must read payments to know which orders are unpaid",
            );
        }
        let duplicates = self.orders.duplicates;
        let shortest = SHORTEST_RETENTION.max(duplicates.key_expiry * 2);
        if self.housekeeping.order_retention.is_some_and(|age| age < shortest) {
            env.refuse(
                "ORDER_RETENTION",
                "must be off, or at least 30d and twice IDEMPOTENCY_KEY_TTL_HOURS: a key must not outlive its order",
            );
        }
        if duplicates.window.is_some_and(|window| window < duplicates.longest_commit + RETRY_SOON) {
            env.refuse(
                "DUPLICATE_WINDOW_SECONDS",
                "must be 0, or at least the sum of DATABASE_DEADLINE_MS, DATABASE_ACQUIRE_TIMEOUT_MS and the \
                 Retry-After of 1 s: a request repeated after a commit of unknown outcome would place a second order",
            );
        }
        if self.api.request_deadline <= self.products.deadline {
            env.refuse("REQUEST_DEADLINE_MS", "must be more than PRODUCT_DEADLINE_MS");
        }
    }

    /// A warning if no gateway secret is set although other machines can reach the port.
    pub fn warning(&self) -> Option<&'static str> {
        let exposed = !self.bind_address.ip().is_loopback();
        (exposed && self.api.gateway_secrets.is_empty()).then_some(
            "GATEWAY_SECRET is not set and BIND_ADDRESS is not a loopback address: any client that reaches this port \
             can call as any customer or admin by sending X-User-Email and X-User-Role",
        )
    }
}

impl LogConfig {
    /// Reads the settings of the log.
    pub fn read(env: &Environment) -> Result<Self, InvalidConfig> {
        let format = env.choice(
            "LOG_FORMAT",
            LogFormat::Json,
            &[("json", LogFormat::Json), ("human", LogFormat::Human)],
        );
        let filter = env.text("LOG_FILTER", "info,sqlx::postgres::notice=warn");
        if EnvFilter::try_new(&filter).is_err() {
            env.refuse("LOG_FILTER", "must be a level or directives such as warn,order_service=debug");
        }
        env.finish(Some(Self { format, filter }))
    }
}

/// Reads the settings of `serve`. Errors in the log settings are reported with all others.
pub fn read_service(env: &Environment) -> Result<(LogConfig, Config), InvalidConfig> {
    match (LogConfig::read(env), Config::read(env)) {
        (Ok(log), Ok(config)) => Ok((log, config)),
        (log, config) => {
            let wrong = [log.err(), config.err()].into_iter().flatten();
            Err(InvalidConfig(wrong.flat_map(|InvalidConfig(lines)| lines).collect()))
        }
    }
}

/// Reads the settings of `migrate`.
pub fn read_database(env: &Environment) -> Result<DatabaseSettings, InvalidConfig> {
    let settings = database(env);
    env.finish(Some(settings))
}

/// Reads the settings of the operators' commands.
pub fn read_store(env: &Environment) -> Result<(DatabaseSettings, StockTimes), InvalidConfig> {
    let settings = (database(env), stock(env));
    env.finish(Some(settings))
}

/// Reads the settings of `events replay`.
pub fn read_replay(
    env: &Environment,
) -> Result<(DatabaseSettings, StockTimes, KafkaSettings), InvalidConfig> {
    let settings = (database(env), stock(env), kafka(env, delivery_timeout(env)));
    env.finish(Some(settings))
}

/// Reads the address that `healthcheck` calls: the port of `BIND_ADDRESS`, on this machine.
pub fn read_bind_address(env: &Environment) -> Result<SocketAddr, InvalidConfig> {
    let address = reachable(bind_address(env));
    env.finish(Some(address))
}

/// The address to connect to: a service that listens on all interfaces also listens on loopback.
pub(crate) fn reachable(mut bound: SocketAddr) -> SocketAddr {
    match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => bound.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => bound.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    bound
}

fn bind_address(env: &Environment) -> SocketAddr {
    env.text("BIND_ADDRESS", DEFAULT_BIND_ADDRESS).parse().unwrap_or_else(|_| {
        env.refuse("BIND_ADDRESS", &format!("must be an address such as {DEFAULT_BIND_ADDRESS}"));
        SocketAddr::from(([127, 0, 0, 1], 0))
    })
}

fn management_address(env: &Environment) -> Option<SocketAddr> {
    let address = env.optional("MANAGEMENT_ADDRESS").filter(|text| !text.is_empty())?.parse().ok();
    if address.is_none() {
        env.refuse("MANAGEMENT_ADDRESS", "must be an address such as 0.0.0.0:9090");
    }
    address
}

fn server(env: &Environment, api: &ApiSettings) -> ServerSettings {
    ServerSettings {
        max_connections: env.number("MAX_CONNECTIONS", 4096, 1..=1_000_000),
        idle_timeout: env.millis("CONNECTION_IDLE_TIMEOUT_MS", 75 * SECOND, 100..=60 * MINUTE),
        head_timeout: env.millis("REQUEST_HEAD_TIMEOUT_MS", 10 * SECOND, 100..=MINUTE),
        write_timeout: env.millis("RESPONSE_WRITE_TIMEOUT_MS", 10 * SECOND, 100..=MINUTE),
        longest_request: api.body_timeout + api.request_deadline,
    }
}

fn api(env: &Environment) -> ApiSettings {
    ApiSettings {
        gateway_secrets: gateway_secrets(env),
        max_requests: env.number("MAX_CONCURRENT_REQUESTS", 1024, 1..=100_000),
        body_timeout: env.millis("REQUEST_BODY_TIMEOUT_MS", 5 * SECOND, 100..=MINUTE),
        request_deadline: env.millis("REQUEST_DEADLINE_MS", 15 * SECOND, 100..=10 * MINUTE),
        docs: if env.flag("DOCS_ENABLED", false) { DocsPage::On } else { DocsPage::Off },
    }
}

fn orders(env: &Environment, longest_commit: Duration) -> OrderSettings {
    let window = env.number("DUPLICATE_WINDOW_SECONDS", 10, 0..=3600);
    let expiry_hours: u64 = env.number("IDEMPOTENCY_KEY_TTL_HOURS", 24, 1..=8760);
    OrderSettings {
        max_placements: env.number("MAX_CONCURRENT_PLACEMENTS", 512, 1..=100_000),
        duplicates: DuplicateSettings {
            window: (window > 0).then(|| Duration::from_secs(window)),
            longest_commit,
            key_expiry: Duration::from_hours(expiry_hours),
        },
        confirmation: ConfirmSettings {
            max_requests: env.number("MAX_CONCURRENT_CONFIRMATIONS", 256, 1..=100_000),
            wait: env.millis("STOCK_WAIT_MS", 8 * SECOND, 0..=MINUTE),
            concurrency: env.number("STOCK_CONCURRENCY", 64, 1..=1000),
            poll_interval: env.millis("STOCK_POLL_INTERVAL_MS", SECOND, 10..=MINUTE),
        },
    }
}

fn stock(env: &Environment) -> StockTimes {
    StockTimes {
        lease: env.millis("STOCK_LEASE_MS", 15 * SECOND, 100..=10 * MINUTE),
        deadline: env.millis("STOCK_DEADLINE_MS", MINUTE, 100..=24 * 60 * MINUTE),
    }
}

fn housekeeping(env: &Environment) -> HousekeepingSettings {
    HousekeepingSettings {
        unpaid_order_ttl: env.span("UNPAID_ORDER_TTL", Duration::from_hours(365 * 24)),
        order_retention: env.span("ORDER_RETENTION", Duration::from_hours(100 * 365 * 24)),
        interval: env.millis("HOUSEKEEPING_INTERVAL_MS", 10 * SECOND, 10..=60 * MINUTE),
    }
}

fn delivery_timeout(env: &Environment) -> Duration {
    env.millis("KAFKA_DELIVERY_TIMEOUT_MS", 10 * SECOND, 100..=5 * MINUTE)
}

fn relay(env: &Environment, delivery_timeout: Duration) -> RelaySettings {
    RelaySettings {
        lease: env.millis("RELAY_LEASE_MS", 30 * SECOND, 300..=60 * MINUTE),
        poll_interval: env.millis("RELAY_POLL_INTERVAL_MS", 250, 10..=MINUTE),
        batch: env.number("RELAY_BATCH", 4_000, 1..=10_000),
        max_backoff: env.millis("RELAY_MAX_BACKOFF_MS", 5 * SECOND, 100..=10 * MINUTE),
        delivery_timeout,
    }
}

fn timing(env: &Environment) -> LifecycleSettings {
    LifecycleSettings {
        startup_timeout: env.millis("STARTUP_TIMEOUT_MS", MINUTE, 100..=60 * MINUTE),
        shutdown_delay: env.millis("SHUTDOWN_DELAY_MS", 5 * SECOND, 0..=10 * MINUTE),
        shutdown_timeout: env.millis("SHUTDOWN_TIMEOUT_MS", 20 * SECOND, 100..=60 * MINUTE),
    }
}

fn gateway_secrets(env: &Environment) -> GatewaySecrets {
    const SHORTEST: usize = 16;
    let secrets = ["GATEWAY_SECRET", "GATEWAY_SECRET_PREVIOUS"];
    let read = |name| {
        let secret = env.optional(name)?;
        let header_safe = secret.bytes().all(|byte| byte.is_ascii_graphic());
        if secret.len() < SHORTEST || !header_safe {
            env.refuse(name, "must be at least 16 visible ASCII characters");
        }
        Some(secret)
    };
    let secrets: Vec<String> = secrets.into_iter().filter_map(read).collect();
    if secrets.len() == 1 && env.optional("GATEWAY_SECRET").is_none() && !env.is_refused("GATEWAY_SECRET") {
        env.refuse("GATEWAY_SECRET_PREVIOUS", "needs GATEWAY_SECRET");
    }
    GatewaySecrets::new(secrets)
}

fn database(env: &Environment) -> DatabaseSettings {
    let options =
        env.required("DATABASE_URL", "a URL such as postgres://user:password@host:5432/orders", |text| {
            let url =
                text.parse::<Url>().ok().filter(|url| ["postgres", "postgresql"].contains(&url.scheme()))?;
            text.parse::<PgConnectOptions>().ok().filter(|_| url.has_host())
        });
    DatabaseSettings {
        options: options.unwrap_or_default().application_name("order-service"),
        max_connections: env.number("DATABASE_MAX_CONNECTIONS", 16, 2..=10_000),
        acquire_timeout: env.millis("DATABASE_ACQUIRE_TIMEOUT_MS", 2 * SECOND, 10..=MINUTE),
        deadline: env.millis("DATABASE_DEADLINE_MS", 5 * SECOND, 100..=10 * MINUTE),
    }
}
