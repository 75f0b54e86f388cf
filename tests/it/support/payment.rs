//! Events of the Payment Service.

use serde_json::{Value, json};
use uuid::Uuid;

use super::event_faults;

/// One payment event.
#[derive(Clone, Debug)]
pub(crate) struct Payment {
    /// The order, which is also the key of the record.
    pub(crate) order: String,
    /// The envelope.
    pub(crate) record: Value,
}

impl Payment {
    /// The customer has paid this amount (JSON text).
    pub(crate) fn success(order: &str, amount: &str) -> Self {
        Self::new("PAYMENT_SUCCESS", order, amount)
    }

    /// The payment failed.
    pub(crate) fn failed(order: &str) -> Self {
        Self::new("PAYMENT_FAILED", order, "0")
    }

    fn new(event_type: &str, order: &str, amount: &str) -> Self {
        let amount: Value = serde_json::from_str(amount).unwrap();
        let record = json!({
            "eventType": event_type, "service": "PAYMENT_SERVICE", "userEmail": "ada@example.com",
            "entityId": order, "amount": amount, "timestamp": "2026-01-21T12:30:00",
            "metadata": {"eventId": Uuid::new_v4(), "paymentMode": "UPI"},
        });
        assert_eq!(event_faults(&record), Vec::<String>::new(), "{record}");
        Self { order: order.to_owned(), record }
    }
}
