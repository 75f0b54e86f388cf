//! Applying payment events to orders.

use std::sync::Arc;

use super::OrderService;
use crate::store::StoreError;
use crate::store::payments::{IncomingPayment, ParkedRecord, Received};

impl OrderService {
    /// Applies a payment event, and wakes the worker that takes the stock of a paid order.
    pub async fn receive_payment(&self, payment: Arc<IncomingPayment>) -> Result<Received, StoreError> {
        let received = self.store.receive_payment(payment).await?;
        self.stock_wanted.notify_one();
        Ok(received)
    }

    /// Parks a record that cannot be applied, for an operator.
    pub async fn park_payment(&self, record: ParkedRecord<'_>) -> Result<(), StoreError> {
        self.store.park_payment(record).await
    }
}
