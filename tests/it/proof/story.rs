//! The actions and observations of the clients, by order.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::Answer;

/// One customer with one basket, which all requests of the story place.
#[derive(Clone, Debug)]
pub(super) struct Story {
    /// A customer of only this story, so that the database shows the number of orders of the basket.
    pub(super) customer: String,
    /// The `Idempotency-Key`, if the client sends one.
    pub(super) key: Option<String>,
    /// Product and quantity of each line.
    pub(super) basket: Vec<(String, u32)>,
    /// The order of each 201 answer.
    pub(super) acknowledged: Vec<String>,
    /// The trace of each placement attempt with the answer "nothing was written" (a 503).
    pub(super) told_unwritten: Vec<String>,
    /// The number of placement attempts with the answer `outcome-unknown`.
    pub(super) outcomes_unknown: usize,
    /// The total of the order, from the answer.
    pub(super) total: Value,
    /// The status in each 200 answer to a status change.
    pub(super) changed_to: Vec<&'static str>,
    /// The payment events that the broker has acknowledged.
    pub(super) payments: Vec<SentPayment>,
    /// Records that are not payment events.
    pub(super) garbage: Vec<String>,
}

/// A payment event that was published, once or several times.
#[derive(Clone, Debug)]
pub(super) struct SentPayment {
    pub(super) kind: PaymentKind,
    pub(super) envelope: String,
    /// The time of the broker's first acknowledgement.
    pub(super) acknowledged_at: DateTime<Utc>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PaymentKind {
    Success,
    WrongAmount,
    Failed,
}

impl Story {
    /// Records the answer to one placement attempt.
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

    /// The successful payments of any amount.
    pub(super) fn paid_amounts(&self) -> impl Iterator<Item = &SentPayment> {
        self.payments.iter().filter(|payment| payment.kind != PaymentKind::Failed)
    }

    pub(super) fn body(&self) -> Value {
        let item = |(id, quantity): &(String, u32)| json!({"productId": id, "quantity": quantity});
        json!({"items": self.basket.iter().map(item).collect::<Vec<_>>()})
    }

    /// An event of the Payment Service for this order. Without an event id, its entity and its time identify it; the
    /// time is the same for all.
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

    /// Two payments of the whole amount within the same second: only their entities differ.
    pub(super) fn payments_within_a_second(&self) -> [Value; 2] {
        [(); 2].map(|()| self.payment(PaymentKind::Success, false))
    }

    /// Two different payments of the whole amount with the same event id: the second is not a repeat.
    pub(super) fn payments_under_one_id(&self) -> [Value; 2] {
        let first = self.payment(PaymentKind::Success, true);
        let mut second = first.clone();
        second["metadata"]["paymentMode"] = "CARD".into();
        [first, second]
    }
}
