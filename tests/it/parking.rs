//! An event that Kafka refuses for itself parks its order, not its bucket; people decide, and it is recorded.

use order_service::config::Environment;

use crate::support::{Shop, command, eventually};

/// Makes the outbox hold an event that is larger than any broker takes, and a later one of the same order, in
/// the bucket of another order. Returns the order.
async fn plant_a_giant(shop: &Shop) -> String {
    let giant = "
        insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
        select 0, gen_random_uuid(), '0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10', number, 'ORDER_PLACED',
               case number when 1 then repeat('x', 2000000) else '{\"metadata\":{\"sequence\":2}}' end, '[]'
        from generate_series(1, 2) as number";
    sqlx::query(giant).execute(&shop.database).await.unwrap();
    "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10".to_owned()
}

async fn plant_in_the_same_bucket(shop: &Shop) {
    let small = "
        insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
        select 0, gen_random_uuid(), '0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d11', 1, 'ORDER_PLACED', '{}', '[]'";
    sqlx::query(small).execute(&shop.database).await.unwrap();
}

fn run(arguments: &[&str], environment: &Environment) -> (bool, String) {
    let output = command(arguments[0], environment).args(&arguments[1..]).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn a_refused_event_parks_its_order_and_lets_the_others_of_its_bucket_pass() {
    let shop = Shop::start().await;
    let stuck = plant_a_giant(&shop).await;
    eventually("the order is parked", async || shop.count("parked_orders").await == 1).await;

    plant_in_the_same_bucket(&shop).await;

    let passed = shop.topic.records(1).await;
    assert_eq!(passed[0].payload, "{}");
    assert_eq!(shop.count("outbox").await, 2);
    let ready = shop.call("GET", "/health/ready").send().await.expect(200);
    assert_eq!(ready.body["components"]["outbox"]["parkedOrders"], 1);
    let (_, listed) = run(&["outbox", "list"], &shop.environment);
    assert!(listed.contains(&stuck) && listed.contains("2 waiting"), "{listed}");
}

#[tokio::test]
async fn a_parked_order_is_replayed_or_skipped_and_the_deed_is_recorded() {
    let shop = Shop::start().await;
    let stuck = plant_a_giant(&shop).await;
    eventually("the order is parked", async || shop.count("parked_orders").await == 1).await;

    // It is as large as before, so it parks again.
    assert!(run(&["outbox", "replay", &stuck, "--by", "ada"], &shop.environment).0);
    eventually("the order is parked again", async || shop.count("parked_orders").await == 1).await;
    assert!(run(&["outbox", "skip", &stuck, "--by", "bob"], &shop.environment).0);
    assert!(!run(&["outbox", "skip", &stuck, "--by", "bob"], &shop.environment).0);

    let record = shop.topic.records(1).await.remove(0);
    assert_eq!((record.key.as_str(), record.sequence()), (stuck.as_str(), 2));
    shop.relayed().await;
    let deeds: Vec<(String, String, i32)> =
        sqlx::query_as("select action, actor, length(detail) from interventions order by id")
            .fetch_all(&shop.database)
            .await
            .unwrap();
    assert_eq!(deeds[0], ("OUTBOX_REPLAY".into(), "ada".into(), 36));
    assert_eq!(deeds[1], ("OUTBOX_SKIP".into(), "bob".into(), 2_000_000));
}
