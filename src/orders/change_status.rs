//! Changing the status of an order for an admin. CONFIRMED goes the long way, by [`confirm`](super::confirm).

use thiserror::Error;
use tokio::task::JoinError;

use super::OrderService;
use crate::domain::access::Admin;
use crate::domain::order::InvalidTransition;
use crate::domain::{Order, OrderAggregate, OrderId, ProductId, Status, TraceParent};
use crate::store::StoreError;

/// What an admin asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeStatus {
    /// The order.
    pub id: OrderId,
    /// The status it is to have.
    pub to: Status,
    /// Why, for the history and the event.
    pub reason: Option<String>,
    /// The versions for which the change is meant (`If-Match`).
    pub only_if: Versions,
}

/// The versions of an order that a precondition names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Any version.
    Any,
    /// One of these.
    OneOf(Vec<i32>),
}

impl Versions {
    /// Whether `version` is named.
    pub fn contain(&self, version: i32) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(versions) => versions.contains(&version),
        }
    }

    /// Refuses an order that is at another version.
    pub(super) fn check(&self, order: &Order) -> Result<(), ChangeStatusError> {
        let version = order.version;
        if self.contain(version) { Ok(()) } else { Err(ChangeStatusError::PreconditionFailed(version)) }
    }
}

/// Why a status was not changed. The order is as it was, except where the store does not know
/// ([`StoreError::OutcomeUnknown`]).
#[derive(Debug, Error)]
pub enum ChangeStatusError {
    /// There is no such order.
    #[error("there is no order {0}")]
    NotFound(OrderId),
    /// The order has changed since the admin saw it.
    #[error("the order is at version {0}")]
    PreconditionFailed(i32),
    /// The life of an order has no such move.
    #[error(transparent)]
    InvalidTransition(#[from] InvalidTransition),
    /// A line's stock is gone, so the order cannot be confirmed.
    #[error("the stock of {0} is gone")]
    StockUnavailable(ProductId),
    /// Too many confirmations are under way.
    #[error("too many orders are being confirmed")]
    Busy,
    /// Nobody knows yet whether the stock was taken; the work goes on in the background.
    #[error("the stock is still being taken")]
    StockUnknown,
    /// The database could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change ended in a panic: a bug.
    #[error("the change crashed")]
    Crashed(#[from] JoinError),
}

impl OrderService {
    /// Moves an order for an admin. Asking for the status that it has changes and publishes nothing.
    pub async fn change_status(
        &self,
        admin: Admin<'_>,
        change: ChangeStatus,
        trace: &TraceParent,
    ) -> Result<Order, ChangeStatusError> {
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
                // CREATED cannot be reached from anywhere else: the same status, or a refusal.
                aggregate.order.status.change_to(to)?;
            }
            Ok::<_, ChangeStatusError>(())
        };
        let changed = self.store.update_order(id, None, decide).await?;
        let (order, ()) = changed.ok_or(ChangeStatusError::NotFound(id))??;
        self.stock_changed(id);
        Ok(order)
    }
}
