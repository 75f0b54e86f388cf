//! What the Payment Service tells moves orders, too.

use std::sync::Arc;

use super::OrderService;
use crate::domain::OrderId;
use crate::domain::payment::ParkReason;
use crate::store::StoreError;
use crate::store::payments::{IncomingPayment, Received, RecordPlace};

impl OrderService {
    /// Applies a payment event; the stock of a paid order is taken by the worker afterwards.
    pub async fn receive_payment(&self, payment: Arc<IncomingPayment>) -> Result<Received, StoreError> {
        let received = self.store.receive_payment(payment).await?;
        self.stock_wanted.notify_one();
        Ok(received)
    }

    /// Keeps a record that cannot be applied, for a person.
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
