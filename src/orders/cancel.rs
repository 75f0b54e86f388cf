//! Cancelling an order before it is paid, by its owner.

use thiserror::Error;

use super::{ChangeStatusError, OrderService, Versions};
use crate::domain::aggregate::reason::CUSTOMER_REQUEST;
use crate::domain::{Actor, Forbidden, Identity, Order, OrderAggregate, OrderId, Owned, Status, TraceParent};

/// A request to cancel an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelOrder {
    /// The order.
    pub id: OrderId,
    /// The reason; `CUSTOMER_REQUEST` by default.
    pub reason: Option<String>,
    /// The versions that it applies to (`If-Match`).
    pub only_if: Versions,
}

/// Why an order was not cancelled. It is unchanged.
#[derive(Debug, Error)]
pub enum CancelError {
    /// The order belongs to another customer.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The order is paid: only an admin can cancel it.
    #[error("the order is already CONFIRMED")]
    Confirmed,
    /// Any other reason for which a status cannot change.
    #[error(transparent)]
    Status(#[from] ChangeStatusError),
}

impl OrderService {
    /// Cancels a CREATED order for its owner or an admin. Admins cancel CONFIRMED orders by
    /// [`change_status`](Self::change_status).
    pub async fn cancel(
        &self,
        caller: &Identity,
        cancel: CancelOrder,
        trace: &TraceParent,
    ) -> Result<Order, CancelError> {
        let CancelOrder { id, reason, only_if } = cancel;
        let (caller, trace) = (caller.clone(), trace.clone());
        let decide = move |aggregate: &mut OrderAggregate| {
            Owned::new(aggregate.order.customer.clone(), ()).for_viewer(&caller)?;
            only_if.check(&aggregate.order)?;
            if aggregate.order.status == Status::Confirmed {
                return Err(CancelError::Confirmed);
            }
            let reason = reason.clone().unwrap_or_else(|| CUSTOMER_REQUEST.to_owned());
            let cancelled = aggregate.cancel(Actor::caller(&caller), Some(reason), &trace);
            cancelled.map_err(ChangeStatusError::from)?;
            Ok(())
        };
        let changed = self.store.update_order(id, None, decide).await.map_err(ChangeStatusError::from)?;
        let (order, ()) = changed.ok_or(ChangeStatusError::NotFound(id))??;
        self.stock_changed(id);
        Ok(order)
    }
}
