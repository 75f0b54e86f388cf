//! Kafka out: the relay takes events from the outbox and the publisher hands them to the broker.
//!
//! The request path never comes here (invariant 2).

mod floor;
mod kafka;
pub mod payments;
pub mod relay;
mod replay;
mod topic;

#[cfg(feature = "dev")]
pub(crate) use kafka::connection_config;
pub use kafka::{KafkaHealth, KafkaSettings, PublishError, Publisher, Secret, Sent};
pub use payments::{PaymentConsumer, PaymentSettings, Retried, UnpaidOrders, UnpaidSettings, retry_parked};
pub use relay::{Relay, RelaySettings};
pub use replay::{Replay, ReplayError, ReplayProgress};
