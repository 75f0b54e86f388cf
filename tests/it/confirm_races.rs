//! Concurrent confirmations, payments and cancellations of the same orders and products.

use std::collections::HashSet;

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Movement, Payment, Shop, customer, eventually, figure, lines, scale};

#[tokio::test]
async fn twelve_lines_are_all_taken_or_none() {
    let shop = Shop::start().await;
    let mut products = Vec::new();
    for number in 0..12 {
        products.push(shop.product(&format!("p{number}"), "10", 5).await);
    }
    let order: Vec<_> = products.iter().map(|product| (product.as_str(), 1)).collect();
    let id = shop.placed("ada@example.com", &order).await;
    let (last, others) = products.split_last().unwrap();
    shop.set_stock(last, 0).await;

    let refused = shop.set_status(&id, "CONFIRMED").await.expect_problem(409, "stock-unavailable");

    assert_eq!(refused.body["productId"], *last);
    shop.no_stock_work().await;
    for product in others {
        assert_eq!(shop.stock(product).await, 5);
    }
    assert_eq!(shop.status(&id).await, "CREATED");

    shop.set_stock(last, 1).await;
    shop.set_status(&id, "CONFIRMED").await.expect(200);
    for (line, product) in (1..).zip(&products) {
        let taken = Movement::new(-1, &id, line, "take", 2);
        assert_eq!(shop.ledger(product).await.last(), Some(&taken));
        assert_eq!(shop.stock(product).await, if product == last { 0 } else { 4 });
    }
}

#[tokio::test]
async fn a_payment_and_two_admins_at_once_take_the_stock_once() {
    let shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let phone = shop.product("phone", "100", 50).await;
    let ids = join_all((0..6).map(async |_| shop.placed("ada@example.com", &[(&phone, 2)]).await)).await;

    join_all(ids.iter().map(async |id| {
        let payment = Payment::success(id, "200");
        let (first, second, ()) = tokio::join!(
            shop.set_status(id, "CONFIRMED"),
            shop.set_status(id, "CONFIRMED"),
            shop.pay(&payment)
        );
        assert_eq!(
            (first.expect(200).body["status"].clone(), second.expect(200).status),
            (json!("CONFIRMED"), 200)
        );
    }))
    .await;

    eventually("all payments are stored", async || shop.count("payments").await == 6).await;
    shop.no_stock_work().await;
    let taken: HashSet<_> = shop.ledger(&phone).await.into_iter().map(|movement| movement.key).collect();
    assert_eq!((taken.len(), shop.ledger(&phone).await.len(), shop.stock(&phone).await), (6, 6, 38));
    shop.relayed().await;
    assert_eq!(shop.topic.everything().await.len(), 12);
}

#[tokio::test]
async fn a_payment_and_an_admin_at_once_for_missing_stock_end_cancelled_with_one_refund() {
    let shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let (phone, case) = (shop.product("phone", "100", 50).await, shop.product("case", "10", 9).await);
    let ids =
        join_all((0..6).map(async |_| shop.placed("ada@example.com", &[(&phone, 2), (&case, 1)]).await))
            .await;
    shop.set_stock(&case, 0).await;

    join_all(ids.iter().map(async |id| {
        let payment = Payment::success(id, "210");
        let (admin, ()) = tokio::join!(shop.set_status(id, "CONFIRMED"), shop.pay(&payment));
        assert_eq!(admin.status, 409, "{}", admin.text);
    }))
    .await;

    for id in &ids {
        shop.becomes(id, "CANCELLED").await;
        assert_eq!(shop.refunds(id).await, [("210".to_owned(), "OUT_OF_STOCK".to_owned())]);
        let event = shop.topic.records_of(id, 2).await.remove(1).value();
        assert_eq!(event["metadata"]["refundDue"], json!(210));
    }
    shop.no_stock_work().await;
    assert_eq!(shop.stock(&phone).await, 50);
}

#[tokio::test]
async fn eight_admins_on_two_replicas_take_the_stock_once() {
    let shop = Shop::start().await;
    let other = shop.replica(&[]).await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;

    let urls = [&shop.url, &other.url];
    let answers = join_all((0..8).map(|number| shop.confirm_at(urls[number % 2], &id))).await;

    for answer in answers {
        assert_eq!(answer.unwrap().expect(200).body["status"], "CONFIRMED");
    }
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
}

#[tokio::test]
async fn cancelling_while_stock_is_taken_cancels_the_order_and_returns_the_stock() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.fault(&phone, &json!({"kind": "slow", "millis": 1000, "on": "reduce-stock"})).await;
    let before = shop.calls_seen(&phone).await;

    let cancel = async {
        shop.called_again(&phone, before).await;
        let path = format!("/api/orders/{id}/cancel");
        shop.call("POST", &path).by(customer("ada@example.com")).send().await
    };
    let (confirmed, cancelled) = tokio::join!(shop.set_status(&id, "CONFIRMED"), cancel);

    assert_eq!(cancelled.expect(200).body["status"], "CANCELLED");
    confirmed.expect_problem(409, "invalid-transition");
    shop.no_stock_work().await;
    let moved: Vec<i64> = shop.ledger(&phone).await.iter().map(|movement| movement.change).collect();
    assert_eq!(moved, [-2, 2]);
    let events = shop.topic.records_of(&id, 2).await;
    assert_eq!(events[1].value()["metadata"]["status"], "CANCELLED");
}

/// Places and confirms orders until the product is sold out; retries after a 503.
async fn buy_all(shop: &Shop, customer_id: &str, product: &str) {
    let mut quantity = 3;
    while quantity > 0 {
        let placed = shop.place(customer(customer_id), &lines(&[(product, quantity)])).await;
        let bought = match placed.status {
            201 => {
                let id = placed.order_id();
                let mut answer = shop.set_status(&id, "CONFIRMED").await;
                while answer.status == 503 {
                    answer = shop.set_status(&id, "CONFIRMED").await;
                }
                assert!([200, 409].contains(&answer.status), "{}", answer.text);
                answer.status == 200
            }
            400 => false,
            503 => true,
            _ => panic!("{}", placed.text),
        };
        quantity -= u32::from(!bought);
    }
}

#[tokio::test]
async fn sixty_four_clients_sell_a_stock_of_100_exactly_once() {
    const STOCK: i64 = 100;
    let shop = Shop::builder().with("DATABASE_MAX_CONNECTIONS", "16").start().await;
    let runs = scale(2, 20);
    for run in 0..runs {
        let product = shop.product(&format!("run{run}"), "10", STOCK).await;
        let clients: Vec<_> = (0..64).map(|client| format!("c{client}@example.com")).collect();
        join_all(clients.iter().map(|client| buy_all(&shop, client, &product))).await;
        shop.no_stock_work().await;

        let confirmed: i64 = sqlx::query_scalar(
            "select coalesce(sum(quantity), 0) from order_items join orders on id = order_id
             where status = 'CONFIRMED' and product_id = $1",
        )
        .bind(&product)
        .fetch_one(&shop.database)
        .await
        .unwrap();
        let ledger = shop.ledger(&product).await;
        let taken: i64 = ledger.iter().map(|movement| -movement.change).sum();
        let keys: HashSet<_> = ledger.iter().map(|movement| &movement.key).collect();
        assert_eq!((confirmed, taken, shop.stock(&product).await), (STOCK, STOCK, 0), "run {run}");
        assert_eq!(keys.len(), ledger.len(), "a key was applied twice in run {run}");
    }
    figure(&format!(
        "64 clients on a stock of {STOCK}, {runs} runs: {STOCK} units confirmed in each, 0 left"
    ));
}
