//! The same request is the same order.

use crate::support::{Shop, customer, lines};

#[tokio::test]
async fn a_repeat_under_the_same_key_is_the_same_order() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 50).await;
    let place = async |key: &str, quantity| {
        let call = shop.call("POST", "/api/orders").by(customer("ada@example.com"));
        call.header("Idempotency-Key", key).json(&lines(&[(&phone, quantity)])).send().await
    };

    let first = place("k-1", 2).await.expect(201);
    let again = place("\"k-1\"", 2).await.expect(201);

    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!((again.text, again.headers.get("location")), (first.text, first.headers.get("location")));
    place("k-1", 3).await.expect_problem(422, "idempotency-key-reused");
    assert_eq!(shop.count("orders").await, 1);
}

#[tokio::test]
async fn the_same_lines_again_within_the_window_are_the_first_order_even_at_the_same_moment() {
    let shop = Shop::builder().with("DUPLICATE_WINDOW_SECONDS", "600").start().await;
    let phone = shop.product("phone", "100", 50).await;
    let body = lines(&[(&phone, 2)]);

    let answers =
        futures_util::future::join_all((0..8).map(|_| shop.place(customer("ada@example.com"), &body))).await;

    let mut ids: Vec<_> = answers.into_iter().map(|answer| answer.expect(201).order_id()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(shop.count("orders").await, 1);
    shop.placed("bob@example.com", &[(&phone, 2)]).await;
    shop.placed("ada@example.com", &[(&phone, 3)]).await;
    assert_eq!(shop.count("orders").await, 3);
}
