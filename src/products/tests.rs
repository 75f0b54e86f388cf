//! The client against a real HTTP server on this machine.
//!
//! Time limits are lower bounds or very generous upper bounds, so that slow machines fail no test.

use std::time::Duration;

use super::*;

mod answers;
mod bounds;
mod circuit;
mod shared;
mod shop;

use shop::{Reply, Shop};

/// More than any of these tests needs, and less than the hour that stands for an endless wait.
const GENEROUS: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_hours(1);

/// Settings without short deadlines, unless a test changes them.
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

/// Looks up products; fails the test if the call does not end.
async fn look_up(client: &ProductClient, ids: &[ProductId]) -> Result<Vec<Option<Product>>, Unavailable> {
    let ids: Vec<_> = ids.iter().collect();
    let trace = TraceParent::continue_or_start(None);
    tokio::time::timeout(GENEROUS, client.look_up(&ids, &trace)).await.expect("the look-up must end")
}

async fn one(client: &ProductClient) -> Result<Option<Product>, Unavailable> {
    look_up(client, &ids(&["PROD123"])).await.map(|products| products[0])
}

async fn cause(client: &ProductClient) -> Failure {
    one(client).await.expect_err("the look-up must fail").cause
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < GENEROUS, "timed out: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
