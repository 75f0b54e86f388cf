//! Reading the history of an order.

use super::{OrderError, OrderService};
use crate::domain::order::HistoryEntry;
use crate::domain::{Identity, OrderId};

impl OrderService {
    /// Reads the history of an order, oldest first, for its owner or an admin.
    pub async fn history(&self, caller: &Identity, id: OrderId) -> Result<Vec<HistoryEntry>, OrderError> {
        let history = self.store.find_history(id).await?.ok_or(OrderError::NotFound(id))?;
        Ok(history.for_viewer(caller)?)
    }
}
