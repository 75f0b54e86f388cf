//! The order and its lifecycle: CREATED, then CONFIRMED or CANCELLED.

use chrono::{DateTime, Utc};
use serde::Serialize;
use strum::{Display, EnumString, IntoStaticStr, VariantArray};
use thiserror::Error;
use utoipa::ToSchema;

use super::{Actor, CustomerId, Line, Money, OrderId, TraceParent, time};

/// The status of an order; its variants are in the order of the lifecycle.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
    Serialize,
    ToSchema,
)]
#[serde(rename_all = "UPPERCASE")]
#[strum(serialize_all = "UPPERCASE")]
#[schema(as = OrderStatus)]
pub enum Status {
    /// Placed, payment pending.
    Created,
    /// Paid.
    Confirmed,
    /// Cancelled, or its payment failed. Final.
    Cancelled,
}

impl Status {
    /// The name on the wire and in the column.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Parses the name, with the rule as the error.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        text.parse().map_err(|_| "must be CREATED, CONFIRMED or CANCELLED")
    }

    /// The statuses that can follow this one.
    pub const fn reachable(self) -> &'static [Self] {
        match self {
            Self::Created => &[Self::Confirmed, Self::Cancelled],
            Self::Confirmed => &[Self::Cancelled],
            Self::Cancelled => &[],
        }
    }

    /// The state machine of the contract: the effect of a request for `to`.
    pub fn change_to(self, to: Self) -> Result<Change, InvalidTransition> {
        if self == to {
            Ok(Change::None)
        } else if self.reachable().contains(&to) {
            Ok(Change::Real)
        } else {
            Err(InvalidTransition { from: self, to })
        }
    }
}

/// The effect of a permitted request for a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The order already has this status: nothing changes and nothing is published.
    None,
    /// The status changes: one history row and one event.
    Real,
}

/// A transition that the lifecycle does not have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("an order that is {from} cannot become {to}")]
pub struct InvalidTransition {
    pub from: Status,
    pub to: Status,
}

/// An order with its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub id: OrderId,
    pub customer: CustomerId,
    pub status: Status,
    pub placed_at: DateTime<Utc>,
    /// The total of its lines.
    pub total: Money,
    /// 1 when placed, incremented by every real change; also the `ETag` and the `sequence` of the latest event.
    pub version: i32,
    /// When it last changed. The times of later events of the order are greater.
    pub changed_at: DateTime<Utc>,
    /// Its lines, in the order of the request.
    pub lines: Vec<Line>,
}

impl Order {
    /// Creates an order. `None` if its total is greater than [`Money::MAX`].
    pub fn place(customer: CustomerId, lines: Vec<Line>) -> Option<Self> {
        let total = super::line::total(&lines)?;
        let now = time::now();
        Some(Self {
            id: OrderId::generate(),
            customer,
            status: Status::Created,
            placed_at: now,
            total,
            version: 1,
            changed_at: now,
            lines,
        })
    }

    /// Changes the status. `Ok(None)` if the order already has it.
    pub fn change_status(
        &mut self,
        to: Status,
        actor: Actor,
        reason: Option<String>,
        trace: &TraceParent,
    ) -> Result<Option<StatusChange>, InvalidTransition> {
        match self.status.change_to(to)? {
            Change::None => Ok(None),
            Change::Real => {
                let from = self.status;
                self.status = to;
                self.version += 1;
                self.changed_at = time::after(self.changed_at);
                Ok(Some(StatusChange { from, actor, reason, refund_due: None, trace: trace.clone() }))
            }
        }
    }
}

/// The parts of a status change that the changed order does not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusChange {
    pub from: Status,
    pub actor: Actor,
    pub reason: Option<String>,
    /// The refund that is due because of it.
    pub refund_due: Option<Money>,
    pub trace: TraceParent,
}

/// One row of the history of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The version of the order after the change.
    pub version: i32,
    /// The previous status. `None` for the placement.
    pub from: Option<Status>,
    pub to: Status,
    pub actor: Actor,
    pub reason: Option<String>,
    pub changed_at: DateTime<Utc>,
}

/// An order in a list, without its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderSummary {
    pub id: OrderId,
    pub customer: CustomerId,
    pub status: Status,
    pub total: Money,
    pub placed_at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{ActorRole, ProductId, Quantity};

    fn an_order() -> Order {
        let line = Line {
            product_id: ProductId::parse("PROD123").unwrap(),
            quantity: Quantity::new(2).unwrap(),
            price: Money::parse("2499").unwrap(),
        };
        Order::place(CustomerId::parse("a@example.com").unwrap(), vec![line]).unwrap()
    }

    fn admin() -> Actor {
        Actor { role: ActorRole::Admin, id: "admin@example.com".to_owned() }
    }

    #[test]
    fn the_state_machine_matches_the_contract() {
        use Status::{Cancelled, Confirmed, Created};
        for &from in Status::VARIANTS {
            for &to in Status::VARIANTS {
                let moves = [(Created, Confirmed), (Created, Cancelled), (Confirmed, Cancelled)]
                    .contains(&(from, to));
                assert_eq!(from.change_to(to) == Ok(Change::Real), moves, "{from} to {to}");
                assert_eq!(from.change_to(to) == Ok(Change::None), from == to, "{from} to {to}");
                assert_eq!(from.reachable().contains(&to), moves, "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_total_that_exceeds_the_column_is_refused() {
        let line = |id: &str| Line {
            product_id: ProductId::parse(id).unwrap(),
            quantity: Quantity::new(1).unwrap(),
            price: Money::MAX,
        };
        let customer = CustomerId::parse("a@example.com").unwrap();
        assert!(Order::place(customer.clone(), vec![line("A")]).is_some());
        assert!(Order::place(customer, vec![line("A"), line("B")]).is_none());
    }

    proptest! {
        #[test]
        fn any_series_of_requests_keeps_the_order_valid(requests in prop::collection::vec(0_usize..3, 0..12)) {
            let mut order = an_order();
            for to in requests.into_iter().map(|index| Status::VARIANTS[index]) {
                let before = order.clone();
                match order.change_status(to, admin(), None, &TraceParent::continue_or_start(None)) {
                    Ok(Some(change)) => {
                        prop_assert_eq!(change.from, before.status);
                        prop_assert!(before.status.reachable().contains(&order.status));
                        prop_assert_eq!(order.version, before.version + 1);
                        prop_assert!(order.changed_at > before.changed_at);
                    }
                    Ok(None) => prop_assert_eq!(&order, &before),
                    Err(refused) => {
                        prop_assert_eq!(&order, &before);
                        prop_assert_eq!(refused.from, before.status);
                    }
                }
                prop_assert_eq!(order.total, before.total);
            }
        }
    }
}
