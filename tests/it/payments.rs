//! Payments move orders.

use serde_json::json;

use crate::support::{Payment, Shop, eventually};

#[tokio::test]
async fn a_payment_confirms_its_order_and_takes_the_stock() {
    let shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;

    shop.pay(&Payment::success(&id, "200")).await;

    eventually("the order is confirmed", async || shop.status(&id).await == "CONFIRMED").await;
    assert_eq!(shop.stock(&phone).await, 3);
}

#[tokio::test]
async fn a_payment_for_stock_that_is_gone_cancels_the_order_and_a_refund_is_due() {
    let shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.set_stock(&phone, 1).await;

    shop.pay(&Payment::success(&id, "200")).await;

    let cancelled = shop.topic.records_of(&id, 2).await.remove(1).value();
    assert_eq!(cancelled["metadata"]["status"], "CANCELLED");
    assert_eq!(cancelled["metadata"]["reason"], "OUT_OF_STOCK");
    assert_eq!(cancelled["metadata"]["refundDue"], json!(200));
    assert_eq!(shop.count("refunds_due").await, 1);
    assert_eq!(shop.stock(&phone).await, 1);
}
