//! Placing, reading and confirming in tables with years of orders (issue 8, point 12).

use std::time::{Duration, Instant};

use super::report::Report;
use super::scale::{is_large, size};
use super::world::{MOSTLY_CONFIRMED, Statistics, World};
use crate::support::{Shop, admin, customer};

const USE_CASES: [&str; 5] = ["place", "read", "list own", "history", "confirm"];

#[tokio::test]
async fn statements_read_as_many_rows_in_a_large_shop_as_in_a_small_one() {
    let (few, many) = (size("SIZE_FEW_ORDERS", 1_000, 10_000), size("SIZE_ORDERS", 20_000, 10_000_000));
    let rounds = size("SIZE_ROUNDS", 40, 1_000);
    // A small run shares the machine with other tests: only costs that grow with the table exceed the noise.
    let bound = if is_large() { 1.2 } else { 5.0 };
    let mut report = Report::new();
    let (large, small) = (world(many).await, World::on(Shop::new_database().await, few).await);
    fill(&small, few).await;
    let shops = [shop(&small).await, shop(&large).await];
    let phone = shops[0].product("phone", "10.00", 100_000_000).await;

    // The tables exceed the memory of most machines: the first visit of a customer reads index pages from the disk. The
    // bound applies to customers whose pages are in memory in both shops.
    for (what, bound) in [("first visit", f64::INFINITY), ("later visit", bound)] {
        let times = medians_ms(&shops, &phone, rounds).await;
        for (use_case, [few_ms, many_ms]) in USE_CASES.iter().zip(times) {
            let what = format!(
                "{what}, {use_case}: median {few_ms:.2} ms at {few} orders, {many_ms:.2} ms at {many}; ratio"
            );
            report.at_most(&what, (many_ms / few_ms * 100.0).round() / 100.0, bound);
        }
    }
    for mut shop in shops {
        shop.stop_service().await;
    }
    large.end().await;
    small.end().await;
    report.finish();
}

/// The median time of each use case, in the small and in the large shop.
async fn medians_ms(shops: &[Shop; 2], phone: &str, rounds: u64) -> [[f64; 2]; 5] {
    let mut times: [[Vec<Duration>; 2]; 5] = Default::default();
    for round in 0..rounds {
        // Alternates between the shops, so that other load of the machine affects both.
        for which in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            for (use_case, time) in times.iter_mut().zip(round_of(&shops[which], phone, round).await) {
                use_case[which].push(time);
            }
        }
    }
    times.map(|use_case| use_case.map(median_ms))
}

async fn world(orders: u64) -> World {
    let world = World::new(orders).await;
    fill(&world, orders).await;
    world
}

/// Orders of several years: nearly all confirmed, with their stock jobs and payments.
async fn fill(world: &World, orders: u64) {
    world.orders(1..=orders, MOSTLY_CONFIRMED).await;
    world.stock_jobs(1..=orders, "'TAKEN'", "size_time(n)").await;
    let payments = "
        with paid as (
            insert into payments (order_id, amount, paid_at)
            select size_id(n), 10.00, size_time(n) from generate_series($1::bigint, $2::bigint) n
        )
        insert into payment_events (event_key, order_id, event_type, outcome, topic, partition, \"offset\", received_at)
        select size_id(n)::text, size_id(n), 'PAYMENT_SUCCESS', 'ACCEPTED', 'payment-events', 0, n, size_time(n)
        from generate_series($1::bigint, $2::bigint) n";
    world.fill("payments", 1..=orders, payments).await;
    world.statistics(Statistics::Fresh).await;
    world.run("checkpoint").await;
    world.autovacuum(true).await;
}

async fn shop(world: &World) -> Shop {
    Shop::builder().database(&world.url).start().await
}

/// Runs each use case once as a customer of the shop; returns the times.
async fn round_of(shop: &Shop, phone: &str, round: u64) -> [Duration; 5] {
    let email = format!("c{round}@example.com");
    let (placing, id) = timed(shop.placed(&email, &[(phone, 1)])).await;
    let path = format!("/api/orders/{id}");
    let (reading, _) = timed(async { shop.get(customer(&email), &path).await.expect(200) }).await;
    // One order in both shops: customers of the large shop have more, and the cost of a page depends on its length.
    let listing = async { shop.get(customer(&email), "/api/orders/my?limit=1").await.expect(200) };
    let (listing, _) = timed(listing).await;
    let history = format!("{path}/history");
    let (telling, _) = timed(async { shop.get(admin(), &history).await.expect(200) }).await;
    let (confirming, _) = timed(async { shop.set_status(&id, "CONFIRMED").await.expect(200) }).await;
    [placing, reading, listing, telling, confirming]
}

async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let started = Instant::now();
    let done = work.await;
    (started.elapsed(), done)
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}
