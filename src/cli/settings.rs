//! `config`: checks or shows the settings of `serve`.

use clap::Subcommand;
use order_service::config::{Environment, InvalidConfig, Setting, read_service, settings_in_force};
use order_service::events::{KafkaHealth, Publisher};
use order_service::telemetry::error_chain;
use serde_json::{Value, json};

use super::Failure;
use super::output::{Operated, Output, text};

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the settings of `serve` without connecting to anything; exit code 1 if one is invalid
    #[command(after_help = "The command lists all errors at once.\n\nExample:\n  order-service config check")]
    Check,
    /// Show all settings of `serve` with their values and sources; secrets are hidden
    #[command(after_help = "Example:\n  order-service config show --json")]
    Show,
}

/// `process` is the environment of the process; `merged` includes `.env`, or is the error of that file.
pub(super) fn config(
    args: &Operated<ConfigCommand>,
    process: &Environment,
    merged: Result<Environment, Failure>,
) -> Result<(), Failure> {
    let (env, dot_env) = match merged {
        Ok(env) => (env, None),
        Err(error) => (process.clone(), Some(error.to_string())),
    };
    match args.command {
        ConfigCommand::Check => check(&env, dot_env, args.output),
        ConfigCommand::Show => show(&env, process, dot_env, args.output),
    }
}

fn check(env: &Environment, dot_env: Option<String>, output: Output) -> Result<(), Failure> {
    let mut errors: Vec<String> = dot_env.into_iter().collect();
    let mut warnings = Vec::new();
    match read_service(env) {
        Err(InvalidConfig(lines)) => errors.extend(lines),
        Ok((_, config)) => {
            warnings.extend(config.warning().map(str::to_owned));
            warnings.extend(config.unknown);
            // Reads the certificates and keys.
            if let Err(error) = Publisher::new(config.kafka, KafkaHealth::default()) {
                errors.push(format!("the Kafka client refuses the KAFKA_ settings: {}", error_chain(&error)));
            }
        }
    }
    let result = json!({"valid": errors.is_empty(), "errors": errors, "warnings": warnings});
    let mut sentences: Vec<String> = warnings.iter().map(|line| format!("warning: {line}")).collect();
    if errors.is_empty() {
        sentences.insert(0, "The settings are valid.".to_owned());
    }
    if output.is_json() || !sentences.is_empty() {
        output.result(&result, &sentences.join("\n"))?;
    }
    failure(errors)
}

fn show(
    env: &Environment,
    process: &Environment,
    dot_env: Option<String>,
    output: Output,
) -> Result<(), Failure> {
    let (settings, invalid) = settings_in_force(env, process);
    let row =
        |setting: &Setting| json!({"name": setting.name, "value": setting.value, "source": setting.source});
    let rows: Vec<Value> = settings.iter().map(row).collect();
    output.rows(
        &rows,
        &[("SETTING", &text("name")), ("VALUE", &text("value")), ("FROM", &text("source"))],
        "",
    )?;
    let InvalidConfig(lines) = invalid.unwrap_or(InvalidConfig(Vec::new()));
    failure(dot_env.into_iter().chain(lines).collect())
}

fn failure(errors: Vec<String>) -> Result<(), Failure> {
    if errors.is_empty() { Ok(()) } else { Err(InvalidConfig(errors).into()) }
}
