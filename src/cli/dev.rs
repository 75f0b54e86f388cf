//! `dev`: the service with the embedded stack, on this machine.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use order_service::api::DocsPage;
use order_service::app::{App, AppError};
use order_service::config::{Config, Environment, LogConfig};
use order_service::dev::products::DemoProducts;
use order_service::dev::{Console, DataFolder, Stack, kafka};
use order_service::telemetry;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Failure, start_traces, stop_signal, stop_traces};

/// The default address of the demo Product Service.
const DEMO_PRODUCTS_ADDRESS: &str = "127.0.0.1:8081";

/// Defaults of `dev`: it stops without delay, and after a kill another replica takes over payments within seconds.
const DEV_DEFAULTS: [(&str, &str); 2] = [("SHUTDOWN_DELAY_MS", "0"), ("KAFKA_SESSION_TIMEOUT_MS", "6000")];

/// The same for events. Either both are set or none, because the lease must exceed twice the timeout.
const RELAY_DEFAULTS: [(&str, &str); 2] = [("KAFKA_DELIVERY_TIMEOUT_MS", "3000"), ("RELAY_LEASE_MS", "7000")];

/// Starts each part whose address is not in the environment, then the service. Stops all of them on Ctrl-C. The folder
/// `data` keeps the data for the next start.
pub(super) async fn run(env: &Environment, data: Option<&Path>) -> Result<(), Failure> {
    telemetry::start(&log_config(env)?)?;
    let stop = stop_signal()?;
    let program = std::env::current_exe()?;
    let data = match data {
        Some(folder) => Some(DataFolder::open(folder).await?),
        None => None,
    };
    let starting = stop.run_until_cancelled(Stack::start(data.as_ref(), &program, |name| env.optional(name)));
    // An interruption drops the parts that were already started.
    let Some(stack) = starting.await.transpose()?.map(Arc::new) else { return Ok(()) };
    let parts = Parts { program, stack, data };
    let outcome = run_service(env, &parts, &stop).await;
    let Parts { stack, data, .. } = parts;
    if let Some(stack) = take_stack(stack).await {
        stack.stop().await;
    }
    drop(data);
    outcome
}

/// The stack, when no request of the console uses it any more. None after a timeout: the stack then ends with this
/// process.
async fn take_stack(stack: Arc<Stack>) -> Option<Stack> {
    const WITHIN: Duration = Duration::from_secs(5);
    const POLL: Duration = Duration::from_millis(10);
    let waiting = async {
        while Arc::strong_count(&stack) > 1 {
            sleep(POLL).await;
        }
    };
    let _ = timeout(WITHIN, waiting).await;
    Arc::into_inner(stack)
}

/// A quiet log for humans: warnings, and the messages of the service.
fn log_config(env: &Environment) -> Result<LogConfig, Failure> {
    let defaults = [("LOG_FORMAT", "human"), ("LOG_FILTER", "warn,order_service=info")];
    let defaults = defaults.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Ok(LogConfig::read(&env.clone().or(defaults))?)
}

/// The parts that the service needs.
struct Parts {
    program: PathBuf,
    stack: Arc<Stack>,
    data: Option<DataFolder>,
}

fn with_defaults(env: &Environment) -> Environment {
    let has_relay_settings = RELAY_DEFAULTS.iter().any(|(name, _)| env.optional(name).is_some());
    let relay_defaults = if has_relay_settings { [].as_slice() } else { &RELAY_DEFAULTS };
    let defaults = DEV_DEFAULTS.iter().chain(relay_defaults);
    env.clone().or(defaults.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

async fn run_service(env: &Environment, parts: &Parts, stop: &CancellationToken) -> Result<(), Failure> {
    let Parts { program, stack, data } = parts;
    let env = with_defaults(env)
        .with("DATABASE_URL", &stack.database_url)
        .with("KAFKA_BOOTSTRAP_SERVERS", &stack.kafka)
        .with("PRODUCT_SERVICE_URL", &stack.product_service);
    let mut config = Config::read(&env)?;
    config.api.docs = DocsPage::Dev;
    let mut journal = None;
    if let Some(cluster) = &stack.cluster {
        // The embedded broker has no admin API.
        for topic in [&config.kafka.topic, &config.kafka.payments.topic] {
            cluster.create_topic(topic, config.kafka.partitions)?;
        }
        if let Some(data) = data {
            journal = Some(cluster.restore(data).await?);
        }
    }
    let kafka = config.kafka.clone();
    let traces = start_traces(&config)?;
    let app = Box::pin(start_service(&env, config)).await?;
    let mut console = None;
    if stop.run_until_cancelled(app.ready()).await == Some(true) {
        let stack = Arc::clone(stack);
        let started = Console::start(stack, kafka, app.address, program.clone(), &env, journal).await?;
        let console = console.insert(started);
        show(&env, parts, app.address, console.address())?;
    }
    let outcome = app.run_until(stop.cancelled()).await;
    if let Some(console) = console {
        console.stop().await;
    }
    stop_traces(traces).await;
    Ok(outcome?)
}

/// Listens on the default port, or on a free one if the default port is taken and was not configured.
async fn start_service(env: &Environment, config: Config) -> Result<App, AppError> {
    let chosen = env.optional("BIND_ADDRESS").is_some();
    match App::start(config.clone()).await {
        Err(AppError::Bind("BIND_ADDRESS", taken, _)) if !chosen => {
            info!("{taken} is taken; listening on a free port");
            let bind_address = SocketAddr::new(taken.ip(), 0);
            App::start(Config { bind_address, ..config }).await
        }
        started => started,
    }
}

fn show(env: &Environment, parts: &Parts, http: SocketAddr, console: SocketAddr) -> std::io::Result<()> {
    let secret = env.optional("GATEWAY_SECRET");
    let secret = secret.map(|secret| format!(" -H 'X-Gateway-Secret: {secret}'")).unwrap_or_default();
    let Parts { stack, data, .. } = parts;
    let data = data.as_ref().map(|data| format!("\n  data             {}", data.path().display()));
    let screen = format!(
        "
The order service is up. Open the console in a browser. Ctrl-C stops everything.

  console          http://{console}
  http             http://{http}
  postgres         {postgres}
  kafka            {kafka}
  product-service  {products}{data}

Place a first order:

  curl -i http://{http}/api/orders -H 'Content-Type: application/json' \\
    -H 'X-User-Email: user@example.com' -H 'X-User-Role: CUSTOMER'{secret} \\
    -d '{{\"items\":[{{\"productId\":\"PROD123\",\"quantity\":2}},{{\"productId\":\"PROD456\",\"quantity\":1}}]}}'

",
        postgres = stack.database_url,
        kafka = stack.kafka,
        products = stack.product_service,
        data = data.unwrap_or_default(),
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
    let products = DemoProducts::start(None, address).await?;
    info!(url = products.url(), "the demo Product Service is up");
    stop.cancelled().await;
    products.stop().await;
    Ok(())
}

/// Runs a replica for the parent process until it closes the standard input.
pub(super) async fn replica(env: &Environment) -> Result<(), Failure> {
    telemetry::start(&log_config(env)?)?;
    let mut config = Config::read(env)?;
    config.api.docs = DocsPage::Dev;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    std::thread::spawn(move || {
        // The parent never writes to it, so the read ends when it is closed.
        let _ = std::io::stdin().read(&mut [0]);
        stopping.cancel();
    });
    let app = Box::pin(App::start(config)).await?;
    if stop.run_until_cancelled(app.ready()).await == Some(true) {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", app.address)?;
        out.flush()?;
    }
    Ok(app.run_until(stop.cancelled()).await?)
}

/// Runs the Kafka cluster alone, for the parent process.
pub(super) fn embedded_kafka(brokers: i32) -> Result<(), Failure> {
    Ok(kafka::run(brokers, std::io::stdin().lock(), std::io::stdout().lock())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_single_relay_setting_is_valid_with_the_defaults_of_dev() {
        let parts = Environment::default()
            .with("DATABASE_URL", "postgres://localhost/orders")
            .with("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
            .with("PRODUCT_SERVICE_URL", "http://localhost:8081");
        let alone = Config::read(&with_defaults(&parts)).map(|config| config.relay.lease.as_secs());
        assert_eq!(alone.ok(), Some(7));
        for (name, value) in [("KAFKA_DELIVERY_TIMEOUT_MS", "10000"), ("RELAY_LEASE_MS", "30000")] {
            let config = Config::read(&with_defaults(&parts.clone().with(name, value)));
            assert_eq!(config.map(|config| config.relay.lease.as_secs()).ok(), Some(30), "{name}");
        }
    }
}
