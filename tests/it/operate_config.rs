//! The commands that show settings, help and completions.

use std::process::{Command, Stdio};

use order_service::config::Environment;
use serde_json::{Value, json};

use crate::support::command;

const GOOD: [(&str, &str); 3] = [
    ("DATABASE_URL", "postgres://orders:the-password@db:5432/orders"),
    ("KAFKA_BOOTSTRAP_SERVERS", "kafka:9092"),
    ("PRODUCT_SERVICE_URL", "http://products:8081"),
];

fn environment(more: &[(&str, &str)]) -> Environment {
    let all = GOOD.iter().chain(more);
    all.fold(Environment::default(), |env, (name, value)| env.with(name, *value))
}

/// Runs a command in a folder with this `.env`; returns exit code, standard output and standard error.
fn run(arguments: &[&str], environment: &Environment, dot_env: &str) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), dot_env).unwrap();
    let output =
        command(arguments[0], environment).args(&arguments[1..]).current_dir(folder.path()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn config_check_names_all_errors_at_once() {
    let good = environment(&[("GATEWAY_SECRETS", "x")]);
    let (code, out, _) = run(&["config", "check"], &good, "");
    assert!(code == Some(0) && out.contains("are valid") && out.contains("GATEWAY_SECRETS"), "{out}");

    let bad = environment(&[
        ("RELAY_BATCH", "none"),
        ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
        ("LOG_FORMAT", "xml"),
    ]);
    let (code, _, err) = run(&["config", "check"], &bad, "this is no assignment");

    assert_eq!(code, Some(1));
    for name in ["RELAY_BATCH", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD", "LOG_FORMAT", ".env"] {
        assert!(err.contains(name), "{name}: {err}");
    }
    let (code, out, _) = run(&["config", "check", "--json"], &bad, "");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &report["valid"], report["errors"].as_array().unwrap().len()),
        (Some(1), &json!(false), 4)
    );
}

#[test]
fn config_show_prints_effective_values_and_their_sources_without_secrets() {
    let secret = "a-secret-of-the-gateway";
    let env = environment(&[("GATEWAY_SECRET", secret)]);
    let (code, out, _) = run(&["config", "show", "--json"], &env, "RELAY_BATCH=7\n");
    assert_eq!(code, Some(0), "{out}");
    let rows: Vec<Value> = serde_json::from_str(&out).unwrap();
    let of = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap().clone();
    let row = |name: &str, value: &str, source: &str| json!({"name": name, "value": value, "source": source});
    assert_eq!(of("RELAY_BATCH"), row("RELAY_BATCH", "7", ".env"));
    assert_eq!(of("GATEWAY_SECRET"), row("GATEWAY_SECRET", "(hidden)", "environment"));
    assert_eq!(of("BIND_ADDRESS"), row("BIND_ADDRESS", "127.0.0.1:8080", "default"));
    assert_eq!(
        of("DATABASE_URL"),
        row("DATABASE_URL", "postgres://orders:hidden@db:5432/orders", "environment")
    );
    assert_eq!(of("KAFKA_SASL_PASSWORD")["source"], "unset");

    let (_, table, _) = run(&["config", "show"], &env, "");
    assert!(table.starts_with("SETTING ") && table.contains("KAFKA_TOPIC_PARTITIONS"), "{table}");
    for text in [out, table] {
        assert!(!text.contains(secret) && !text.contains("the-password"), "{text}");
    }
}

#[test]
fn every_operator_command_shows_an_example_and_supports_json() {
    let commands = [
        "outbox list",
        "outbox replay",
        "outbox skip",
        "stock list",
        "stock resolve",
        "payments list",
        "payments retry",
        "payments settle",
        "refunds list",
        "refunds done",
        "check",
        "events replay",
        "config check",
        "config show",
    ];
    for command in commands {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let (code, help, _) = run(&arguments, &Environment::default(), "");
        assert_eq!(code, Some(0), "{command}");
        assert!(help.contains(&format!("order-service {command}")) && help.contains("Example"), "{help}");
        assert!(help.contains("--json"), "{help}");
    }
    let (_, help, _) = run(&["events", "replay", "--help"], &Environment::default(), "");
    assert!(help.contains("drop repeats by the id"), "{help}");
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(&["completions", shell], &Environment::default(), "");
        assert!(code == Some(0) && script.contains("payments") && script.contains("settle"), "{shell}");
        if shell == "bash" {
            let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            std::io::Write::write_all(&mut bash.stdin.take().unwrap(), script.as_bytes()).unwrap();
            assert!(bash.wait().unwrap().success(), "bash refuses the script");
        }
    }
    assert_eq!(run(&["completions", "tcsh"], &Environment::default(), "").0, Some(2));
}
