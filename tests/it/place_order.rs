//! Placing an order.

use serde_json::json;

use crate::support::{Shop, customer, lines};

#[tokio::test]
async fn a_placement_is_answered_stored_and_published() {
    let shop = Shop::start().await;
    let (phone, case) = (shop.product("phone", "2499.10", 50).await, shop.product("case", "499", 20).await);

    let placed =
        shop.place(customer("ada@example.com"), &lines(&[(&phone, 2), (&case, 1)])).await.expect(201);

    let id = placed.order_id();
    assert_eq!(placed.text, format!(r#"{{"orderId":"{id}","status":"CREATED","totalAmount":5497.20}}"#));
    assert_eq!(placed.header("location"), Some(format!("/api/orders/{id}").as_str()));
    let shown = shop.get(customer("ada@example.com"), &format!("/api/orders/{id}")).await.expect(200);
    assert_eq!(shown.body["customerId"], "ada@example.com");
    assert_eq!(shown.body["items"][0]["productId"], phone);
    assert!(shown.text.contains(r#""quantity":2,"price":2499.10}"#), "{}", shown.text);

    let record = shop.topic.records(1).await.remove(0);
    assert_eq!(record.key, id);
    let event = record.value();
    assert_eq!(event["eventType"], "ORDER_PLACED");
    assert_eq!(event["service"], "ORDER_SERVICE");
    assert_eq!(event["userEmail"], "ada@example.com");
    assert_eq!(event["entityId"], id);
    assert!(record.payload.contains(r#""amount":5497.20,"#), "{}", record.payload);
    assert_eq!(event["timestamp"], shown.body["orderDate"]);
    assert_eq!(event["metadata"]["sequence"], 1);
    assert_eq!(event["metadata"]["status"], "CREATED");
    assert_eq!(event["metadata"]["items"], shown.body["items"]);
}

#[tokio::test]
async fn lines_of_one_product_are_added_up_before_the_stock_check() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 5).await;

    let refused = shop.place(customer("ada@example.com"), &lines(&[(&phone, 3), (&phone, 3)])).await;
    let refused = refused.expect_problem(400, "insufficient-stock").naming("/items/0/quantity");
    assert_eq!(refused.body["errors"][0]["requested"], 6);
    assert_eq!(refused.body["errors"][0]["available"], 5);
    shop.expect_nothing_happened().await;

    let id = shop.placed("ada@example.com", &[(&phone, 2), (&phone, 3)]).await;
    let shown = shop.get(customer("ada@example.com"), &format!("/api/orders/{id}")).await;
    assert_eq!(shown.body["items"], json!([{"productId": phone, "quantity": 5, "price": 10}]));
}
