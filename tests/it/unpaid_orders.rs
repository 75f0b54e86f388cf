//! An order is cancelled as unpaid only if the topic had no payment for it before its deadline.

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use serde_json::json;
use sqlx::Connection;

use crate::support::{Mode, PATIENCE, Payment, Proxy, Shop, eventually};

/// The extra settings of the replica that cancels. The replica that receives the orders reads no payments.
const SWEEPER: [(&str, &str); 3] =
    [("PAYMENT_EVENTS_ENABLED", "true"), ("UNPAID_ORDER_TTL", "1"), ("HOUSEKEEPING_INTERVAL_MS", "20")];
/// A group that has lost a member waits this long.
const SESSION: (&str, &str) = ("KAFKA_SESSION_TIMEOUT_MS", "6000");
const BOB: &str = "bob@example.com";

/// Waits until the deadline of every current order has passed.
async fn deadlines_pass(shop: &Shop) {
    let over = "select bool_and(placed_at < now() - interval '1 s') from orders";
    eventually("the deadline has passed", async || {
        sqlx::query_scalar(over).fetch_one(&shop.database).await.unwrap()
    })
    .await;
}

async fn expect_unpaid_is_cancelled(shop: &Shop, unpaid: &str) {
    shop.becomes(unpaid, "CANCELLED").await;
    let event = shop.topic.records_of(unpaid, 2).await.remove(1).value();
    assert_eq!(event["metadata"]["reason"], "PAYMENT_TIMEOUT");
}

#[tokio::test]
async fn an_order_paid_while_no_consumer_ran_is_confirmed_and_not_cancelled() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let paid = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    let unpaid = shop.placed(BOB, &[(&phone, 1)]).await;
    shop.pay(&Payment::success(&paid, "100")).await;
    deadlines_pass(&shop).await;

    let _replica = shop.replica(&SWEEPER).await;

    expect_unpaid_is_cancelled(&shop, &unpaid).await;
    shop.becomes(&paid, "CONFIRMED").await;
    assert_eq!(shop.refunds(&paid).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_order_is_cancelled_during_a_kafka_outage() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let paid = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    let unpaid = shop.placed(BOB, &[(&phone, 1)]).await;
    shop.pay(&Payment::success(&paid, "100")).await;
    // A client gets the addresses of the brokers through the first one.
    let broker = shop.payments.bootstrap_servers.split(',').next().unwrap();
    let proxy = Proxy::before(tokio::net::lookup_host(broker).await.unwrap().next().unwrap()).await;
    proxy.set(Mode::Cut);
    deadlines_pass(&shop).await;

    let address = proxy.address.to_string();
    let settings = [&SWEEPER[..], &[("KAFKA_BOOTSTRAP_SERVERS", &address)]].concat();
    let replica = shop.replica(&settings).await;
    tokio::task::block_in_place(|| replica.wait_for_log("no unpaid order is cancelled right now"));
    assert_eq!((shop.status(&paid).await, shop.status(&unpaid).await), ("CREATED".into(), "CREATED".into()));

    proxy.set(Mode::Open);
    shop.becomes(&paid, "CONFIRMED").await;
    expect_unpaid_is_cancelled(&shop, &unpaid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_payment_waits_behind_a_slow_one_is_not_cancelled() {
    let mut shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").without_service().await;
    let replica = shop.replica(&[("DATABASE_DEADLINE_MS", "500"), SESSION]).await;
    shop.url.clone_from(&replica.url);
    let phone = shop.product("phone", "100", 5).await;
    let slow = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    let paid = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    let unpaid = shop.placed(BOB, &[(&phone, 1)]).await;
    let mut connection = shop.database.acquire().await.unwrap();
    let mut lock = connection.begin().await.unwrap();
    sqlx::query("select from orders where id = $1::uuid for update")
        .bind(&slow)
        .execute(&mut *lock)
        .await
        .unwrap();
    let records: Vec<_> = [&slow, &paid]
        .map(|id| (slow.clone(), Payment::success(id, "100").record.to_string().into_bytes()))
        .into();
    shop.payments.publish_all(&records).await;
    deadlines_pass(&shop).await;

    // Not the replica that reads the payments.
    let sweeper = shop.replica(&[&SWEEPER[..], &[SESSION]].concat()).await;
    tokio::task::block_in_place(|| sweeper.wait_for_log("unpaid orders stay until"));
    // The payment behind the slow one may be applied, but its offset is not committed.
    assert_ne!(shop.status(&paid).await, "CANCELLED");
    assert_eq!(shop.status(&unpaid).await, "CREATED");
    lock.rollback().await.unwrap();

    for id in [&slow, &paid] {
        shop.becomes(id, "CONFIRMED").await;
    }
    expect_unpaid_is_cancelled(&shop, &unpaid).await;
}

/// A real broker writes the marker of a transaction behind its record; consumers never receive the marker.
#[tokio::test]
async fn transactional_records_do_not_block_cancellations() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let unpaid = shop.placed(BOB, &[(&phone, 1)]).await;
    let topic = shop.payments.clone();
    tokio::task::spawn_blocking(move || {
        let producer: ThreadedProducer<_> = ClientConfig::new()
            .set("bootstrap.servers", &topic.bootstrap_servers)
            .set("transactional.id", &topic.name)
            .create()
            .unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        let ignored = json!({"eventType": "PAYMENT_CREATED"}).to_string();
        for partition in 0..3 {
            let record = BaseRecord::<str, str>::to(&topic.name).partition(partition).payload(&ignored);
            producer.send(record).unwrap();
        }
        producer.commit_transaction(PATIENCE).unwrap();
    })
    .await
    .unwrap();
    deadlines_pass(&shop).await;

    let _replica = shop.replica(&SWEEPER).await;

    expect_unpaid_is_cancelled(&shop, &unpaid).await;
}
