//! The programs of `tests/consumers` read events while replicas and consumers are killed; at the end each projection
//! equals the tables of the service. `.ci/consumers` builds the programs and runs this test.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};

use reqwest::Url;
use serde_json::json;
use sqlx::PgPool;

use crate::support::{Replica, Shop, admin, customer, eventually, figure, lines};

const PROGRAMS: [&str; 4] = ["java", "spring", "node", "python"];
const RUNS_AT_ONCE: usize = 2;
const KILLS: usize = 8;
const ORDERS_PER_KILL: usize = 40;

/// Status, amount, number of applied events and last sequence, by order.
type Orders = BTreeMap<String, (String, String, i32, i32)>;

/// A consumer process with its own database.
struct Consumer {
    name: &'static str,
    command: Command,
    process: Child,
    database: PgPool,
}

impl Consumer {
    async fn start(name: &'static str, shop: &Shop) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/consumers/bin").join(name);
        let url = Shop::empty_database().await;
        let mut command = Command::new(program);
        command
            .env("KAFKA_BOOTSTRAP_SERVERS", &shop.topic.bootstrap_servers)
            .env("ORDER_EVENTS_TOPIC", &shop.topic.name)
            .env("CONSUMER_GROUP", format!("{name}-{}", shop.topic.name))
            .env("DATABASE_URL", &url)
            .env("JDBC_URL", jdbc(&url));
        let process = command.spawn().expect("the program; `.ci/consumers build` makes it");
        Self { name, command, process, database: PgPool::connect_lazy(&url).unwrap() }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.process = self.command.spawn().unwrap();
    }

    /// Its projection; `None` until it has created the table.
    async fn orders(&self) -> Orders {
        let sql = "select order_id, status, amount::text, changes, sequence from order_projection";
        orders(&self.database, sql).await.unwrap_or_default()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The URL of the same database for a Java program.
fn jdbc(url: &str) -> String {
    let url: Url = url.parse().unwrap();
    let (host, port) = (url.host_str().unwrap(), url.port().unwrap_or(5432));
    let password = url.password().map(|password| format!("&password={password}")).unwrap_or_default();
    format!("jdbc:postgresql://{host}:{port}{}?user={}{password}", url.path(), url.username())
}

async fn orders(database: &PgPool, sql: &'static str) -> sqlx::Result<Orders> {
    let rows = sqlx::query_as::<_, (String, String, String, i32, i32)>(sql).fetch_all(database).await?;
    Ok(rows
        .into_iter()
        .map(|(id, status, amount, changes, last)| (id, (status, amount, changes, last)))
        .collect())
}

/// The same values from the tables of the service.
async fn truth(shop: &Shop) -> Orders {
    let sql = "select id::text, status, total_amount::text, version, version from orders";
    orders(&shop.database, sql).await.unwrap()
}

/// Places orders through one replica until there are enough or it is killed; confirms some and cancels some.
async fn trade(shop: &Shop, phone: &str, count: usize) {
    for number in 0..count {
        let request = shop.call("POST", "/api/orders").by(customer("ada@example.com"));
        let Ok(placed) = request.json(&lines(&[(phone, 1)])).try_send().await else { return };
        if placed.status != 201 {
            continue;
        }
        let status = ["CONFIRMED", "CANCELLED", "CREATED"][number % 3];
        let path = format!("/api/orders/{}/status", placed.order_id());
        let request = shop.call("PUT", &path).by(admin()).json(&json!({"status": status}));
        if request.try_send().await.is_err() {
            return;
        }
    }
}

/// Publishes every event so far once more, byte for byte, like a relay that lost its acknowledgements; then cancels
/// some orders, whose events show when a consumer has passed the repeats.
async fn repeat_everything(shop: &Shop) -> usize {
    let records = shop.topic.everything().await;
    let again: Vec<_> = records.into_iter().map(|record| (record.key, record.payload.into_bytes())).collect();
    shop.topic.publish_all(&again).await;
    for (order, (status, ..)) in truth(shop).await {
        if status == "CONFIRMED" {
            shop.set_status(&order, "CANCELLED").await.expect(200);
        }
    }
    again.len()
}

async fn expect_the_same(shop: &Shop, consumers: &[Consumer]) {
    shop.no_stock_work().await;
    shop.relayed().await;
    let truth = truth(shop).await;
    for consumer in consumers {
        let what = format!("{} has every order, with as many changes as it has events", consumer.name);
        eventually(&what, async || consumer.orders().await == truth).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the programs that .ci/consumers builds"]
async fn each_consumer_applies_every_change_once_and_in_order() {
    let times = [
        ("KAFKA_DELIVERY_TIMEOUT_MS", "2000"),
        ("RELAY_LEASE_MS", "5000"),
        ("PRODUCT_STOCK_TIMEOUT_MS", "1000"),
        ("STOCK_LEASE_MS", "2500"),
    ];
    let builder = times.iter().fold(Shop::builder(), |builder, (name, value)| builder.with(name, *value));
    let shop = builder.without_service().await;
    let phone = shop.product("phone", "2499.10", 1_000_000).await;
    let mut replicas: Vec<Replica> = Vec::new();
    for _ in 0..RUNS_AT_ONCE {
        replicas.push(shop.replica(&[]).await);
    }
    // The first event creates the topic.
    shop.through(&replicas[0].url).placed("ada@example.com", &[(&phone, 1)]).await;
    shop.relayed().await;
    let mut consumers = Vec::new();
    for name in PROGRAMS {
        consumers.push(Consumer::start(name, &shop).await);
    }
    for consumer in &consumers {
        let what = format!("{} has read its first event", consumer.name);
        eventually(&what, async || !consumer.orders().await.is_empty()).await;
    }

    for kill in 0..KILLS {
        let victim = replicas.remove(0);
        let (first, second) = (shop.through(&victim.url), shop.through(&replicas[0].url));
        let dies = trade(&first, &phone, ORDERS_PER_KILL / 2);
        let consumer = &mut consumers[kill % PROGRAMS.len()];
        let killed = async {
            trade(&second, &phone, ORDERS_PER_KILL / 4).await;
            victim.kill();
            consumer.kill();
            trade(&second, &phone, ORDERS_PER_KILL / 4).await;
        };
        tokio::join!(dies, killed);
        consumer.start_again();
        replicas.push(shop.replica(&[]).await);
    }

    let shop = shop.through(&replicas[0].url);
    expect_the_same(&shop, &consumers).await;
    let repeats = repeat_everything(&shop).await;
    expect_the_same(&shop, &consumers).await;

    let truth = truth(&shop).await;
    let changes: i32 = truth.values().map(|(.., version)| version).sum();
    figure(&format!(
        "{} orders with {changes} changes, {KILLS} kills of replicas and of consumers, {repeats} repeats: {} have each \
         change once and in sequence",
        truth.len(),
        PROGRAMS.join(", ")
    ));
}
