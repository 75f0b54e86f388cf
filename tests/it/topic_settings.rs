//! The service logs unsafe topic settings at its start, and creates only safe topics.

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

use crate::support::{Replica, Shop, stack};

type Admin = AdminClient<DefaultClientContext>;

fn admin(shop: &Shop) -> Admin {
    ClientConfig::new().set("bootstrap.servers", &shop.topic.bootstrap_servers).create().unwrap()
}

/// The embedded broker has no admin API: these two tests need a real broker.
fn is_real() -> bool {
    stack().cluster.is_none()
}

#[tokio::test]
async fn the_log_names_unsafe_topic_settings() {
    if !is_real() {
        return;
    }
    let shop = Shop::builder().without_service().await;
    let topic = NewTopic::new(&shop.topic.name, 1, TopicReplication::Fixed(1))
        .set("cleanup.policy", "compact")
        .set("unclean.leader.election.enable", "true");
    admin(&shop).create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    shop.topic.is_known(1).await;

    let replica = Replica::start(&shop.environment);

    let line = replica.wait_for_log("the topic is not safe").to_string();
    for named in [&shop.topic.name, "cleanup.policy=compact", "unclean.leader.election.enable=true"] {
        assert!(line.contains(named), "{line}");
    }
}

#[tokio::test]
async fn a_topic_created_by_the_service_has_the_configured_min_insync_replicas() {
    if !is_real() {
        return;
    }
    let shop = Shop::builder().with("KAFKA_TOPIC_MIN_INSYNC_REPLICAS", "1").without_service().await;

    let replica = Replica::start(&shop.environment);

    replica.wait_for_log("created the topic");
    shop.topic.is_known(3).await;
    let resource = ResourceSpecifier::Topic(&shop.topic.name);
    let told = admin(&shop).describe_configs([&resource], &AdminOptions::new()).await.unwrap();
    let told = told.into_iter().next().unwrap().unwrap();
    let min_insync = told.get("min.insync.replicas").unwrap();
    assert_eq!((min_insync.value.as_deref(), &min_insync.source), (Some("1"), &ConfigSource::DynamicTopic));
}

#[tokio::test]
async fn a_broker_that_does_not_return_its_settings_causes_no_warning() {
    let shop = Shop::builder().without_service().await;
    let mut replica = Replica::start(&shop.environment);
    let through = shop.through(&replica.url);
    let phone = through.product("phone", "10", 10).await;
    through.placed("ada@example.com", &[(&phone, 1)]).await;
    shop.expect_every_event().await;

    replica.signal("TERM");

    let log = format!("{:?}", replica.rest_of_log());
    assert!(!log.contains("not safe") && !log.contains("does not tell"), "{log}");
}
