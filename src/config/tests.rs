use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::events::{KafkaHealth, Publisher, Secret};

const EXAMPLE: &str = include_str!("../../.env.example");

const REQUIRED: [(&str, &str); 3] = [
    ("DATABASE_URL", "postgres://orders:database-password@db:5432/orders"),
    ("KAFKA_BOOTSTRAP_SERVERS", "kafka-1:9092,kafka-2:9092"),
    ("PRODUCT_SERVICE_URL", "http://product-service:8081"),
];

/// `serve` does not read this setting, which belongs to `demo-products`.
const OF_THE_DEMO: (&str, &str) = ("DEMO_PRODUCTS_ADDRESS", "127.0.0.1:8081");

fn required() -> Environment {
    environment(&REQUIRED)
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().fold(Environment::default(), |env, (name, value)| env.with(name, *value))
}

/// The errors of these settings together with the required ones, one per line.
fn wrong(variables: &[(&str, &str)]) -> Vec<String> {
    let env = variables.iter().fold(required(), |env, (name, value)| env.with(name, *value));
    read_service(&env).err().map(|InvalidConfig(lines)| lines).unwrap_or_default()
}

fn names(lines: &[String]) -> Vec<&str> {
    lines.iter().filter_map(|line| line.split(' ').next()).collect()
}

/// `NAME=value` of a line, and whether the line is active, not commented out.
fn assignment(line: &str) -> Option<(bool, &str, &str)> {
    let (is_active, line) = line.strip_prefix('#').map_or((true, line), |line| (false, line));
    let (name, value) = line.split_once('=')?;
    let is_name = name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    is_name.then_some((is_active, name, value))
}

/// All settings of `.env.example`, including those that are commented out.
fn example() -> BTreeMap<&'static str, &'static str> {
    EXAMPLE.lines().filter_map(assignment).map(|(_, name, value)| (name, value)).collect()
}

/// All comparable parts of the settings: their `Debug` output omits possible secrets, and with them the database
/// deadlines.
fn shown((log, config): &(LogConfig, Config)) -> String {
    let database = &config.database;
    let properties: Vec<_> =
        config.kafka.properties.iter().map(|(name, Secret(value))| (name, value)).collect();
    format!(
        "{log:#?} {config:#?} {:?} {:?} {:?} {properties:?}",
        database.options, database.acquire_timeout, database.deadline
    )
}

#[test]
fn the_example_lists_exactly_the_settings_that_are_read() {
    let env = required();
    read_service(&env).unwrap();
    let mut read = env.asked();
    read.insert(OF_THE_DEMO.0);
    assert_eq!(example().into_keys().collect::<BTreeSet<_>>(), read);
}

#[test]
fn the_example_shows_the_defaults_and_changes_none() {
    let defaults = shown(&read_service(&required()).unwrap());

    let active = EXAMPLE.lines().filter_map(assignment).filter(|(is_active, ..)| *is_active);
    let active = active.map(|(_, name, value)| (name.to_owned(), value.to_owned()));
    let env = Environment::from(active).or(required().variables().clone());
    assert_eq!(shown(&read_service(&env).unwrap()), defaults);

    let all_active = example().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let env = Environment::from(all_active).or(required().variables().clone());
    assert_eq!(shown(&read_service(&env).unwrap()), defaults);
    assert_eq!(example()[OF_THE_DEMO.0], OF_THE_DEMO.1);
}

#[test]
fn operators_see_the_defaults_of_the_example() {
    let env = required();
    read_service(&env).unwrap();
    for (name, value) in example().into_iter().filter(|(name, _)| *name != OF_THE_DEMO.0) {
        assert_eq!(env.default_of(name).unwrap_or_default(), value, "{name}");
    }
}

#[test]
fn the_example_describes_every_setting_once() {
    let mut seen = BTreeSet::new();
    let mut before = "";
    for line in EXAMPLE.lines() {
        if let Some((_, name, _)) = assignment(line) {
            assert!(before.starts_with("# "), "{name} has no sentence");
            assert!(before.ends_with('.'), "the sentence of {name} has no end");
            assert!(seen.insert(name), "{name} appears twice");
        }
        before = line;
    }
}

#[test]
fn without_settings_the_error_names_exactly_the_required_ones() {
    let InvalidConfig(lines) = read_service(&Environment::default()).unwrap_err();
    let mut named = names(&lines);
    named.sort_unstable();
    assert_eq!(named, REQUIRED.map(|(name, _)| name));
    assert!(lines.iter().all(|line| line.contains(" is required: ")), "{lines:?}");
}

#[test]
fn an_empty_setting_counts_as_unset() {
    let blank = |name: &str| (name.to_owned(), "  ".to_owned());
    let env =
        Environment::from([blank("LOG_FORMAT")]).or([blank("GATEWAY_SECRET"), blank("MAX_CONNECTIONS")]);
    let (log, config) = read_service(&env.or(required().variables().clone())).unwrap();
    assert_eq!(log.format, LogFormat::Json);
    assert!(config.api.gateway_secrets.is_empty());
}

#[test]
fn every_number_has_its_bounds() {
    let bounds: [(&str, i64, i64); 49] = [
        ("MAX_CONCURRENT_REQUESTS", 1, 100_000),
        ("MAX_CONCURRENT_CONFIRMATIONS", 1, 100_000),
        ("PRODUCT_REFUSAL_RETRIES", 0, 1_000),
        ("MAX_CONCURRENT_PLACEMENTS", 1, 100_000),
        ("REQUEST_DEADLINE_MS", 100, 600_000),
        ("MAX_CONNECTIONS", 1, 1_000_000),
        ("CONNECTION_IDLE_TIMEOUT_MS", 100, 3_600_000),
        ("PRODUCT_DEADLINE_MS", 10, 60_000),
        ("PRODUCT_ATTEMPT_TIMEOUT_MS", 10, 60_000),
        ("PRODUCT_CONNECT_TIMEOUT_MS", 10, 60_000),
        ("PRODUCT_RETRIES", 0, 5),
        ("PRODUCT_CONCURRENCY", 1, 100),
        ("PRODUCT_MAX_IN_FLIGHT", 1, 10_000),
        ("PRODUCT_BREAKER_WINDOW", 10, 10_000),
        ("PRODUCT_BREAKER_FAILURE_PERCENT", 1, 100),
        ("PRODUCT_BREAKER_OPEN_MS", 100, 600_000),
        ("DATABASE_MAX_CONNECTIONS", 2, 10_000),
        ("DATABASE_ACQUIRE_TIMEOUT_MS", 10, 60_000),
        ("DATABASE_DEADLINE_MS", 100, 600_000),
        ("KAFKA_TOPIC_PARTITIONS", 1, 10_000),
        ("KAFKA_TOPIC_REPLICATION", -1, 100),
        ("KAFKA_TOPIC_MIN_INSYNC_REPLICAS", -1, 100),
        ("KAFKA_DELIVERY_TIMEOUT_MS", 100, 300_000),
        ("RELAY_LEASE_MS", 300, 3_600_000),
        ("RELAY_POLL_INTERVAL_MS", 10, 60_000),
        ("RELAY_BATCH", 1, 10_000),
        ("RELAY_MAX_BACKOFF_MS", 100, 600_000),
        ("DUPLICATE_WINDOW_SECONDS", 0, 3_600),
        ("IDEMPOTENCY_KEY_TTL_HOURS", 1, 8_760),
        ("HOUSEKEEPING_INTERVAL_MS", 10, 3_600_000),
        ("PRODUCT_STOCK_TIMEOUT_MS", 10, 60_000),
        ("STOCK_WAIT_MS", 0, 60_000),
        ("STOCK_CONCURRENCY", 1, 1000),
        ("STOCK_POLL_INTERVAL_MS", 10, 60_000),
        ("STOCK_LEASE_MS", 100, 600_000),
        ("STOCK_DEADLINE_MS", 100, 86_400_000),
        ("KAFKA_SESSION_TIMEOUT_MS", 3_000, 300_000),
        ("STARTUP_TIMEOUT_MS", 100, 3_600_000),
        ("SHUTDOWN_DELAY_MS", 0, 600_000),
        ("REQUEST_HEAD_TIMEOUT_MS", 100, 60_000),
        ("REQUEST_BODY_TIMEOUT_MS", 100, 60_000),
        ("RESPONSE_WRITE_TIMEOUT_MS", 100, 60_000),
        ("SHUTDOWN_TIMEOUT_MS", 100, 3_600_000),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", 1, 600_000),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", 1, 600_000),
        ("OTEL_BSP_SCHEDULE_DELAY", 1, 600_000),
        ("OTEL_BSP_EXPORT_TIMEOUT", 1, 600_000),
        ("OTEL_BSP_MAX_QUEUE_SIZE", 1, 1_000_000),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1, 1_000_000),
    ];
    for (name, least, most) in bounds {
        for bad in [(least - 1).to_string(), (most + 1).to_string(), "many".into(), "1.5".into()] {
            let lines = wrong(&[(name, &bad)]);
            assert_eq!(lines, [format!("{name} must be a whole number from {least} to {most}")], "{bad}");
        }
        // One setting at a time: combinations may be refused for another reason.
        for good in [least, most].map(|bound| bound.to_string()) {
            let lines = wrong(&[(name, &good)]);
            assert!(!lines.iter().any(|line| line.contains("whole number")), "{name}={good}: {lines:?}");
        }
    }
    // Numbers that are not in the table have no bounds.
    let tabled: BTreeSet<_> = bounds.map(|(name, ..)| name).into();
    let numeric = example().into_iter().filter(|(_, value)| value.parse::<i64>().is_ok());
    assert_eq!(numeric.map(|(name, _)| name).collect::<BTreeSet<_>>(), tabled);
}

#[test]
fn a_duplicate_window_that_is_too_short_is_refused_and_the_error_names_the_related_settings() {
    let window = |value: &str, deadline: &str| {
        wrong(&[
            ("DUPLICATE_WINDOW_SECONDS", value),
            ("DATABASE_DEADLINE_MS", deadline),
            ("DATABASE_ACQUIRE_TIMEOUT_MS", "2000"),
        ])
    };
    for (value, deadline) in [("7", "5000"), ("8", "5001"), ("1", "100")] {
        let lines = window(value, deadline);
        assert!(
            lines.len() == 1 && lines[0].starts_with("DUPLICATE_WINDOW_SECONDS must be 0, or"),
            "{lines:?}"
        );
        assert!(
            lines[0].contains("DATABASE_DEADLINE_MS") && lines[0].contains("DATABASE_ACQUIRE_TIMEOUT_MS")
        );
    }
    for (value, deadline) in [("0", "5000"), ("8", "5000"), ("10", "5000")] {
        assert_eq!(window(value, deadline), Vec::<String>::new(), "{value}, {deadline}");
    }
}

#[test]
fn the_error_names_every_other_invalid_setting() {
    let too_long = "x".repeat(250);
    let table: [(&str, &[&str]); 34] = [
        ("ORDER_RETENTION", &["-1", "never", "36501d"]),
        ("PRODUCT_IDEMPOTENCY_KEY_TTL", &["0", "off", "-1", "1.5h", "soon", "366d"]),
        ("UNPAID_ORDER_TTL", &["-1", "1.5h", "h", "soon", "1w", "366d", "99999999999999999999d"]),
        ("BIND_ADDRESS", &["8080", "localhost:8080", "127.0.0.1", "127.0.0.1:65536", "http://127.0.0.1:80"]),
        ("LOG_FORMAT", &["JSON", "text"]),
        ("LOG_FILTER", &["order_service=loud", "info,=,debug["]),
        ("MIGRATE_ON_START", &["yes", "1", "TRUE"]),
        ("KAFKA_CREATE_TOPIC", &["no", "0"]),
        ("GATEWAY_SECRET", &["fifteen-letters", "a secret with spaces", "sixteen-and-more-ü"]),
        (
            "DATABASE_URL",
            &["db:5432", "mysql://db/orders", "postgres:///orders", "postgres://db/o?sslmode=perhaps"],
        ),
        (
            "KAFKA_BOOTSTRAP_SERVERS",
            &[
                "kafka",
                "kafka:",
                ":9092",
                "kafka:0",
                "kafka:65536",
                "kafka:9092,",
                "a:1;b:2",
                "http://kafka:9092",
            ],
        ),
        ("ORDER_EVENTS_TOPIC", &["order events", "order/events", "bestellungen-für-alle", &too_long]),
        ("PAYMENT_EVENTS_TOPIC", &["^payment-.*", "payment events", &too_long]),
        ("KAFKA_TOPIC_REPLICATION", &["0"]),
        ("KAFKA_TOPIC_MIN_INSYNC_REPLICAS", &["0"]),
        ("KAFKA_SECURITY_PROTOCOL", &["plaintext", "TLS"]),
        ("KAFKA_SASL_MECHANISM", &["GSSAPI", "SCRAM"]),
        ("KAFKA_SSL_CA_LOCATION", &["/nowhere/ca.pem", "/"]),
        ("KAFKA_SSL_CERTIFICATE_LOCATION", &["/nowhere/client.pem"]),
        ("KAFKA_SSL_KEY_LOCATION", &["/nowhere/client.key"]),
        (
            "PRODUCT_SERVICE_URL",
            &[
                "product-service:8081",
                "ftp://products",
                "http://",
                "http://products/?a=b",
                "http://products/#a",
            ],
        ),
        ("GATEWAY_SECRET_PREVIOUS", &["long-enough-but-alone"]),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &["otel-collector:4318", "ftp://collector", "collector"]),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &["otel-collector:4318", "http://"]),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", &["http", "http/json", "GRPC"]),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", &["tcp"]),
        ("OTEL_EXPORTER_OTLP_HEADERS", &["key", "a key=1", "=1", "key=line%0Abreak"]),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", &["key"]),
        ("OTEL_RESOURCE_ATTRIBUTES", &["production", "=production"]),
        ("OTEL_TRACES_SAMPLER", &["always", "xray"]),
        ("OTEL_TRACES_SAMPLER_ARG", &["half", "-0.1", "1.1", "NaN"]),
        ("OTEL_TRACES_EXPORTER", &["zipkin", "console"]),
        ("OTEL_SDK_DISABLED", &["1", "yes"]),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &["2049"]),
    ];
    for (name, values) in table {
        for value in values {
            let lines = wrong(&[(name, value)]);
            assert_eq!(names(&lines), [name], "{name}={value}: {lines:?}");
        }
    }
}

#[test]
fn all_errors_are_reported_at_once() {
    let bad = [
        ("LOG_FORMAT", "xml"),
        ("LOG_FILTER", "a=b=c"),
        ("BIND_ADDRESS", "here"),
        ("DATABASE_URL", "nowhere"),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka"),
        ("PRODUCT_SERVICE_URL", "products"),
        ("PRODUCT_RETRIES", "lots"),
        ("GATEWAY_SECRET", "short"),
        ("RELAY_LEASE_MS", "20000"),
    ];
    let lines = wrong(&bad);
    assert_eq!(names(&lines).into_iter().collect::<BTreeSet<_>>(), bad.map(|(name, _)| name).into());
    assert_eq!(lines.len(), bad.len(), "{lines:?}");
    assert_eq!(InvalidConfig(lines.clone()).to_string(), lines.join("\n"));
}

#[test]
fn dangerous_combinations_are_refused() {
    let table: [(&[(&str, &str)], &str); 17] = [
        (&[("ORDER_RETENTION", "29d")], "ORDER_RETENTION"),
        (&[("ORDER_RETENTION", "60d"), ("IDEMPOTENCY_KEY_TTL_HOURS", "1000")], "ORDER_RETENTION"),
        (&[("UNPAID_ORDER_TTL", "30m"), ("PAYMENT_EVENTS_ENABLED", "false")], "UNPAID_ORDER_TTL"),
        (
            &[("KAFKA_TOPIC_REPLICATION", "3"), ("KAFKA_TOPIC_MIN_INSYNC_REPLICAS", "4")],
            "KAFKA_TOPIC_MIN_INSYNC_REPLICAS",
        ),
        (
            &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel:4317")],
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (&[("RELAY_LEASE_MS", "20000")], "RELAY_LEASE_MS"),
        (&[("KAFKA_DELIVERY_TIMEOUT_MS", "15000")], "RELAY_LEASE_MS"),
        (&[("PRODUCT_ATTEMPT_TIMEOUT_MS", "3001")], "PRODUCT_ATTEMPT_TIMEOUT_MS"),
        (&[("PRODUCT_DEADLINE_MS", "999")], "PRODUCT_ATTEMPT_TIMEOUT_MS"),
        (&[("REQUEST_DEADLINE_MS", "3000"), ("STOCK_WAIT_MS", "2999")], "REQUEST_DEADLINE_MS"),
        (&[("REQUEST_DEADLINE_MS", "8000")], "REQUEST_DEADLINE_MS"),
        (&[("STOCK_LEASE_MS", "6000")], "STOCK_LEASE_MS"),
        (&[("PAYMENT_EVENTS_TOPIC", "order-events")], "PAYMENT_EVENTS_TOPIC"),
        (
            &[("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"), ("KAFKA_SASL_PASSWORD", "password-of-kafka")],
            "KAFKA_SASL_USERNAME",
        ),
        (
            &[("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"), ("KAFKA_SASL_USERNAME", "orders")],
            "KAFKA_SASL_PASSWORD",
        ),
        (&[("KAFKA_SASL_USERNAME", "orders")], "KAFKA_SASL_USERNAME"),
        (
            &[("KAFKA_SECURITY_PROTOCOL", "SSL"), ("KAFKA_SASL_PASSWORD", "password-of-kafka")],
            "KAFKA_SASL_PASSWORD",
        ),
    ];
    for (variables, refused) in table {
        let lines = wrong(variables);
        assert_eq!(names(&lines), [refused], "{variables:?}: {lines:?}");
    }
    let all_right = [
        ("RELAY_LEASE_MS", "20001"),
        ("PRODUCT_ATTEMPT_TIMEOUT_MS", "3000"),
        ("REQUEST_DEADLINE_MS", "8001"),
    ];
    assert_eq!(wrong(&all_right), Vec::<String>::new());
}

#[test]
fn errors_and_debug_output_do_not_contain_secrets() {
    const SECRETS: [(&str, &str); 5] = [
        ("GATEWAY_SECRET", "the-gateway-s-secret"),
        ("GATEWAY_SECRET_PREVIOUS", "the-secret-of-yesterday"),
        ("KAFKA_SASL_USERNAME", "user-of-kafka"),
        ("KAFKA_SASL_PASSWORD", "password-of-kafka"),
        ("KAFKA_SSL_KEY_PASSWORD", "password-of-the-key"),
    ];
    let told = |text: &str| {
        let known = SECRETS.iter().map(|(_, secret)| *secret).chain(["database-password"]);
        known.filter(|secret| text.contains(secret)).map(str::to_owned).collect::<Vec<_>>()
    };
    let env = SECRETS.iter().fold(required(), |env, (name, value)| env.with(name, *value));
    let config = Config::read(&env.with("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")).unwrap();
    assert_eq!(told(&format!("{config:?}")), Vec::<String>::new());

    let refused = [
        ("DATABASE_URL", "mysql://orders:database-password@db/orders"),
        ("GATEWAY_SECRET", "the-gateway-s-secret with a space"),
        ("GATEWAY_SECRET_PREVIOUS", "the-secret-of-yesterday with a space"),
        ("KAFKA_SASL_USERNAME", "user-of-kafka"),
        ("KAFKA_SASL_PASSWORD", "password-of-kafka"),
    ];
    let lines = wrong(&refused);
    assert_eq!(lines.len(), refused.len(), "{lines:?}");
    assert_eq!(told(&lines.join("\n")), Vec::<String>::new());
}

/// A valid value of every secret.
const SECRETS: [(&str, &str); 6] = [
    ("DATABASE_URL", "postgres://orders:database-password@other-db:5432/orders"),
    ("GATEWAY_SECRET", "the-gateway-s-secret"),
    ("GATEWAY_SECRET_PREVIOUS", "the-secret-of-yesterday"),
    ("KAFKA_SASL_USERNAME", "user-of-kafka"),
    ("KAFKA_SASL_PASSWORD", " password of kafka"),
    ("KAFKA_SSL_KEY_PASSWORD", "password-of-the-key"),
];

/// The required settings and all secrets. Those in `by_file` are files in `folder`, the others are set by value.
fn secrets(by_file: &[&str], folder: &std::path::Path, end_of_line: &str) -> Environment {
    let needed = REQUIRED[1..].iter().chain(&[("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")]);
    let mut env = needed.fold(Environment::default(), |env, (name, value)| env.with(name, *value));
    for (name, value) in SECRETS {
        env = if by_file.contains(&name) {
            let path = folder.join(name);
            std::fs::write(&path, format!("{value}{end_of_line}")).unwrap();
            env.with(&format!("{name}_FILE"), path.to_str().unwrap())
        } else {
            env.with(name, value)
        };
    }
    env
}

#[test]
fn a_secret_may_come_from_a_file_without_the_newline_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    for end_of_line in ["", "\n", "\r\n"] {
        let env = secrets(&SECRETS.map(|(name, _)| name), folder.path(), end_of_line);
        let (log, config) = read_service(&env).unwrap();
        let kafka: Vec<_> = config.kafka.properties.iter().map(|(_, Secret(value))| value.as_str()).collect();
        for (name, value) in &SECRETS[3..] {
            assert!(kafka.contains(value), "{name}");
        }
        assert_eq!(config.database.options.get_host(), "other-db");
        assert_eq!(format!("{:?}", config.api.gateway_secrets), "GatewaySecrets(2 hidden)");
        assert_eq!(config.unknown, Vec::<String>::new());
        let debug = format!("{log:?}{config:?}");
        assert!(!SECRETS[1..].iter().any(|(_, secret)| debug.contains(secret)), "{debug}");
    }
}

#[test]
fn a_secret_that_is_set_by_value_and_by_file_is_refused_with_both_names() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in SECRETS {
        let both = secrets(&[name], folder.path(), "").variables().clone().into_iter();
        let env = Environment::from(both.chain([(name.to_owned(), value.to_owned())]));
        let InvalidConfig(lines) = read_service(&env).unwrap_err();
        assert_eq!(lines, [format!("{name} must not be set together with {name}_FILE: set one of them")]);
    }
}

#[test]
fn the_error_for_an_unusable_secret_file_names_only_its_variable() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let unusable = [
        (folder.path().join("missing"), "names a file that cannot be read"),
        (folder.path().to_owned(), "names a file that cannot be read: it is not a regular file"),
        (file("no-utf-8", b"\xff\xfe"), "names a file that cannot be read"),
        (
            file("large", &vec![b'x'; 64 * 1024 + 1]),
            "names a file that cannot be read: it is longer than 64 KiB",
        ),
        (file("empty", b"\n"), "names an empty file"),
    ];
    for (name, _) in SECRETS {
        for (path, rule) in &unusable {
            let env = secrets(&[name], folder.path(), "");
            let env = env.with(&format!("{name}_FILE"), path.to_str().unwrap());
            let InvalidConfig(lines) = read_service(&env).unwrap_err();
            assert!(
                lines.len() == 1 && lines[0].starts_with(&format!("{name}_FILE {rule}")),
                "{name}, {rule}: {lines:?}"
            );
            assert!(!lines[0].contains(path.to_str().unwrap()), "{lines:?}");
        }
    }
}

#[test]
fn the_environment_overrides_the_env_file_for_both_forms_of_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let by_file = secrets(&["GATEWAY_SECRET"], folder.path(), "").variables().clone();
    let by_value = secrets(&[], folder.path(), "").variables().clone();
    read_service(&Environment::from(by_value.clone()).or(by_file.clone())).unwrap();
    read_service(&Environment::from(by_file).or(by_value)).unwrap();
}

/// The lines `NAME: "value"` of a manifest.
fn assignments_of_manifest(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let assignments = text.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(": "));
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    assignments.filter(move |(name, _)| is_name(name)).map(|(name, value)| (name, value.trim_matches('"')))
}

#[test]
fn the_manifests_set_only_known_settings_and_allow_enough_time_to_stop() {
    const CONFIG_MAP: &str = include_str!("../kit/kubernetes/configmap.yaml");
    const SECRET: &str = include_str!("../kit/kubernetes/secret.yaml");
    const DEPLOYMENT: &str = include_str!("../kit/kubernetes/deployment.yaml");
    const MOUNTED: &str = "/run/secrets/order-service";
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in assignments_of_manifest(SECRET) {
        std::fs::write(folder.path().join(name), value).unwrap();
    }
    let mounted = folder.path().to_str().unwrap();
    let env = assignments_of_manifest(CONFIG_MAP)
        .fold(Environment::default(), |env, (name, value)| env.with(name, value.replace(MOUNTED, mounted)));

    let (_, config) = read_service(&env).unwrap();

    assert_eq!(config.unknown, Vec::<String>::new());
    assert_eq!(config.warning(), None);
    assert!(!config.migrate_on_start);
    let seconds = |key: &str| {
        let line = DEPLOYMENT.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap();
        Duration::from_secs(line.trim().parse().unwrap())
    };
    let stop = seconds("seconds:") + config.timing.shutdown_delay + config.timing.shutdown_timeout;
    assert!(stop + Duration::from_secs(2) <= seconds("terminationGracePeriodSeconds:"), "{stop:?}");
}

#[test]
fn a_public_address_without_a_gateway_secret_logs_a_warning() {
    let secret = ("GATEWAY_SECRET", "the-gateway-s-secret");
    let warns = |variables: &[(&str, &str)]| {
        let env = variables.iter().fold(required(), |env, (name, value)| env.with(name, *value));
        Config::read(&env).unwrap().warning().is_some()
    };
    for address in ["0.0.0.0:8080", "[::]:8080", "10.0.0.7:8080"] {
        assert!(warns(&[("BIND_ADDRESS", address)]), "{address}");
        assert!(!warns(&[("BIND_ADDRESS", address), secret]), "{address} with a secret");
    }
    for address in ["127.0.0.1:8080", "127.0.0.2:0", "[::1]:8080"] {
        assert!(!warns(&[("BIND_ADDRESS", address)]), "{address}");
    }
    assert!(!warns(&[]));
}

#[test]
fn a_misspelt_setting_is_reported_with_the_nearest_name_and_foreign_variables_are_ignored() {
    let unknown = |name: &str| Config::read(&required().with(name, "1")).unwrap().unknown;
    let misspelt = [
        ("DATABASE_MAX_CONNECTION", "DATABASE_MAX_CONNECTIONS"),
        ("GATEWAY_SECRETS", "GATEWAY_SECRET"),
        ("GATWAY_SECRET", "GATEWAY_SECRET"),
        ("KAFKA_BOOTSTRAP_SERVER", "KAFKA_BOOTSTRAP_SERVERS"),
        ("MAX_CONECTIONS", "MAX_CONNECTIONS"),
        ("RELAY_LEASE", "RELAY_LEASE_MS"),
    ];
    for (name, nearest) in misspelt {
        assert_eq!(
            unknown(name),
            [format!("{name} is not a setting of this service; the nearest is {nearest}")]
        );
    }
    let of_others = [
        "PATH",
        "HOME",
        "POSTGRES_PASSWORD",
        "KAFKA_PORT",
        "KAFKA_SERVICE_HOST",
        "KAFKA_SERVICE_PORT_CLIENT",
        "KAFKA_PORT_9092_TCP",
        "KAFKA_PORT_9092_TCP_PROTO",
        "PRODUCT_SERVICE_SERVICE_PORT",
        "PRODUCT_SERVICE_PORT_8081_TCP_ADDR",
        "ORDER_SERVICE_PORT",
        "LOG_FILTER",
        "DEMO_PRODUCTS_ADDRESS",
    ];
    for name in of_others {
        assert_eq!(unknown(name), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_command_requires_only_the_settings_that_it_uses() {
    let env = environment(&REQUIRED[..1]);
    read_database(&env).unwrap();
    assert_eq!(read_bind_address(&env).unwrap().to_string(), DEFAULT_BIND_ADDRESS);
}

#[test]
fn librdkafka_accepts_every_valid_security_setting() {
    let sasl = [("KAFKA_SASL_USERNAME", "orders"), ("KAFKA_SASL_PASSWORD", "password-of-kafka")];
    for protocol in ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] {
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let credentials: &[_] = if protocol.starts_with("SASL") { &sasl } else { &[] };
            let env = credentials.iter().fold(required(), |env, (name, value)| env.with(name, *value));
            let env = env
                .with("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
                .with("KAFKA_SECURITY_PROTOCOL", protocol)
                .with("KAFKA_SASL_MECHANISM", mechanism);
            let made = Publisher::new(Config::read(&env).unwrap().kafka, KafkaHealth::default());
            assert!(made.is_ok(), "{protocol} {mechanism}: {:?}", made.err());
        }
    }
}
