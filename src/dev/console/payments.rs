//! The console as the Payment Service: publishes payment events.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::feed::Quiet;
use super::{Refusal, Shared, refuse, reply};
use crate::events::{KafkaSettings, connection_config};

/// How long Kafka may take to acknowledge a payment.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct PaymentService {
    producer: FutureProducer<Quiet>,
    topic: String,
}

/// The members that the console checks before it publishes a payment.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    event_type: String,
    entity_id: Uuid,
}

impl PaymentService {
    pub(super) fn new(settings: &KafkaSettings) -> Result<Self, KafkaError> {
        let producer = connection_config(settings)
            .set("acks", "all")
            .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string())
            .set("partitioner", "murmur2_random")
            .set("reconnect.backoff.max.ms", "1000")
            .create_with_context(Quiet)?;
        Ok(Self { producer, topic: settings.payments.topic.clone() })
    }
}

/// Publishes the body unchanged, so that publishing it again is a repeat of the same payment.
pub(super) async fn publish(State(console): State<Arc<Shared>>, body: Bytes) -> Result<Response, Refusal> {
    let bad = |detail: String| refuse(StatusCode::BAD_REQUEST, detail);
    let Envelope { event_type, entity_id } = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("the body is not a payment event: {error}")))?;
    if !["PAYMENT_SUCCESS", "PAYMENT_FAILED"].contains(&event_type.as_str()) {
        return Err(bad("eventType must be PAYMENT_SUCCESS or PAYMENT_FAILED".to_owned()));
    }
    let key = entity_id.to_string();
    let PaymentService { producer, topic } = &console.payments;
    let record = FutureRecord::to(topic).key(&key).payload(body.as_ref());
    match producer.send(record, DELIVERY_TIMEOUT).await {
        Ok(delivery) => Ok(reply(&json!({"partition": delivery.partition, "offset": delivery.offset}))),
        Err((error, _)) => {
            let detail = format!("Kafka did not accept the payment: {error}");
            Err(refuse(StatusCode::SERVICE_UNAVAILABLE, detail))
        }
    }
}
