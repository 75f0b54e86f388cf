//! Each index of the schema is used by a statement of the service or enforces uniqueness.

use std::collections::BTreeSet;

use serde_json::json;
use uuid::Uuid;

use crate::support::{Payment, Shop, admin, customer, eventually, lines};

/// The indexes that no statement has used so far. A unique index counts as used, because it enforces uniqueness.
async fn unused(shop: &Shop) -> BTreeSet<String> {
    let names: Vec<String> = sqlx::query_scalar(
        "select indexrelname::text from pg_stat_user_indexes join pg_index using (indexrelid)
         where idx_scan = 0 and not indisunique",
    )
    .fetch_all(&shop.database)
    .await
    .unwrap();
    names.into_iter().collect()
}

/// The requests of customers, admins and operators.
async fn requests(shop: &Shop) {
    let phone = shop.product("phone", "100", 9).await;
    let order = lines(&[(&phone, 2)]);
    let paid = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    let keyed = shop.call("POST", "/api/orders").by(customer("ada@example.com")).json(&order);
    keyed.header("Idempotency-Key", Uuid::new_v4().to_string()).send().await.expect(201);
    shop.pay(&Payment::success(&paid, "200")).await;
    shop.becomes(&paid, "CONFIRMED").await;
    // The list of a customer, the list of all orders, and each filter.
    shop.get(customer("ada@example.com"), "/api/orders/my").await.expect(200);
    for filter in ["", "?status=CREATED", "?customerId=ada@example.com"] {
        shop.get(admin(), &format!("/api/orders{filter}")).await.expect(200);
    }
    let both = "/api/orders?customerId=ada@example.com&status=CONFIRMED";
    shop.get(admin(), both).await.expect(200);
    shop.call("GET", "/health/ready").send().await.expect(200);
    for waiting in ["payments", "refunds"] {
        shop.operate(&[waiting, "list"]).await.text(0);
    }
    // A call of unknown outcome is repeated, so its job counts as failed.
    let broken = shop.product("broken", "100", 9).await;
    let failing = shop.placed("ada@example.com", &[(&broken, 1)]).await;
    shop.fault(&broken, &json!({"kind": "status", "status": 500, "on": "reduce-stock", "times": 1})).await;
    shop.pay(&Payment::success(&failing, "100")).await;
    shop.becomes(&failing, "CONFIRMED").await;
}

#[tokio::test]
async fn each_index_is_used_by_a_statement() {
    let builder = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").with("STOCK_POLL_INTERVAL_MS", "50");
    let mut shop = builder.start().await;
    // Shows that the test finds an unused index.
    let superfluous = "create index superfluous on orders (changed_at)";
    sqlx::query(superfluous).execute(&shop.database).await.unwrap();

    requests(&shop).await;
    shop.stop_service().await;
    let age = "update orders set placed_at = placed_at - interval '40 days', changed_at = changed_at - interval '40 days'";
    sqlx::query(age).execute(&shop.database).await.unwrap();
    let housekeeping =
        [("UNPAID_ORDER_TTL", "1"), ("ORDER_RETENTION", "30d"), ("HOUSEKEEPING_INTERVAL_MS", "50")];
    for (name, value) in housekeeping {
        shop.environment = shop.environment.clone().with(name, value);
    }
    shop.start_service().await;
    eventually("unpaid orders are cancelled and finished ones are deleted", async || {
        shop.count("orders where status <> 'CANCELLED'").await == 0
    })
    .await;
    // A session reports its statistics when it ends.
    shop.stop_service().await;

    let expected = BTreeSet::from(["superfluous".to_owned()]);
    eventually("every other index was used", async || unused(&shop).await == expected).await;
}
