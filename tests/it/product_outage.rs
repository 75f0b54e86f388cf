//! The Product Service is unreachable, slow, or sends invalid answers.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Mode, PATIENCE, Proxy, Shop, admin, customer, eventually, lines, stack};

const UNAVAILABLE: &str = "product-service-unavailable";
const ADA: &str = "ada@example.com";

/// A port without a listener; only privileged processes could listen there.
const CLOSED: &str = "http://127.0.0.1:1";

#[tokio::test]
async fn a_product_service_outage_gets_503_and_writes_nothing() {
    let shop = Shop::builder().with("PRODUCT_SERVICE_URL", CLOSED).start().await;

    shop.place(customer(ADA), &lines(&[("PROD123", 1)])).await.expect_unavailable(UNAVAILABLE);

    shop.expect_nothing_happened().await;
}

/// Faults that make an answer invalid, so that no order may be placed with it.
fn faults() -> Vec<Value> {
    let mut faults = vec![
        json!({"kind": "hang"}),
        json!({"kind": "slow", "millis": 60_000}),
        json!({"kind": "lose-answer"}),
        json!({"kind": "endless"}),
    ];
    faults.extend([204, 301, 401, 429, 500, 502, 503].map(|s| json!({"kind": "status", "status": s})));
    let bodies = [
        "",
        "<html>maintenance</html>",
        "null",
        "[]",
        r#"{"stock":5}"#,
        r#"{"price":null,"stock":5}"#,
        r#"{"price":"10","stock":5}"#,
        r#"{"price":-0.01,"stock":5}"#,
        r#"{"price":10.005,"stock":5}"#,
        r#"{"price":1000000000000,"stock":5}"#,
        r#"{"price":1e400,"stock":5}"#,
        r#"{"price":10}"#,
        r#"{"price":10,"stock":"5"}"#,
        r#"{"id":"ANOTHER","price":10,"stock":5}"#,
    ];
    faults.extend(bodies.map(|body| json!({"kind": "body", "body": body})));
    faults
}

#[tokio::test]
async fn an_invalid_product_answer_gets_503_and_writes_nothing() {
    // One valid answer keeps the failure rate below 100 percent and the circuit closed, so that every placement sends
    // a request.
    let shop = Shop::builder()
        .with("PRODUCT_DEADLINE_MS", "300")
        .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "300")
        .with("PRODUCT_BREAKER_FAILURE_PERCENT", "100")
        .with("PRODUCT_BREAKER_WINDOW", "10000")
        .with("PRODUCT_RETRIES", "0")
        .start()
        .await;
    shop.place(customer(ADA), &lines(&[("NOSUCH", 1)])).await.expect_problem(400, "product-not-found");
    let (good, bad) = (shop.product("good", "1", 5).await, shop.product("bad", "10", 5).await);

    let mut asked = 0;
    for fault in faults() {
        shop.fault(&bad, &fault).await;
        let answer = shop.place(customer(ADA), &lines(&[(&good, 1), (&bad, 1)])).await;
        assert_eq!(answer.status, 503, "{fault}: {}", answer.text);
        answer.expect_unavailable(UNAVAILABLE);
        asked += 1;
        assert_eq!(shop.requests_seen(Some(&bad)).await["total"], asked, "{fault}");
    }
    shop.expect_nothing_happened().await;

    shop.heal(&bad).await;
    shop.placed(ADA, &[(&good, 1), (&bad, 1)]).await;
}

#[tokio::test]
async fn frequent_look_ups_of_a_product_with_invalid_data_do_not_block_other_placements() {
    const ASKED: u64 = 30;
    let shop = Shop::builder().with("PRODUCT_BREAKER_WINDOW", "10").start().await;
    let (good, bad) = (shop.product("good", "1", 5).await, shop.product("bad", "10", 5).await);
    shop.fault(&bad, &json!({"kind": "body", "body": r#"{"price":10.005,"stock":5}"#})).await;

    for _ in 0..ASKED {
        shop.place(customer(ADA), &lines(&[(&bad, 1)])).await.expect_unavailable(UNAVAILABLE);
    }

    assert_eq!(shop.requests_seen(Some(&bad)).await["total"], ASKED);
    let shown = shop.get(customer(ADA), "/health/ready").await.expect(200).body;
    assert_eq!(shown["components"]["productService"], "closed");
    shop.placed(ADA, &[(&good, 1)]).await;
}

#[tokio::test]
async fn a_total_that_exceeds_the_column_gets_503_and_writes_nothing() {
    let shop = Shop::start().await;
    let gold = shop.product("gold", "999999999999.99", 5).await;

    shop.place(customer(ADA), &lines(&[(&gold, 2)])).await.expect_unavailable(UNAVAILABLE);

    shop.expect_nothing_happened().await;
    shop.placed(ADA, &[(&gold, 1)]).await;
}

#[tokio::test]
async fn an_outage_stops_only_placements_and_they_recover_afterwards() {
    let products = stack().product_service.trim_start_matches("http://");
    let proxy = Proxy::before(products.parse().expect("an address")).await;
    let shop = Shop::builder()
        .with("PRODUCT_SERVICE_URL", format!("http://{}", proxy.address))
        .with("PRODUCT_BREAKER_OPEN_MS", "500")
        .start()
        .await;
    let phone = shop.product("phone", "10", 5).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;

    proxy.set(Mode::Cut);
    let shown = async || shop.get(customer(ADA), "/health/ready").await.expect(200).body;
    eventually("the circuit opens", async || {
        shop.place(customer(ADA), &lines(&[(&phone, 1)])).await.expect_unavailable(UNAVAILABLE);
        shown().await["components"]["productService"] == "open"
    })
    .await;
    shop.get(customer(ADA), &format!("/api/orders/{order}")).await.expect(200);
    assert_eq!(shop.get(customer(ADA), "/api/orders/my").await.expect(200).body[0]["orderId"], order);
    assert_eq!(shop.get(admin(), "/api/orders").await.expect(200).body[0]["orderId"], order);
    shop.set_status(&order, "CANCELLED").await.expect(200);
    assert_eq!(shop.count("orders").await, 1);

    proxy.set(Mode::Open);
    eventually("orders are placed again", async || {
        shop.place(customer(ADA), &lines(&[(&phone, 1)])).await.status == 201
    })
    .await;
    eventually("the circuit closes", async || {
        shop.place(customer(ADA), &lines(&[(&phone, 1)])).await;
        shown().await["components"]["productService"] == "closed"
    })
    .await;
    shop.expect_every_event().await;
}

#[tokio::test]
async fn many_products_together_do_not_exceed_the_deadline() {
    const EACH: Duration = Duration::from_millis(150);
    let shop = Shop::builder()
        .with("PRODUCT_DEADLINE_MS", "600")
        .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "600")
        .with("PRODUCT_CONCURRENCY", "1")
        .start()
        .await;
    let mut order = Vec::new();
    for number in 0..60 {
        let product = shop.product(&format!("p{number}"), "1", 5).await;
        shop.fault(&product, &json!({"kind": "slow", "millis": EACH.as_millis()})).await;
        order.push((product, 1));
    }
    let order: Vec<(&str, u32)> = order.iter().map(|(id, quantity)| (id.as_str(), *quantity)).collect();

    let started = Instant::now();
    shop.place(customer(ADA), &lines(&order)).await.expect_unavailable(UNAVAILABLE);
    assert!(started.elapsed() < EACH * 60, "as long as all of them together: {:?}", started.elapsed());

    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn one_hanging_product_ends_the_placement_at_the_deadline_despite_retries() {
    let shop = Shop::builder()
        .with("PRODUCT_DEADLINE_MS", "500")
        .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "450")
        .with("PRODUCT_RETRIES", "5")
        .start()
        .await;
    let (good, bad) = (shop.product("good", "1", 5).await, shop.product("bad", "1", 5).await);
    shop.fault(&bad, &json!({"kind": "hang"})).await;

    shop.place(customer(ADA), &lines(&[(&good, 1), (&bad, 1)])).await.expect_unavailable(UNAVAILABLE);

    // Five retries would be six calls of 450 ms each.
    let calls = shop.requests_seen(Some(&bad)).await["total"].as_u64().expect("a number");
    assert!((1..=2).contains(&calls), "{calls} calls");
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn each_distinct_product_is_looked_up_once_with_bounded_concurrency() {
    let shop = Shop::builder()
        .with("PRODUCT_DEADLINE_MS", "30000")
        .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "30000")
        .with("REQUEST_DEADLINE_MS", "60000")
        .with("PRODUCT_CONCURRENCY", "4")
        .start()
        .await;
    let mut products = Vec::new();
    for number in 0..8 {
        let product = shop.product(&format!("p{number}"), "1", 5).await;
        shop.fault(&product, &json!({"kind": "slow", "millis": 400})).await;
        products.push(product);
    }
    let twice: Vec<(&str, u32)> = products.iter().chain(&products).map(|id| (id.as_str(), 1)).collect();

    shop.placed(ADA, &twice).await;

    assert_eq!(shop.requests_seen(None).await, json!({"total": 8, "atOnce": 4}));
}

#[tokio::test]
async fn no_database_connection_is_held_during_product_look_ups() {
    const WAITING: u64 = 20;
    let shop = Shop::builder()
        .with("DATABASE_MAX_CONNECTIONS", "2")
        .with("PRODUCT_DEADLINE_MS", "60000")
        .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "60000")
        .with("REQUEST_DEADLINE_MS", "120000")
        .start()
        .await;
    let good = shop.product("good", "1", 5).await;
    let order = shop.placed(ADA, &[(&good, 1)]).await;
    // Each placement has its own product: placements of the same product share look-ups.
    let (mut bad, mut bodies) = (Vec::new(), Vec::new());
    for number in 0..WAITING {
        let product = shop.product(&format!("bad{number}"), "1", 5).await;
        shop.fault(&product, &json!({"kind": "hang"})).await;
        bodies.push(lines(&[(&good, 1), (&product, 1)]));
        bad.push(product);
    }
    let placements = join_all(bodies.iter().map(|body| shop.place(customer(ADA), body)));

    let reads = async {
        for product in &bad {
            eventually("every placement waits for the Product Service", async || {
                shop.requests_seen(Some(product)).await["atOnce"] == 1
            })
            .await;
        }
        for _ in 0..50 {
            shop.get(customer(ADA), &format!("/api/orders/{order}")).await.expect(200);
            shop.get(admin(), "/api/orders").await.expect(200);
        }
    };
    tokio::select! {
        answers = placements => panic!("a placement was answered although the Product Service hangs: {answers:?}"),
        read = tokio::time::timeout(PATIENCE, reads) => read.expect("reads that do not wait"),
    }
    assert_eq!(shop.count("orders").await, 1);
}
