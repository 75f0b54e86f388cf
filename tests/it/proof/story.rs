//! What the proof's clients did and saw, an order at a time.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

/// One customer with one basket; every request for it is the same request.
#[derive(Clone, Debug)]
pub(super) struct Story {
    /// A customer of this story alone, so that the orders of the basket can be counted in the database.
    pub(super) customer: String,
    /// The `Idempotency-Key`, if the client sends one.
    pub(super) key: Option<String>,
    /// Product and quantity of each line.
    pub(super) basket: Vec<(String, u32)>,
    /// The order of each 201 that was seen.
    pub(super) acknowledged: Vec<String>,
    /// What the order costs, as the answer said.
    pub(super) total: Value,
    /// Each status that a 200 to a change of status has shown.
    pub(super) changed_to: Vec<&'static str>,
    /// The payment events that the broker has taken.
    pub(super) payments: Vec<SentPayment>,
    /// Records that are no payment events.
    pub(super) garbage: Vec<String>,
}

/// A payment event that was published, once or several times.
#[derive(Clone, Debug)]
pub(super) struct SentPayment {
    pub(super) kind: PaymentKind,
    pub(super) envelope: String,
    /// When the broker had it.
    pub(super) acknowledged_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PaymentKind {
    Success,
    WrongAmount,
    Failed,
}

impl Story {
    pub(super) fn order(&self) -> Option<&str> {
        self.acknowledged.first().map(String::as_str)
    }

    /// Whether the whole amount was paid.
    pub(super) fn is_paid(&self) -> bool {
        self.payments.iter().any(|payment| payment.kind == PaymentKind::Success)
    }

    /// When the topic held a payment of the whole amount.
    pub(super) fn paid_at(&self) -> Option<DateTime<Utc>> {
        let whole = self.payments.iter().filter(|payment| payment.kind == PaymentKind::Success);
        whole.filter_map(|payment| payment.acknowledged_at).min()
    }

    /// The payments that brought money, however much.
    pub(super) fn paid_amounts(&self) -> impl Iterator<Item = &SentPayment> {
        self.payments.iter().filter(|payment| payment.kind != PaymentKind::Failed)
    }

    pub(super) fn body(&self) -> Value {
        let item = |(id, quantity): &(String, u32)| json!({"productId": id, "quantity": quantity});
        json!({"items": self.basket.iter().map(item).collect::<Vec<_>>()})
    }

    /// An event of the Payment Service for this order; without an id of its own, it is told by its entity and
    /// its time, which is the same for all.
    pub(super) fn payment(&self, kind: PaymentKind, has_event_id: bool) -> SentPayment {
        let (event_type, amount) = match kind {
            PaymentKind::Success => ("PAYMENT_SUCCESS", self.total.clone()),
            PaymentKind::WrongAmount => ("PAYMENT_SUCCESS", json!(0.01)),
            PaymentKind::Failed => ("PAYMENT_FAILED", json!(0)),
        };
        let id = Uuid::new_v4();
        let mut envelope = json!({
            "eventType": event_type, "service": "PAYMENT_SERVICE", "userEmail": self.customer,
            "entityId": self.order(), "amount": amount, "timestamp": "2026-01-21T12:30:00",
            "metadata": {"eventId": id, "paymentMode": "UPI"},
        });
        if !has_event_id {
            envelope["entityId"] = json!(format!("PAY-{id}"));
            envelope["metadata"] = json!({"orderId": self.order(), "paymentMode": "UPI"});
        }
        SentPayment { kind, envelope: envelope.to_string(), acknowledged_at: None }
    }
}
