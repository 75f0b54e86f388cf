//! The system under test: three replicas, their database, their broker and their Product Service.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use order_service::config::Environment;
use order_service::dev::{DemoProducts, Postgres};
use reqwest::Client;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::Mutex;

use super::broker::Broker;
use super::plan::Plan;
use super::random::Random;
use crate::support::{Proxy, Replica, Topic, http_client};

pub(super) const EVERY_REPLICA: [usize; 3] = [0, 1, 2];
/// Many partitions, because the embedded broker keeps only the newest 5 MiB of each.
const ORDER_PARTITIONS: i32 = 32;
const PAYMENT_PARTITIONS: i32 = 6;

/// Short times, so that replicas take over the work of a crashed one while the proof is running.
const TIMES: [(&str, &str); 15] = [
    ("KAFKA_DELIVERY_TIMEOUT_MS", "500"),
    ("RELAY_LEASE_MS", "1200"),
    ("RELAY_POLL_INTERVAL_MS", "50"),
    ("RELAY_MAX_BACKOFF_MS", "400"),
    ("PRODUCT_STOCK_TIMEOUT_MS", "300"),
    ("PRODUCT_ATTEMPT_TIMEOUT_MS", "500"),
    ("PRODUCT_DEADLINE_MS", "1000"),
    ("PRODUCT_BREAKER_OPEN_MS", "200"),
    ("STOCK_LEASE_MS", "800"),
    ("STOCK_POLL_INTERVAL_MS", "50"),
    ("STOCK_WAIT_MS", "2000"),
    ("REQUEST_DEADLINE_MS", "4000"),
    ("DATABASE_DEADLINE_MS", "1000"),
    ("DATABASE_ACQUIRE_TIMEOUT_MS", "500"),
    ("HOUSEKEEPING_INTERVAL_MS", "200"),
];

pub(super) struct World {
    pub(super) postgres: Mutex<Postgres>,
    /// The connection of the replicas to the database.
    pub(super) way_to_database: Proxy,
    /// The proof's own connection to the database.
    pub(super) database: PgPool,
    pub(super) broker: Broker,
    pub(super) orders: Topic,
    pub(super) payments: Topic,
    products: DemoProducts,
    environment: Vec<(String, String)>,
    replicas: [Slot; EVERY_REPLICA.len()],
    http: Client,
}

/// One replica, which is killed and restarted.
#[derive(Default)]
struct Slot {
    process: Mutex<Option<Replica>>,
    url: RwLock<Option<String>>,
}

impl World {
    pub(super) async fn start(plan: &Plan) -> Arc<Self> {
        let postgres = Postgres::start().await.unwrap();
        let (way_to_database, database_url) = Proxy::before_database(postgres.url()).await;
        let broker = Broker::start(plan.kafka.as_deref()).await;
        let topic = |name: &str| Topic {
            bootstrap_servers: broker.bootstrap_servers().to_owned(),
            name: name.into(),
        };
        let (orders, payments) = (topic("order-events"), topic("payment-events"));
        broker.create_topic(&orders.name, ORDER_PARTITIONS).await;
        broker.create_topic(&payments.name, PAYMENT_PARTITIONS).await;
        let products = DemoProducts::start(None, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let session_timeout = broker.session_timeout().as_millis().to_string();
        let unpaid_order_ttl = plan.unpaid_order_ttl().as_secs().to_string();
        let environment = [
            ("UNPAID_ORDER_TTL", unpaid_order_ttl.as_str()),
            ("BIND_ADDRESS", "127.0.0.1:0"),
            ("SHUTDOWN_DELAY_MS", "0"),
            ("DATABASE_URL", &database_url),
            ("DATABASE_MAX_CONNECTIONS", "8"),
            ("KAFKA_BOOTSTRAP_SERVERS", &orders.bootstrap_servers),
            ("KAFKA_SESSION_TIMEOUT_MS", &session_timeout),
            ("PRODUCT_SERVICE_URL", products.url()),
            // A client without a key repeats its requests like a client with a key.
            ("DUPLICATE_WINDOW_SECONDS", "3600"),
            ("LOG_FILTER", "warn,order_service::app=info,order_service::cli=info"),
        ];
        let environment = environment.into_iter().chain(TIMES);
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let world = Arc::new(Self {
            database: PgPool::connect_lazy(postgres.url()).unwrap(),
            postgres: Mutex::new(postgres),
            way_to_database,
            broker,
            orders,
            payments,
            products,
            environment,
            replicas: EVERY_REPLICA.map(|_| Slot::default()),
            http: http_client(),
        });
        for replica in EVERY_REPLICA {
            world.start_replica(replica).await;
        }
        world
    }

    /// The address of a replica that probably runs.
    pub(super) fn any_replica(&self, random: &mut Random) -> Option<String> {
        let mut numbers = EVERY_REPLICA;
        random.shuffle(&mut numbers);
        numbers.into_iter().find_map(|number| self.replicas[number].url())
    }

    pub(super) async fn start_replica(&self, number: usize) {
        let slot = &self.replicas[number];
        let mut process = slot.process.lock().await;
        if process.is_none() {
            let environment = self.environment();
            let replica = tokio::task::spawn_blocking(move || Replica::start(&environment)).await.unwrap();
            slot.set_url(Some(replica.url.clone()));
            *process = Some(replica);
        }
    }

    pub(super) fn environment(&self) -> Environment {
        Environment::from(self.environment.clone())
    }

    /// Starts a replica and kills it during the start.
    pub(super) async fn kill_while_starting(&self, number: usize, random: &mut Random) {
        let slot = &self.replicas[number];
        let mut process = slot.process.lock().await;
        slot.set_url(None);
        *process = None;
        let starting = Replica::spawn(&self.environment());
        tokio::time::sleep(std::time::Duration::from_millis(random.below(150))).await;
        drop(starting);
    }

    /// Kills a replica with SIGKILL.
    pub(super) async fn kill_replica(&self, number: usize) {
        let slot = &self.replicas[number];
        // Clients keep calling the dead address until they look up the address again.
        let killed = slot.process.lock().await.take();
        drop(killed);
        slot.set_url(None);
    }

    /// Pauses a replica (SIGSTOP) or resumes it (SIGCONT).
    pub(super) async fn signal_replica(&self, number: usize, signal: &str) {
        if let Some(replica) = &*self.replicas[number].process.lock().await {
            replica.signal(signal);
        }
    }

    pub(super) async fn make_product(&self, id: &str, price: &str, stock: i64) {
        let body = format!(r#"{{"price":{price},"stock":{stock}}}"#);
        let request = self.http.put(format!("{}/demo/products/{id}", self.products.url()));
        assert!(request.body(body).send().await.unwrap().status().is_success());
    }

    /// Injects a fault of the Product Service for one product (`src/dev/products.rs` lists the faults).
    pub(super) async fn fault(&self, product: &str, fault: &Value) {
        let request = self.http.put(format!("{}/demo/products/{product}/fault", self.products.url()));
        assert!(request.body(json!(fault).to_string()).send().await.unwrap().status().is_success());
    }

    /// The stock changes that the Product Service has applied.
    pub(super) async fn ledger(&self) -> Vec<Value> {
        let text = self.http.get(format!("{}/demo/ledger", self.products.url()));
        serde_json::from_str(&text.send().await.unwrap().text().await.unwrap()).unwrap()
    }
}

impl Slot {
    fn url(&self) -> Option<String> {
        self.url.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_url(&self, url: Option<String>) {
        *self.url.write().unwrap_or_else(PoisonError::into_inner) = url;
    }
}
