//! The producer: every setting that the promises rest on is spelled out, and nothing counts as sent before
//! the broker has acknowledged it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use opentelemetry::trace::SpanKind;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::metadata::MetadataBroker;
use rdkafka::producer::future_producer::{Delivery, DeliveryFuture};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use thiserror::Error;
use tokio::task::JoinError;
use tracing::{info, warn};
use uuid::Uuid;

use super::PaymentSettings;
use super::topic::{self, KnownTopic};
use crate::domain::TraceParent;
use crate::store::PendingEvent;
use crate::telemetry::span::{self, Span};

/// How Kafka is reached, and what is published where.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// `host:port`, comma-separated.
    pub bootstrap_servers: String,
    /// Security and other properties of librdkafka, as its documentation names them.
    pub properties: Vec<(&'static str, Secret)>,
    /// The topic of the events.
    pub topic: String,
    /// The payments that are read.
    pub payments: PaymentSettings,
    /// Whether a topic that is missing may be created.
    pub create_topic: bool,
    /// Partitions of a topic that is created. Raising it later breaks the sequence at that moment.
    pub partitions: i32,
    /// Replicas of a topic that is created; -1: what the broker has as its default.
    pub replication: i32,
    /// `min.insync.replicas` of a topic that is created; none: 2 where it has 3 replicas or more, else what the
    /// broker has as its default.
    pub min_insync_replicas: Option<i32>,
    /// How long the broker may take to acknowledge an event before it is sent again from the outbox.
    pub delivery_timeout: Duration,
}

/// A value that no log shows.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Why events were not published. They are still in the outbox.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The broker, or the way to it, failed.
    #[error("Kafka did not take an event")]
    Kafka(#[from] KafkaError),
    /// The topic is missing, and the settings say not to create it.
    #[error("the topic {0} does not exist and KAFKA_CREATE_TOPIC is false: create it")]
    NoTopic(String),
    /// The broker refused to create the topic.
    #[error("the topic {0} does not exist and the broker refused to create it: {1}")]
    TopicRefused(String, RDKafkaErrorCode),
    /// The stored headers cannot be read.
    #[error("the headers of an event cannot be read")]
    Headers(#[from] serde_json::Error),
    /// The client went away while an event was on its way.
    #[error("the client went away while an event was on its way")]
    Canceled,
    /// A helper thread failed: a bug.
    #[error("a helper thread failed")]
    Thread(#[from] JoinError),
}

impl PublishError {
    /// Whether the record itself is refused, and will be every time, wherever it is sent. Everything else is
    /// about the broker or the way to it, and never counts against an event (invariant 5).
    fn is_about_the_record(&self) -> bool {
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

/// What became of events that were sent.
#[derive(Debug, Default)]
pub struct Sent<'a> {
    /// The broker has them.
    pub acknowledged: Vec<&'a PendingEvent>,
    /// They are refused for themselves, and why.
    pub refused: Vec<(&'a PendingEvent, PublishError)>,
    /// The first failure that is nobody's fault but the broker's. All other events may or may not be there.
    pub failure: Option<PublishError>,
}

impl<'a> Sent<'a> {
    fn note(&mut self, event: &'a PendingEvent, error: PublishError) {
        if error.is_about_the_record() {
            self.refused.push((event, error));
        } else if self.failure.is_none() {
            self.failure = Some(error);
        }
    }
}

/// What was last seen of Kafka. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct KafkaHealth(Arc<AtomicU8>);

impl KafkaHealth {
    const UP: u8 = 1;
    const DOWN: u8 = 2;

    /// The word in the readiness answer.
    pub fn as_str(&self) -> &'static str {
        match self.0.load(Ordering::Relaxed) {
            Self::UP => "up",
            Self::DOWN => "down",
            _ => "unknown",
        }
    }

    fn saw(&self, state: u8) {
        if self.0.swap(state, Ordering::Relaxed) != state {
            if state == Self::UP {
                info!("Kafka is up");
            } else {
                warn!("Kafka is down; orders are placed all the same, and their events wait in the outbox");
            }
        }
    }
}

#[derive(Clone)]
struct Context(KafkaHealth);

impl ClientContext for Context {
    /// The client says that all brokers are down at each of its attempts to connect, ten times a second: the log
    /// has it once, when the health changes.
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.0.saw(KafkaHealth::DOWN);
        } else {
            warn!(%error, reason, "the Kafka client reports");
        }
    }
}

/// What the brokers say of themselves.
struct Cluster {
    /// The service's own topics, as far as they exist.
    topics: Vec<KnownTopic>,
    /// Any broker.
    broker: Option<i32>,
}

/// Publishes events to one topic.
pub struct Publisher {
    settings: KafkaSettings,
    health: KafkaHealth,
    config: ClientConfig,
    producer: FutureProducer<Context>,
    /// Whether the settings of the topics were looked at.
    topics_judged: AtomicBool,
}

impl Publisher {
    /// Makes a producer; it connects in the background, and whether it can is seen later.
    pub fn new(settings: KafkaSettings, health: KafkaHealth) -> Result<Self, PublishError> {
        let config = config(&settings);
        let producer = FutureProducer::from_config_and_context(&config, Context(health.clone()))?;
        Ok(Self { settings, health, config, producer, topics_judged: AtomicBool::new(false) })
    }

    /// Starts afresh after an error that the client does not recover from.
    pub fn renew_after_fatal_error(&mut self) -> Result<(), PublishError> {
        if self.producer.client().fatal_error().is_some() {
            self.producer =
                FutureProducer::from_config_and_context(&self.config, Context(self.health.clone()))?;
        }
        Ok(())
    }

    /// Whether the client has lost sight of every broker.
    pub fn is_down(&self) -> bool {
        self.health.0.load(Ordering::Relaxed) == KafkaHealth::DOWN
    }

    /// Makes sure that the broker is there and has the topic, creating it if that is allowed. The first time it
    /// also has the settings of the topics looked at, in the background.
    pub async fn ensure_topic(&self) -> Result<(), PublishError> {
        let cluster = self.look_at_cluster().await?;
        if cluster.topics.iter().all(|topic| topic.name != self.settings.topic) {
            if !self.settings.create_topic {
                return Err(PublishError::NoTopic(self.settings.topic.clone()));
            }
            topic::create(&self.settings, cluster.broker).await?;
        }
        self.health.saw(KafkaHealth::UP);
        if !self.topics_judged.swap(true, Ordering::Relaxed) {
            tokio::spawn(topic::warn_of_unsafe_settings(self.settings.clone(), cluster.topics));
        }
        Ok(())
    }

    /// Asks for all topics, because asking for one by name makes some brokers create it their own way.
    async fn look_at_cluster(&self) -> Result<Cluster, PublishError> {
        let producer = self.producer.clone();
        let payments = &self.settings.payments;
        let payments = payments.enabled.then(|| payments.topic.clone());
        let names: Vec<String> = std::iter::once(self.settings.topic.clone()).chain(payments).collect();
        let timeout = self.settings.delivery_timeout;
        let found = tokio::task::spawn_blocking(move || {
            let metadata = producer.client().fetch_metadata(None, timeout)?;
            let topics = names.iter().filter_map(|name| KnownTopic::find(&metadata, name)).collect();
            let broker = metadata.brokers().first().map(MetadataBroker::id);
            Ok::<_, KafkaError>(Cluster { topics, broker })
        })
        .await?;
        if found.is_err() {
            self.health.saw(KafkaHealth::DOWN);
        }
        Ok(found?)
    }

    /// Sends events and waits for the broker's word on each. No two of one call may belong to the same order.
    pub async fn send_all<'a>(&self, events: &'a [PendingEvent]) -> Sent<'a> {
        let mut sent = Sent { acknowledged: Vec::with_capacity(events.len()), ..Sent::default() };
        let mut on_their_way = Vec::with_capacity(events.len());
        for event in events {
            match self.enqueue(event) {
                Ok((delivery, span)) => on_their_way.push((event, delivery, span)),
                Err(error) => {
                    let goes_on = error.is_about_the_record();
                    sent.note(event, error);
                    if !goes_on {
                        break;
                    }
                }
            }
        }
        for (event, delivery, mut span) in on_their_way {
            match delivery.await {
                Ok(Ok(delivery)) => {
                    note_delivery(&mut span, &delivery);
                    sent.acknowledged.push(event);
                }
                Ok(Err((error, _))) => {
                    span.fail("not_acknowledged");
                    sent.note(event, error.into());
                }
                Err(_) => {
                    span.fail("canceled");
                    sent.note(event, PublishError::Canceled);
                }
            }
        }
        if !sent.acknowledged.is_empty() {
            self.health.saw(KafkaHealth::UP);
        }
        sent
    }

    fn enqueue(&self, event: &PendingEvent) -> Result<(DeliveryFuture, Span), PublishError> {
        let mut key = Uuid::encode_buffer();
        let key: &str = event.order_id.0.hyphenated().encode_lower(&mut key);
        let headers: Vec<(&str, Text<'_>)> = serde_json::from_str(&event.headers)?;
        let mut span = self.span(&headers);
        let headers =
            headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |all, (key, Text(value))| {
                all.insert(Header { key, value: Some(value.as_ref()) })
            });
        let record = FutureRecord::to(&self.settings.topic).key(key).payload(&event.payload).headers(headers);
        match self.producer.send_result(record) {
            Ok(delivery) => Ok((delivery, span)),
            Err((error, _)) => {
                span.fail("not_queued");
                Err(error.into())
            }
        }
    }

    /// The span of one event on its way: a part of what wrote the event, however long ago and at whichever replica. The
    /// record keeps the `traceparent` that was stored with it, so that a repeat is byte-identical.
    fn span(&self, headers: &[(&str, Text<'_>)]) -> Span {
        if !span::is_on() {
            return Span::none();
        }
        let header = headers.iter().find(|(name, _)| *name == "traceparent");
        let Some(trace) = header.and_then(|(_, Text(value))| TraceParent::extract(Some(value), None)) else {
            return Span::none();
        };
        let topic = &self.settings.topic;
        let mut span = Span::child(SpanKind::Producer, || format!("send {topic}"), &trace);
        if span.is_recorded() {
            span.set("messaging.system", "kafka");
            span.set("messaging.operation.type", "send");
            span.set("messaging.operation.name", "send");
            span.set("messaging.destination.name", topic.clone());
        }
        span
    }
}

fn note_delivery(span: &mut Span, delivery: &Delivery) {
    if span.is_recorded() {
        span.set("messaging.destination.partition.id", delivery.partition.to_string());
        span.set("messaging.kafka.offset", delivery.offset);
    }
}

/// Text that is copied only where it has escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// How to reach the broker.
pub(crate) fn connection_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.bootstrap_servers)
        .set("client.id", "order-service")
        // A request that got lost holds up all later ones of its connection for this long.
        .set("socket.timeout.ms", "10000");
    for (name, Secret(value)) in &settings.properties {
        config.set(*name, value);
    }
    config
}

/// What the promises of delivery rest on (P6, P7 and P9 of the pitfalls).
fn config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = connection_config(settings);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("max.in.flight.requests.per.connection", "5")
        .set("message.timeout.ms", settings.delivery_timeout.as_millis().to_string())
        // The partitioner of the Java clients, so that order ids land where theirs do.
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "2")
        .set("compression.type", "none")
        .set("reconnect.backoff.max.ms", "2000")
        .set("socket.keepalive.enable", "true");
    config
}
