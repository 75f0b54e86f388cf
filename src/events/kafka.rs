//! The producer. It sets explicitly every setting that the delivery guarantees depend on. An event counts as sent only
//! after the broker acknowledged it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use opentelemetry::trace::SpanKind;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::metadata::MetadataBroker;
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use tracing::{info, warn};
use uuid::Uuid;

use super::client::{KafkaSettings, PublishError, connection_config};
use super::topic::{self, KnownTopic};
use crate::domain::TraceParent;
use crate::store::PendingEvent;
use crate::telemetry::span::{self, Span};

#[derive(Debug, Default)]
pub struct Sent<'a> {
    pub acknowledged: Vec<&'a PendingEvent>,
    /// Invalid records, with the reason.
    pub refused: Vec<(&'a PendingEvent, PublishError)>,
    /// A failure of the broker or the connection. All other events may or may not have arrived.
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

/// The last known state of Kafka. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct KafkaHealth(Arc<AtomicU8>);

impl KafkaHealth {
    const UP: u8 = 1;
    const DOWN: u8 = 2;

    /// The name of the state in the readiness answer.
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
                warn!("Kafka is down; orders are still placed, and their events wait in the outbox");
            }
        }
    }
}

#[derive(Clone)]
struct Context(KafkaHealth);

impl ClientContext for Context {
    /// The client reports "all brokers are down" at each connection attempt, ten times a second. The log shows it once,
    /// when the health changes.
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.0.saw(KafkaHealth::DOWN);
        } else {
            warn!(%error, reason, "the Kafka client reports");
        }
    }
}

/// Publishes events to one topic.
pub struct Publisher {
    settings: KafkaSettings,
    health: KafkaHealth,
    config: ClientConfig,
    producer: FutureProducer<Context>,
    /// Whether the settings of the topics were checked.
    topics_judged: AtomicBool,
}

impl Publisher {
    /// Creates a producer. It connects in the background.
    pub fn new(settings: KafkaSettings, health: KafkaHealth) -> Result<Self, PublishError> {
        let config = config(&settings);
        let producer = FutureProducer::from_config_and_context(&config, Context(health.clone()))?;
        Ok(Self { settings, health, config, producer, topics_judged: AtomicBool::new(false) })
    }

    /// Replaces the producer after a fatal error.
    pub fn renew_after_fatal_error(&mut self) -> Result<(), PublishError> {
        if self.producer.client().fatal_error().is_some() {
            self.producer =
                FutureProducer::from_config_and_context(&self.config, Context(self.health.clone()))?;
        }
        Ok(())
    }

    /// Whether all brokers are down.
    pub fn is_down(&self) -> bool {
        self.health.0.load(Ordering::Relaxed) == KafkaHealth::DOWN
    }

    /// Checks that the broker answers and has the topic, and creates the topic if that is allowed. The first time, it
    /// also checks the settings of the topics in the background.
    pub async fn ensure_topic(&self) -> Result<(), PublishError> {
        let (topics, broker) = self.fetch_topics().await?;
        if topics.iter().all(|topic| topic.name != self.settings.topic) {
            if !self.settings.create_topic {
                return Err(PublishError::NoTopic(self.settings.topic.clone()));
            }
            topic::create(&self.settings, broker).await?;
        }
        self.health.saw(KafkaHealth::UP);
        if !self.topics_judged.swap(true, Ordering::Relaxed) {
            tokio::spawn(topic::warn_of_unsafe_settings(self.settings.clone(), topics));
        }
        Ok(())
    }

    /// The topics of this service that exist, and any broker. Fetches the metadata of all topics, because a request for
    /// one by name makes some brokers create it.
    async fn fetch_topics(&self) -> Result<(Vec<KnownTopic>, Option<i32>), PublishError> {
        let producer = self.producer.clone();
        let payments = &self.settings.payments;
        let payments = payments.enabled.then(|| payments.topic.clone());
        let names: Vec<String> = std::iter::once(self.settings.topic.clone()).chain(payments).collect();
        let timeout = self.settings.delivery_timeout;
        let found = tokio::task::spawn_blocking(move || {
            let metadata = producer.client().fetch_metadata(None, timeout)?;
            let topics = names.iter().filter_map(|name| KnownTopic::find(&metadata, name)).collect();
            let broker = metadata.brokers().first().map(MetadataBroker::id);
            Ok::<_, KafkaError>((topics, broker))
        })
        .await?;
        if found.is_err() {
            self.health.saw(KafkaHealth::DOWN);
        }
        Ok(found?)
    }

    /// Sends events, at most one per order, and waits for the result of each.
    pub async fn send_all<'a>(&self, events: &'a [PendingEvent]) -> Sent<'a> {
        let mut sent = Sent { acknowledged: Vec::with_capacity(events.len()), ..Sent::default() };
        let mut in_flight = Vec::with_capacity(events.len());
        for event in events {
            match self.enqueue(event) {
                Ok((delivery, span)) => in_flight.push((event, delivery, span)),
                Err(error) => {
                    let continues = error.is_about_the_record();
                    sent.note(event, error);
                    if !continues {
                        break;
                    }
                }
            }
        }
        // The last one first: most others have their result by then, so that few of them wake this task.
        while let Some((event, delivery, mut span)) = in_flight.pop() {
            match delivery.await {
                Ok(Ok(delivery)) => {
                    span.set_kafka_record(delivery.partition, delivery.offset);
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
        sent.acknowledged.reverse();
        sent.refused.reverse();
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

    /// The span of a publication, in the trace that wrote the event. The record keeps its stored `traceparent`, so that
    /// a repeat is byte-identical.
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
        span.set_kafka_operation("send", topic);
        span
    }
}

/// Text that is copied only if it has escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The configuration of the producer, on which the delivery guarantees depend (pitfalls P6, P7 and P9).
fn config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = connection_config(settings);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("max.in.flight.requests.per.connection", "5")
        .set("message.timeout.ms", settings.delivery_timeout.as_millis().to_string())
        // The partitioner of the Java clients, so that they use the same partition for an order id.
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "2")
        .set("compression.type", "none")
        .set("reconnect.backoff.max.ms", "2000")
        .set("socket.keepalive.enable", "true");
    config
}
