//! `dev`: the service with everything around it, on this machine.

use std::io::Write;
use std::net::SocketAddr;

use order_service::api::DocsPage;
use order_service::app::{App, AppError};
use order_service::config::{Config, Environment, LogConfig};
use order_service::dev::products::DemoProducts;
use order_service::dev::{Stack, kafka};
use order_service::telemetry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Failure, stop_signal};

/// Where the demo Product Service listens when nothing else is said.
const DEMO_PRODUCTS_ADDRESS: &str = "127.0.0.1:8081";

/// Starts the parts that the environment does not name, then the service; stops all of it on Ctrl-C.
pub(super) async fn run(env: &Environment) -> Result<(), Failure> {
    telemetry::start(&log_config(env)?)?;
    let stop = stop_signal()?;
    let program = std::env::current_exe()?;
    let starting = stop.run_until_cancelled(Stack::start(&program, |name| env.optional(name)));
    // What was started of it until then goes with it.
    let Some(stack) = starting.await.transpose()? else { return Ok(()) };
    let outcome = run_service(env, &stack, &stop).await;
    stack.stop().await;
    outcome
}

/// For people, and quiet: warnings and what the service itself says.
fn log_config(env: &Environment) -> Result<LogConfig, Failure> {
    let defaults = [("LOG_FORMAT", "human"), ("LOG_FILTER", "warn,order_service=info")];
    let defaults = defaults.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Ok(LogConfig::read(&env.clone().or(defaults))?)
}

async fn run_service(env: &Environment, stack: &Stack, stop: &CancellationToken) -> Result<(), Failure> {
    let env = env
        .clone()
        .with("DATABASE_URL", stack.database_url())
        .with("KAFKA_BOOTSTRAP_SERVERS", stack.kafka())
        .with("PRODUCT_SERVICE_URL", stack.product_service())
        .or([("SHUTDOWN_DELAY_MS".to_owned(), "0".to_owned())]);
    let mut config = Config::read(&env)?;
    config.api.docs = DocsPage::Dev;
    if let Some(cluster) = &stack.cluster {
        // The embedded broker has no admin API.
        for topic in [&config.kafka.topic, &config.kafka.payments.topic] {
            cluster.create_topic(topic, config.kafka.partitions)?;
        }
    }
    let app = Box::pin(start_service(&env, config)).await?;
    if stop.run_until_cancelled(app.ready()).await == Some(true) {
        show(&env, stack, app.address)?;
    }
    app.run_until(stop.cancelled()).await?;
    Ok(())
}

/// On the default port, or on a free one if another service has that and nobody asked for it by name.
async fn start_service(env: &Environment, config: Config) -> Result<App, AppError> {
    let chosen = env.optional("BIND_ADDRESS").is_some();
    match App::start(config.clone()).await {
        Err(AppError::Bind(taken, _)) if !chosen => {
            info!("{taken} is taken; listening on a free port");
            let bind_address = SocketAddr::new(taken.ip(), 0);
            App::start(Config { bind_address, ..config }).await
        }
        started => started,
    }
}

fn show(env: &Environment, stack: &Stack, http: SocketAddr) -> std::io::Result<()> {
    let secret = env.optional("GATEWAY_SECRET");
    let secret = secret.map(|secret| format!(" -H 'X-Gateway-Secret: {secret}'")).unwrap_or_default();
    let screen = format!(
        "
The order service is up. Ctrl-C stops everything.

  http             http://{http}
  postgres         {postgres}
  kafka            {kafka}
  product-service  {products}

Place a first order:

  curl -i http://{http}/api/orders -H 'Content-Type: application/json' \\
    -H 'X-User-Email: user@example.com' -H 'X-User-Role: CUSTOMER'{secret} \\
    -d '{{\"items\":[{{\"productId\":\"PROD123\",\"quantity\":2}},{{\"productId\":\"PROD456\",\"quantity\":1}}]}}'

",
        postgres = stack.database_url(),
        kafka = stack.kafka(),
        products = stack.product_service(),
    );
    let mut out = std::io::stdout().lock();
    out.write_all(screen.as_bytes())?;
    out.flush()
}

/// The demo Product Service alone, for `docker compose`.
pub(super) async fn demo_products(env: &Environment) -> Result<(), Failure> {
    telemetry::start(&log_config(env)?)?;
    let stop = stop_signal()?;
    let address = env.optional("DEMO_PRODUCTS_ADDRESS");
    let address: SocketAddr =
        address.as_deref().unwrap_or(DEMO_PRODUCTS_ADDRESS).parse().map_err(|_| {
            format!("DEMO_PRODUCTS_ADDRESS must be an address such as {DEMO_PRODUCTS_ADDRESS}")
        })?;
    let products = DemoProducts::start(address).await?;
    info!(url = products.url(), "the demo Product Service is up");
    stop.cancelled().await;
    products.stop().await;
    Ok(())
}

/// The Kafka cluster alone, for the process that started this one.
pub(super) fn embedded_kafka(brokers: i32) -> Result<(), Failure> {
    Ok(kafka::run(brokers, std::io::stdin().lock(), std::io::stdout().lock())?)
}
