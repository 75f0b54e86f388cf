//! Helpers of all tests.

mod call;
mod collector;
mod description;
mod events;
mod history;
mod kafka;
mod metrics;
mod operate;
mod payment;
mod process;
mod promises;
mod proxy;
mod raw;
mod shop;
mod stack;

use std::time::{Duration, Instant};

pub(crate) use call::{Answer, Call, Who, admin, customer};
pub(crate) use collector::{Collector, shown, tree};
pub(crate) use description::Description;
pub(crate) use events::{event_document, event_faults};
pub(crate) use history::expect_history;
pub(crate) use kafka::{Record, Topic};
pub(crate) use metrics::Samples;
pub(crate) use payment::Payment;
pub(crate) use process::{Replica, command, exit_code, signal};
pub(crate) use promises::{Movement, figure, scale};
pub(crate) use proxy::{Mode, Proxy};
pub(crate) use shop::{Builder, Shop, lines};
pub(crate) use stack::{embedded_kafka, stack};

/// A client for the addresses of this machine.
pub(crate) fn http_client() -> reqwest::Client {
    order_service::http_client::plain_builder().no_proxy().build().unwrap()
}

/// The maximum wait for an expected result. It is long, because a slow machine is not a bug; no test sleeps this long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until `condition` holds; fails with `what` after [`PATIENCE`].
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
