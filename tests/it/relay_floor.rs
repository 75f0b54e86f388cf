//! The relay starts its reads at a floor, so that deleted rows cost nothing, and misses no event below it.

use order_service::config::Environment;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use crate::relay::pile_up;
use crate::support::{Shop, command, eventually, expect_history};

const ADA: &str = "ada@example.com";

/// The payload of a real event, its sequence 1.
async fn template(shop: &Shop) -> (String, String) {
    let phone = shop.product("phone", "10", 1_000).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    (shop.topic.records(1).await.remove(0).payload, order)
}

/// Writes an event of an order in a transaction that stays open; returns the transaction and the position.
async fn write_late(
    shop: &Shop,
    template: &str,
    order: Uuid,
    sequence: i32,
) -> (Transaction<'static, Postgres>, i64) {
    let mut late = shop.database.begin().await.unwrap();
    let position = sqlx::query_scalar(
        r#"insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
           values (5, gen_random_uuid(), $1, $2, 'ORDER_PLACED',
                   replace(replace($3, '"sequence":1', '"sequence":' || $2),
                           '"timestamp":"20', '"timestamp":"2' || $2), '[]')
           returning position"#,
    )
    .bind(order)
    .bind(sequence)
    .bind(template)
    .fetch_one(&mut *late)
    .await
    .unwrap();
    (late, position)
}

async fn lowest_floor(shop: &Shop) -> i64 {
    sqlx::query_scalar("select min(floor) from relay_leases").fetch_one(&shop.database).await.unwrap()
}

#[tokio::test]
async fn an_event_that_commits_late_is_relayed_before_later_events_of_its_order() {
    let shop = Shop::builder().with("RELAY_BATCH", "4000").start().await;
    let (payload, order) = template(&shop).await;
    let late_order = Uuid::now_v7();
    let (late, position) = write_late(&shop, &payload, late_order, 1).await;

    let mut due = pile_up(&shop, &payload, 5_000).await;
    shop.relayed().await;
    eventually("the floors were raised", async || lowest_floor(&shop).await > 0).await;
    assert!(lowest_floor(&shop).await <= position, "the floor has passed an open transaction");
    late.commit().await.unwrap();
    let (later, position) = write_late(&shop, &payload, late_order, 2).await;
    later.commit().await.unwrap();

    shop.relayed().await;
    due.extend([(order, 1), (late_order.to_string(), 2)]);
    expect_history(&shop.topic.everything().await, &due);
    eventually("the floors have passed all events", async || lowest_floor(&shop).await > position).await;
}

#[tokio::test]
async fn an_open_transaction_does_not_delay_events_of_other_orders() {
    let shop = Shop::start().await;
    let (payload, _) = template(&shop).await;
    let (late, _) = write_late(&shop, &payload, Uuid::now_v7(), 1).await;
    let ahead = "select setval('outbox_position_seq', 10000000)";
    sqlx::query(ahead).execute(&shop.database).await.unwrap();

    pile_up(&shop, &payload, 10).await;

    shop.relayed().await;
    late.rollback().await.unwrap();
}

#[tokio::test]
async fn events_of_a_parked_order_below_the_floor_are_found_again() {
    const STUCK: &str = "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10";
    let shop = Shop::start().await;
    let giant = "
        insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
        select 16, gen_random_uuid(), $1::uuid, number, 'ORDER_PLACED',
               case number when 1 then repeat('x', 2000000) else '{\"metadata\":{\"sequence\":2}}' end, '[]'
        from generate_series(1, 2) as number";
    sqlx::query(giant).bind(STUCK).execute(&shop.database).await.unwrap();
    let parked = async || shop.count("parked_orders").await == 1;
    eventually("the order is parked", parked).await;
    let passed = async || lowest_floor(&shop).await > 2;
    eventually("the floors have passed its events", passed).await;

    assert!(run(&["outbox", "replay", STUCK, "--by", "ada"], &shop.environment));
    eventually("its event is refused again", parked).await;
    assert!(run(&["outbox", "skip", STUCK, "--by", "ada"], &shop.environment));

    let record = shop.topic.records(1).await.remove(0);
    assert_eq!((record.key.as_str(), record.sequence()), (STUCK, 2));
    shop.relayed().await;
}

fn run(arguments: &[&str], environment: &Environment) -> bool {
    command(arguments[0], environment).args(&arguments[1..]).output().unwrap().status.success()
}

/// The number of sequential scans of the outbox, and of scans of its primary key.
async fn reads_of_the_outbox(shop: &Shop) -> (i64, i64) {
    let reads = "select seq_scan, idx_scan from pg_stat_user_tables where relname = 'outbox'";
    sqlx::query_as(reads).fetch_one(&shop.database).await.unwrap()
}

/// An idle relay plans its read for an empty outbox. The plan must also suit a full outbox without new statistics.
#[tokio::test]
async fn a_backlog_after_an_idle_time_is_read_through_the_primary_key() {
    let shop = Shop::builder().with("RELAY_POLL_INTERVAL_MS", "10").start().await;
    let (payload, _) = template(&shop).await;
    sqlx::query("vacuum (analyze) outbox").execute(&shop.database).await.unwrap();
    eventually("the relay has read an empty outbox often", async || {
        reads_of_the_outbox(&shop).await.1 > 1_000
    })
    .await;
    let (_, before) = reads_of_the_outbox(&shop).await;

    pile_up(&shop, &payload, 3_000).await;

    shop.topic.records(9_001).await;
    eventually("the statistics include the reads", async || {
        reads_of_the_outbox(&shop).await.1 > before + 1_000
    })
    .await;
    assert_eq!(reads_of_the_outbox(&shop).await.0, 0);
}
