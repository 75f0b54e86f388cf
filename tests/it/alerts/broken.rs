//! Shops that each lose a part and get it back.

use std::time::Duration;

use futures_util::future::join_all;
use order_service::dev::Kafka;
use order_service::dev::kafka::ALL_BROKERS;
use serde_json::json;

use super::prometheus::Prometheus;
use crate::support::{
    Mode, Payment, Proxy, Shop, admin, command, customer, embedded_kafka, eventually, lines,
};

const ADA: &str = "ada@example.com";

/// One shop for each broken part.
pub(super) struct Shops {
    kafka: (Shop, Kafka),
    products: Shop,
    slow_products: Shop,
    database: (Shop, Proxy),
    locked: Shop,
    refused_event: Shop,
    payments: Shop,
    unread: Shop,
    stock: Shop,
    stopped: Shop,
}

async fn shop_with_kafka() -> (Shop, Kafka) {
    let kafka = embedded_kafka(1);
    let mut shop = Shop::builder()
        .kafka(kafka.bootstrap_servers())
        .with("KAFKA_DELIVERY_TIMEOUT_MS", "1000")
        .with("RELAY_LEASE_MS", "3000")
        .without_service()
        .await;
    kafka.create_topic(&shop.topic.name, 3).unwrap();
    shop.start_service().await;
    (shop, kafka)
}

async fn shop_behind_proxy() -> (Shop, Proxy) {
    let database = Shop::new_database().await;
    let (proxy, url) = Proxy::before_database(&database).await;
    (Shop::builder().database(&database).with("DATABASE_URL", url).start().await, proxy)
}

/// Runs a command of the service that must succeed.
async fn run(shop: &Shop, arguments: &[&str]) {
    let mut program = command(arguments[0], &shop.environment);
    program.args(&arguments[1..]);
    let output = tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Repeats an action until `end` completes.
async fn while_waiting(action: impl AsyncFn(), end: impl Future<Output = ()>) {
    let again = async {
        loop {
            action().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = end => {}
        () = again => {}
    }
}

impl Shops {
    pub(super) async fn start() -> Self {
        let with_payments = || Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true");
        Self {
            kafka: shop_with_kafka().await,
            products: Shop::builder().with("PRODUCT_BREAKER_WINDOW", "10").start().await,
            slow_products: Shop::builder()
                .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "10000")
                .with("PRODUCT_DEADLINE_MS", "10000")
                .start()
                .await,
            database: shop_behind_proxy().await,
            locked: Shop::start().await,
            refused_event: Shop::start().await,
            payments: with_payments().start().await,
            unread: with_payments().start().await,
            stock: with_payments()
                .with("PRODUCT_REFUSAL_RETRIES", "1")
                .with("STOCK_DEADLINE_MS", "1000")
                .start()
                .await,
            stopped: Shop::start().await,
        }
    }

    /// Breaks each part, waits for its alert, repairs the part and waits for the end of the alert.
    pub(super) async fn break_and_mend(&mut self, prometheus: &Prometheus) {
        let shops = [
            ("kafka", &self.kafka.0),
            ("products", &self.products),
            ("slow-products", &self.slow_products),
            ("database", &self.database.0),
            ("locked", &self.locked),
            ("refused-event", &self.refused_event),
            ("payments", &self.payments),
            ("unread", &self.unread),
            ("stock", &self.stock),
            ("stopped", &self.stopped),
        ];
        for (namespace, shop) in shops {
            prometheus.scrape(namespace, shop);
        }
        tokio::join!(
            kafka_away(prometheus, &self.kafka.0, &self.kafka.1),
            products_away(prometheus, &self.products),
            slow_products(prometheus, &self.slow_products),
            database_away(prometheus, &self.database.0, &self.database.1),
            long_transaction(prometheus, &self.locked),
            refused_event(prometheus, &self.refused_event),
            lost_lease(prometheus, &self.refused_event),
            payments(prometheus, &self.payments),
            unread_payments(prometheus, &self.unread),
            stock(prometheus, &self.stock),
            stopped(prometheus, &mut self.stopped),
        );
    }
}

async fn stopped(prometheus: &Prometheus, shop: &mut Shop) {
    prometheus.has_scraped("stopped").await;
    shop.stop_service().await;
    prometheus.fires("stopped", "TargetDown").await;

    shop.start_service().await;
    // The service listens on another port now.
    prometheus.scrape("stopped", shop);
    prometheus.ends("stopped", "TargetDown").await;
}

async fn kafka_away(prometheus: &Prometheus, shop: &Shop, kafka: &Kafka) {
    let phone = shop.product("phone", "10", 100).await;
    kafka.broker_down(ALL_BROKERS).unwrap();
    shop.placed(ADA, &[(&phone, 1)]).await;
    prometheus.fires("kafka", "RelayLag").await;

    kafka.broker_up(ALL_BROKERS).unwrap();
    prometheus.ends("kafka", "RelayLag").await;
}

async fn products_away(prometheus: &Prometheus, shop: &Shop) {
    let phone = shop.product("phone", "10", 1_000_000).await;
    let place = async || {
        shop.place(customer(ADA), &lines(&[(&phone, 1)])).await;
    };
    shop.fault(&phone, &json!({"kind": "status", "status": 500})).await;
    while_waiting(place, async {
        prometheus.fires("products", "ProductServiceUnavailable").await;
        prometheus.fires("products", "ErrorBudgetBurn").await;
    })
    .await;

    shop.heal(&phone).await;
    while_waiting(place, async {
        prometheus.ends("products", "ProductServiceUnavailable").await;
        prometheus.ends("products", "ErrorBudgetBurn").await;
    })
    .await;
}

async fn slow_products(prometheus: &Prometheus, shop: &Shop) {
    let phone = shop.product("phone", "10", 1_000_000).await;
    let place = async || {
        shop.place(customer(ADA), &lines(&[(&phone, 1)])).await;
    };
    shop.fault(&phone, &json!({"kind": "slow", "millis": 1500})).await;
    while_waiting(place, prometheus.fires("slow-products", "LatencyHigh")).await;

    shop.heal(&phone).await;
    while_waiting(place, prometheus.ends("slow-products", "LatencyHigh")).await;
}

async fn database_away(prometheus: &Prometheus, shop: &Shop, proxy: &Proxy) {
    eventually("it is ready", async || shop.call("GET", "/health/ready").send().await.status == 200).await;
    proxy.set(Mode::Cut);
    prometheus.fires("database", "NotReady").await;

    proxy.set(Mode::Open);
    prometheus.ends("database", "NotReady").await;
}

/// A transaction that locks tables of every request, and stays open.
async fn long_transaction(prometheus: &Prometheus, shop: &Shop) {
    let history =
        async |_| shop.get(admin(), "/api/orders/0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10/history").await;
    let ask = async || {
        join_all((0..20).map(history)).await;
    };
    let mut transaction = shop.database.begin().await.unwrap();
    sqlx::query("lock table orders, order_history").execute(&mut *transaction).await.unwrap();
    while_waiting(ask, prometheus.fires("locked", "DatabasePoolExhausted")).await;

    transaction.rollback().await.unwrap();
    while_waiting(ask, prometheus.ends("locked", "DatabasePoolExhausted")).await;
}

/// An event that is too large for Kafka.
async fn refused_event(prometheus: &Prometheus, shop: &Shop) {
    let order = "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10";
    let giant = "
        insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
        values (16, gen_random_uuid(), $1::uuid, 1, 'ORDER_PLACED', repeat('x', 2000000), '[]')";
    sqlx::query(giant).bind(order).execute(&shop.database).await.unwrap();
    prometheus.fires("refused-event", "OutboxParked").await;

    run(shop, &["outbox", "skip", order, "--by", "ada"]).await;
    prometheus.ends("refused-event", "OutboxParked").await;
}

/// A bucket of a replica that does not exist.
async fn lost_lease(prometheus: &Prometheus, shop: &Shop) {
    let lose = "
        update relay_leases set owner = gen_random_uuid(), expires_at = now() + interval '1 day' where bucket = 5";
    sqlx::query(lose).execute(&shop.database).await.unwrap();
    prometheus.fires("refused-event", "RelayBucketsUnheld").await;

    let expire = "update relay_leases set expires_at = now() - interval '1 day' where bucket = 5";
    sqlx::query(expire).execute(&shop.database).await.unwrap();
    prometheus.ends("refused-event", "RelayBucketsUnheld").await;
}

/// A payment of a wrong amount, and a refund that stays due.
async fn payments(prometheus: &Prometheus, shop: &Shop) {
    let phone = shop.product("phone", "10", 100).await;
    let (order, cancelled) = (shop.placed(ADA, &[(&phone, 1)]).await, shop.placed(ADA, &[(&phone, 2)]).await);
    let wrong = Payment::success(&order, "1");
    shop.read(&order, std::slice::from_ref(&wrong)).await;
    shop.set_status(&cancelled, "CANCELLED").await.expect(200);
    shop.read(&cancelled, &[Payment::success(&cancelled, "20")]).await;
    let long_ago = "update refunds_due set due_at = now() - interval '25 hours'";
    sqlx::query(long_ago).execute(&shop.database).await.unwrap();
    prometheus.fires("payments", "PaymentsParked").await;
    prometheus.fires("payments", "RefundsDue").await;

    for settled in ["delete from parked_payments", "delete from refunds_due"] {
        sqlx::query(settled).execute(&shop.database).await.unwrap();
    }
    prometheus.ends("payments", "PaymentsParked").await;
    prometheus.ends("payments", "RefundsDue").await;
}

/// Payments that are read and cannot be applied.
async fn unread_payments(prometheus: &Prometheus, shop: &Shop) {
    let phone = shop.product("phone", "10", 100).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    let mut transaction = shop.database.begin().await.unwrap();
    sqlx::query("lock table payment_events").execute(&mut *transaction).await.unwrap();
    shop.pay(&Payment::success(&order, "10")).await;
    prometheus.fires("unread", "PaymentsLag").await;

    transaction.rollback().await.unwrap();
    prometheus.ends("unread", "PaymentsLag").await;
    shop.becomes(&order, "CONFIRMED").await;
}

/// Stock that the Product Service refuses although it is available, and stock calls without an answer.
async fn stock(prometheus: &Prometheus, shop: &Shop) {
    let (refused, unanswered) =
        (shop.product("refused", "10", 100).await, shop.product("unanswered", "10", 100).await);
    let parked = shop.placed(ADA, &[(&refused, 1)]).await;
    let overdue = shop.placed(ADA, &[(&unanswered, 1)]).await;
    let fault = |status: u16| json!({"kind": "status", "status": status, "on": "reduce-stock"});
    shop.fault(&refused, &fault(409)).await;
    shop.fault(&unanswered, &fault(500)).await;
    for order in [&parked, &overdue] {
        shop.pay(&Payment::success(order, "10")).await;
    }
    for alert in ["StockJobsParked", "StockJobsOverdue", "OrdersStuck"] {
        prometheus.fires("stock", alert).await;
    }

    shop.heal(&refused).await;
    shop.heal(&unanswered).await;
    run(shop, &["stock", "resolve", &parked, "1", "1", "not-applied", "--by", "ada"]).await;
    for alert in ["StockJobsParked", "StockJobsOverdue", "OrdersStuck"] {
        prometheus.ends("stock", alert).await;
    }
    for order in [&parked, &overdue] {
        shop.becomes(order, "CONFIRMED").await;
    }
}
