//! The client against a real server on this machine.
//!
//! Times here are lower bounds or very generous upper ones: a slow machine must not fail a test.

use std::time::Duration;

use super::*;

mod answers;
mod bounds;
mod circuit;
mod shared;
mod shop;

use shop::{Reply, Shop};

/// Far more than any of these tests needs, and far less than the hour that one waits that never ends.
const GENEROUS: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_hours(1);

/// Settings under which nothing but what a test sets ends a call.
fn patient(shop: &Shop) -> ProductSettings {
    ProductSettings {
        deadline: HOUR,
        attempt_timeout: HOUR,
        retries: 0,
        breaker_failure_percent: 101,
        ..ProductSettings::new(shop.url.clone())
    }
}

fn client(settings: ProductSettings) -> ProductClient {
    ProductClient::new(settings, &Arc::default()).unwrap()
}

fn ids(names: &[&str]) -> Vec<ProductId> {
    names.iter().map(|name| ProductId::parse(name).unwrap()).collect()
}

fn numbered(count: usize) -> Vec<ProductId> {
    (0..count).map(|number| ProductId::parse(&format!("P{number}")).unwrap()).collect()
}

/// Looks up, and fails the test where that does not end.
async fn look_up(client: &ProductClient, ids: &[ProductId]) -> Result<Vec<Option<Product>>, Unavailable> {
    let ids: Vec<_> = ids.iter().collect();
    let trace = TraceParent::continue_or_start(None);
    tokio::time::timeout(GENEROUS, client.look_up(&ids, &trace)).await.expect("the look-up has to end")
}

async fn one(client: &ProductClient) -> Result<Option<Product>, Unavailable> {
    look_up(client, &ids(&["PROD123"])).await.map(|products| products[0])
}

async fn cause(client: &ProductClient) -> Failure {
    one(client).await.expect_err("there should be no answer").cause
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < GENEROUS, "in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
