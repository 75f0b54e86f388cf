//! `order-service events replay` publishes events again with the same content.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::support::{Payment, Record, Shop, Topic, command, eventually, expect_history, signal, stack};

const ADA: &str = "ada@example.com";

const ALL_TIME: [&str; 4] = ["--from", "2020-01-01T00:00:00Z", "--to", "2100-01-01T00:00:00Z"];

/// A new topic, for a consumer that has lost its data.
async fn new_topic(shop: &Shop) -> Topic {
    let name = format!("order-events-replay-{}", Uuid::new_v4().simple());
    let topic = Topic { name, ..shop.topic.clone() };
    match &stack().cluster {
        Some(cluster) => cluster.create_topic(&topic.name, 3).unwrap(),
        None => topic.create(3).await,
    }
    topic
}

/// Key, value and headers of a record.
type Content<'a> = (&'a str, &'a str, &'a [(String, String)]);

/// The content of records, without partition and offset.
fn contents(records: &[Record]) -> Vec<Content<'_>> {
    records
        .iter()
        .map(|record| (record.key.as_str(), record.payload.as_str(), record.headers.as_slice()))
        .collect()
}

#[tokio::test]
async fn a_replay_of_an_order_sends_byte_identical_events() {
    let shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let (phone, case) = (shop.product("phone", "249.90", 9).await, shop.product("case", "10", 9).await);
    let order = shop.placed(ADA, &[(&phone, 2), (&case, 1)]).await;
    let other = shop.placed(ADA, &[(&phone, 1)]).await;
    shop.pay(&Payment::success(&order, "509.80")).await;
    shop.becomes(&order, "CONFIRMED").await;
    shop.set_status(&order, "CANCELLED").await.expect(200);
    let first = shop.topic.records_of(&order, 3).await;
    assert!(first[2].payload.contains("refundDue"));
    let target = new_topic(&shop).await;

    let replay = ["events", "replay", "--order", &order, "--topic", &target.name, "--by", "bob", "--json"];
    let said = shop.operate(&replay).await.json(0);

    let expected = json!({"topic": target.name, "orders": 1, "events": 3, "complete": true, "after": null});
    assert_eq!(said, expected);
    let again = target.everything().await;
    assert_eq!(contents(&again), contents(&first));
    let detail = format!("to {}: {order}", target.name);
    assert_eq!(shop.interventions().await, [("EVENTS_REPLAY".into(), detail, "bob".into())]);
    let unknown = Uuid::now_v7().to_string();
    let replay = ["events", "replay", "--order", &unknown, "--topic", &target.name, "--by", "bob"];
    assert!(shop.operate(&replay).await.error(1).contains("1 of these orders do not exist"));
    // A replay of both orders sends the events of both and changes neither order.
    let both =
        ["events", "replay", "--order", &other, "--order", &order, "--topic", &target.name, "--by", "bob"];
    shop.operate(&both).await.text(0);
    assert_eq!(target.everything().await.len(), 3 + 4);
    assert_eq!((shop.count("order_history").await, shop.count("outbox").await), (4, 0));
}

#[tokio::test]
async fn a_replay_of_a_time_range_includes_changes_of_older_orders() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 9).await;
    let before = shop.placed(ADA, &[(&phone, 1)]).await;
    let changed = shop.placed(ADA, &[(&phone, 2)]).await;
    let now = async || -> String {
        let now = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        sqlx::query_scalar(now).fetch_one(&shop.database).await.unwrap()
    };
    let from = now().await;
    shop.set_status(&changed, "CONFIRMED").await.expect(200);
    let within = shop.placed(ADA, &[(&phone, 3)]).await;
    let to = now().await;
    shop.set_status(&before, "CANCELLED").await.expect(200);
    let target = new_topic(&shop).await;

    let replay = ["events", "replay", "--from", &from, "--to", &to, "--topic", &target.name, "--by", "bob"];
    let said = shop.operate(&replay).await.text(0);

    assert!(said.contains("2 events of 2 orders"), "{said}");
    let mut sent: Vec<(String, i64)> =
        target.everything().await.iter().map(|record| (record.key.clone(), record.sequence())).collect();
    sent.sort_unstable();
    let mut expected = vec![(changed, 2), (within, 1)];
    expected.sort_unstable();
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn a_killed_replay_can_be_restarted_or_resumed_after_an_order() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 1_000).await;
    let mut orders = Vec::new();
    for _ in 0..30 {
        orders.push(shop.placed(ADA, &[(&phone, 1)]).await);
    }
    for order in &orders[..10] {
        shop.set_status(order, "CONFIRMED").await.expect(200);
    }
    let target = new_topic(&shop).await;
    let range = [&ALL_TIME[..], &["--topic", &target.name, "--by", "bob"]].concat();
    let mut slow = command("events", &shop.environment);
    let mut slow = slow.arg("replay").args(&range).args(["--rate", "10"]).spawn().unwrap();
    target.records(3).await;
    signal(&slow, "KILL");
    slow.wait().unwrap();

    let again = [&["events", "replay"][..], &range[..]].concat();
    shop.operate(&again).await.text(0);

    expect_history(&target.everything().await, &shop.versions().await);
    assert_eq!(shop.interventions().await.len(), 2);
    orders.sort_unstable();
    let rest = new_topic(&shop).await;
    let range = [&ALL_TIME[..], &["--topic", &rest.name, "--by", "bob"]].concat();
    let after = [&["events", "replay", "--after", &orders[24]][..], &range[..]].concat();
    shop.operate(&after).await.text(0);
    let keys: Vec<String> = rest.everything().await.into_iter().map(|record| record.key).collect();
    assert!(keys.iter().all(|key| orders[25..].contains(key)) && keys.len() == 5, "{keys:?}");
}

#[tokio::test]
async fn events_without_stored_ids_have_the_same_id_in_every_replay() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 9).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    shop.set_status(&order, "CONFIRMED").await.expect(200);
    let first = shop.topic.records_of(&order, 2).await;
    let forget = "update order_history set event_id = null, traceparent = null";
    sqlx::query(forget).execute(&shop.database).await.unwrap();
    let target = new_topic(&shop).await;
    let replay = ["events", "replay", "--order", &order, "--topic", &target.name, "--by", "bob"];

    for _ in 0..2 {
        shop.operate(&replay).await.text(0);
    }

    let sent = target.everything().await;
    assert_eq!(contents(&sent[..2]), contents(&sent[2..]));
    let sequences: Vec<i64> = sent.iter().map(Record::sequence).collect();
    assert_eq!(sequences, [1, 2, 1, 2]);
    for (first, sent) in first.iter().zip(&sent) {
        let (mut first, mut sent) = (first.value(), sent.value());
        assert_ne!(first["metadata"]["eventId"], sent["metadata"]["eventId"]);
        first["metadata"]["eventId"].take();
        sent["metadata"]["eventId"].take();
        assert_eq!(first, sent);
    }
}

#[tokio::test]
async fn a_replay_does_not_exceed_its_rate() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 9).await;
    for _ in 0..12 {
        shop.placed(ADA, &[(&phone, 1)]).await;
    }
    let target = new_topic(&shop).await;
    let replay =
        [&["events", "replay", "--topic", &target.name, "--by", "bob", "--rate", "10"], &ALL_TIME[..]]
            .concat();
    let started = std::time::Instant::now();

    shop.operate(&replay).await.text(0);

    // A slow machine only increases the duration.
    assert!(started.elapsed() >= Duration::from_millis(1_100), "{:?}", started.elapsed());
    assert_eq!(target.everything().await.len(), 12);
}

#[tokio::test]
async fn a_harmful_or_contradictory_replay_is_refused_and_sends_nothing() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 9).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    shop.relayed().await;
    let live = shop.topic.name.clone();
    let (from, to) = ("2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z");
    let refused: [(&[&str], i32, &str); 8] = [
        (&["--order", &order, "--topic", &live], 2, "--to-all-consumers"),
        (&["--order", &order, "--topic", &shop.payments.name], 2, "PAYMENT_EVENTS_TOPIC"),
        (&["--order", &order, "--topic", "no such topic"], 2, "--topic"),
        (&["--order", "7", "--topic", "x"], 2, "--order"),
        (&["--from", from, "--topic", "x"], 2, "--to"),
        (&["--from", from, "--to", to, "--topic", "x"], 2, "--from must be before --to"),
        (&["--from", "yesterday", "--to", to, "--topic", "x"], 2, "--from"),
        (&["--order", &order, "--topic", "x", "--rate", "0"], 2, "--rate"),
    ];
    for (arguments, code, name) in refused {
        let all = [&["events", "replay", "--by", "bob"][..], arguments].concat();
        let said = shop.operate(&all).await.error(code);
        assert!(said.contains(name), "{arguments:?}: {said}");
    }

    assert_eq!(shop.interventions().await, []);
    assert_eq!(shop.topic.everything().await.len(), 1);
    // With the explicit option, the replay sends a byte-identical repeat.
    let all = ["events", "replay", "--order", &order, "--topic", &live, "--to-all-consumers", "--by", "bob"];
    shop.operate(&all).await.text(0);
    eventually("the repeat has arrived", async || shop.topic.everything().await.len() == 2).await;
    expect_history(&shop.topic.everything().await, &shop.versions().await);
}
