//! Kafka: the relay publishes events from the outbox, and the consumer applies payments.
//!
//! The request path never uses Kafka (invariant 2).

mod floor;
mod kafka;
pub mod payments;
pub mod relay;
mod topic;

#[cfg(feature = "dev")]
pub(crate) use kafka::connection_config;
pub use kafka::{KafkaHealth, KafkaSettings, PublishError, Publisher, Secret, Sent};
pub use payments::{PaymentConsumer, PaymentSettings, UnpaidOrders, UnpaidSettings};
pub use relay::{Relay, RelaySettings};
