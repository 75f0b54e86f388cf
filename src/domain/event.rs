//! The events of an order in the platform's envelope.
//!
//! An event is rendered once and stored in the outbox as text. So a repeat is byte-identical, even if another version
//! of the service publishes it.

use std::cell::LazyCell;

use chrono::{DateTime, TimeDelta};
use serde::Serialize;
use sha2::{Digest, Sha256};
use strum::IntoStaticStr;
use utoipa::ToSchema;
use uuid::Uuid;

use super::aggregate::reason;
use super::order::HistoryEntry;
use super::{
    CustomerId, Line, Money, Order, OrderId, ProductId, Quantity, Status, StatusChange, TraceParent, time,
};

/// The number of buckets over which orders are spread. The relays of the replicas share the buckets, so this is also
/// the maximum of relays that work at once. A change needs a migration of the outbox.
pub const BUCKETS: i16 = 64;

/// The bucket of an order, by the random tail of its `UUIDv7`. So the orders of one moment spread over all buckets.
pub(crate) fn bucket_of(order: OrderId) -> i16 {
    let tail = order.0.as_u64_pair().1;
    i16::try_from(tail % u64::from(BUCKETS.unsigned_abs())).unwrap_or_default()
}

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE", const_into_str)]
pub enum EventType {
    /// An order was placed.
    OrderPlaced,
    /// The status of an order changed.
    OrderStatusUpdated,
}

impl EventType {
    /// The `CloudEvents` type.
    const fn ce_type(self) -> &'static str {
        match self {
            Self::OrderPlaced => "shopverse.order.placed.v1",
            Self::OrderStatusUpdated => "shopverse.order.status-updated.v1",
        }
    }
}

/// One event, ready for the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrderEvent {
    /// The id; a repeat has the same.
    pub id: Uuid,
    /// The order, which is also the key of the record.
    pub order: OrderId,
    /// 1, 2, 3 … within the order.
    pub sequence: i32,
    pub event_type: EventType,
    /// The value of the record: the envelope as JSON.
    pub payload: String,
    /// The headers of the record: a JSON array of `[name, value]`.
    pub headers: String,
    /// The trace of what caused it, as in the headers.
    pub traceparent: String,
}

impl OrderEvent {
    /// The event of a new order.
    pub(crate) fn placed(order: &Order, trace: &TraceParent) -> Result<Self, serde_json::Error> {
        Self::render(Uuid::now_v7(), order, None, trace.into())
    }

    /// The event of an order after `change`.
    pub(crate) fn status_updated(order: &Order, change: &StatusChange) -> Result<Self, serde_json::Error> {
        let cause = (change.from, change.reason.as_deref(), change.refund_due);
        Self::render(Uuid::now_v7(), order, Some(cause), (&change.trace).into())
    }

    /// The event of a change, as it was first published, but without a `tracestate`, which is not stored with the
    /// history. `order` supplies the parts that never change.
    ///
    /// If the id or the trace was not stored, it is derived from the order and the sequence, so it is always the same.
    pub(crate) fn recorded(order: &Order, change: &RecordedChange) -> Result<Self, serde_json::Error> {
        let derived = LazyCell::new(|| change.derived(order.id));
        let id = change.event_id.unwrap_or_else(|| derived.0);
        let parent = change.traceparent.clone().unwrap_or_else(|| derived.1.clone());
        let HistoryEntry { version, from, to: status, ref reason, changed_at, .. } = change.entry;
        let order = Order { status, version, changed_at, ..order.clone() };
        let cause = from.map(|from| (from, reason.as_deref(), change.refund_due));
        Self::render(id, &order, cause, Trace { parent, state: None })
    }

    /// `cause` is the status before the change, the reason and the refund; a placement has none.
    fn render(
        id: Uuid,
        order: &Order,
        cause: Option<(Status, Option<&str>, Option<Money>)>,
        trace: Trace,
    ) -> Result<Self, serde_json::Error> {
        let (event_id, sequence, status) = (id, order.version, order.status);
        if let Some((previous_status, reason, refund_due)) = cause {
            let metadata =
                StatusUpdatedMetadata { event_id, sequence, status, previous_status, reason, refund_due };
            Self::wrap(id, order, EventType::OrderStatusUpdated, trace, metadata)
        } else {
            let metadata = PlacedMetadata { event_id, sequence, status, items: &order.lines };
            Self::wrap(id, order, EventType::OrderPlaced, trace, metadata)
        }
    }

    fn wrap<M: Serialize>(
        id: Uuid,
        order: &Order,
        event_type: EventType,
        trace: Trace,
        metadata: M,
    ) -> Result<Self, serde_json::Error> {
        let timestamp = time::rfc3339(order.changed_at);
        let headers = headers(id, event_type, order.id, &timestamp, &trace);
        let envelope = Envelope {
            event_type,
            service: ServiceName::OrderService,
            user_email: &order.customer,
            entity_id: order.id,
            amount: order.total,
            timestamp,
            metadata,
        };
        Ok(Self {
            id,
            order: order.id,
            sequence: order.version,
            event_type,
            payload: serde_json::to_string(&envelope)?,
            headers: serde_json::to_string(&headers)?,
            traceparent: trace.parent,
        })
    }
}

/// The headers of an event for its trace.
struct Trace {
    parent: String,
    state: Option<String>,
}

impl From<&TraceParent> for Trace {
    fn from(trace: &TraceParent) -> Self {
        Self { parent: trace.to_string(), state: trace.state() }
    }
}

/// A row of the history of an order, with the parts of its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedChange {
    /// The row.
    pub entry: HistoryEntry,
    /// The amount to refund because of the change.
    pub refund_due: Option<Money>,
    /// The id of its event. `None` for a row of an older release.
    pub event_id: Option<Uuid>,
    /// The trace of its cause. `None` for a row of an older release.
    pub traceparent: Option<String>,
}

impl RecordedChange {
    /// Derives an id (`UUIDv8`, RFC 9562) and a `traceparent` from the order and the sequence alone.
    fn derived(&self, order: OrderId) -> (Uuid, String) {
        let hash: [u8; 32] =
            Sha256::digest(format!("order-service event {order} {}", self.entry.version)).into();
        let mut halves = [[0; 16]; 2];
        halves.as_flattened_mut().copy_from_slice(&hash);
        let id = uuid::Builder::from_custom_bytes(halves[0]).into_uuid();
        let parent = id.as_u64_pair().1;
        (id, format!("00-{:032x}-{parent:016x}-00", u128::from_be_bytes(halves[1])))
    }
}

/// The headers of `CloudEvents` 1.0 (Kafka protocol binding, binary mode), and the trace of the cause.
fn headers(
    id: Uuid,
    event_type: EventType,
    order: OrderId,
    timestamp: &str,
    trace: &Trace,
) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", id.to_string()),
        ("ce_type", event_type.ce_type().to_owned()),
        ("ce_source", "/order-service".to_owned()),
        ("ce_subject", order.to_string()),
        ("ce_time", timestamp.to_owned()),
        ("content-type", "application/json".to_owned()),
        ("traceparent", trace.parent.clone()),
    ];
    headers.extend(trace.state.clone().map(|state| ("tracestate", state)));
    headers
}

/// The service that an event comes from.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub(crate) enum ServiceName {
    /// This service.
    #[serde(rename = "ORDER_SERVICE")]
    OrderService,
}

/// The common envelope of the platform (contract).
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Envelope<'a, M> {
    event_type: EventType,
    service: ServiceName,
    /// The customer.
    user_email: &'a CustomerId,
    /// The order.
    entity_id: OrderId,
    /// The total of the order.
    amount: Money,
    /// When it happened, in UTC. Times within one order strictly increase.
    #[schema(format = DateTime, example = "2026-01-21T12:30:00.123456Z")]
    timestamp: String,
    metadata: M,
}

/// The metadata of `ORDER_PLACED`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlacedMetadata<'a> {
    /// The id of the event; a repeat has the same.
    #[schema(value_type = String, format = "uuid")]
    event_id: Uuid,
    /// 1, 2, 3 … within the order.
    #[schema(minimum = 1)]
    sequence: i32,
    status: Status,
    items: &'a [Line],
}

/// The metadata of `ORDER_STATUS_UPDATED`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusUpdatedMetadata<'a> {
    /// The id of the event; a repeat has the same.
    #[schema(value_type = String, format = "uuid")]
    event_id: Uuid,
    /// 1, 2, 3 … within the order.
    #[schema(minimum = 1)]
    sequence: i32,
    status: Status,
    previous_status: Status,
    /// `OUT_OF_STOCK`, `PAYMENT_FAILED`, `PAYMENT_TIMEOUT`, `CUSTOMER_REQUEST`, or what an admin or a customer wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<&'a str>,
    /// The amount to refund, if a paid order was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    refund_due: Option<Money>,
}

/// One fixed event of each type, for the documentation.
pub(crate) fn examples() -> Option<[OrderEvent; 2]> {
    const FIRST: Uuid = Uuid::from_u128(0x0198_c1f2_7b5a_7cc0_8d3e_2f1a_6b4c_9d11);
    const SECOND: Uuid = Uuid::from_u128(0x0198_c1f2_7b5a_7cc0_8d3e_2f1a_6b4c_9d12);
    let trace = TraceParent::example();
    let customer = CustomerId::parse("user@example.com").ok()?;
    let line = Line {
        product_id: ProductId::parse("PROD123").ok()?,
        quantity: Quantity::new(2).ok()?,
        price: Money::parse("2499").ok()?,
    };
    let mut order = Order::place(customer, vec![line])?;
    order.id = OrderId::parse("0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10").ok()?;
    order.changed_at = DateTime::from_timestamp_micros(1_769_000_000_123_456)?;
    let placed = OrderEvent::render(FIRST, &order, None, (&trace).into()).ok()?;
    order.status = Status::Cancelled;
    order.version = 2;
    order.changed_at += TimeDelta::seconds(30);
    let cause = (Status::Created, Some(reason::PAYMENT_FAILED), None);
    let updated = OrderEvent::render(SECOND, &order, Some(cause), (&trace).into());
    Some([placed, updated.ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Actor;

    fn an_order() -> Order {
        let line = |id: &str, quantity, price: &str| Line {
            product_id: ProductId::parse(id).unwrap(),
            quantity: Quantity::new(quantity).unwrap(),
            price: Money::parse(price).unwrap(),
        };
        let customer = CustomerId::parse("user@example.com").unwrap();
        Order::place(customer, vec![line("PROD123", 2, "2499"), line("PROD456", 1, "499.10")]).unwrap()
    }

    #[test]
    fn order_placed_has_the_envelope_of_the_contract() {
        let order = an_order();
        let event = OrderEvent::placed(&order, &TraceParent::continue_or_start(None)).unwrap();
        let expected = format!(
            r#"{{"eventType":"ORDER_PLACED","service":"ORDER_SERVICE","userEmail":"user@example.com","entityId":"{}","amount":5497.10,"timestamp":"{}","metadata":{{"eventId":"{}","sequence":1,"status":"CREATED","items":[{{"productId":"PROD123","quantity":2,"price":2499}},{{"productId":"PROD456","quantity":1,"price":499.10}}]}}}}"#,
            order.id,
            time::rfc3339(order.placed_at),
            event.id
        );
        assert_eq!(event.payload, expected);
    }

    #[test]
    fn order_status_updated_contains_old_status_new_status_and_reason() {
        let mut order = an_order();
        let trace = TraceParent::continue_or_start(None);
        let reason = Some("asked to".into());
        let change =
            order.change_status(Status::Cancelled, Actor::system(), reason, &trace).unwrap().unwrap();
        let event = OrderEvent::status_updated(&order, &change).unwrap();
        let value: serde_json::Value = serde_json::from_str(&event.payload).unwrap();
        assert_eq!(value["eventType"], "ORDER_STATUS_UPDATED");
        assert_eq!(value["metadata"]["sequence"], 2);
        assert_eq!(value["metadata"]["previousStatus"], "CREATED");
        assert_eq!(value["metadata"]["status"], "CANCELLED");
        assert_eq!(value["metadata"]["reason"], "asked to");
        assert_eq!(value["metadata"].get("items"), None);
    }

    #[test]
    fn the_headers_are_those_of_cloudevents() {
        let order = an_order();
        let event = OrderEvent::placed(&order, &TraceParent::continue_or_start(None)).unwrap();
        let headers: Vec<(String, String)> = serde_json::from_str(&event.headers).unwrap();
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        let expected =
            ["ce_specversion", "ce_id", "ce_type", "ce_source", "ce_subject", "ce_time", "content-type"];
        assert_eq!(names[..7], expected);
        assert_eq!(headers[1].1, event.id.to_string());
        assert_eq!(headers[4].1, order.id.to_string());
        assert_eq!(names[7], "traceparent");
    }

    #[test]
    fn orders_of_the_same_moment_are_spread_over_all_buckets() {
        let used: std::collections::HashSet<_> = (0..2_000).map(|_| bucket_of(OrderId::generate())).collect();
        assert_eq!(used.len(), usize::try_from(BUCKETS).unwrap());
    }
}
