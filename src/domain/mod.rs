//! The business rules as plain data and functions: no I/O, no async, no framework.

pub(crate) mod access;
mod actor;
pub(crate) mod aggregate;
pub(crate) mod event;
mod ids;
pub(crate) mod line;
mod money;
pub(crate) mod order;
pub(crate) mod payments;
pub(crate) mod stock;
pub mod time;
pub(crate) mod trace;

pub use event::BUCKETS;
pub use ids::{CustomerId, OrderId};
pub use money::Money;
pub use order::Status;

pub(crate) use access::{Forbidden, Identity, Owned, Role};
pub(crate) use actor::{Actor, ActorRole};
pub(crate) use aggregate::OrderAggregate;
pub(crate) use event::OrderEvent;
pub(crate) use ids::ProductId;
pub(crate) use line::{Line, Quantity, RequestedLine};
pub(crate) use order::{Order, OrderSummary, StatusChange};
pub(crate) use trace::TraceParent;
