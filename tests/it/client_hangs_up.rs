//! Clients that disconnect before the answer.

use serde_json::json;

use crate::support::{Shop, customer, eventually, lines};

/// A service that waits for a slow Product Service.
async fn patient() -> Shop {
    Shop::builder()
        .with("PRODUCT_DEADLINE_MS", "30000")
        .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "30000")
        .with("REQUEST_DEADLINE_MS", "60000")
        .start()
        .await
}

#[tokio::test]
async fn an_order_whose_client_hangs_up_is_still_written_and_published() {
    let shop = patient().await;
    let slow = shop.product("slow", "10", 5).await;
    shop.fault(&slow, &json!({"kind": "slow", "millis": 1500})).await;

    let body = lines(&[(&slow, 2)]);
    let asked = eventually("the placement has reached the Product Service", async || {
        shop.requests_seen(Some(&slow)).await["total"] == 1
    });
    tokio::select! {
        answer = shop.place(customer("ada@example.com"), &body) => panic!("it waited: {answer:?}"),
        () = asked => {} // The call is dropped here, and its connection with it.
    }

    eventually("the order is written", async || shop.count("orders").await == 1).await;
    shop.expect_whole_orders().await;
    shop.expect_every_event().await;
}

#[tokio::test]
async fn many_clients_that_hang_up_leave_no_partial_writes() {
    const CLIENTS: usize = 30;
    let shop = patient().await;
    // One product per placement: placements of the same product would share a look-up.
    let mut bodies = Vec::new();
    for number in 0..CLIENTS {
        let slow = shop.product(&format!("slow-{number}"), "10", 5).await;
        shop.fault(&slow, &json!({"kind": "slow", "millis": 1500})).await;
        bodies.push(lines(&[(&slow, 1)]));
    }

    let clients = bodies.iter().map(|body| shop.place(customer("ada@example.com"), body));
    let asked = eventually("all placements have reached the Product Service", async || {
        shop.requests_seen(None).await["total"] == CLIENTS
    });
    tokio::select! {
        answers = futures_util::future::select_all(clients.map(Box::pin)) => panic!("{:?}", answers.0),
        () = asked => {}
    }

    eventually("the orders are written", async || {
        shop.count("orders").await == i64::try_from(CLIENTS).unwrap()
    })
    .await;
    shop.expect_whole_orders().await;
    shop.expect_every_event().await;
}
