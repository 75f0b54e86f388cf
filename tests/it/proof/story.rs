//! What the proof's clients did and saw, an order at a time.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::Answer;

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
    /// The trace of each attempt to place that was answered with "nothing was written" (a 503).
    pub(super) told_unwritten: Vec<String>,
    /// How many attempts to place were answered with `outcome-unknown`.
    pub(super) outcomes_unknown: usize,
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
    /// When the broker had acknowledged it for the first time.
    pub(super) acknowledged_at: DateTime<Utc>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PaymentKind {
    Success,
    WrongAmount,
    Failed,
}

impl Story {
    /// Notes the answer to one attempt to place.
    pub(super) fn note(&mut self, trace: String, answer: &Answer) {
        let code = answer.body["type"].as_str().and_then(|code| code.rsplit(':').next());
        match (answer.status, code) {
            (201, _) => {
                self.acknowledged.push(answer.order_id());
                self.total = answer.body["totalAmount"].clone();
            }
            (503, Some("outcome-unknown")) => self.outcomes_unknown += 1,
            (503, _) => self.told_unwritten.push(trace),
            _ => {}
        }
    }

    pub(super) fn order(&self) -> Option<&str> {
        self.acknowledged.first().map(String::as_str)
    }

    /// Whether the whole amount was paid.
    pub(super) fn is_paid(&self) -> bool {
        self.payments.iter().any(|payment| payment.kind == PaymentKind::Success)
    }

    /// The payments that brought money, however much.
    pub(super) fn paid_amounts(&self) -> impl Iterator<Item = &SentPayment> {
        self.payments.iter().filter(|payment| payment.kind != PaymentKind::Failed)
    }

    pub(super) fn body(&self) -> Value {
        let item = |(id, quantity): &(String, u32)| json!({"productId": id, "quantity": quantity});
        json!({"items": self.basket.iter().map(item).collect::<Vec<_>>()})
    }

    /// An event of the Payment Service for this order. Without an id of its own it is told by its entity and its
    /// time, which is the same for all.
    pub(super) fn payment(&self, kind: PaymentKind, has_event_id: bool) -> Value {
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
        envelope
    }

    /// Two payments of the whole amount within the same second: only their entity tells them apart.
    pub(super) fn payments_within_a_second(&self) -> [Value; 2] {
        [(); 2].map(|()| self.payment(PaymentKind::Success, false))
    }

    /// Two payments of the whole amount with one event id: the second claims to be a repeat, and is none.
    pub(super) fn payments_under_one_id(&self) -> [Value; 2] {
        let first = self.payment(PaymentKind::Success, true);
        let mut second = first.clone();
        second["metadata"]["paymentMode"] = "CARD".into();
        [first, second]
    }
}
