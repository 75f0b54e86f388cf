//! An event that Kafka rejects parks its order, not its bucket; operators decide, and the service records it.

use order_service::config::Environment;

use crate::support::{Shop, command, eventually};

/// An order whose bucket is 16: the remainder of its last byte by 64.
const STUCK: &str = "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10";

/// Writes an event that is larger than any broker accepts, and a later event of the same order, to the outbox, in the
/// bucket of another order. Returns the order.
async fn plant_a_giant(shop: &Shop) -> String {
    let giant = "
        insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
        select 16, gen_random_uuid(), '0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10', number, 'ORDER_PLACED',
               case number when 1 then repeat('x', 2000000) else '{\"metadata\":{\"sequence\":2}}' end, '[]'
        from generate_series(1, 2) as number";
    sqlx::query(giant).execute(&shop.database).await.unwrap();
    STUCK.to_owned()
}

async fn plant_in_the_same_bucket(shop: &Shop) {
    let small = "
        insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
        select 16, gen_random_uuid(), '0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d50', 1, 'ORDER_PLACED', '{}', '[]'";
    sqlx::query(small).execute(&shop.database).await.unwrap();
}

fn run(arguments: &[&str], environment: &Environment) -> (bool, String) {
    let output = command(arguments[0], environment).args(&arguments[1..]).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn a_refused_event_parks_its_order_but_not_its_bucket() {
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
async fn replaying_or_skipping_a_parked_order_is_recorded() {
    let shop = Shop::start().await;
    let stuck = plant_a_giant(&shop).await;
    eventually("the order is parked", async || shop.count("parked_orders").await == 1).await;

    // The event is still too large, so the order is parked again.
    assert!(run(&["outbox", "replay", &stuck, "--by", "ada"], &shop.environment).0);
    eventually("the order is parked again", async || shop.count("parked_orders").await == 1).await;
    assert!(run(&["outbox", "skip", &stuck, "--by", "bob"], &shop.environment).0);
    assert!(!run(&["outbox", "skip", &stuck, "--by", "bob"], &shop.environment).0);

    let record = shop.topic.records(1).await.remove(0);
    assert_eq!((record.key.as_str(), record.sequence()), (stuck.as_str(), 2));
    shop.relayed().await;
    let interventions: Vec<(String, String, i32)> =
        sqlx::query_as("select action, actor, length(detail) from interventions order by id")
            .fetch_all(&shop.database)
            .await
            .unwrap();
    assert_eq!(interventions[0], ("OUTBOX_REPLAY".into(), "ada".into(), 36));
    assert_eq!(interventions[1], ("OUTBOX_SKIP".into(), "bob".into(), 2_000_000));
}

/// The recorded interventions: action, detail and actor.
async fn interventions(shop: &Shop) -> Vec<(String, String, String)> {
    sqlx::query_as("select action, detail, actor from interventions order by id")
        .fetch_all(&shop.database)
        .await
        .unwrap()
}

#[tokio::test]
async fn skipping_an_event_that_is_already_gone_unparks_the_order_and_reports_it() {
    let shop = Shop::builder().without_service().await;
    let parked = "
        insert into parked_orders (order_id, event_id, sequence, error)
        values ($1::uuid, '0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d99', 1, 'too large')";
    sqlx::query(parked).bind(STUCK).execute(&shop.database).await.unwrap();

    assert!(run(&["outbox", "skip", STUCK, "--by", "bob"], &shop.environment).0);

    assert_eq!(shop.count("parked_orders").await, 0);
    let gone = "event 0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d99 was gone already";
    assert_eq!(interventions(&shop).await, [("OUTBOX_SKIP".into(), gone.into(), "bob".into())]);
}

/// The number of sequential scans of the outbox, and of scans of its primary key.
async fn reads_of_the_outbox(shop: &Shop) -> (i64, i64) {
    let reads = "select seq_scan, idx_scan from pg_stat_user_tables where relname = 'outbox'";
    sqlx::query_as(reads).fetch_one(&shop.database).await.unwrap()
}

/// After an outage of Kafka, the outbox may have millions of events: a full scan exceeds the deadline of a statement.
#[tokio::test]
async fn listing_and_skipping_parked_orders_does_not_read_the_whole_outbox() {
    let shop = Shop::builder().without_service().await;
    let backlog = "
        insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
        select number % 64, gen_random_uuid(), gen_random_uuid(), 1, 'ORDER_PLACED', repeat('x', 300), '[]'
        from generate_series(1, 20000) as number";
    let parked = "
        with event as (
            insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
            values (16, gen_random_uuid(), $1::uuid, 1, 'ORDER_PLACED', '{}', '[]')
            returning *
        )
        insert into parked_orders (order_id, event_id, sequence, error)
        select order_id, event_id, sequence, 'too large' from event";
    sqlx::query(backlog).execute(&shop.database).await.unwrap();
    sqlx::query(parked).bind(STUCK).execute(&shop.database).await.unwrap();
    sqlx::query("analyze outbox").execute(&shop.database).await.unwrap();

    let (_, listed) = run(&["outbox", "list"], &shop.environment);
    assert!(listed.contains("1 waiting"), "{listed}");
    assert!(run(&["outbox", "skip", STUCK, "--by", "bob"], &shop.environment).0);

    // A session reports its statistics when it ends, a moment after the command.
    eventually("the statistics include both commands", async || {
        let (whole, by_key) = reads_of_the_outbox(&shop).await;
        whole + by_key >= 2
    })
    .await;
    assert_eq!(reads_of_the_outbox(&shop).await.0, 0);
    assert_eq!(shop.count("outbox").await, 20_000);
}
