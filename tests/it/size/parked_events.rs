//! The relay with events of parked orders in the outbox (issue 8, point 3): the cost of a read depends only on the
//! events that it returns.
//!
//! `SIZE_PARKED_EVENTS` sets the number of parked events.

use std::sync::atomic::Ordering::Relaxed;

use super::long_transaction::{Arrivals, probe, report_probes, report_read};
use super::report::Report;
use super::scale::size;
use super::world::World;
use crate::support::Shop;

/// Parked orders, each with four waiting events.
async fn park(world: &World, events: u64) {
    let orders = events / 4;
    world
        .fill(
            "parked orders",
            1..=orders,
            "insert into parked_orders (order_id, event_id, sequence, error)
             select size_id(n), gen_random_uuid(), 1, 'too large' from generate_series($1::bigint, $2::bigint) n",
        )
        .await;
    world
        .fill(
            "parked events",
            1..=orders,
            "insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
             select n % 64, gen_random_uuid(), size_id(n), sequence, 'ORDER_PLACED', repeat('x', 300), '[]'
             from generate_series($1::bigint, $2::bigint) n, generate_series(1, 4) sequence",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_parked_orders_do_not_slow_down_the_relay() {
    let events = size("SIZE_PARKED_EVENTS", 2_000, 100_000) / 4 * 4;
    let world = World::new(events).await;
    world.autovacuum(true).await;
    let builder = Shop::builder().database(&world.url).with("RELAY_POLL_INTERVAL_MS", "10");
    let mut shop = builder.start().await;
    let arrivals = Arrivals::watch(&shop.topic);
    let mut report = Report::new();
    report_probes(&mut report, "without parked events", &probe(&world, &arrivals).await);
    report_read(&world, &mut report, "without parked events").await;

    park(&world, events).await;

    let beside = format!("with {events} parked events");
    report_probes(&mut report, &beside, &probe(&world, &arrivals).await);
    report_read(&world, &mut report, &beside).await;
    assert_eq!(shop.count("outbox").await, i64::try_from(events).unwrap(), "parked events stay");

    shop.stop_service().await;
    shop.start_service().await;
    report_probes(&mut report, &format!("{beside}, after a restart"), &probe(&world, &arrivals).await);

    arrivals.stop.store(true, Relaxed);
    shop.stop_service().await;
    shop.database.close().await;
    report.finish();
    world.end().await;
}
