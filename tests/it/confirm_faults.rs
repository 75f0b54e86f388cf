//! The Product Service fails during stock calls: no line is taken or given back twice, and the service never guesses
//! an unknown outcome.

use serde_json::json;

use crate::support::{Builder, Movement, Payment, Shop, admin, command, customer, eventually, exit_code};

/// Admin requests wait without limit, so that the answer shows the result of the order.
fn patient() -> Builder {
    Shop::builder()
        .with("PRODUCT_STOCK_TIMEOUT_MS", "300")
        .with("STOCK_WAIT_MS", "60000")
        .with("REQUEST_DEADLINE_MS", "90000")
}

/// One product per fault; each fault applies to the next two calls of this kind.
async fn products_that_fail(shop: &Shop, on: &str) -> Vec<String> {
    let faults = [
        json!({"kind": "lose-answer"}),
        json!({"kind": "status", "status": 500}),
        json!({"kind": "status", "status": 503}),
        json!({"kind": "status", "status": 429}),
        json!({"kind": "hang"}),
        json!({"kind": "slow", "millis": 600}),
    ];
    let mut products = Vec::new();
    for (number, mut fault) in faults.into_iter().enumerate() {
        let product = shop.product(&format!("p{number}"), "10", 5).await;
        (fault["on"], fault["times"]) = (json!(on), json!(2));
        shop.fault(&product, &fault).await;
        products.push(product);
    }
    products
}

#[tokio::test]
async fn despite_failed_calls_every_line_is_taken_once_under_its_own_key() {
    let shop = patient().start().await;
    let products = products_that_fail(&shop, "reduce-stock").await;
    let order: Vec<_> = products.iter().map(|product| (product.as_str(), 2)).collect();
    let id = shop.placed("ada@example.com", &order).await;

    shop.set_status(&id, "CONFIRMED").await.expect(200);

    for (line, product) in (1..).zip(&products) {
        assert_eq!(shop.ledger(product).await, [Movement::new(-2, &id, line, "take", 1)]);
    }
    assert_eq!(shop.topic.records_of(&id, 2).await.len(), 2);
}

#[tokio::test]
async fn despite_failed_calls_every_line_is_given_back_once_under_its_own_key() {
    let shop = patient().start().await;
    let products = products_that_fail(&shop, "restore-stock").await;
    let order: Vec<_> = products.iter().map(|product| (product.as_str(), 2)).collect();
    let id = shop.placed("ada@example.com", &order).await;
    shop.set_status(&id, "CONFIRMED").await.expect(200);

    shop.set_status(&id, "CANCELLED").await.expect(200);

    shop.no_stock_work().await;
    for (line, product) in (1..).zip(&products) {
        let expected = [Movement::new(-2, &id, line, "take", 1), Movement::new(2, &id, line, "give-back", 1)];
        assert_eq!(shop.ledger(product).await, expected);
    }
}

#[tokio::test]
async fn a_repeat_during_its_first_call_does_not_count_as_a_refusal() {
    let shop = Shop::builder()
        .with("PAYMENT_EVENTS_ENABLED", "true")
        .with("PRODUCT_STOCK_TIMEOUT_MS", "300")
        .start()
        .await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    let before = shop.calls_seen(&phone).await;
    shop.fault(&phone, &json!({"kind": "slow", "millis": 3000, "on": "reduce-stock", "times": 1})).await;

    shop.pay(&Payment::success(&id, "200")).await;
    let last_error = async || -> Option<String> {
        let error = sqlx::query_scalar("select last_error from stock_lines");
        error.fetch_optional(&shop.database).await.unwrap().flatten()
    };
    eventually("a repeat meets the first call", async || {
        last_error().await.is_some_and(|error| error.contains("409"))
    })
    .await;
    assert!(shop.calls_seen(&phone).await > before + 1);

    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
}

#[tokio::test]
async fn a_failed_connection_is_retried_even_without_honoured_keys() {
    let keys = ("PRODUCT_HONOURS_IDEMPOTENCY_KEY", "false");
    let mut shop = Shop::builder().with(keys.0, keys.1).without_service().await;
    let database = shop.environment.variables()["DATABASE_URL"].clone();
    let mut without_products = Shop::builder()
        .database(&database)
        .with(keys.0, keys.1)
        .with("PRODUCT_SERVICE_URL", "http://127.0.0.1:1")
        .with("STOCK_WAIT_MS", "0")
        .start()
        .await;
    shop.start_service().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.stop_service().await;

    let refused = without_products.confirm_at(&without_products.url, &id).await.unwrap();
    refused.expect_problem(503, "product-service-unavailable");
    let work = without_products.stock_work().await;
    without_products.stop_service().await;
    shop.start_service().await;

    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!((&work["open"], &work["parked"]), (&1.into(), &0.into()));
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
}

#[tokio::test]
async fn without_honoured_keys_a_call_of_unknown_outcome_waits_for_an_operator_and_is_never_repeated() {
    let shop = Shop::builder().with("PRODUCT_HONOURS_IDEMPOTENCY_KEY", "false").start().await;
    let (phone, case) = (shop.product("phone", "100", 5).await, shop.product("case", "10", 5).await);
    let id = shop.placed("ada@example.com", &[(&phone, 2), (&case, 1)]).await;
    shop.fault(&phone, &json!({"kind": "lose-answer", "on": "reduce-stock"})).await;
    let before = shop.calls_seen(&phone).await;

    let path = format!("/api/orders/{id}/status");
    for _ in 0..3 {
        let asked = shop.call("PUT", &path).by(admin()).json(&json!({"status": "CONFIRMED"})).send().await;
        asked.expect_problem(503, "product-service-unavailable");
    }

    assert_eq!(shop.stock_work().await, json!({"open": 1, "overdue": 0, "parked": 1}));
    assert_eq!(shop.status(&id).await, "CREATED");
    assert_eq!(shop.calls_seen(&phone).await, before + 1);

    // The cancellation does not wait for the operator: lines that are known to be taken go back at once.
    let cancel = shop.call("POST", &format!("/api/orders/{id}/cancel")).by(customer("ada@example.com"));
    cancel.send().await.expect(200);
    eventually("the case is back", async || shop.ledger(&case).await.len() == 2).await;
    eventually("the rest is parked again", async || shop.stock_work().await["parked"] == 1).await;
    assert_eq!(shop.calls_seen(&phone).await, before + 1);

    // The operator has looked at the ledger of the Product Service: the line was taken.
    sqlx::query("update stock_lines set state = 'TAKEN' where line_number = 1")
        .execute(&shop.database)
        .await
        .unwrap();
    sqlx::query("update stock_jobs set parked = null").execute(&shop.database).await.unwrap();
    shop.no_stock_work().await;
    let moved: Vec<i64> = shop.ledger(&phone).await.iter().map(|movement| movement.change).collect();
    assert_eq!(moved, [-2, 2]);
}

#[tokio::test]
async fn a_settlement_by_an_operator_waits_for_concurrent_changes_and_is_not_undone() {
    let shop = Shop::builder().with("PRODUCT_HONOURS_IDEMPOTENCY_KEY", "false").start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.fault(&phone, &json!({"kind": "lose-answer", "on": "reduce-stock"})).await;
    shop.set_status(&id, "CONFIRMED").await.expect_problem(503, "product-service-unavailable");
    eventually("the work is parked", async || shop.stock_work().await["parked"] == 1).await;

    // Another transaction has locked the order and read its stock work, as a payment or a cancellation does.
    let mut change = shop.database.begin().await.unwrap();
    let lock = "select from orders where id = $1::uuid for update";
    sqlx::query(lock).bind(&id).execute(&mut *change).await.unwrap();
    let mut resolve = command("stock", &shop.environment)
        .args(["resolve", &id, "1", "1", "applied", "--by", "ada"])
        .spawn()
        .unwrap();
    shop.a_session_waits_for_a_lock().await;
    let write_back = "update stock_lines set state = 'TAKING' where line_number = 1";
    sqlx::query(write_back).execute(&mut *change).await.unwrap();
    change.commit().await.unwrap();

    assert_eq!(exit_code(&mut resolve), Some(0));
    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
    assert_eq!(shop.count("interventions").await, 1);
}

#[tokio::test]
async fn giving_back_a_withdrawn_product_waits_for_an_operator() {
    let shop = Shop::start().await;
    let (phone, case) = (shop.product("phone", "100", 5).await, shop.product("case", "10", 5).await);
    let id = shop.placed("ada@example.com", &[(&phone, 2), (&case, 1)]).await;
    shop.set_status(&id, "CONFIRMED").await.expect(200);
    shop.withdraw(&phone).await;

    shop.set_status(&id, "CANCELLED").await.expect(200);

    eventually("the job is parked", async || shop.stock_work().await["parked"] == 1).await;
    assert_eq!(shop.stock(&case).await, 5);
    let why: String =
        sqlx::query_scalar("select parked from stock_jobs").fetch_one(&shop.database).await.unwrap();
    assert!(why.contains("line 1") && why.contains("404"), "{why}");
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
}

#[tokio::test]
async fn overdue_stock_work_is_counted_and_continues() {
    let shop = Shop::builder().with("STOCK_DEADLINE_MS", "100").with("STOCK_WAIT_MS", "0").start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.fault(&phone, &json!({"kind": "status", "status": 500, "on": "reduce-stock"})).await;

    shop.set_status(&id, "CONFIRMED").await.expect_problem(503, "product-service-unavailable");
    eventually("the work is overdue", async || shop.stock_work().await["overdue"] == 1).await;
    shop.heal(&phone).await;

    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.stock_work().await, json!({"open": 0, "overdue": 0, "parked": 0}));
}

#[tokio::test]
async fn giving_back_has_its_own_deadline() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.set_status(&id, "CONFIRMED").await.expect(200);
    let long_ago = "update stock_jobs set deadline = now() - interval '1 hour'";
    sqlx::query(long_ago).execute(&shop.database).await.unwrap();
    shop.fault(&phone, &json!({"kind": "status", "status": 500, "on": "restore-stock"})).await;

    shop.set_status(&id, "CANCELLED").await.expect(200);

    assert_eq!(shop.stock_work().await, json!({"open": 1, "overdue": 0, "parked": 0}));
    shop.heal(&phone).await;
    shop.no_stock_work().await;
    assert_eq!(shop.stock(&phone).await, 5);
}
