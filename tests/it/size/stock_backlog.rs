//! Stock work after an outage of the Product Service (issue 8, point 1): the drain begins at the first successful
//! answer. Its rate is the same as with empty tables, for any number of finished jobs and any planner statistics.
//!
//! `SIZE_STOCK_FINISHED`, `SIZE_STOCK_DUE` and `SIZE_STOCK_MEASURED` set the sizes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;

use super::report::Report;
use super::scale::{is_large, size};
use super::world::World;
use crate::support::{Shop, eventually};

/// The planner's statistics of the stock jobs.
#[derive(Clone, Copy, Debug)]
enum Analyzed {
    Never,
    BeforeTheBacklog,
}

/// The result of one drain.
struct Drain {
    /// From the first successful answer to the tenth.
    begun: Duration,
    /// Successful stock calls per second, one for each order.
    rate: f64,
}

/// A Product Service whose stock routes answer 503 until it is switched on.
struct Products {
    url: String,
    is_well: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    good: Arc<AtomicUsize>,
    first_good: Arc<OnceLock<Instant>>,
}

impl Products {
    async fn away() -> Self {
        let is_well = Arc::new(AtomicBool::new(false));
        let (refused, good) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let first_good = Arc::new(OnceLock::new());
        let counts = (Arc::clone(&is_well), Arc::clone(&refused), Arc::clone(&good), Arc::clone(&first_good));
        let answer = async move |request: Request| {
            let (is_well, refused, good, first_good) = &counts;
            if request.method() == Method::POST {
                if !is_well.load(SeqCst) {
                    refused.fetch_add(1, SeqCst);
                    return StatusCode::SERVICE_UNAVAILABLE.into_response();
                }
                first_good.get_or_init(Instant::now);
                good.fetch_add(1, SeqCst);
            }
            r#"{"price":10,"stock":5}"#.into_response()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Self { url, is_well, refused, good, first_good }
    }
}

/// Finished jobs, then due jobs of paid orders as the payment consumer writes them.
async fn fill(world: &World, finished: u64, due: u64, analyzed: Analyzed) {
    world.orders(1..=finished, "'CONFIRMED'").await;
    world.stock_jobs(1..=finished, "'TAKEN'", "size_time(n)").await;
    if matches!(analyzed, Analyzed::BeforeTheBacklog) {
        world.run("vacuum analyze").await;
    }
    let (first, last) = (finished + 1, finished + due);
    world.orders(first..=last, "'CREATED'").await;
    world
        .fill(
            "payments",
            first..=last,
            "insert into payments (order_id, amount) select size_id(n), 10 from generate_series($1::bigint, $2::bigint) n",
        )
        .await;
    world.stock_jobs(first..=last, "'TAKING'", &format!("now() - ({last} - n) * interval '1 ms'")).await;
}

async fn drain(finished: u64, due: u64, analyzed: Analyzed) -> Drain {
    let measured = usize::try_from(size("SIZE_STOCK_MEASURED", 200, 10_000)).unwrap();
    let world = World::new(finished + due).await;
    fill(&world, finished, due, analyzed).await;
    let products = Products::away().await;
    let builder = Shop::builder().database(&world.url).with("PRODUCT_SERVICE_URL", &products.url);
    let builder = builder.with("STOCK_CONCURRENCY", "8");
    let shop = builder.without_service().await;
    let replica = shop.replica(&[]).await;
    // More calls than are in flight at first: the worker is in probe mode and claims the newest job at intervals.
    eventually("the worker is in probe mode", async || products.refused.load(SeqCst) > 18).await;

    products.is_well.store(true, SeqCst);
    eventually("the first successful answer", async || products.good.load(SeqCst) > 0).await;
    eventually("the drain begins", async || products.good.load(SeqCst) >= 10).await;
    let begun = products.first_good.get().unwrap().elapsed();
    let (from, start) = (products.good.load(SeqCst), Instant::now());
    eventually("the drain continues", async || products.good.load(SeqCst) - from >= measured).await;
    #[expect(clippy::cast_precision_loss, reason = "a figure")]
    let rate = (products.good.load(SeqCst) - from) as f64 / start.elapsed().as_secs_f64();
    if !is_large() {
        eventually("every order is confirmed", async || {
            world.number("select count(*) from orders where status = 'CREATED'").await == 0
        })
        .await;
    }
    drop((replica, shop));
    world.end().await;
    Drain { begun, rate }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_finished_jobs_do_not_slow_down_a_stock_backlog() {
    const SHARE_OF_EMPTY: f64 = 0.8;
    let finished = size("SIZE_STOCK_FINISHED", 5_000, 1_000_000);
    let due = size("SIZE_STOCK_DUE", 400, 100_000);
    let mut report = Report::new();
    let empty = drain(0, due.min(20_000), Analyzed::Never).await.rate;
    Report::note("stock backlog, empty tables, confirmations a second", format!("{empty:.0}"));
    for analyzed in [Analyzed::Never, Analyzed::BeforeTheBacklog] {
        let world = format!("stock backlog, {finished} finished, {due} due, analyzed {analyzed:?}");
        let Drain { begun, rate } = drain(finished, due, analyzed).await;
        Report::note(&format!("{world}, confirmations a second"), format!("{rate:.0}"));
        // A small world runs concurrently with other tests: it only shows that the drain ends.
        if is_large() {
            report.within(
                &format!("{world}, begun after the first successful answer"),
                begun,
                Duration::from_secs(2),
            );
            report.at_least(&format!("{world}, rate / rate with empty tables"), rate / empty, SHARE_OF_EMPTY);
        }
    }
    report.finish();
}
