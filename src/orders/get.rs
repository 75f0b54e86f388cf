//! Reading one order.

use thiserror::Error;

use super::OrderService;
use crate::domain::{Forbidden, Identity, Order, OrderId};
use crate::store::StoreError;

/// Why an order cannot be shown.
#[derive(Debug, Error)]
pub enum GetError {
    /// No order has this id.
    #[error("there is no order {0}")]
    NotFound(OrderId),
    /// The order belongs to another customer.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OrderService {
    /// Reads an order for its owner or an admin.
    pub async fn get(&self, caller: &Identity, id: OrderId) -> Result<Order, GetError> {
        let order = self.store.find_order(id).await?.ok_or(GetError::NotFound(id))?;
        Ok(order.for_viewer(caller)?)
    }
}
