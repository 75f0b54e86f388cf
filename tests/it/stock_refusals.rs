//! A refusal counts only if a new look-up confirms it: the product does not exist or lacks stock. Otherwise the service
//! repeats the call a bounded number of times, and then the job waits for an operator.

use serde_json::{Value, json};

use crate::support::{Builder, Movement, Payment, Shop, admin, command, eventually};

fn with_payments() -> Builder {
    Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true")
}

fn refuses(status: u16) -> Value {
    json!({"kind": "status", "status": status, "on": "reduce-stock"})
}

/// Runs `order-service stock …` and returns its output.
async fn stock_command(shop: &Shop, arguments: &[&str]) -> String {
    let mut stock = command("stock", &shop.environment);
    stock.args(arguments);
    let output = tokio::task::spawn_blocking(move || stock.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_paid_order_with_stock_survives_any_refusal() {
    let shop = with_payments().start().await;
    for status in [400, 404, 409] {
        let phone = shop.product(&format!("phone{status}"), "100", 5).await;
        let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
        let mut fault = refuses(status);
        fault["times"] = json!(2);
        shop.fault(&phone, &fault).await;

        shop.pay(&Payment::success(&id, "200")).await;

        shop.becomes(&id, "CONFIRMED").await;
        assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)], "{status}");
        assert_eq!(shop.refunds(&id).await, [], "{status}");
    }
}

#[tokio::test]
async fn a_paid_order_that_is_refused_repeatedly_waits_for_an_operator() {
    let shop = with_payments().with("PRODUCT_REFUSAL_RETRIES", "1").start().await;
    let (phone, case) = (shop.product("phone", "100", 5).await, shop.product("case", "10", 5).await);
    let id = shop.placed("ada@example.com", &[(&phone, 2), (&case, 1)]).await;
    shop.fault(&case, &refuses(409)).await;

    shop.pay(&Payment::success(&id, "210")).await;

    eventually("the job is parked", async || shop.stock_work().await["parked"] == 1).await;
    assert_eq!(shop.status(&id).await, "CREATED");
    assert_eq!(shop.refunds(&id).await, []);
    let listed: Value = serde_json::from_str(&stock_command(&shop, &["list", "--json"]).await).unwrap();
    let line = &listed[0];
    assert_eq!(
        (&line["orderId"], &line["attempt"], &line["line"]),
        (&json!(id), &json!(1), &json!(2)),
        "{listed}"
    );
    assert!(line["reason"].as_str().unwrap().contains("refused 2 times"), "{listed}");
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");

    shop.heal(&case).await;
    stock_command(&shop, &["resolve", &id, "1", "2", "not-applied", "--by", "ada"]).await;

    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.ledger(&case).await, [Movement::new(-1, &id, 2, "take", 1)]);
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
}

#[tokio::test]
async fn a_paid_order_is_cancelled_at_once_if_a_look_up_confirms_the_refusal() {
    let shop = with_payments().start().await;
    let (phone, gone) = (shop.product("phone", "100", 5).await, shop.product("gone", "10", 5).await);
    let short = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    let withdrawn = shop.placed("ada@example.com", &[(&gone, 2)]).await;
    shop.set_stock(&phone, 1).await;
    shop.withdraw(&gone).await;

    for (order, amount) in [(&short, "200"), (&withdrawn, "20")] {
        shop.pay(&Payment::success(order, amount)).await;
        shop.becomes(order, "CANCELLED").await;
        assert_eq!(shop.refunds(order).await, [(amount.to_owned(), "OUT_OF_STOCK".to_owned())]);
    }
}

#[tokio::test]
async fn a_call_is_repeated_if_the_look_up_of_its_refusal_fails() {
    let shop = with_payments().start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    // The call that takes the stock, and the look-up after its refusal.
    shop.fault(&phone, &json!({"kind": "status", "status": 409, "times": 2})).await;

    shop.pay(&Payment::success(&id, "200")).await;

    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.refunds(&id).await, []);
}

#[tokio::test]
async fn an_unconfirmed_refusal_is_not_reported_to_an_admin_as_missing_stock() {
    let shop = Shop::builder().with("STOCK_WAIT_MS", "300").start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.fault(&phone, &refuses(409)).await;

    shop.set_status(&id, "CONFIRMED").await.expect_unavailable("product-service-unavailable");

    shop.heal(&phone).await;
    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
}

#[tokio::test]
async fn a_call_of_unknown_outcome_is_not_repeated_under_a_key_that_may_be_forgotten() {
    let shop = with_payments().with("PRODUCT_IDEMPOTENCY_KEY_TTL", "1s").start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.fault(&phone, &json!({"kind": "lose-answer", "on": "reduce-stock"})).await;

    shop.pay(&Payment::success(&id, "200")).await;

    eventually("the job is parked", async || shop.stock_work().await["parked"] == 1).await;
    let listed = stock_command(&shop, &["list"]).await;
    assert!(listed.contains(&id) && listed.contains("its key may be forgotten"), "{listed}");
    assert_eq!(shop.status(&id).await, "CREATED");

    stock_command(&shop, &["resolve", &id, "1", "1", "applied", "--by", "ada"]).await;
    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
}

#[tokio::test]
async fn confirmations_beyond_the_limit_are_refused_and_running_ones_continue() {
    let shop = Shop::builder().with("MAX_CONCURRENT_CONFIRMATIONS", "1").start().await;
    let phone = shop.product("phone", "100", 5).await;
    let first = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    let second = shop.placed("bob@example.com", &[(&phone, 1)]).await;
    shop.fault(&phone, &json!({"kind": "slow", "millis": 1500, "on": "reduce-stock", "times": 1})).await;
    let before = shop.calls_seen(&phone).await;

    let other = async {
        shop.called_again(&phone, before).await;
        shop.set_status(&second, "CONFIRMED").await
    };
    let (confirmed, refused) = tokio::join!(shop.set_status(&first, "CONFIRMED"), other);

    confirmed.expect(200);
    refused.expect_unavailable("unavailable");
    let shown = shop.get(admin(), &format!("/api/orders/{second}")).await;
    assert_eq!(shown.body["status"], "CREATED");
    shop.set_status(&second, "CONFIRMED").await.expect(200);
}
