//! Changing the status of an order for an admin. A change to CONFIRMED goes through [`confirm`](super::confirm).

use thiserror::Error;
use tokio::task::JoinError;

use super::OrderService;
use crate::domain::access::Admin;
use crate::domain::order::InvalidTransition;
use crate::domain::{Forbidden, Order, OrderAggregate, OrderId, ProductId, Status, TraceParent};
use crate::store::StoreError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeStatus {
    pub id: OrderId,
    pub to: Status,
    /// The reason, for the history and the event.
    pub reason: Option<String>,
    /// The versions that the change applies to (`If-Match`).
    pub only_if: Versions,
}

/// The order versions of a precondition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    Any,
    OneOf(Vec<i32>),
}

impl Versions {
    pub fn contain(&self, version: i32) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(versions) => versions.contains(&version),
        }
    }

    /// Refuses an order with another version.
    pub(super) fn check(&self, order: &Order) -> Result<(), OrderError> {
        let version = order.version;
        if self.contain(version) { Ok(()) } else { Err(OrderError::PreconditionFailed(version)) }
    }
}

/// Why an order was not shown or not changed. It is unchanged, except perhaps after [`StoreError::OutcomeUnknown`].
#[derive(Debug, Error)]
pub enum OrderError {
    #[error("there is no order {0}")]
    NotFound(OrderId),
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    #[error("the order is at version {0}")]
    PreconditionFailed(i32),
    #[error(transparent)]
    InvalidTransition(#[from] InvalidTransition),
    /// The order is paid: only an admin can cancel it.
    #[error("the order is already CONFIRMED")]
    AlreadyConfirmed,
    #[error("the stock of {0} is gone")]
    StockUnavailable(ProductId),
    #[error("too many orders are being confirmed")]
    Busy,
    /// The outcome of the stock calls is still unknown; the worker continues.
    #[error("the stock is still being taken")]
    StockUnknown,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the change crashed")]
    Crashed(#[from] JoinError),
}

impl OrderService {
    /// Changes the status of an order for an admin. A request for the present status changes and publishes nothing.
    pub async fn change_status(
        &self,
        admin: Admin<'_>,
        change: ChangeStatus,
        trace: &TraceParent,
    ) -> Result<Order, OrderError> {
        if change.to == Status::Confirmed {
            return self.confirm(admin.actor(), change, trace).await;
        }
        let ChangeStatus { id, to, reason, only_if } = change;
        let (actor, trace) = (admin.actor(), trace.clone());
        let decide = move |aggregate: &mut OrderAggregate| {
            only_if.check(&aggregate.order)?;
            if to == Status::Cancelled {
                aggregate.cancel(actor.clone(), reason.clone(), &trace)?;
            } else {
                // No transition leads to CREATED: this is a no-op or a refusal.
                aggregate.order.status.change_to(to)?;
            }
            Ok::<_, OrderError>(())
        };
        let changed = self.store.update_order(id, None, decide).await?;
        let (order, ()) = changed.ok_or(OrderError::NotFound(id))??;
        self.stock_changed(id);
        Ok(order)
    }
}
