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
    let route = |path: &str| StockRoute { method: reqwest::Method::POST, path: path.to_owned() };
    ProductSettings {
        url: shop.url.clone(),
        deadline: HOUR,
        attempt_timeout: HOUR,
        connect_timeout: Duration::from_millis(500),
        retries: 0,
        concurrency: 16,
        max_in_flight: 256,
        breaker: BreakerSettings { window: 50, failure_percent: 101, open: Duration::from_secs(5) },
        stock: StockSettings {
            reduce: route("/api/products/{productId}/reduce-stock"),
            restore: route("/api/products/{productId}/restore-stock"),
            timeout: Duration::from_secs(3),
            service_email: "order-service@shopverse.internal".to_owned(),
            key_is_honoured: true,
            key_ttl: Duration::from_hours(20),
            refusal_retries: 20,
        },
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

#[tokio::test]
async fn the_url_may_have_a_path_and_a_trailing_slash() {
    let shop = Shop::always(Reply::good()).await;
    let address = |url: &str| {
        let client = client(ProductSettings { url: url.parse().unwrap(), ..patient(&shop) });
        client.catalogue.address(&ids(&["P:1"])[0]).to_string()
    };
    for url in ["http://shop:8081", "http://shop:8081/"] {
        assert_eq!(address(url), "http://shop:8081/api/products/P:1");
    }
    for url in ["https://shop/in/here", "https://shop/in/here/"] {
        assert_eq!(address(url), "https://shop/in/here/api/products/P:1");
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < GENEROUS, "timed out: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
