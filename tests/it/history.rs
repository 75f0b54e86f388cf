//! The history of an order, and which email addresses each reader sees.

use serde_json::json;

use crate::support::{Shop, admin, customer};

#[tokio::test]
async fn owner_and_admin_can_read_the_history_and_the_owner_sees_no_other_email() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.set_status(&id, "CONFIRMED").await.expect(200);
    let body = json!({"status": "CANCELLED", "reason": "DAMAGED"});
    let path = format!("/api/orders/{id}/status");
    shop.call("PUT", &path).by(admin()).json(&body).send().await.expect(200);
    let path = format!("/api/orders/{id}/history");

    let for_admin = shop.get(admin(), &path).await.expect(200);
    let for_owner = shop.get(customer("ada@example.com"), &path).await.expect(200);

    let events = shop.topic.records_of(&id, 3).await;
    let at = |index: usize| events[index].value()["timestamp"].clone();
    let expected = json!([
        {"status": "CREATED", "changedAt": at(0), "actorRole": "CUSTOMER", "actorId": "ada@example.com"},
        {"status": "CONFIRMED", "previousStatus": "CREATED", "changedAt": at(1), "actorRole": "ADMIN",
         "actorId": "admin@example.com"},
        {"status": "CANCELLED", "previousStatus": "CONFIRMED", "changedAt": at(2), "actorRole": "ADMIN",
         "actorId": "admin@example.com", "reason": "DAMAGED"},
    ]);
    assert_eq!(for_admin.body, expected);
    let mut without_admin = expected;
    for index in [1, 2] {
        without_admin[index].as_object_mut().unwrap().remove("actorId");
    }
    assert_eq!(for_owner.body, without_admin);
}

#[tokio::test]
async fn other_customers_cannot_read_a_history() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    let path = format!("/api/orders/{id}/history");

    shop.get(customer("bob@example.com"), &path).await.expect_problem(403, "forbidden");
    shop.get(customer("Ada@example.com"), &path).await.expect_problem(403, "forbidden");
    shop.call("GET", &path).send().await.expect_problem(401, "unauthenticated");
    let nowhere = "/api/orders/0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10/history";
    shop.get(admin(), nowhere).await.expect_problem(404, "order-not-found");
}
