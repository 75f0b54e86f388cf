//! Cancelling an own order before it is paid.

use thiserror::Error;

use super::{ChangeStatusError, OrderService, Versions};
use crate::domain::aggregate::reason::CUSTOMER_REQUEST;
use crate::domain::{Actor, Forbidden, Identity, Order, OrderAggregate, OrderId, Owned, Status, TraceParent};

/// What a customer asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelOrder {
    /// The order.
    pub id: OrderId,
    /// Why; `CUSTOMER_REQUEST` where nothing was said.
    pub reason: Option<String>,
    /// The versions for which it is meant (`If-Match`).
    pub only_if: Versions,
}

/// Why an order was not cancelled. It is as it was.
#[derive(Debug, Error)]
pub enum CancelError {
    /// It is another customer's.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// It is paid: from here on only an admin can cancel it.
    #[error("the order is CONFIRMED already")]
    Confirmed,
    /// As for any change of status.
    #[error(transparent)]
    Status(#[from] ChangeStatusError),
}

impl OrderService {
    /// Cancels an order that is still CREATED, for its owner or an admin. A CONFIRMED order takes an admin and
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
