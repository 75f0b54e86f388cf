//! The `AsyncAPI` document: both topics, with the schemas of the types that render and read the events.

use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::Topics;
use crate::domain::OrderEvent;
use crate::domain::event::{self, Envelope, EventType, PlacedMetadata, StatusUpdatedMetadata};
use crate::events::payments::decode;

type Placed = Envelope<'static, PlacedMetadata<'static>>;
type StatusUpdated = Envelope<'static, StatusUpdatedMetadata<'static>>;

/// The schema of the payload of a message.
struct Payload {
    name: &'static str,
    schema: Value,
}

pub(in crate::api) fn document(topics: &Topics<'_>) -> Value {
    let mut schemas = nested();
    let placed = order_payload::<Placed>("OrderPlaced", EventType::OrderPlaced);
    let updated = order_payload::<StatusUpdated>("OrderStatusUpdated", EventType::OrderStatusUpdated);
    // A failed payment needs no amount.
    let success = payment_payload("PaymentSuccess", "PAYMENT_SUCCESS", &["eventType", "entityId", "amount"]);
    let failed = payment_payload("PaymentFailed", "PAYMENT_FAILED", &["eventType", "entityId"]);
    let mut messages = Map::new();
    for (payload, event) in [&placed, &updated].into_iter().zip(event::examples().into_iter().flatten()) {
        messages.insert(payload.name.to_owned(), order_message(payload, &event));
    }
    messages.insert("PaymentSuccess".to_owned(), payment_message(&success, "confirms the order"));
    messages.insert("PaymentFailed".to_owned(), payment_message(&failed, "cancels the order"));
    for payload in [placed, updated, success, failed] {
        schemas.insert(payload.name.to_owned(), payload.schema);
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "ShopVerse order service",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The events of orders, and the payments that change orders. `/openapi.json` describes the HTTP API.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "orderEvents": {
                "address": topics.orders,
                "title": "Events of orders",
                "description": "The key of a record is the order's id. Delivery is at least once, in order within an order id; a repeat \
                    is byte-identical. To process each event once, drop repeats by `metadata.eventId`, or drop events whose \
                    `metadata.sequence` is not above the last one of the order. New members and event types may be added.",
                "messages": references(&["OrderPlaced", "OrderStatusUpdated"]),
            },
            "paymentEvents": {
                "address": topics.payments,
                "title": "Events of the Payment Service",
                "description": "Repeats are recognised by `metadata.eventId`, or without one by `eventType`, `entityId` and `timestamp`.",
                "messages": references(&["PaymentSuccess", "PaymentFailed"]),
            },
        },
        "operations": {
            "publishOrderEvents": {
                "action": "send",
                "channel": {"$ref": "#/channels/orderEvents"},
                "summary": "Every committed order and every real status change has its event.",
            },
            "receivePayments": {
                "action": "receive",
                "channel": {"$ref": "#/channels/paymentEvents"},
                "summary": "Payments confirm and cancel orders. Events of other types are ignored.",
            },
        },
        "components": {"messages": messages, "schemas": schemas},
    })
}

/// The schemas to which the payload schemas refer.
fn nested() -> Map<String, Value> {
    let mut found = vec![
        (PlacedMetadata::name().into_owned(), PlacedMetadata::schema()),
        (StatusUpdatedMetadata::name().into_owned(), StatusUpdatedMetadata::schema()),
    ];
    Placed::schemas(&mut found);
    StatusUpdated::schemas(&mut found);
    decode::Envelope::schemas(&mut found);
    found.into_iter().map(|(name, schema)| (name, rendered(&schema))).collect()
}

fn rendered(schema: &RefOr<Schema>) -> Value {
    serde_json::to_value(schema).unwrap_or_default()
}

/// The schema of the type, for events of this type alone.
fn order_payload<T: PartialSchema>(name: &'static str, event_type: EventType) -> Payload {
    let mut schema = rendered(&T::schema());
    schema["properties"]["eventType"] = json!({"type": "string", "const": event_type.into_str()});
    Payload { name, schema }
}

fn payment_payload(name: &'static str, event_type: &str, required: &[&str]) -> Payload {
    let mut schema = rendered(&decode::Envelope::schema());
    schema["properties"]["eventType"] = json!({"type": "string", "const": event_type});
    schema["properties"]["service"] = json!({"type": "string", "const": "PAYMENT_SERVICE"});
    schema["properties"]["timestamp"] = json!({
        "type": ["string", "array"],
        "description": "The time of the event: text, or the numbers of a LocalDateTime as Jackson writes them.",
    });
    schema["properties"]["metadata"] = json!({
        "type": "object",
        "description": schema["properties"]["metadata"]["description"],
        "properties": {
            "orderId": {"type": ["string", "null"], "format": "uuid"},
            "eventId": {"type": "string", "minLength": 1, "maxLength": 255},
        },
    });
    schema["required"] = json!(required);
    Payload { name, schema }
}

fn order_message(payload: &Payload, event: &OrderEvent) -> Value {
    let headers: Vec<(String, String)> = serde_json::from_str(&event.headers).unwrap_or_default();
    // Headers with the same value for all events of the type.
    let fixed = ["ce_specversion", "ce_type", "ce_source", "content-type"];
    let mut properties: Map<String, Value> = headers
        .iter()
        .map(|(name, value)| {
            let is_fixed = fixed.contains(&name.as_str());
            let schema =
                if is_fixed { json!({"type": "string", "const": value}) } else { json!({"type": "string"}) };
            (name.clone(), schema)
        })
        .collect();
    // Optional: present if the request had it.
    properties.insert("tracestate".to_owned(), json!({"type": "string"}));
    let names: Vec<&String> = headers.iter().map(|(name, _)| name).collect();
    let example: Map<String, Value> =
        headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let payload_example: Value = serde_json::from_str(&event.payload).unwrap_or_default();
    json!({
        "name": event.event_type.into_str(),
        "title": payload.name,
        "contentType": "application/json",
        "headers": {"type": "object", "required": names, "properties": properties},
        "payload": {"$ref": format!("#/components/schemas/{}", payload.name)},
        "bindings": {"kafka": {"key": {"type": "string", "format": "uuid"}, "bindingVersion": "0.5.0"}},
        "examples": [{"name": "example", "headers": example, "payload": payload_example}],
    })
}

fn payment_message(payload: &Payload, effect: &str) -> Value {
    let event_type = &payload.schema["properties"]["eventType"]["const"];
    let example = json!({
        "eventType": event_type,
        "service": "PAYMENT_SERVICE",
        "userEmail": "user@example.com",
        "entityId": "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10",
        "timestamp": "2026-01-21T12:31:00.123456Z",
        "metadata": {"eventId": "0198c1f3-1111-7cc0-8d3e-2f1a6b4c9d13"},
        "amount": 4998,
    });
    json!({
        "name": event_type,
        "title": payload.name,
        "summary": format!("It {effect}."),
        "contentType": "application/json",
        "payload": {"$ref": format!("#/components/schemas/{}", payload.name)},
        "examples": [{"name": "example", "payload": example}],
    })
}

fn references(names: &[&str]) -> Map<String, Value> {
    let reference =
        |name: &&str| ((*name).to_owned(), json!({"$ref": format!("#/components/messages/{name}")}));
    names.iter().map(reference).collect()
}
