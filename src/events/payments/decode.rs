//! Decodes the platform's envelope to a payment event.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::domain::payments::PaymentEvent;
use crate::domain::{Money, OrderId};
use crate::json::Object;
use crate::store::payments::{EventKey, RecordPlace};

#[derive(Debug)]
pub(super) enum Decoded {
    /// A payment that succeeded or failed.
    Payment { key: EventKey, order: OrderId, event: PaymentEvent, event_type: &'static str },
    /// A malformed event, with its order if that can be read.
    Undecodable { order: Option<OrderId>, error: String },
}

impl Decoded {
    /// The order of the record, if it names one.
    pub(super) const fn order(&self) -> Option<OrderId> {
        match self {
            Self::Payment { order, .. } => Some(*order),
            Self::Undecodable { order, .. } => *order,
        }
    }
}

fn undecodable(order: Option<OrderId>, error: String) -> Decoded {
    Decoded::Undecodable { order, error }
}

/// An event of the Payment Service.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Envelope {
    event_type: String,
    /// Events of other services are ignored.
    #[serde(default)]
    #[schema(value_type = String, example = "PAYMENT_SERVICE")]
    service: Value,
    /// The order, unless `metadata.orderId` names it.
    #[serde(default)]
    #[schema(value_type = String, example = "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10")]
    entity_id: Value,
    /// The paid amount.
    #[serde(default)]
    #[schema(value_type = Money)]
    amount: Value,
    /// When it happened.
    #[serde(default)]
    #[schema(value_type = String, example = "2026-01-21T12:30:00")]
    timestamp: Value,
    /// `orderId` has precedence over `entityId`; `eventId` identifies repeats; other members are ignored.
    #[serde(default)]
    #[schema(value_type = Object)]
    metadata: Value,
}

/// Decodes a record. `None` if it does not concern orders. Only the fields that the event needs must be valid: a failed
/// payment needs no amount.
pub(super) fn decode(payload: &[u8], place: &RecordPlace) -> Option<Decoded> {
    let Object(envelope): Object<Envelope> = match serde_json::from_slice(payload) {
        Ok(envelope) => envelope,
        Err(error) => return Some(undecodable(None, describe(&error))),
    };
    if envelope.service.as_str().is_some_and(|service| service != "PAYMENT_SERVICE") {
        return None;
    }
    let event_type = match envelope.event_type.as_str() {
        "PAYMENT_SUCCESS" => "PAYMENT_SUCCESS",
        "PAYMENT_FAILED" => "PAYMENT_FAILED",
        _ => return None,
    };
    let Some(order) = envelope.order() else {
        return Some(undecodable(None, "neither metadata.orderId nor entityId is an order id".to_owned()));
    };
    let event = match event_type {
        "PAYMENT_FAILED" => PaymentEvent::Failed,
        _ => match envelope.amount() {
            Ok(amount) => PaymentEvent::Succeeded(amount),
            Err(error) => return Some(undecodable(Some(order), format!("amount {error}"))),
        },
    };
    Some(Decoded::Payment { key: envelope.key(event_type, order, place), order, event, event_type })
}

/// Describes the error without quoting the record, which may contain personal data. serde quotes values of a wrong
/// type.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if error.is_data() && !text.starts_with("missing field") {
        return format!("it is JSON, but not a payment event (column {})", error.column());
    }
    text
}

impl Envelope {
    /// The order id; `metadata.orderId` has precedence (contract).
    fn order(&self) -> Option<OrderId> {
        let id = self.metadata.get("orderId").filter(|id| !id.is_null()).unwrap_or(&self.entity_id);
        OrderId::parse(id.as_str()?).ok()
    }

    fn amount(&self) -> Result<Money, String> {
        let Value::Number(number) = &self.amount else { return Err("is not a number".to_owned()) };
        Money::parse(number.as_str()).map_err(str::to_owned)
    }

    /// The key that identifies repeats: the id of the event; without it the type, entity and time, by which the
    /// platform deduplicates; without these the position of the record. The id is combined with the order and the type,
    /// because a producer may use the payment's id as the event's id.
    fn key(&self, event_type: &str, order: OrderId, place: &RecordPlace) -> EventKey {
        if let Some(id) = self.metadata.get("eventId").and_then(plain) {
            return EventKey::new(format!("{event_type}:{order}:id:{id}"));
        }
        // By default, Jackson writes a LocalDateTime as an array.
        let array = self.timestamp.as_array().map(|_| Value::String(self.timestamp.to_string()));
        let Some(timestamp) = plain(array.as_ref().unwrap_or(&self.timestamp)) else {
            return EventKey::new(format!("place:{}:{}:{}", place.topic, place.partition, place.offset));
        };
        let of_order = format!("{event_type}:{order}:at:{timestamp}");
        let number = self.entity_id.as_number().map(|_| Value::String(self.entity_id.to_string()));
        let key = match plain(number.as_ref().unwrap_or(&self.entity_id)) {
            Some(entity) => format!("{event_type}:{entity}:at:{timestamp}"),
            None => of_order.clone(),
        };
        EventKey { earlier: (key != of_order).then_some(of_order), key }
    }
}

/// Text that is valid in a key. PostgreSQL accepts no NUL and no index entry of many kilobytes, and a record that can
/// never be written would block its partition.
fn plain(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| (1..=255).contains(&text.len()) && !text.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ORDER: &str = "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10";

    fn read(envelope: &Value) -> Decoded {
        let place = RecordPlace { topic: "payment-events".into(), partition: 1, offset: 7 };
        decode(envelope.to_string().as_bytes(), &place).expect("it concerns an order")
    }

    fn success() -> Value {
        json!({
            "eventType": "PAYMENT_SUCCESS", "service": "PAYMENT_SERVICE", "userEmail": "a@example.com",
            "entityId": ORDER, "amount": 2499, "timestamp": "2026-01-21T12:30:00", "metadata": {},
        })
    }

    #[test]
    fn a_success_names_its_order_and_its_amount() {
        let Decoded::Payment { order, event, key, .. } = read(&success()) else { panic!("not read") };
        assert_eq!(order.to_string(), ORDER);
        assert_eq!(event, PaymentEvent::Succeeded(Money::parse("2499").unwrap()));
        assert_eq!(key, EventKey::new(format!("PAYMENT_SUCCESS:{ORDER}:at:2026-01-21T12:30:00")));
    }

    #[test]
    fn without_event_ids_the_entity_distinguishes_two_payments_of_one_order_and_second() {
        let mut event = success();
        event["entityId"] = json!("PAY-AAA");
        event["metadata"] = json!({"orderId": ORDER});
        let Decoded::Payment { order, key, .. } = read(&event) else { panic!("not read") };
        assert_eq!(order.to_string(), ORDER);
        assert_eq!(key.key, "PAYMENT_SUCCESS:PAY-AAA:at:2026-01-21T12:30:00");
        assert_eq!(key.earlier, Some(format!("PAYMENT_SUCCESS:{ORDER}:at:2026-01-21T12:30:00")));
        event["entityId"] = json!(7);
        let Decoded::Payment { key, .. } = read(&event) else { panic!("not read") };
        assert_eq!(key.key, "PAYMENT_SUCCESS:7:at:2026-01-21T12:30:00");
    }

    #[test]
    fn the_order_id_of_the_metadata_overrides_the_entity_id() {
        let mut event = success();
        event["entityId"] = json!("PAY123");
        event["metadata"] = json!({"orderId": ORDER, "eventId": "e-1"});
        let Decoded::Payment { order, key, .. } = read(&event) else { panic!("not read") };
        assert_eq!(order.to_string(), ORDER);
        assert_eq!(key, EventKey::new(format!("PAYMENT_SUCCESS:{ORDER}:id:e-1")));
    }

    #[test]
    fn one_id_for_a_payment_that_failed_and_then_succeeded_is_two_events() {
        let (mut first, mut second) = (success(), success());
        (first["metadata"], second["metadata"]) = (json!({"eventId": "p-1"}), json!({"eventId": "p-1"}));
        first["eventType"] = json!("PAYMENT_FAILED");
        let (Decoded::Payment { key, .. }, Decoded::Payment { key: other, .. }) =
            (read(&first), read(&second))
        else {
            panic!("not read")
        };
        assert_ne!(key, other);
    }

    #[test]
    fn repeats_are_recognised_even_if_the_time_is_an_array() {
        let mut event = success();
        event["timestamp"] = json!([2026, 1, 21, 12, 30, 0, 123]);
        let Decoded::Payment { key, .. } = read(&event) else { panic!("not read") };
        assert_eq!(key.key, format!("PAYMENT_SUCCESS:{ORDER}:at:[2026,1,21,12,30,0,123]"));
    }

    #[test]
    fn decode_errors_do_not_quote_the_record() {
        let place = RecordPlace { topic: String::new(), partition: 0, offset: 0 };
        for payload in [json!(success().to_string()), json!({"eventType": {"a@example.com": 1}})] {
            let Some(Decoded::Undecodable { error, .. }) = decode(payload.to_string().as_bytes(), &place)
            else {
                panic!("read")
            };
            assert!(!error.contains("example"), "{error}");
        }
    }

    #[test]
    fn a_null_order_id_in_the_metadata_counts_as_missing() {
        let mut event = success();
        event["metadata"] = json!({"orderId": null});
        let Decoded::Payment { order, .. } = read(&event) else { panic!("not read") };
        assert_eq!(order.to_string(), ORDER);
    }

    #[test]
    fn an_event_id_that_cannot_become_a_key_counts_as_missing() {
        for id in [json!("a\u{0}b"), json!("e".repeat(256)), json!(""), json!(7)] {
            let mut event = success();
            event["metadata"] = json!({"eventId": id});
            let Decoded::Payment { key, .. } = read(&event) else { panic!("not read") };
            assert_eq!(key.key, format!("PAYMENT_SUCCESS:{ORDER}:at:2026-01-21T12:30:00"));
            event["timestamp"] = json!("\n");
            let Decoded::Payment { key, .. } = read(&event) else { panic!("not read") };
            assert_eq!(key.key, "place:payment-events:1:7");
        }
    }

    #[test]
    fn other_events_and_other_services_are_ignored() {
        let place = RecordPlace { topic: String::new(), partition: 0, offset: 0 };
        for (field, value) in
            [("eventType", "PAYMENT_CREATED"), ("eventType", "X"), ("service", "AUTH_SERVICE")]
        {
            let mut event = success();
            event[field] = json!(value);
            assert!(decode(event.to_string().as_bytes(), &place).is_none(), "{field} {value}");
        }
    }

    #[test]
    fn malformed_records_are_distinguished_from_foreign_ones() {
        let broken = [
            ("entityId", json!("ORD1")),
            ("entityId", json!(7)),
            ("amount", json!("2499")),
            ("amount", json!(-1)),
        ];
        for (field, value) in broken {
            let mut event = success();
            event[field] = value;
            assert!(matches!(read(&event), Decoded::Undecodable { .. }), "{event}");
        }
        let place = RecordPlace { topic: String::new(), partition: 0, offset: 0 };
        let fields = format!(r#" ["PAYMENT_SUCCESS","PAYMENT_SERVICE","{ORDER}",2499,"now",{{}}]"#);
        for payload in [&b""[..], b"{", b"\xff", b"[]", b"{}", fields.as_bytes()] {
            assert!(matches!(decode(payload, &place), Some(Decoded::Undecodable { .. })), "{payload:?}");
        }
    }
}
