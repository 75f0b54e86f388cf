//! The service finishes running work when it stops; its exit code shows whether that succeeded.

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Answer, Builder, Replica, Shop, customer, eventually, lines};

const ADA: &str = "ada@example.com";

/// A running process, and a shop that calls it.
async fn start(builder: Builder) -> (Replica, Shop) {
    let shop = builder.without_service().await;
    let replica = Replica::start(&shop.environment);
    let shop = shop.through(&replica.url);
    (replica, shop)
}

/// A service that waits for a slow Product Service.
fn patient() -> Builder {
    Shop::builder()
        .with("PRODUCT_DEADLINE_MS", "60000")
        .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "60000")
        .with("REQUEST_DEADLINE_MS", "120000")
}

/// Places one order after another until the service accepts no more; returns the answers.
async fn place_until_refused(shop: &Shop, product: &str) -> Vec<Answer> {
    let mut answers = Vec::new();
    loop {
        let call = shop.call("POST", "/api/orders").by(customer(ADA)).json(&lines(&[(product, 1)]));
        match call.try_send().await {
            Ok(answer) => answers.push(answer),
            Err(_) => return answers,
        }
    }
}

#[tokio::test]
async fn a_stop_under_load_loses_no_order_or_event() {
    let (mut replica, shop) = start(Shop::builder()).await;
    let phone = shop.product("phone", "10", 1_000_000).await;

    let terminate = async {
        eventually("many orders are placed", async || shop.count("orders").await > 100).await;
        replica.signal("TERM");
    };
    let clients = join_all((0..16).map(|_| place_until_refused(&shop, &phone)));
    let (answers, ()) = tokio::join!(clients, terminate);
    assert_eq!(replica.exit_code(), Some(0));

    let placed: Vec<String> =
        answers.into_iter().flatten().map(|answer| answer.expect(201).order_id()).collect();
    let written = shop.versions().await;
    for order in &placed {
        assert!(written.contains_key(order), "{order} was answered with 201 and is missing");
    }
    // Every request in flight was finished and answered.
    assert_eq!(written.len(), placed.len());
    assert_eq!(shop.count("outbox").await, 0);
    shop.expect_every_event().await;
}

#[tokio::test]
async fn a_request_in_flight_at_sigterm_is_finished() {
    for signal in ["TERM", "INT"] {
        let (mut replica, shop) = start(patient()).await;
        let slow = shop.product("slow", "10", 5).await;
        shop.fault(&slow, &json!({"kind": "slow", "millis": 1500})).await;

        let terminate = async {
            eventually("the request is in flight", async || {
                shop.requests_seen(Some(&slow)).await["total"] == 1
            })
            .await;
            replica.signal(signal);
        };
        let body = lines(&[(&slow, 1)]);
        let (answer, ()) = tokio::join!(shop.place(customer(ADA), &body), terminate);

        answer.expect(201);
        assert_eq!(replica.exit_code(), Some(0), "{signal}");
        assert_eq!(shop.count("outbox").await, 0);
        shop.expect_every_event().await;
    }
}

#[tokio::test]
async fn an_order_whose_client_has_disconnected_is_finished_before_the_exit() {
    let (mut replica, shop) = start(patient()).await;
    let slow = shop.product("slow", "10", 5).await;
    shop.fault(&slow, &json!({"kind": "slow", "millis": 1500})).await;

    let body = lines(&[(&slow, 1)]);
    let asked =
        eventually("the request is in flight", async || shop.requests_seen(Some(&slow)).await["total"] == 1);
    tokio::select! {
        answer = shop.place(customer(ADA), &body) => panic!("it waited: {answer:?}"),
        () = asked => {}
    }
    replica.signal("TERM");

    assert_eq!(replica.exit_code(), Some(0));
    assert_eq!(shop.count("orders").await, 1);
    shop.expect_every_event().await;
}

#[tokio::test]
async fn a_stopping_service_is_not_ready_and_serves_until_the_delay_is_over() {
    let (mut replica, shop) = start(Shop::builder().with("SHUTDOWN_DELAY_MS", "600000")).await;
    let phone = shop.product("phone", "10", 5).await;
    shop.call("GET", "/health/ready").send().await.expect(200);

    replica.signal("TERM");
    replica.wait_for_log("stopping");

    shop.call("GET", "/health/ready").send().await.expect_unavailable("unavailable");
    shop.call("GET", "/health/live").send().await.expect(200);
    shop.placed(ADA, &[(&phone, 1)]).await;

    // A second signal ends the delay.
    replica.signal("TERM");
    assert_eq!(replica.exit_code(), Some(2));
}

#[tokio::test]
async fn a_stop_that_takes_too_long_ends_with_exit_code_2() {
    let (mut replica, shop) = start(patient().with("SHUTDOWN_TIMEOUT_MS", "300")).await;
    let hanging = shop.product("hanging", "10", 5).await;
    shop.fault(&hanging, &json!({"kind": "hang"})).await;

    let body = lines(&[(&hanging, 1)]);
    let asked = eventually("the request is in flight", async || {
        shop.requests_seen(Some(&hanging)).await["total"] == 1
    });
    let placement = shop.call("POST", "/api/orders").by(customer(ADA)).json(&body).try_send();
    let terminate = async {
        asked.await;
        replica.signal("TERM");
    };
    let (answer, ()) = tokio::join!(placement, terminate);

    answer.expect_err("no answer");
    assert_eq!(replica.exit_code(), Some(2));
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn open_connections_do_not_delay_the_stop() {
    let quick = Shop::builder()
        .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "300")
        .with("PRODUCT_DEADLINE_MS", "300")
        .with("REQUEST_DEADLINE_MS", "500")
        .with("STOCK_WAIT_MS", "400");
    let (mut replica, shop) = start(quick).await;
    let address = replica.url.trim_start_matches("http://").to_owned();
    // One connection without a request, two with incomplete requests, and one with a finished request.
    let silent = TcpStream::connect(&address).await.unwrap();
    let mut half_a_head = TcpStream::connect(&address).await.unwrap();
    half_a_head.write_all(b"GET /health/live HTTP/1.1\r\nHost: sho").await.unwrap();
    let mut half_a_body = TcpStream::connect(&address).await.unwrap();
    let head = "POST /api/orders HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\n\
                X-User-Email: ada@example.com\r\nX-User-Role: CUSTOMER\r\nContent-Length: 99\r\n\r\n{";
    half_a_body.write_all(head.as_bytes()).await.unwrap();
    shop.get(customer(ADA), "/api/orders/my").await.expect(200);

    replica.signal("TERM");

    assert_eq!(replica.exit_code(), Some(0));
    drop((silent, half_a_head, half_a_body));
}
