//! Kafka is unreachable or returns errors.
//!
//! Each test has its own cluster, which fails on command.

use futures_util::future::join_all;
use order_service::dev::Kafka;
use order_service::dev::kafka::ALL_BROKERS;
use rdkafka::types::RDKafkaRespErr;

use crate::support::{Replica, Shop, embedded_kafka, eventually};

const ADA: &str = "ada@example.com";

/// A shop on this cluster, with short timeouts; the service is not started yet.
async fn shop_on(kafka: &Kafka) -> Shop {
    Shop::builder()
        .kafka(kafka.bootstrap_servers())
        .with("KAFKA_DELIVERY_TIMEOUT_MS", "1000")
        .with("RELAY_LEASE_MS", "3000")
        .with("RELAY_MAX_BACKOFF_MS", "200")
        .without_service()
        .await
}

/// A running service on its own cluster, which has the topic.
async fn shop_and_cluster() -> (Shop, Kafka) {
    let kafka = embedded_kafka(1);
    let mut shop = shop_on(&kafka).await;
    kafka.create_topic(&shop.topic.name, 3).unwrap();
    shop.start_service().await;
    (shop, kafka)
}

/// Concurrent orders with one, two and three events each.
async fn trade(shop: &Shop, product: &str, count: usize) {
    join_all((0..count).map(async |number| {
        let order = shop.placed(ADA, &[(product, 1)]).await;
        for status in ["CONFIRMED", "CANCELLED"].iter().take(number % 3) {
            shop.set_status(&order, status).await.expect(200);
        }
    }))
    .await;
}

async fn kafka_is(shop: &Shop, word: &str) {
    eventually(&format!("readiness stays 200 and shows that Kafka is {word}"), async || {
        shop.call("GET", "/health/ready").send().await.expect(200).body["components"]["kafka"] == word
    })
    .await;
}

#[tokio::test]
async fn orders_are_placed_during_a_kafka_outage_and_every_event_arrives_afterwards() {
    let kafka = embedded_kafka(1);
    let mut shop = shop_on(&kafka).await;
    kafka.create_topic(&shop.topic.name, 3).unwrap();
    kafka.broker_down(ALL_BROKERS).unwrap();
    shop.start_service().await;
    let phone = shop.product("phone", "10", 1_000).await;

    trade(&shop, &phone, 30).await;
    kafka_is(&shop, "down").await;
    assert_eq!(shop.count("outbox").await, 60);

    kafka.broker_up(ALL_BROKERS).unwrap();
    shop.expect_every_event().await;
    kafka_is(&shop, "up").await;
}

#[tokio::test]
async fn repeated_kafka_outages_during_placements_lose_no_event() {
    let (shop, kafka) = shop_and_cluster().await;
    let phone = shop.product("phone", "10", 10_000).await;

    for _ in 0..3 {
        kafka_is(&shop, "up").await;
        let outage = async { kafka.broker_down(ALL_BROKERS).unwrap() };
        tokio::join!(trade(&shop, &phone, 30), outage);
        trade(&shop, &phone, 10).await;
        kafka_is(&shop, "down").await;
        kafka.broker_up(ALL_BROKERS).unwrap();
        trade(&shop, &phone, 10).await;
    }

    shop.expect_every_event().await;
}

#[tokio::test]
async fn the_log_names_a_missing_topic_and_its_events_wait() {
    let kafka = embedded_kafka(1);
    let mut shop = shop_on(&kafka).await;
    let environment = shop.environment.clone().with("KAFKA_CREATE_TOPIC", "false");
    let replica = Replica::start(&environment);
    shop = shop.through(&replica.url);
    let phone = shop.product("phone", "10", 1_000).await;

    trade(&shop, &phone, 6).await;
    let line = replica.wait_for_log("the relay failed")["error"].to_string();
    assert!(line.contains(&shop.topic.name) && line.contains("KAFKA_CREATE_TOPIC is false"), "{line}");
    assert_eq!(shop.count("outbox").await, 12);

    kafka.create_topic(&shop.topic.name, 3).unwrap();
    shop.expect_every_event().await;
}

#[tokio::test]
async fn broker_errors_lose_no_event_and_keep_the_order_of_events() {
    use RDKafkaRespErr as E;
    let errors = [
        E::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        E::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        E::RD_KAFKA_RESP_ERR__TRANSPORT,
        E::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        E::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        E::RD_KAFKA_RESP_ERR_INVALID_MSG,
        E::RD_KAFKA_RESP_ERR_UNKNOWN,
        E::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
        E::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        E::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
    ];
    let (shop, kafka) = shop_and_cluster().await;
    let phone = shop.product("phone", "10", 10_000).await;

    // One event at a time. With several requests in flight, the embedded cluster would accept the later ones, but a
    // real broker refuses them after a failed one (its idempotence checks).
    let refuse = |error| kafka.produce_errors(&[error]).unwrap();
    for error in errors {
        refuse(error);
        let order = shop.placed(ADA, &[(&phone, 1)]).await;
        shop.relayed().await;
        for status in ["CONFIRMED", "CANCELLED"] {
            refuse(error);
            shop.set_status(&order, status).await.expect(200);
            shop.relayed().await;
        }
    }

    shop.expect_every_event().await;
}

#[tokio::test]
async fn a_service_stopped_during_a_kafka_outage_leaves_its_events_to_the_next() {
    let (mut shop, kafka) = shop_and_cluster().await;
    let phone = shop.product("phone", "10", 1_000).await;
    kafka.broker_down(ALL_BROKERS).unwrap();
    trade(&shop, &phone, 12).await;

    shop.stop_service().await;
    assert_ne!(shop.count("outbox").await, 0);
    kafka.broker_up(ALL_BROKERS).unwrap();

    shop.start_service().await;
    shop.expect_every_event().await;
}
