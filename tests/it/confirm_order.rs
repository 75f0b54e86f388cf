//! Confirming an order takes its stock; cancelling gives it back.

use serde_json::json;

use crate::support::{Shop, admin, customer, eventually};

#[tokio::test]
async fn confirming_takes_the_stock_of_every_line_once() {
    let shop = Shop::start().await;
    let (phone, case) = (shop.product("phone", "100", 5).await, shop.product("case", "10", 5).await);
    let id = shop.placed("ada@example.com", &[(&phone, 2), (&case, 3)]).await;
    assert_eq!((shop.stock(&phone).await, shop.stock(&case).await), (5, 5));

    let confirmed = shop.set_status(&id, "CONFIRMED").await.expect(200);

    assert_eq!(confirmed.body["status"], "CONFIRMED");
    assert_eq!((shop.stock(&phone).await, shop.stock(&case).await), (3, 2));
    shop.set_status(&id, "CONFIRMED").await.expect(200);
    assert_eq!((shop.stock(&phone).await, shop.stock(&case).await), (3, 2));
    let events = shop.topic.records_of(&id, 2).await;
    assert_eq!(events[1].value()["metadata"]["status"], "CONFIRMED");
}

#[tokio::test]
async fn a_refused_line_returns_the_others_and_the_order_stays_created() {
    let shop = Shop::start().await;
    let (phone, case) = (shop.product("phone", "100", 5).await, shop.product("case", "10", 5).await);
    let id = shop.placed("ada@example.com", &[(&phone, 2), (&case, 3)]).await;
    shop.set_stock(&case, 2).await;

    let refused = shop.set_status(&id, "CONFIRMED").await.expect_problem(409, "stock-unavailable");

    assert_eq!(refused.body["productId"], case);
    eventually("the phones are back", async || shop.stock(&phone).await == 5).await;
    let shown = shop.get(customer("ada@example.com"), &format!("/api/orders/{id}")).await;
    assert_eq!(shown.body["status"], "CREATED");

    shop.set_stock(&case, 3).await;
    shop.set_status(&id, "CONFIRMED").await.expect(200);
    assert_eq!((shop.stock(&phone).await, shop.stock(&case).await), (3, 0));
}

#[tokio::test]
async fn a_second_attempt_waits_until_the_first_has_given_its_stock_back() {
    let shop = Shop::start().await;
    let (phone, case) = (shop.product("phone", "100", 2).await, shop.product("case", "10", 5).await);
    let id = shop.placed("ada@example.com", &[(&phone, 2), (&case, 3)]).await;
    shop.set_stock(&case, 2).await;
    shop.fault(&phone, &json!({"kind": "slow", "millis": 1500, "on": "restore-stock"})).await;
    shop.set_status(&id, "CONFIRMED").await.expect_problem(409, "stock-unavailable");
    shop.set_stock(&case, 3).await;
    assert_eq!(shop.stock(&phone).await, 0);

    shop.set_status(&id, "CONFIRMED").await.expect(200);

    assert_eq!((shop.stock(&phone).await, shop.stock(&case).await), (0, 0));
}

#[tokio::test]
async fn a_second_attempt_continues_while_stock_of_the_first_waits_for_an_operator() {
    let shop = Shop::builder().with("PRODUCT_STOCK_TIMEOUT_MS", "5000").start().await;
    let (phone, case) = (shop.product("phone", "100", 4).await, shop.product("case", "10", 5).await);
    let id = shop.placed("ada@example.com", &[(&phone, 2), (&case, 3)]).await;
    shop.set_stock(&case, 2).await;
    // The second attempt is recorded while the first gives the phones back, which the Product Service finally refuses.
    shop.fault(&phone, &json!({"kind": "status", "status": 503, "on": "restore-stock"})).await;
    shop.set_status(&id, "CONFIRMED").await.expect_problem(409, "stock-unavailable");
    shop.set_stock(&case, 3).await;
    let second = async {
        let attempts = "select count(*) from stock_jobs where attempt = 2";
        eventually("the second attempt waits", async || {
            sqlx::query_scalar::<_, i64>(attempts).fetch_one(&shop.database).await.unwrap() == 1
        })
        .await;
        shop.fault(&phone, &json!({"kind": "status", "status": 409, "on": "restore-stock"})).await;
    };

    let (confirmed, ()) = tokio::join!(shop.set_status(&id, "CONFIRMED"), second);

    confirmed.expect(200);
    assert_eq!(shop.stock_work().await["parked"], 1);
    assert_eq!((shop.stock(&phone).await, shop.stock(&case).await), (0, 0));
}

#[tokio::test]
async fn a_lost_answer_takes_the_stock_once() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.fault(&phone, &json!({"kind": "lose-answer", "on": "reduce-stock", "times": 2})).await;

    shop.set_status(&id, "CONFIRMED").await.expect(200);

    assert_eq!(shop.stock(&phone).await, 3);
}

#[tokio::test]
async fn cancelling_a_confirmed_order_gives_its_stock_back() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.set_status(&id, "CONFIRMED").await.expect(200);

    shop.set_status(&id, "CANCELLED").await.expect(200);

    eventually("the stock is back", async || shop.stock(&phone).await == 5).await;
    let history = shop.get(admin(), &format!("/api/orders/{id}/history")).await.expect(200);
    let statuses: Vec<_> = history.body.as_array().unwrap().iter().map(|entry| &entry["status"]).collect();
    assert_eq!(statuses, ["CREATED", "CONFIRMED", "CANCELLED"]);
}
