//! Reading one order.

use super::{OrderError, OrderService};
use crate::domain::{Identity, Order, OrderId};

impl OrderService {
    /// Reads an order for its owner or an admin.
    pub async fn get(&self, caller: &Identity, id: OrderId) -> Result<Order, OrderError> {
        let order = self.store.find_order(id).await?.ok_or(OrderError::NotFound(id))?;
        Ok(order.for_viewer(caller)?)
    }
}
