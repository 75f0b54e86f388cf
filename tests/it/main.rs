//! End-to-end tests of the service with real HTTP, PostgreSQL and Kafka.
//!
//! Every test has its own service, database and topic, so all tests run in parallel.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

mod access;
mod alerts;
mod bad_input;
mod bad_parameters;
mod cancel_order;
mod change_status;
mod client_hangs_up;
mod confirm_crash;
mod confirm_faults;
mod confirm_order;
mod confirm_outage;
mod confirm_races;
mod consumers;
mod contract_errors;
mod database_outage;
mod description;
mod dev_command;
mod duplicates;
mod embedded_kafka;
mod event_schemas;
mod history;
mod idempotency_keys;
mod indexes;
mod kafka_outage;
mod kit;
mod list_orders;
mod logs;
mod map;
mod metrics;
mod operate_check;
mod operate_config;
mod operate_events;
mod operate_payments;
mod outcome_unknown;
mod parking;
mod payment_faults;
mod payments;
mod place_order;
mod product_outage;
mod proof;
mod read_orders;
mod refusals;
mod relay;
mod relay_floor;
mod retention;
mod shared_reads;
mod size;
mod start;
mod stock_refusals;
mod stock_routes;
mod stop;
mod tls;
mod topic_settings;
mod traces;
mod unpaid_orders;
