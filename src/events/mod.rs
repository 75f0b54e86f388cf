//! Kafka: the relay publishes events from the outbox, and the consumer applies payments.
//!
//! The request path never uses Kafka (invariant 2).

mod client;
mod floor;
mod kafka;
pub(crate) mod payments;
mod relay;
mod replay;
mod topic;

#[cfg(feature = "dev")]
pub(crate) use client::connection_config;
pub use client::{KafkaSettings, PublishError};
pub(crate) use client::{PaymentSettings, Secret};
pub use kafka::{KafkaHealth, Publisher};
pub(crate) use payments::{PaymentConsumer, UnpaidOrders};
pub use payments::{Retried, retry_parked};
pub(crate) use relay::{Relay, RelaySettings};
pub use replay::{Replay, ReplayProgress};
