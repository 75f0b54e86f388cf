//! The database is unreachable or does not answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use order_service::dev::Postgres;
use serde_json::json;

use crate::support::{Answer, Mode, Proxy, Shop, admin, customer, eventually, lines};

const ADA: &str = "ada@example.com";

/// A service with a proxy in front of its database, which can cut the connection.
async fn shop_behind_proxy(settings: &[(&str, &str)]) -> (Shop, Proxy) {
    let database = Shop::new_database().await;
    let (proxy, url) = Proxy::before_database(&database).await;
    let builder = Shop::builder().database(&database).with("DATABASE_URL", url);
    let builder = settings.iter().fold(builder, |builder, (name, value)| builder.with(name, *value));
    (builder.start().await, proxy)
}

/// Every route that needs the database, once.
async fn every_route(shop: &Shop, order: &str, product: &str) -> Vec<Answer> {
    let order = format!("/api/orders/{order}");
    vec![
        shop.place(customer(ADA), &lines(&[(product, 1)])).await,
        shop.get(customer(ADA), &order).await,
        shop.get(customer(ADA), "/api/orders/my").await,
        shop.get(admin(), "/api/orders").await,
        shop.call("PUT", &format!("{order}/status"))
            .by(admin())
            .json(&json!({"status": "CONFIRMED"}))
            .send()
            .await,
    ]
}

/// Opens the maximum number of pool connections.
async fn fill_pool(shop: &Shop) {
    join_all((0..30).map(|_| shop.get(customer(ADA), "/api/orders/my"))).await;
}

/// The pool pings a connection that was idle for more than a second before it is used, so a failure means that nothing
/// was written. On a connection that was used more recently, the service sends a placement at once.
async fn idle_until_doubtful() {
    tokio::time::sleep(Duration::from_millis(1_200)).await;
}

#[tokio::test]
async fn every_route_gets_503_during_a_database_outage_and_recovers_afterwards() {
    let (shop, proxy) = shop_behind_proxy(&[]).await;
    let phone = shop.product("phone", "10", 50).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    shop.expect_every_event().await;
    fill_pool(&shop).await;
    idle_until_doubtful().await;

    proxy.set(Mode::Cut);
    for answer in every_route(&shop, &order, &phone).await {
        answer.expect_unavailable("unavailable");
    }
    let ready = shop.call("GET", "/health/ready").send().await.expect_unavailable("unavailable");
    assert_eq!(ready.body["components"]["database"], "down");
    shop.call("GET", "/health/live").send().await.expect(200);

    proxy.set(Mode::Open);
    eventually("the service is ready again", async || {
        shop.call("GET", "/health/ready").send().await.status == 200
    })
    .await;
    for answer in every_route(&shop, &order, &phone).await {
        assert!(answer.status < 300, "{}", answer.text);
    }
    shop.expect_whole_orders().await;
    shop.expect_every_event().await;
    assert_eq!(shop.count("orders").await, 2);
}

#[tokio::test]
async fn connections_that_were_idle_during_an_outage_fail_no_request() {
    let (shop, proxy) = shop_behind_proxy(&[]).await;
    fill_pool(&shop).await;

    proxy.set(Mode::Cut);
    idle_until_doubtful().await;
    proxy.set(Mode::Open);

    let reads = join_all((0..30).map(|_| shop.get(customer(ADA), "/api/orders/my"))).await;
    for answer in reads {
        answer.expect(200);
    }
}

/// Places `count` orders at once, each for another customer, and expects each to be new.
async fn place_many(shop: &Shop, product: &str, count: usize) {
    let body = lines(&[(product, 1)]);
    let place = async |number: usize| shop.place(customer(&format!("c{number}@example.com")), &body).await;
    for answer in join_all((0..count).map(place)).await {
        let answer = answer.expect(201);
        assert_eq!(answer.header("idempotency-replayed"), None);
    }
}

#[tokio::test]
async fn connections_that_the_database_has_just_closed_fail_no_request() {
    for window in ["0", "60"] {
        let shop = Shop::builder().with("DUPLICATE_WINDOW_SECONDS", window).start().await;
        let phone = shop.product("phone", "10", 1_000_000).await;
        place_many(&shop, &phone, 32).await;
        sqlx::raw_sql("delete from recent_orders").execute(&shop.database).await.unwrap();
        let orders: Vec<String> = shop.versions().await.into_keys().take(8).collect();
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                      where datname = current_database() and pid <> pg_backend_pid()";

        sqlx::raw_sql(end).execute(&shop.database).await.unwrap();
        let body = lines(&[(&phone, 2)]);
        let with_key = async |number: usize| {
            let call = shop.call("POST", "/api/orders").by(customer(ADA)).json(&body);
            call.header("Idempotency-Key", format!("k-{number}")).send().await.expect(201);
        };
        let cancel = async |order: &String| {
            shop.get(admin(), &format!("/api/orders/{order}")).await.expect(200);
            shop.set_status(order, "CANCELLED").await.expect(200);
        };
        tokio::join!(
            place_many(&shop, &phone, 32),
            join_all((0..8).map(with_key)),
            join_all(orders.iter().map(cancel)),
        );

        assert_eq!(shop.count("orders").await, 72);
        shop.expect_whole_orders().await;
        shop.expect_every_event().await;
    }
}

#[tokio::test]
async fn a_database_restart_between_placements_fails_no_placement() {
    let mut postgres = Postgres::start().await.unwrap();
    let shop = Shop::builder().database(postgres.url()).start().await;
    let phone = shop.product("phone", "10", 1_000_000).await;
    for _ in 0..3 {
        place_many(&shop, &phone, 32).await;
        postgres.restart_immediately().await.unwrap();
    }
    place_many(&shop, &phone, 32).await;

    eventually("the test's own connections are new", async || {
        sqlx::query("select").execute(&shop.database).await.is_ok()
    })
    .await;
    assert_eq!(shop.count("orders").await, 128);
    shop.expect_whole_orders().await;
    shop.expect_every_event().await;
    drop(shop);
    postgres.stop().await;
}

#[tokio::test]
async fn a_database_that_drops_packets_times_out_at_the_deadline() {
    let deadlines = [("DATABASE_DEADLINE_MS", "2000"), ("DATABASE_ACQUIRE_TIMEOUT_MS", "1000")];
    let (shop, proxy) = shop_behind_proxy(&deadlines).await;
    let phone = shop.product("phone", "10", 50).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    fill_pool(&shop).await;
    idle_until_doubtful().await;

    proxy.set(Mode::Silent);
    // Without a deadline in the store, each request would end only at its own deadline of 15 s.
    let started = Instant::now();
    for answer in every_route(&shop, &order, &phone).await {
        answer.expect_unavailable("unavailable");
    }
    shop.call("GET", "/health/ready").send().await.expect_unavailable("unavailable");
    assert!(started.elapsed() < Duration::from_mins(1), "{:?} for six requests", started.elapsed());
    shop.call("GET", "/health/live").send().await.expect(200);

    proxy.set(Mode::Open);
    // The first try may fail: delayed packets reach the server now, and their statements may hold a lock for a moment.
    eventually("every route works again", async || {
        every_route(&shop, &order, &phone).await.iter().all(|answer| answer.status < 300)
    })
    .await;
    shop.expect_whole_orders().await;
    shop.expect_every_event().await;
}

/// Counts the results of requests during repeated outages.
#[derive(Default)]
struct Tally {
    served: AtomicUsize,
    refused: AtomicUsize,
    over: AtomicBool,
}

impl Tally {
    /// Places orders until `over` is set; returns the orders that were answered with 201.
    async fn place(&self, shop: &Shop, product: &str) -> Vec<String> {
        let mut orders = Vec::new();
        while !self.over.load(Ordering::Relaxed) {
            let answer = shop.place(customer(ADA), &lines(&[(product, 1)])).await;
            if answer.status == 201 {
                orders.push(answer.order_id());
            }
            self.count(answer);
        }
        orders
    }

    /// Reads until `over` is set. Half of the time that a read holds its connection is the ping after it.
    async fn read(&self, shop: &Shop) {
        while !self.over.load(Ordering::Relaxed) {
            self.count(shop.get(customer(ADA), "/api/orders/my").await);
        }
    }

    fn count(&self, answer: Answer) {
        if answer.status < 300 {
            self.served.fetch_add(1, Ordering::Relaxed);
        } else {
            let is_unknown = answer.text.contains("outcome-unknown");
            answer.expect_unavailable(if is_unknown { "outcome-unknown" } else { "unavailable" });
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Cuts and restores the database eight times, then sets `over`.
    async fn outages(&self, proxy: &Proxy, mode: Mode) {
        for _ in 0..8 {
            self.wait_for(&self.served, 20).await;
            proxy.set(mode);
            self.wait_for(&self.refused, 10).await;
            proxy.set(Mode::Open);
        }
        self.wait_for(&self.served, 20).await;
        self.over.store(true, Ordering::Relaxed);
    }

    /// Waits until `kind` has grown by `more`.
    async fn wait_for(&self, kind: &AtomicUsize, more: usize) {
        let wanted = kind.load(Ordering::Relaxed) + more;
        eventually("placements are answered", async || kind.load(Ordering::Relaxed) >= wanted).await;
    }
}

#[tokio::test]
async fn a_database_outage_during_requests_leaves_no_partial_writes_and_loses_no_order() {
    let (shop, proxy) = shop_behind_proxy(&[("DATABASE_ACQUIRE_TIMEOUT_MS", "300")]).await;
    let phone = shop.product("phone", "10", 1_000_000).await;
    let tally = Tally::default();

    let places = join_all((0..8).map(|_| tally.place(&shop, &phone)));
    let (orders, ()) = tokio::join!(places, tally.outages(&proxy, Mode::Cut));

    let written = shop.versions().await;
    for order in orders.iter().flatten() {
        assert!(written.contains_key(order), "{order} was answered with 201 and is missing");
    }
    shop.expect_whole_orders().await;
    shop.expect_every_event().await;
}

#[tokio::test]
async fn connections_released_during_an_outage_free_their_slots() {
    let settings = [
        ("DATABASE_MAX_CONNECTIONS", "2"),
        ("DATABASE_DEADLINE_MS", "400"),
        ("DATABASE_ACQUIRE_TIMEOUT_MS", "300"),
    ];
    let (shop, proxy) = shop_behind_proxy(&settings).await;
    let phone = shop.product("phone", "10", 50).await;
    let tally = Tally::default();

    let reads = join_all((0..16).map(|_| tally.read(&shop)));
    tokio::join!(reads, tally.outages(&proxy, Mode::Vanished));

    shop.placed(ADA, &[(&phone, 1)]).await;
    shop.expect_every_event().await;
}
