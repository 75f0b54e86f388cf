//! The settings and errors of the Kafka clients.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use thiserror::Error;
use tokio::task::JoinError;

/// The settings of Kafka.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// `host:port`, comma-separated.
    pub bootstrap_servers: String,
    /// Security and other properties, by librdkafka's names.
    pub properties: Vec<(&'static str, Secret)>,
    /// The topic of the order events.
    pub topic: String,
    /// The payment consumer.
    pub payments: PaymentSettings,
    /// Whether the service may create a missing topic.
    pub create_topic: bool,
    /// The partitions of a created topic. More partitions later break the ordering at that moment.
    pub partitions: i32,
    /// The replicas of a created topic; -1 for the broker's default.
    pub replication: i32,
    /// `min.insync.replicas` of a created topic. None: 2 if it has at least 3 replicas, else the broker's default.
    pub min_insync_replicas: Option<i32>,
    /// How long the broker may take to acknowledge an event before the relay sends it again.
    pub delivery_timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct PaymentSettings {
    pub enabled: bool,
    pub topic: String,
    /// The consumer group of all replicas.
    pub group: String,
    /// After this time without a heartbeat, the partitions of a replica go to others.
    pub session_timeout: Duration,
}

/// A value that is hidden in logs.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Why events were not published. They stay in the outbox.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PublishError {
    #[error("Kafka did not accept an event")]
    Kafka(#[from] KafkaError),
    #[error("the topic {0} does not exist and KAFKA_CREATE_TOPIC is false: create it")]
    NoTopic(String),
    #[error("the topic {0} does not exist and the broker refused to create it: {1}")]
    TopicRefused(String, RDKafkaErrorCode),
    #[error("the headers of an event cannot be read")]
    Headers(#[from] serde_json::Error),
    #[error("the client was closed while an event was in flight")]
    Canceled,
    #[error("a helper thread failed")]
    Thread(#[from] JoinError),
}

impl PublishError {
    /// Whether the record itself is invalid, so that every broker refuses it. All other errors concern the broker or
    /// the connection, and never count against an event (invariant 5).
    pub(super) fn is_about_the_record(&self) -> bool {
        use RDKafkaErrorCode::{InvalidRecord, MessageBatchTooLarge, MessageSizeTooLarge};
        match self {
            Self::Kafka(error) => error.rdkafka_error_code().is_some_and(|code| {
                [InvalidRecord, MessageBatchTooLarge, MessageSizeTooLarge].contains(&code)
            }),
            Self::Headers(_) => true,
            _ => false,
        }
    }
}

/// The configuration of a connection.
pub(crate) fn connection_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.bootstrap_servers)
        .set("client.id", "order-service")
        // A lost request blocks the later requests of its connection for this long.
        .set("socket.timeout.ms", "10000");
    for (name, Secret(value)) in &settings.properties {
        config.set(*name, value);
    }
    config
}
