//! Reads the settings of Kafka.

use std::path::PathBuf;
use std::time::Duration;

use super::{Environment, MINUTE, SECOND};
use crate::events::{KafkaSettings, PaymentSettings, Secret};

/// The default of `ORDER_EVENTS_TOPIC`.
pub(crate) const ORDER_EVENTS: &str = "order-events";

/// The default of `PAYMENT_EVENTS_TOPIC`.
pub(crate) const PAYMENT_EVENTS: &str = "payment-events";

pub(super) fn kafka(env: &Environment, delivery_timeout: Duration) -> KafkaSettings {
    let servers = env.required(
        "KAFKA_BOOTSTRAP_SERVERS",
        "host:port, or several of them separated by commas",
        |text| {
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
        },
    );
    let replication = env.number("KAFKA_TOPIC_REPLICATION", -1, -1..=100);
    if replication == 0 {
        env.refuse("KAFKA_TOPIC_REPLICATION", "must be -1 for the broker's default, or at least 1");
    }
    KafkaSettings {
        bootstrap_servers: servers.unwrap_or_default(),
        properties: kafka_security(env),
        topic: topic(env, "ORDER_EVENTS_TOPIC", ORDER_EVENTS),
        payments: payments(env),
        create_topic: env.flag("KAFKA_CREATE_TOPIC", true),
        partitions: env.number("KAFKA_TOPIC_PARTITIONS", 6, 1..=10_000),
        replication,
        min_insync_replicas: min_insync_replicas(env, replication),
        delivery_timeout,
    }
}

/// The minimum of in-sync replicas. With more of them than replicas, the broker would refuse every event.
fn min_insync_replicas(env: &Environment, replication: i32) -> Option<i32> {
    const NAME: &str = "KAFKA_TOPIC_MIN_INSYNC_REPLICAS";
    let min_insync = env.number(NAME, -1, -1..=100);
    if min_insync == 0 {
        env.refuse(NAME, "must be -1 for the default, or at least 1");
    }
    if replication > 0 && min_insync > replication {
        env.refuse(NAME, "must not be more than KAFKA_TOPIC_REPLICATION");
    }
    (min_insync > 0).then_some(min_insync)
}

/// Reads the name of a topic.
fn topic(env: &Environment, variable: &'static str, default: &str) -> String {
    let topic = env.text(variable, default);
    if let Err(rule) = parse_topic(&topic) {
        env.refuse(variable, rule);
    }
    topic
}

/// Parses the name of a topic, by Kafka's rule. It also excludes a leading `^`, which librdkafka treats as a pattern.
pub fn parse_topic(text: &str) -> Result<String, &'static str> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_legal = (1..=249).contains(&text.len()) && text.chars().all(legal);
    is_legal.then(|| text.to_owned()).ok_or("must be 1 to 249 letters, digits, '.', '_' or '-'")
}

/// The settings of the payment consumer.
fn payments(env: &Environment) -> PaymentSettings {
    PaymentSettings {
        enabled: env.flag("PAYMENT_EVENTS_ENABLED", true),
        topic: topic(env, "PAYMENT_EVENTS_TOPIC", PAYMENT_EVENTS),
        group: env.text("KAFKA_CONSUMER_GROUP", "order-service"),
        // Brokers accept 6 s to 30 min by default; librdkafka accepts at most max.poll.interval.ms, 5 min.
        session_timeout: env.millis("KAFKA_SESSION_TIMEOUT_MS", 45 * SECOND, 3 * SECOND..=5 * MINUTE),
    }
}

/// The security settings of the client, by librdkafka's names.
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
        // A secret whose file cannot be read counts as set.
        let found = value.is_some() || env.is_refused(variable);
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
            // An operator who sets it expects an authenticated connection.
            (false, true) => env.refuse(variable, "needs KAFKA_SECURITY_PROTOCOL=SASL_…"),
            _ => {}
        }
    }
    properties
}
