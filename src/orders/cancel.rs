//! Cancelling an order before it is paid, by its owner.

use super::{OrderError, OrderService, Versions};
use crate::domain::aggregate::reason::CUSTOMER_REQUEST;
use crate::domain::{Actor, Identity, Order, OrderAggregate, OrderId, Owned, Status, TraceParent};

impl OrderService {
    /// Cancels a CREATED order for its owner or an admin. Admins cancel CONFIRMED orders by
    /// [`change_status`](Self::change_status).
    pub async fn cancel(
        &self,
        caller: &Identity,
        id: OrderId,
        reason: Option<String>,
        only_if: Versions,
        trace: &TraceParent,
    ) -> Result<Order, OrderError> {
        let (caller, trace) = (caller.clone(), trace.clone());
        let decide = move |aggregate: &mut OrderAggregate| {
            Owned::new(aggregate.order.customer.clone(), ()).for_viewer(&caller)?;
            only_if.check(&aggregate.order)?;
            if aggregate.order.status == Status::Confirmed {
                return Err(OrderError::AlreadyConfirmed);
            }
            let reason = reason.clone().unwrap_or_else(|| CUSTOMER_REQUEST.to_owned());
            aggregate.cancel(Actor::caller(&caller), Some(reason), &trace)?;
            Ok::<_, OrderError>(())
        };
        let changed = self.store.update_order(id, None, decide).await?;
        let (order, ()) = changed.ok_or(OrderError::NotFound(id))??;
        self.stock_changed(id);
        Ok(order)
    }
}
