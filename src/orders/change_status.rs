//! Changing the status of an order.

use thiserror::Error;

use super::OrderService;
use crate::domain::access::Admin;
use crate::domain::order::InvalidTransition;
use crate::domain::{Order, OrderId, Status, TraceParent};
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
}

/// Why a status was not changed. The order is as it was.
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
    /// The database could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OrderService {
    /// Moves an order for an admin. Asking for the status that it has changes and publishes nothing.
    pub async fn change_status(
        &self,
        admin: Admin<'_>,
        change: ChangeStatus,
        trace: &TraceParent,
    ) -> Result<Order, ChangeStatusError> {
        let ChangeStatus { id, to, reason, only_if } = change;
        let outcome = self
            .store
            .change_order(id, trace, |order| {
                if only_if.contain(order.version) {
                    Ok(order.change_status(to, admin.actor(), reason)?)
                } else {
                    Err(ChangeStatusError::PreconditionFailed(order.version))
                }
            })
            .await?;
        outcome.ok_or(ChangeStatusError::NotFound(id))?
    }
}
