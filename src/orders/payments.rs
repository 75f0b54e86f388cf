//! Applying payment events to orders.

use std::sync::Arc;

use super::OrderService;
use crate::domain::OrderId;
use crate::domain::payments::ParkReason;
use crate::store::StoreError;
use crate::store::payments::{IncomingPayment, Received, RecordPlace};

impl OrderService {
    /// Applies a payment event, and wakes the worker that takes the stock of a paid order.
    pub async fn receive_payment(&self, payment: Arc<IncomingPayment>) -> Result<Received, StoreError> {
        let received = self.store.receive_payment(payment).await?;
        self.stock_wanted.notify_one();
        Ok(received)
    }

    /// Parks a record that cannot be applied, for an operator.
    pub async fn park_payment(
        &self,
        place: &RecordPlace,
        order: Option<OrderId>,
        payload: &[u8],
        (reason, error): (ParkReason, &str),
    ) -> Result<(), StoreError> {
        self.store.park_payment(place, order, payload, (reason, error)).await
    }
}
