//! Reading one order.

use thiserror::Error;

use super::OrderService;
use crate::domain::{Forbidden, Identity, Order, OrderId};
use crate::store::StoreError;

/// Why an order is not shown.
#[derive(Debug, Error)]
pub enum GetError {
    /// There is none under this id.
    #[error("there is no order {0}")]
    NotFound(OrderId),
    /// It is another customer's.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The database could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OrderService {
    /// The order, for its owner and for admins.
    pub async fn get(&self, caller: &Identity, id: OrderId) -> Result<Order, GetError> {
        let order = self.store.find_order(id).await?.ok_or(GetError::NotFound(id))?;
        Ok(order.for_viewer(caller)?)
    }
}
