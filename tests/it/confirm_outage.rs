//! A Product Service outage while many paid orders wait for their stock.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;

use crate::support::{Payment, Shop, eventually};

/// A Product Service that has every product and accepts stock calls only while it is switched on.
struct Products {
    url: String,
    up: Arc<AtomicBool>,
    stock_calls: Arc<Mutex<Vec<Instant>>>,
}

impl Products {
    async fn away() -> Self {
        let (up, stock_calls) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (is_up, calls) = (Arc::clone(&up), Arc::clone(&stock_calls));
        let answer = async move |request: Request| {
            if request.method() == Method::POST {
                calls.lock().unwrap().push(Instant::now());
                if !is_up.load(SeqCst) {
                    return StatusCode::SERVICE_UNAVAILABLE.into_response();
                }
            }
            r#"{"price":100,"stock":5}"#.into_response()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Self { url, up, stock_calls }
    }

    fn calls(&self) -> Vec<Instant> {
        self.stock_calls.lock().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_service_outage_is_probed_and_stock_work_resumes_afterwards() {
    const ORDERS: usize = 40;
    /// Twice `STOCK_CONCURRENCY`: the calls that may be in flight before the worker detects the outage.
    const AT_FIRST: usize = 16;
    const PROBES: u32 = 20;
    let products = Products::away().await;
    let mut shop = Shop::builder()
        .with("PAYMENT_EVENTS_ENABLED", "true")
        .with("PRODUCT_SERVICE_URL", &products.url)
        .with("STOCK_CONCURRENCY", "8")
        .with("STOCK_POLL_INTERVAL_MS", "100")
        .with("STOCK_DEADLINE_MS", "100")
        .without_service()
        .await;
    let mut replica = shop.replica(&[]).await;
    shop.url.clone_from(&replica.url);
    let mut payments = Vec::new();
    for _ in 0..ORDERS {
        let id = shop.placed("ada@example.com", &[("P1", 1)]).await;
        let payment = Payment::success(&id, "100").record.to_string().into_bytes();
        payments.push((id, payment));
    }
    shop.payments.publish_all(&payments).await;

    let probes = AT_FIRST..AT_FIRST + usize::try_from(PROBES).unwrap();
    eventually("probes continue", async || products.calls().len() > probes.end).await;
    let calls = products.calls();
    let taken = calls[probes.end] - calls[probes.start];
    assert!(taken > Duration::from_millis(100) * PROBES / 2, "{PROBES} calls within {taken:?}");

    products.up.store(true, SeqCst);
    for (id, _) in &payments {
        shop.becomes(id, "CONFIRMED").await;
    }
    replica.signal("TERM");
    let log = tokio::task::block_in_place(|| replica.rest_of_log());
    let lines = |text: &str| log.iter().filter(|line| line["message"].to_string().contains(text)).count();
    for text in ["past its deadline", "unknown outcome", "probing with one job at a time"] {
        let lines = lines(text);
        assert!((1..10).contains(&lines), "{lines} lines: {text}");
    }
}

#[tokio::test]
async fn orders_of_a_failing_product_do_not_block_orders_of_another() {
    const ORDERS: usize = 60;
    let settings = [("PAYMENT_EVENTS_ENABLED", "true"), ("STOCK_CONCURRENCY", "2")];
    let shop = settings.iter().fold(Shop::builder(), |b, (name, value)| b.with(name, *value)).start().await;
    let (broken, phone) = (shop.product("broken", "100", 99).await, shop.product("phone", "100", 5).await);
    shop.fault(&broken, &json!({"kind": "status", "status": 500, "on": "reduce-stock"})).await;
    let mut payments = Vec::new();
    for _ in 0..ORDERS {
        let id = shop.placed("ada@example.com", &[(&broken, 1)]).await;
        let payment = Payment::success(&id, "100").record.to_string().into_bytes();
        payments.push((id, payment));
    }
    shop.payments.publish_all(&payments).await;
    let paid = "select count(*) from stock_jobs where failures > 0";
    eventually("the failing product is called", async || {
        sqlx::query_scalar::<_, i64>(paid).fetch_one(&shop.database).await.unwrap() > 4
    })
    .await;

    let other = shop.placed("bob@example.com", &[(&phone, 1)]).await;
    shop.read(&other, &[Payment::success(&other, "100")]).await;
    let before = shop.calls_seen(&broken).await;
    shop.becomes(&other, "CONFIRMED").await;

    let between = shop.calls_seen(&broken).await - before;
    assert!(between < 10, "{between} calls for the failing product came first");
}
