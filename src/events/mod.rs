//! Kafka: the relay publishes events from the outbox, and the consumer applies payments.
//!
//! The request path never uses Kafka (invariant 2).

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
