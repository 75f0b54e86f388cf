//! Kafka: the relay publishes events from the outbox, and the consumer applies payments.
//!
//! The request path never uses Kafka (invariant 2).

mod client;
mod floor;
mod kafka;
pub mod payments;
pub mod relay;
mod replay;
mod topic;

#[cfg(feature = "dev")]
pub(crate) use client::connection_config;
pub use client::{KafkaSettings, PaymentSettings, PublishError, Secret};
pub use kafka::{KafkaHealth, Publisher, Sent};
pub use payments::{PaymentConsumer, Retried, UnpaidOrders, retry_parked};
pub use relay::{Relay, RelaySettings};
pub use replay::{Replay, ReplayError, ReplayProgress};
