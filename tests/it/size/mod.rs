//! The proof of size: large tables, long backlogs, long transactions and slow clients change no promise.
//!
//! Each world makes its rows by SQL, measures through the service, and prints a line per figure with its bound.
//! `cargo test` makes small worlds. The large ones need some GB of disk and run one at a time:
//! `SIZE_SCALE=large cargo test --profile size --test it size:: -- --nocapture --test-threads=1`.
//! A single size is set by its own variable, for example `SIZE_ORDERS=1000000`.

mod cost;
mod report;
mod scale;
mod world;

mod lists;
mod long_transaction;
mod migrations;
mod parked_events;
mod slow_clients;
mod stock_backlog;
mod years;
