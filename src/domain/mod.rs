//! The business rules as plain data and functions: no I/O, no async, no framework.

pub mod access;
pub mod actor;
pub mod aggregate;
pub mod event;
pub mod ids;
pub mod line;
pub mod money;
pub mod order;
pub mod payments;
pub mod stock;
pub mod time;
pub mod trace;

pub use access::{Forbidden, Identity, Owned, Role};
pub use actor::{Actor, ActorRole};
pub use aggregate::OrderAggregate;
pub use event::OrderEvent;
pub use ids::{CustomerId, OrderId, ProductId};
pub use line::{Line, Quantity, RequestedLine};
pub use money::Money;
pub use order::{Order, OrderSummary, Status, StatusChange};
pub use trace::TraceParent;
