//! Payments during database outages, while replicas are killed, and in any order.

use std::collections::HashMap;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Mode, Payment, Proxy, Shop, eventually, figure, scale};

async fn confirmed(shop: &Shop) -> i64 {
    let count = "select count(*) from orders where status = 'CONFIRMED'";
    sqlx::query_scalar(count).fetch_one(&shop.database).await.unwrap()
}

/// Cuts the database while payments arrive, and restores it.
async fn without_database(mode: Mode) {
    let mut shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").without_service().await;
    let (proxy, url) = Proxy::before_database(&shop.environment.variables()["DATABASE_URL"]).await;
    let replica = shop.replica(&[("DATABASE_URL", &url), ("DATABASE_DEADLINE_MS", "500")]).await;
    shop.url.clone_from(&replica.url);
    let phone = shop.product("phone", "100", 50).await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(shop.placed("ada@example.com", &[(&phone, 1)]).await);
    }
    shop.pay(&Payment::success(&ids[0], "100")).await;
    eventually("payments are read", async || confirmed(&shop).await == 1).await;

    proxy.set(mode);
    let broken = b"{".to_vec();
    let mut records: Vec<_> = ids[1..5]
        .iter()
        .map(|id| (id.clone(), Payment::success(id, "100").record.to_string().into_bytes()))
        .collect();
    records.insert(2, (ids[1].clone(), broken.clone()));
    shop.payments.publish_all(&records).await;
    tokio::task::block_in_place(|| replica.wait_for_log("a payment could not be written"));
    assert_eq!((shop.count("payments").await, shop.count("parked_payments").await), (1, 0));
    proxy.set(Mode::Open);

    eventually("all orders are confirmed", async || confirmed(&shop).await == 5).await;
    eventually("the invalid payment is parked", async || shop.parked(&broken).await.len() == 1).await;
    assert_eq!((shop.count("payments").await, shop.count("payment_events").await), (5, 5));
    assert_eq!(shop.stock(&phone).await, 45);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_refuses_connections_delays_payments_and_loses_none() {
    without_database(Mode::Cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_answer_delays_payments_and_loses_none() {
    without_database(Mode::Silent).await;
}

#[tokio::test]
async fn a_payment_that_the_database_refuses_is_parked_and_the_others_are_applied() {
    let shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let phone = shop.product("phone", "100", 5).await;
    let ids = [
        shop.placed("ada@example.com", &[(&phone, 1)]).await,
        shop.placed("bob@example.com", &[(&phone, 1)]).await,
    ];
    let mut refused = Payment::success(&ids[0], "100");
    refused.record["metadata"]["eventId"] = "refused".into();
    sqlx::raw_sql(
        "alter table payment_events add constraint no_such_payment check (event_key not like '%:refused')",
    )
    .execute(&shop.database)
    .await
    .unwrap();

    shop.read(&ids[0], &[refused.clone(), Payment::success(&ids[1], "100")]).await;

    shop.becomes(&ids[1], "CONFIRMED").await;
    let parked = shop.parked(refused.record.to_string().as_bytes()).await;
    assert!(parked[0].3.contains("no_such_payment"), "{parked:?}");
    assert_eq!(shop.status(&ids[0]).await, "CREATED");
}

#[tokio::test]
async fn a_slow_product_does_not_block_other_confirmations() {
    let slow = [("PRODUCT_STOCK_TIMEOUT_MS", "20000"), ("STOCK_LEASE_MS", "60000")];
    let builder = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true");
    let shop =
        slow.into_iter().fold(builder, |builder, (name, value)| builder.with(name, value)).start().await;
    let (silent, phone) = (shop.product("silent", "100", 5).await, shop.product("phone", "100", 5).await);
    let stuck = shop.placed("ada@example.com", &[(&silent, 1)]).await;
    let before = shop.calls_seen(&silent).await;
    shop.fault(&silent, &json!({"kind": "hang", "on": "reduce-stock", "times": 1})).await;
    shop.pay(&Payment::success(&stuck, "100")).await;
    shop.called_again(&silent, before).await;

    let other = shop.placed("bob@example.com", &[(&phone, 1)]).await;
    shop.pay(&Payment::success(&other, "100")).await;

    shop.becomes(&other, "CONFIRMED").await;
    assert_eq!(shop.status(&stuck).await, "CREATED");
    assert_eq!(shop.stock_work().await["open"], 1);
}

#[tokio::test]
async fn killing_the_payment_consumer_causes_no_visible_repeat() {
    const ORDERS: usize = 24;
    let settings = [("PAYMENT_EVENTS_ENABLED", "true"), ("KAFKA_SESSION_TIMEOUT_MS", "6000")];
    let lease = [
        ("PRODUCT_STOCK_TIMEOUT_MS", "400"),
        ("STOCK_LEASE_MS", "900"),
        ("RELAY_LEASE_MS", "3000"),
        ("KAFKA_DELIVERY_TIMEOUT_MS", "1000"),
    ];
    let builder =
        settings.iter().chain(&lease).fold(Shop::builder(), |b, (name, value)| b.with(name, *value));
    let mut shop = builder.without_service().await;
    let victim = shop.replica(&[]).await;
    shop.url.clone_from(&victim.url);
    let phone = shop.product("phone", "100", 100).await;
    let mut ids = Vec::new();
    for _ in 0..ORDERS {
        ids.push(shop.placed("ada@example.com", &[(&phone, 1)]).await);
    }
    let records: Vec<_> = ids
        .iter()
        .map(|id| (id.clone(), Payment::success(id, "100").record.to_string().into_bytes()))
        .collect();
    shop.payments.publish_all(&records).await;

    eventually("some payments are applied", async || shop.count("payments").await >= 3).await;
    victim.kill();
    let heir = shop.replica(&[]).await;
    shop.url.clone_from(&heir.url);

    for id in &ids {
        shop.becomes(id, "CONFIRMED").await;
    }
    let payments = i64::try_from(ORDERS).unwrap();
    assert_eq!((shop.count("payments").await, shop.count("order_history").await), (payments, payments * 2));
    assert_eq!((shop.ledger(&phone).await.len(), shop.stock(&phone).await), (ORDERS, 100 - payments));
}

/// The contract's result for all payments of an order: the first success of its amount, or the first failure, is
/// final; a payment for a cancelled order is refunded.
fn expected(events: &[(&str, &str)]) -> (&'static str, Option<String>) {
    let decides = |event: &(&str, &str)| *event == ("PAYMENT_SUCCESS", "100") || event.0 == "PAYMENT_FAILED";
    let Some(at) = events.iter().position(decides) else { return ("CREATED", None) };
    if events[at].0 == "PAYMENT_SUCCESS" {
        return ("CONFIRMED", None);
    }
    let late = events[at..].iter().find(|(kind, _)| *kind == "PAYMENT_SUCCESS");
    ("CANCELLED", late.map(|(_, amount)| (*amount).to_owned()))
}

/// A small random number, from the UUID generator.
fn random(below: usize) -> usize {
    usize::from(Uuid::new_v4().as_bytes()[0]) % below
}

#[tokio::test]
async fn shuffled_and_repeated_payments_lead_to_the_result_of_the_contract() {
    let shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let orders = scale(40, 1000);
    let phone = shop.product("phone", "100", 1_000_000).await;
    let mut sent: HashMap<String, Vec<(&str, &str)>> = HashMap::new();
    let mut waiting: Vec<(String, Vec<Value>)> = Vec::new();
    for _ in 0..orders {
        let id = shop.placed("ada@example.com", &[(&phone, 1)]).await;
        let mut events: Vec<Value> = Vec::new();
        for _ in 0..random(6) {
            let kinds = [("PAYMENT_SUCCESS", "100"), ("PAYMENT_SUCCESS", "99"), ("PAYMENT_FAILED", "0")];
            let (kind, amount) = kinds[random(3)];
            let payment = match kind {
                "PAYMENT_FAILED" => Payment::failed(&id),
                _ => Payment::success(&id, amount),
            };
            sent.entry(id.clone()).or_default().push((kind, amount));
            events.push(payment.record);
            if random(2) == 0 {
                events.push(events[random(events.len())].clone());
            }
        }
        waiting.push((id, events));
    }
    // Events of different orders are shuffled; the events of one order keep their order, as in Kafka.
    let mut records = Vec::new();
    while let Some(last) = waiting.len().checked_sub(1) {
        let at = (random(256) * 256 + random(256)) % (last + 1);
        let (id, events) = &mut waiting[at];
        if events.is_empty() {
            waiting.swap_remove(at);
        } else {
            records.push((id.clone(), events.remove(0).to_string().into_bytes()));
        }
    }
    shop.payments.publish_all(&records).await;
    let distinct = i64::try_from(sent.values().map(Vec::len).sum::<usize>()).unwrap();
    // The timeout restarts with each progress, so that the long run has no total limit.
    let mut read = 0;
    while read < distinct {
        eventually("more payments are read", async || shop.count("payment_events").await > read).await;
        read = shop.count("payment_events").await;
    }
    assert_eq!(read, distinct);
    shop.no_stock_work().await;

    let mut confirmed = 0;
    for (id, events) in &sent {
        let (status, refund) = expected(events);
        assert_eq!(shop.status(id).await, status, "{events:?}");
        let due: Vec<String> = shop.refunds(id).await.into_iter().map(|(amount, _)| amount).collect();
        assert_eq!(due, Vec::from_iter(refund), "{events:?}");
        confirmed += usize::from(status == "CONFIRMED");
    }
    assert_eq!(shop.ledger(&phone).await.len(), confirmed);
    figure(&format!("{} payments of {orders} orders, shuffled and repeated: 0 differences", records.len()));
}
