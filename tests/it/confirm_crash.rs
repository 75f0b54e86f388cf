//! A replica is killed between recording a stock call, sending it and recording its outcome: another replica finishes
//! the work, and no stock moves twice.

use serde_json::json;

use crate::support::{Mode, Movement, Proxy, Replica, Shop, eventually};

const TIMES: [(&str, &str); 3] =
    [("PRODUCT_STOCK_TIMEOUT_MS", "2000"), ("STOCK_LEASE_MS", "4100"), ("STOCK_POLL_INTERVAL_MS", "50")];

/// A shop without a service, and a replica behind a database proxy that can be cut.
async fn shop_with_victim() -> (Shop, Replica, Proxy) {
    let builder = TIMES.iter().fold(Shop::builder(), |builder, (name, value)| builder.with(name, *value));
    let shop = builder.without_service().await;
    let (proxy, database) = Proxy::before_database(&shop.environment.variables()["DATABASE_URL"]).await;
    let victim = shop.replica(&[("DATABASE_URL", &database)]).await;
    (shop, victim, proxy)
}

async fn placed_at(shop: &mut Shop, victim: &Replica, phone: &str) -> String {
    shop.url.clone_from(&victim.url);
    shop.placed("ada@example.com", &[(phone, 2)]).await
}

#[tokio::test]
async fn a_kill_during_a_stock_call_moves_no_stock_twice() {
    let (mut shop, victim, _proxy) = shop_with_victim().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = placed_at(&mut shop, &victim, &phone).await;
    shop.fault(&phone, &json!({"kind": "hang", "on": "reduce-stock"})).await;
    let before = shop.calls_seen(&phone).await;

    let kill = async {
        shop.called_again(&phone, before).await;
        victim.kill();
    };
    let url = shop.url.clone();
    let (answer, ()) = tokio::join!(shop.confirm_at(&url, &id), kill);
    assert!(answer.is_none(), "{answer:?}");
    assert_eq!(shop.ledger(&phone).await, []);
    shop.heal(&phone).await;
    shop.start_service().await;

    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
    assert_eq!(shop.topic.records_of(&id, 2).await.len(), 2);
}

#[tokio::test]
async fn a_kill_before_taken_stock_is_recorded_moves_no_stock_twice() {
    let (mut shop, victim, proxy) = shop_with_victim().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = placed_at(&mut shop, &victim, &phone).await;
    // Slow enough to cut the database connection during the call.
    shop.fault(&phone, &json!({"kind": "slow", "millis": 200, "on": "reduce-stock"})).await;
    let before = shop.calls_seen(&phone).await;

    let kill = async {
        shop.called_again(&phone, before).await;
        proxy.set(Mode::Silent);
        eventually("the stock is taken", async || shop.ledger(&phone).await.len() == 1).await;
        victim.kill();
    };
    let url = shop.url.clone();
    let (answer, ()) = tokio::join!(shop.confirm_at(&url, &id), kill);
    assert!(answer.is_none(), "{answer:?}");
    let state: String =
        sqlx::query_scalar("select state from stock_lines").fetch_one(&shop.database).await.unwrap();
    assert_eq!(state, "TAKING");
    shop.start_service().await;

    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
}

#[tokio::test]
async fn a_kill_before_returned_stock_is_recorded_moves_no_stock_twice() {
    let (mut shop, victim, proxy) = shop_with_victim().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = placed_at(&mut shop, &victim, &phone).await;
    shop.set_status(&id, "CONFIRMED").await.expect(200);
    shop.fault(&phone, &json!({"kind": "slow", "millis": 200, "on": "restore-stock"})).await;
    let before = shop.calls_seen(&phone).await;

    shop.set_status(&id, "CANCELLED").await.expect(200);
    shop.called_again(&phone, before).await;
    proxy.set(Mode::Silent);
    eventually("the stock is back", async || shop.ledger(&phone).await.len() == 2).await;
    victim.kill();
    let state: String =
        sqlx::query_scalar("select state from stock_lines").fetch_one(&shop.database).await.unwrap();
    assert_eq!(state, "RETURNING");
    shop.start_service().await;

    shop.no_stock_work().await;
    let expected = [Movement::new(-2, &id, 1, "take", 1), Movement::new(2, &id, 1, "give-back", 1)];
    assert_eq!(shop.ledger(&phone).await, expected);
}

#[tokio::test]
async fn a_kill_without_honoured_keys_leaves_the_line_to_an_operator() {
    let keys = ("PRODUCT_HONOURS_IDEMPOTENCY_KEY", "false");
    let builder = TIMES.iter().fold(Shop::builder(), |builder, (name, value)| builder.with(name, *value));
    let mut shop = builder.with(keys.0, keys.1).without_service().await;
    let victim = shop.replica(&[]).await;
    let phone = shop.product("phone", "100", 5).await;
    let id = placed_at(&mut shop, &victim, &phone).await;
    shop.fault(&phone, &json!({"kind": "hang", "on": "reduce-stock"})).await;
    let before = shop.calls_seen(&phone).await;

    let url = shop.url.clone();
    let kill = async {
        shop.called_again(&phone, before).await;
        victim.kill();
    };
    tokio::join!(shop.confirm_at(&url, &id), kill);
    shop.heal(&phone).await;
    shop.start_service().await;

    eventually("the job is parked", async || shop.stock_work().await["parked"] == 1).await;
    assert_eq!(shop.calls_seen(&phone).await, before + 1);
    assert_eq!(shop.status(&id).await, "CREATED");
}
