//! The command line: `serve`, the operators' commands and, with the embedded stack, `dev`.

mod check;
#[cfg(feature = "dev")]
mod dev;
mod events;
mod healthcheck;
mod operate;
mod output;
mod payments;
mod settings;

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::{Shell, generate};
use order_service::app::{App, AppError};
use order_service::config::{self, Config, Environment, LogConfig};
use order_service::telemetry::otlp::Traces;
use order_service::{kit, store, telemetry};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use output::Operated;

/// The order service of ShopVerse. Settings come from the environment; .env.example lists them.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve orders until SIGTERM or SIGINT
    Serve,
    /// Apply the pending migrations, then exit
    Migrate,
    /// List, replay or skip events that Kafka refuses
    Outbox(Operated<operate::OutboxCommand>),
    /// List or resolve stock calls of unknown outcome
    Stock(Operated<operate::StockCommand>),
    /// List, retry or settle payments that could not be applied
    Payments(Operated<payments::PaymentsCommand>),
    /// List due refunds, or mark one as done
    Refunds(Operated<payments::RefundsCommand>),
    /// Send events again, for a consumer that lost its data
    Events(Operated<events::EventsCommand>),
    /// Check the invariants on a live database; exit code 1 if one is violated
    Check(check::CheckArgs),
    /// Write the API documents, manifests, dashboards and decisions of this version to a new folder
    Kit {
        /// A folder that does not exist, or is empty
        folder: PathBuf,
    },
    /// Check or show the settings
    Config(Operated<settings::ConfigCommand>),
    /// Print the completion script of a shell
    #[command(
        after_help = "Example:\n  order-service completions bash > /etc/bash_completion.d/order-service"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Exit with 0 if the service on this machine is ready, with 1 if it is not
    Healthcheck {
        /// Check liveness instead of readiness, for platforms that restart unhealthy services
        #[arg(long)]
        live: bool,
    },
    /// Run everything on this machine: PostgreSQL, a Kafka broker, a demo Product Service and the service
    #[cfg(feature = "dev")]
    Dev {
        /// Keep orders, stock and the records of Kafka in this folder, for the next start
        #[arg(long, value_name = "FOLDER")]
        data: Option<PathBuf>,
    },
    /// Run the demo Product Service alone
    #[cfg(feature = "dev")]
    DemoProducts,
    /// Run one more replica for `dev`, until its standard input ends
    #[cfg(feature = "dev")]
    #[command(hide = true, name = order_service::dev::replica::COMMAND)]
    DevReplica,
    /// Run the Kafka cluster of `dev` and of the tests, which command it through standard input
    #[cfg(feature = "dev")]
    #[command(hide = true, name = order_service::dev::kafka::COMMAND)]
    EmbeddedKafka {
        /// The number of brokers
        brokers: i32,
    },
}

/// The exit code of a stop that took too long.
const EXIT_STOP_TIMED_OUT: u8 = 2;

/// The exit code of clap.
const EXIT_BAD_ARGUMENT: u8 = 2;

/// An argument that contradicts another argument or the settings. The command did nothing.
#[derive(Debug, Error)]
#[error("{0}")]
struct BadArgument(&'static str);

/// The error of a command, with its causes.
type Failure = Box<dyn Error + Send + Sync>;

pub(crate) fn run() -> ExitCode {
    match run_command(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(failure.as_ref());
            exit_code(failure.as_ref())
        }
    }
}

fn run_command(command: &Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(execute(command));
    // Does not wait for tasks that are still running.
    runtime.shutdown_background();
    outcome
}

fn exit_code(failure: &(dyn Error + Send + Sync + 'static)) -> ExitCode {
    if failure.is::<BadArgument>() {
        return ExitCode::from(EXIT_BAD_ARGUMENT);
    }
    let timed_out = matches!(failure.downcast_ref::<AppError>(), Some(AppError::ShutdownTimeout));
    if timed_out { ExitCode::from(EXIT_STOP_TIMED_OUT) } else { ExitCode::FAILURE }
}

fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "order-service", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

async fn execute(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Serve => serve(&environment()?).await,
        Command::Migrate => migrate(&environment()?).await,
        Command::Outbox(args) => operate::outbox(args, &environment()?).await,
        Command::Stock(args) => operate::stock(args, &environment()?).await,
        Command::Payments(args) => payments::payments(args, &environment()?).await,
        Command::Refunds(args) => payments::refunds(args, &environment()?).await,
        Command::Events(args) => events::events(args, &environment()?).await,
        Command::Check(args) => check::check(args, &environment()?).await,
        Command::Kit { folder } => write_kit(folder),
        // Reports an invalid .env together with the invalid settings.
        Command::Config(args) => settings::config(args, &Environment::of_process(), environment()),
        Command::Completions { shell } => completions(*shell),
        Command::Healthcheck { live } => {
            let probe = if *live { "live" } else { "ready" };
            healthcheck::run(config::read_bind_address(&environment()?)?, probe).await
        }
        #[cfg(feature = "dev")]
        Command::Dev { data } => Box::pin(dev::run(&environment()?, data.as_deref())).await,
        #[cfg(feature = "dev")]
        Command::DemoProducts => dev::demo_products(&environment()?).await,
        #[cfg(feature = "dev")]
        Command::DevReplica => Box::pin(dev::replica(&environment()?)).await,
        #[cfg(feature = "dev")]
        Command::EmbeddedKafka { brokers } => dev::embedded_kafka(*brokers),
    }
}

async fn serve(env: &Environment) -> Result<(), Failure> {
    let (log, config) = config::read_service(env)?;
    telemetry::start(&log)?;
    // Installed before the start, because a signal without a handler would end the process at once.
    let stop = stop_signal()?;
    let traces = start_traces(&config)?;
    let outcome = run_service(config, &stop).await;
    stop_traces(traces).await;
    Ok(outcome?)
}

async fn run_service(config: Config, stop: &CancellationToken) -> Result<(), AppError> {
    App::start(config).await?.run_until(stop.cancelled()).await
}

/// Starts tracing if an endpoint is set.
fn start_traces(config: &Config) -> Result<Option<Traces>, Failure> {
    Ok(config.traces.as_ref().map(telemetry::otlp::start).transpose()?)
}

/// Exports the last spans. The time limit leaves room in the platform's grace period.
async fn stop_traces(traces: Option<Traces>) {
    const PATIENCE: Duration = Duration::from_secs(2);
    if let Some(traces) = traces {
        traces.stop(PATIENCE).await;
    }
}

async fn migrate(env: &Environment) -> Result<(), Failure> {
    telemetry::start(&LogConfig::read(env)?)?;
    let version = store::migrate::migrate(&config::read_database(env)?).await?;
    info!(version, "the schema is current");
    Ok(())
}

fn write_kit(folder: &Path) -> Result<(), Failure> {
    let files = kit::write(folder)?;
    Ok(writeln!(
        io::stdout(),
        "{}: {files} files of version {}",
        folder.display(),
        env!("CARGO_PKG_VERSION")
    )?)
}

/// The environment, and the `.env` of the current folder if it exists; the environment wins.
fn environment() -> Result<Environment, Failure> {
    let process = Environment::of_process();
    match std::fs::read_to_string(".env") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(process),
        Err(error) => Err(format!(".env cannot be read: {error}").into()),
        Ok(text) => Ok(process.or(assignments(&text)?)),
    }
}

/// The assignments of a `.env`. The error names only the line number: dotenvy's message repeats the line, which may
/// contain a secret.
fn assignments(text: &str) -> Result<Vec<(String, String)>, Failure> {
    let parse = |text: &str| dotenvy::from_read_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    parse(text).map_err(|_| {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let valid = (0..lines.len()).rev().find(|&count| parse(&lines[..count].concat()).is_ok());
        format!(".env cannot be read: line {} is not an assignment", valid.unwrap_or_default() + 1).into()
    })
}

/// Cancelled by the first SIGTERM or SIGINT from now on; the second one ends the process at once.
fn stop_signal() -> io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let stop = CancellationToken::new();
    let first = stop.clone();
    tokio::spawn(async move {
        next().await;
        first.cancel();
        next().await;
        error!("second signal: exiting at once");
        std::process::exit(i32::from(EXIT_STOP_TIMED_OUT));
    });
    Ok(stop)
}

/// Prints an error and its causes to standard error, even if logging has not started.
#[expect(clippy::print_stderr, reason = "the last word of a command")]
fn report(failure: &(dyn Error + 'static)) {
    eprintln!("order-service: {}", telemetry::error_chain(failure));
}
