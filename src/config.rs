//! Every setting, read once from the environment and refused with the variable's name where it is wrong.
//!
//! `.env.example` lists them all with a sentence each; a test holds the two together.

mod environment;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Method, Url};
use sqlx::postgres::PgConnectOptions;
use tracing_subscriber::EnvFilter;

pub use environment::{Environment, InvalidConfig};

use crate::api::server::ServerSettings;
use crate::api::{ApiSettings, GatewaySecrets};
use crate::domain::CustomerId;
use crate::events::{KafkaSettings, PaymentSettings, RelaySettings, Secret};
use crate::orders::{ConfirmSettings, DuplicateSettings, HousekeepingSettings, OrderSettings};
use crate::products::{ProductSettings, StockRoute, StockSettings};
use crate::store::idempotency::KeyTimes;
use crate::store::{DatabaseSettings, StockTimes};

/// All settings of `serve`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub bind_address: SocketAddr,
    /// Connections.
    pub server: ServerSettings,
    /// Requests.
    pub api: ApiSettings,
    /// The use cases.
    pub orders: OrderSettings,
    /// Stock work.
    pub stock: StockTimes,
    /// Tidying up.
    pub housekeeping: HousekeepingSettings,
    /// The database.
    pub database: DatabaseSettings,
    /// Whether `serve` applies pending migrations, or refuses to start while there are any.
    pub migrate_on_start: bool,
    /// Kafka.
    pub kafka: KafkaSettings,
    /// The relay.
    pub relay: RelaySettings,
    /// The Product Service.
    pub products: ProductSettings,
    /// Start and stop.
    pub timing: LifecycleSettings,
}

/// How long the start and the stop may take.
#[derive(Clone, Debug)]
pub struct LifecycleSettings {
    /// How long the start waits for a database that is away.
    pub startup_timeout: Duration,
    /// How long the service goes on accepting after it has said that it is not ready.
    pub shutdown_delay: Duration,
    /// How long the stop may take after that.
    pub shutdown_timeout: Duration,
}

/// What logs look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Human,
}

/// The settings of the log, needed before all others.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The form.
    pub format: LogFormat,
    /// What is logged: a level, or directives of `tracing-subscriber`.
    pub filter: String,
}

/// Where the service listens when nothing else is said: on this machine only.
const DEFAULT_BIND_ADDRESS: &str = "127.0.0.1:8080";

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

impl Config {
    /// Reads everything and reports everything that is wrong at once.
    pub fn read(env: &Environment) -> Result<Self, InvalidConfig> {
        let delivery_timeout = env.millis("KAFKA_DELIVERY_TIMEOUT_MS", 10 * SECOND, 100..=5 * MINUTE);
        let (api, database) = (api(env), database(env));
        let config = products(env).map(|products| Self {
            bind_address: bind_address(env),
            server: server(env, api.request_deadline),
            api,
            // A placement holds its key while it asks for the products, and for two uses of the store.
            orders: orders(env, products.deadline + database.deadline * 2),
            stock: stock(env),
            housekeeping: housekeeping(env),
            database,
            migrate_on_start: env.flag("MIGRATE_ON_START", true),
            kafka: kafka(env, delivery_timeout),
            relay: relay(env, delivery_timeout),
            products,
            timing: timing(env),
        });
        if let Some(config) = &config {
            config.refuse_dangerous_combinations(env);
        }
        env.finish(config)
    }

    /// What is permitted alone and wrong together.
    fn refuse_dangerous_combinations(&self, env: &Environment) {
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
        if self.api.request_deadline <= self.products.deadline {
            env.refuse("REQUEST_DEADLINE_MS", "must be more than PRODUCT_DEADLINE_MS");
        }
    }

    /// Why it matters that no gateway secret is set, if it does: anybody who reaches the port is an admin.
    pub fn warning(&self) -> Option<&'static str> {
        let exposed = !self.bind_address.ip().is_loopback();
        (exposed && self.api.gateway_secrets.is_empty()).then_some(
            "GATEWAY_SECRET is not set and BIND_ADDRESS is not a loopback address: whoever reaches this port \
             can call as any customer or admin by sending X-User-Email and X-User-Role",
        )
    }
}

impl LogConfig {
    /// Reads the two settings of the log.
    pub fn read(env: &Environment) -> Result<Self, InvalidConfig> {
        let format = env.choice(
            "LOG_FORMAT",
            LogFormat::Json,
            &[("json", LogFormat::Json), ("human", LogFormat::Human)],
        );
        let filter = env.text("LOG_FILTER", "info");
        if EnvFilter::try_new(&filter).is_err() {
            env.refuse("LOG_FILTER", "must be a level or directives such as warn,order_service=debug");
        }
        env.finish(Some(Self { format, filter }))
    }
}

/// What `serve` needs. What is wrong with the log is reported together with everything else.
pub fn read_service(env: &Environment) -> Result<(LogConfig, Config), InvalidConfig> {
    match (LogConfig::read(env), Config::read(env)) {
        (Ok(log), Ok(config)) => Ok((log, config)),
        (log, config) => {
            let wrong = [log.err(), config.err()].into_iter().flatten();
            Err(InvalidConfig(wrong.flat_map(|InvalidConfig(lines)| lines).collect()))
        }
    }
}

/// What `migrate` needs, and nothing else.
pub fn read_database(env: &Environment) -> Result<DatabaseSettings, InvalidConfig> {
    let settings = database(env);
    env.finish(Some(settings))
}

/// What the operators' commands need.
pub fn read_store(env: &Environment) -> Result<(DatabaseSettings, StockTimes), InvalidConfig> {
    let settings = (database(env), stock(env));
    env.finish(Some(settings))
}

/// Where `healthcheck` asks: the port of `BIND_ADDRESS`, on this machine.
pub fn read_bind_address(env: &Environment) -> Result<SocketAddr, InvalidConfig> {
    let address = bind_address(env);
    env.finish(Some(address))
}

fn bind_address(env: &Environment) -> SocketAddr {
    env.text("BIND_ADDRESS", DEFAULT_BIND_ADDRESS).parse().unwrap_or_else(|_| {
        env.refuse("BIND_ADDRESS", &format!("must be an address such as {DEFAULT_BIND_ADDRESS}"));
        SocketAddr::from(([127, 0, 0, 1], 0))
    })
}

fn server(env: &Environment, request_deadline: Duration) -> ServerSettings {
    ServerSettings {
        max_connections: env.number("MAX_CONNECTIONS", 4096, 1..=1_000_000),
        idle_timeout: env.millis("CONNECTION_IDLE_TIMEOUT_MS", 75 * SECOND, 100..=60 * MINUTE),
        request_deadline,
    }
}

fn api(env: &Environment) -> ApiSettings {
    ApiSettings {
        gateway_secrets: gateway_secrets(env),
        max_requests: env.number("MAX_CONCURRENT_REQUESTS", 1024, 1..=100_000),
        request_deadline: env.millis("REQUEST_DEADLINE_MS", 15 * SECOND, 100..=10 * MINUTE),
    }
}

/// `longest_placement` is how long a placement may hold its key.
fn orders(env: &Environment, longest_placement: Duration) -> OrderSettings {
    let window = env.number("DUPLICATE_WINDOW_SECONDS", 5, 0..=3600);
    let expiry_hours: u64 = env.number("IDEMPOTENCY_KEY_TTL_HOURS", 24, 1..=8760);
    OrderSettings {
        max_placements: env.number("MAX_CONCURRENT_PLACEMENTS", 512, 1..=100_000),
        duplicates: DuplicateSettings {
            window: (window > 0).then(|| Duration::from_secs(window)),
            keys: KeyTimes { lock: longest_placement, expiry: Duration::from_hours(expiry_hours) },
        },
        confirmation: ConfirmSettings {
            wait: env.millis("STOCK_WAIT_MS", 8 * SECOND, 0..=MINUTE),
            concurrency: env.number("STOCK_CONCURRENCY", 8, 1..=100),
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
    let ttl: u64 = env.number("UNPAID_ORDER_TTL_SECONDS", 0, 0..=31_536_000);
    HousekeepingSettings {
        unpaid_order_ttl: (ttl > 0).then(|| Duration::from_secs(ttl)),
        interval: env.millis("HOUSEKEEPING_INTERVAL_MS", 10 * SECOND, 10..=60 * MINUTE),
    }
}

fn relay(env: &Environment, delivery_timeout: Duration) -> RelaySettings {
    RelaySettings {
        lease: env.millis("RELAY_LEASE_MS", 30 * SECOND, 300..=60 * MINUTE),
        poll_interval: env.millis("RELAY_POLL_INTERVAL_MS", 250, 10..=MINUTE),
        batch: env.number("RELAY_BATCH", 1_000, 1..=10_000),
        max_backoff: env.millis("RELAY_MAX_BACKOFF_MS", 5 * SECOND, 100..=10 * MINUTE),
        delivery_timeout,
    }
}

fn timing(env: &Environment) -> LifecycleSettings {
    LifecycleSettings {
        startup_timeout: env.millis("STARTUP_TIMEOUT_MS", MINUTE, 100..=60 * MINUTE),
        shutdown_delay: env.millis("SHUTDOWN_DELAY_MS", 0, 0..=10 * MINUTE),
        shutdown_timeout: env.millis("SHUTDOWN_TIMEOUT_MS", 25 * SECOND, 100..=60 * MINUTE),
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
    if secrets.len() == 1 && env.optional("GATEWAY_SECRET").is_none() {
        env.refuse("GATEWAY_SECRET_PREVIOUS", "is only accepted beside GATEWAY_SECRET");
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

fn kafka(env: &Environment, delivery_timeout: Duration) -> KafkaSettings {
    let servers =
        env.required("KAFKA_BOOTSTRAP_SERVERS", "host:port, or several with commas between", |text| {
            let is_address = |server: &str| {
                let parts = server.trim().rsplit_once(':');
                let host_char = |c: char| c.is_ascii_alphanumeric() || "._-:[]".contains(c);
                parts.is_some_and(|(host, port)| {
                    !host.is_empty()
                        && host.chars().all(host_char)
                        && port.parse::<u16>().is_ok_and(|port| port > 0)
                })
            };
            text.split(',').all(is_address).then(|| text.to_owned())
        });
    let topic = env.text("ORDER_EVENTS_TOPIC", "order-events");
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if topic.is_empty() || topic.len() > 249 || !topic.chars().all(legal) {
        env.refuse("ORDER_EVENTS_TOPIC", "must be 1 to 249 letters, digits, '.', '_' or '-'");
    }
    let replication = env.number("KAFKA_TOPIC_REPLICATION", -1, -1..=100);
    if replication == 0 {
        env.refuse("KAFKA_TOPIC_REPLICATION", "must be -1 for the broker's default, or at least 1");
    }
    KafkaSettings {
        bootstrap_servers: servers.unwrap_or_default(),
        properties: kafka_security(env),
        topic,
        payments: payments(env),
        create_topic: env.flag("KAFKA_CREATE_TOPIC", true),
        partitions: env.number("KAFKA_TOPIC_PARTITIONS", 6, 1..=10_000),
        replication,
        delivery_timeout,
    }
}

/// The topic of the payments; empty: they are not read.
fn payments(env: &Environment) -> PaymentSettings {
    let group = env.text("KAFKA_CONSUMER_GROUP", "order-service");
    let topic = env.text("PAYMENT_EVENTS_TOPIC", "payment-events");
    PaymentSettings {
        enabled: env.flag("PAYMENT_EVENTS_ENABLED", true),
        topic,
        group,
        session_timeout: env.millis("KAFKA_SESSION_TIMEOUT_MS", 45 * SECOND, SECOND..=30 * MINUTE),
    }
}

/// The security settings of the client, under librdkafka's own names.
fn kafka_security(env: &Environment) -> Vec<(&'static str, Secret)> {
    const PROTOCOLS: [(&str, &str); 4] = [
        ("PLAINTEXT", "plaintext"),
        ("SSL", "ssl"),
        ("SASL_PLAINTEXT", "sasl_plaintext"),
        ("SASL_SSL", "sasl_ssl"),
    ];
    const MECHANISMS: [(&str, &str); 3] =
        [("PLAIN", "PLAIN"), ("SCRAM-SHA-256", "SCRAM-SHA-256"), ("SCRAM-SHA-512", "SCRAM-SHA-512")];
    let protocol = env.choice("KAFKA_SECURITY_PROTOCOL", "plaintext", &PROTOCOLS);
    let mechanism = env.choice("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512", &MECHANISMS);
    let mut properties = vec![("security.protocol", Secret(protocol.to_owned()))];
    let mut add = |name, variable| {
        let value = env.optional(variable);
        let found = value.is_some();
        properties.extend(value.map(|value| (name, Secret(value))));
        found
    };
    let user = add("sasl.username", "KAFKA_SASL_USERNAME");
    let password = add("sasl.password", "KAFKA_SASL_PASSWORD");
    add("ssl.key.password", "KAFKA_SSL_KEY_PASSWORD");
    for (name, variable) in [
        ("ssl.ca.location", "KAFKA_SSL_CA_LOCATION"),
        ("ssl.certificate.location", "KAFKA_SSL_CERTIFICATE_LOCATION"),
        ("ssl.key.location", "KAFKA_SSL_KEY_LOCATION"),
    ] {
        let missing = env.optional(variable).is_some_and(|path| !PathBuf::from(path).is_file());
        if missing {
            env.refuse(variable, "must name a file that exists");
        }
        add(name, variable);
    }
    let sasl = protocol.starts_with("sasl");
    if sasl {
        properties.push(("sasl.mechanism", Secret(mechanism.to_owned())));
    }
    for (found, variable) in [(user, "KAFKA_SASL_USERNAME"), (password, "KAFKA_SASL_PASSWORD")] {
        match (sasl, found) {
            (true, false) => env.refuse(variable, "is required with KAFKA_SECURITY_PROTOCOL=SASL_…"),
            // Whoever sets it believes that the connection is authenticated.
            (false, true) => env.refuse(variable, "is of use only with KAFKA_SECURITY_PROTOCOL=SASL_…"),
            _ => {}
        }
    }
    properties
}

fn product_stock(env: &Environment) -> StockSettings {
    let route = |method_name: &'static str, path_name: &'static str, default: &str| {
        let methods = [("POST", Method::POST), ("PUT", Method::PUT), ("PATCH", Method::PATCH)];
        let method = env.text(method_name, "POST");
        let known = methods.into_iter().find(|(word, _)| *word == method);
        if known.is_none() {
            env.refuse(method_name, "must be one of POST, PUT, PATCH");
        }
        let path = env.text(path_name, default);
        if !path.starts_with('/') || !path.contains(StockRoute::PLACEHOLDER) {
            env.refuse(path_name, "must start with / and contain {productId}");
        }
        StockRoute { method: known.map_or(Method::POST, |(_, method)| method), path }
    };
    let service_email = env.text("PRODUCT_SERVICE_USER_EMAIL", "order-service@shopverse.internal");
    if CustomerId::parse(&service_email).is_err() {
        env.refuse("PRODUCT_SERVICE_USER_EMAIL", "must be an e-mail address");
    }
    StockSettings {
        reduce: route(
            "PRODUCT_REDUCE_METHOD",
            "PRODUCT_REDUCE_PATH",
            "/api/products/{productId}/reduce-stock",
        ),
        restore: route(
            "PRODUCT_RESTORE_METHOD",
            "PRODUCT_RESTORE_PATH",
            "/api/products/{productId}/restore-stock",
        ),
        timeout: env.millis("PRODUCT_STOCK_TIMEOUT_MS", 3 * SECOND, 10..=MINUTE),
        service_email,
        key_is_honoured: env.flag("PRODUCT_HONOURS_IDEMPOTENCY_KEY", true),
    }
}

fn products(env: &Environment) -> Option<ProductSettings> {
    let url = env.required("PRODUCT_SERVICE_URL", "a URL such as http://product-service:8081", |text| {
        let url = text.parse::<Url>().ok().filter(|url| ["http", "https"].contains(&url.scheme()))?;
        (url.query().is_none() && url.fragment().is_none()).then_some(url)
    });
    let settings = |url| ProductSettings {
        url,
        deadline: env.millis("PRODUCT_DEADLINE_MS", 3 * SECOND, 10..=MINUTE),
        attempt_timeout: env.millis("PRODUCT_ATTEMPT_TIMEOUT_MS", SECOND, 10..=MINUTE),
        connect_timeout: env.millis("PRODUCT_CONNECT_TIMEOUT_MS", 500, 10..=MINUTE),
        retries: env.number("PRODUCT_RETRIES", 1, 0..=5),
        concurrency: env.number("PRODUCT_CONCURRENCY", 16, 1..=100),
        max_in_flight: env.number("PRODUCT_MAX_IN_FLIGHT", 256, 1..=10_000),
        breaker_window: env.number("PRODUCT_BREAKER_WINDOW", 50, 10..=10_000),
        breaker_failure_percent: env.number("PRODUCT_BREAKER_FAILURE_PERCENT", 50, 1..=100),
        breaker_open: env.millis("PRODUCT_BREAKER_OPEN_MS", 5 * SECOND, 100..=10 * MINUTE),
        stock: product_stock(env),
    };
    // A stand-in, so that the other settings are looked at too; it is refused like any wrong one.
    url.or_else(|| "http://unset.invalid".parse().ok()).map(settings)
}
