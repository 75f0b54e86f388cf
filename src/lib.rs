//! The order service.
pub mod api;
pub mod app;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod domain;
pub mod events;
pub mod lifecycle;
pub mod orders;
pub mod products;
pub mod store;
pub mod telemetry;
