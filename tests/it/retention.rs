//! The retention deletes an old order with all its rows, or not at all.

use std::collections::BTreeSet;

use order_service::config::Environment;
use sqlx::AssertSqlSafe;

use crate::support::{Payment, Shop, admin, customer, eventually};

const ADA: &str = "ada@example.com";
const TABLES: [&str; 7] =
    ["orders", "order_items", "order_history", "stock_jobs", "stock_lines", "payments", "payment_events"];

/// Moves all times of an order `days` into the past.
async fn age(shop: &Shop, order: &str, days: u32) {
    let update = format!(
        "update orders set placed_at = placed_at - interval '{days} days', changed_at = changed_at - interval '{days} days'
         where id = '{order}'"
    );
    sqlx::query(AssertSqlSafe(update)).execute(&shop.database).await.unwrap();
}

async fn rows_of(shop: &Shop, table: &str, order: &str) -> i64 {
    let key = if table == "orders" { "id" } else { "order_id" };
    shop.count(&format!("{table} where {key} = '{order}'")).await
}

#[tokio::test]
async fn an_old_order_is_deleted_with_all_its_rows_and_a_repeat_of_its_payment_changes_nothing() {
    let mut shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let phone = shop.product("phone", "10", 100).await;
    let paid = shop.placed(ADA, &[(&phone, 1)]).await;
    let payment = Payment::success(&paid, "10");
    shop.pay(&payment).await;
    eventually("the payment confirms", async || shop.status(&paid).await == "CONFIRMED").await;
    let cancelled = shop.placed(ADA, &[(&phone, 2)]).await;
    shop.set_status(&cancelled, "CONFIRMED").await.expect(200);
    shop.set_status(&cancelled, "CANCELLED").await.expect(200);
    let returned = format!("stock_jobs where order_id = '{cancelled}' and state = 'RETURNED'");
    eventually("the stock is given back", async || shop.count(&returned).await == 1).await;
    shop.expect_every_event().await;
    for table in TABLES {
        assert_eq!(rows_of(&shop, table, &paid).await.min(1), 1, "{table}");
    }
    for order in [&paid, &cancelled] {
        age(&shop, order, 40).await;
    }

    shop.stop_service().await;
    shop.environment = retention_of(&shop, "30d");
    shop.start_service().await;
    eventually("both are deleted", async || shop.count("orders").await == 0).await;
    for table in TABLES {
        assert_eq!(shop.count(table).await, 0, "{table}");
    }
    shop.get(customer(ADA), &format!("/api/orders/{paid}")).await.expect_problem(404, "order-not-found");

    shop.pay(&payment).await;
    eventually("the repeat is parked", async || shop.count("parked_payments").await == 1).await;
    assert_eq!((shop.count("payments").await, shop.stock(&phone).await), (0, 99));
    shop.stop_service().await;
}

#[tokio::test]
async fn a_recent_or_unfinished_order_is_not_deleted() {
    let mut shop = Shop::start().await;
    let phone = shop.product("phone", "10", 100).await;
    let order = async |status: Option<&str>, days: u32, more: &str| {
        let id = shop.placed(ADA, &[(&phone, 1)]).await;
        if let Some(status) = status {
            shop.set_status(&id, status).await.expect(200);
        }
        age(&shop, &id, days).await;
        if !more.is_empty() {
            let more = AssertSqlSafe(more.replace("ID", &format!("'{id}'")));
            sqlx::query(more).execute(&shop.database).await.unwrap();
        }
        id
    };
    let stays = BTreeSet::from([
        order(None, 40, "").await,
        order(Some("CONFIRMED"), 29, "").await,
        // An old order with a recent change.
        order(Some("CONFIRMED"), 40, "update orders set changed_at = now() where id = ID").await,
        order(Some("CONFIRMED"), 40, "update stock_jobs set parked = 'why', state = 'RETURNING' where order_id = ID").await,
        order(Some("CANCELLED"), 40, "insert into refunds_due (order_id, amount, reason) values (ID, 10, 'why')").await,
        order(
            Some("CANCELLED"),
            40,
            "insert into parked_orders (order_id, event_id, sequence, error) values (ID, gen_random_uuid(), 1, 'why')",
        )
        .await,
        order(
            Some("CANCELLED"),
            40,
            "insert into parked_payments (topic, partition, \"offset\", order_id, payload, error)
             values ('payments', 0, 1, ID, '', 'why')",
        )
        .await,
    ]);
    let goes = order(Some("CANCELLED"), 39, "").await;

    shop.stop_service().await;
    shop.environment = retention_of(&shop, "30d");
    shop.start_service().await;
    eventually("the other one is deleted", async || rows_of(&shop, "orders", &goes).await == 0).await;

    assert_eq!(shop.versions().await.into_keys().collect::<BTreeSet<_>>(), stays);
    for id in &stays {
        shop.get(admin(), &format!("/api/orders/{id}/history")).await.expect(200);
    }
    shop.expect_whole_orders().await;
    shop.stop_service().await;
}

#[tokio::test]
async fn old_settled_payments_of_unknown_orders_are_deleted_and_open_ones_stay() {
    let mut shop = Shop::start().await;
    let parked = "
        insert into parked_payments (topic, partition, \"offset\", order_id, payload, error, parked_at, settled_at)
        select 'payments', 0, number, case number % 2 when 0 then gen_random_uuid() end, 'ada@example.com', 'why',
               now() - interval '400 days', settled_at
        from unnest(array[now() - interval '31 days', now() - interval '31 days', now() - interval '29 days', null])
             with ordinality as payment (settled_at, number)";
    sqlx::query(parked).execute(&shop.database).await.unwrap();

    shop.stop_service().await;
    shop.environment = retention_of(&shop, "30d");
    shop.start_service().await;
    eventually("two are deleted", async || shop.count("parked_payments").await == 2).await;
    let kept = "parked_payments where settled_at is null or settled_at > now() - interval '30 days'";
    assert_eq!(shop.count(kept).await, 2);
    shop.stop_service().await;
}

fn retention_of(shop: &Shop, age: &str) -> Environment {
    shop.environment.clone().with("ORDER_RETENTION", age).with("HOUSEKEEPING_INTERVAL_MS", "50")
}
