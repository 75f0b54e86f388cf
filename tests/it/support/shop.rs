//! A service under test, in this process, with its own database and topic.

use std::collections::BTreeMap;

use order_service::app::App;
use order_service::config::{Config, Environment};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use super::call::{Answer, Call, Who};
use super::history::expect_history;
use super::stack::{empty_database, new_database, stack};
use super::{Topic, eventually, http_client};

/// The service, with everything that a test needs to call and check it.
pub(crate) struct Shop {
    pub(crate) url: String,
    pub(crate) topic: Topic,
    pub(crate) payments: Topic,
    /// The test's own connection, for checks of the database.
    pub(crate) database: PgPool,
    pub(crate) environment: Environment,
    pub(super) client: Client,
    /// The prefix of this test's product ids, because all tests share the Product Service.
    prefix: String,
    app: Option<App>,
}

/// The settings of a service under test.
pub(crate) struct Builder {
    environment: Environment,
    bootstrap_servers: String,
    database: Option<String>,
}

/// The body of an order: product ids and quantities.
pub(crate) fn lines(lines: &[(&str, u32)]) -> Value {
    let items: Vec<Value> =
        lines.iter().map(|(id, quantity)| json!({"productId": id, "quantity": quantity})).collect();
    json!({"items": items})
}

impl Builder {
    /// Sets a variable of the service's environment.
    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment = self.environment.with(name, value);
        self
    }

    /// Uses this cluster instead of the shared one. Its topic must exist, or the broker must create it.
    pub(crate) fn kafka(mut self, bootstrap_servers: &str) -> Self {
        bootstrap_servers.clone_into(&mut self.bootstrap_servers);
        self
    }

    /// Uses this database instead of a new one.
    pub(crate) fn database(mut self, url: &str) -> Self {
        self.database = Some(url.to_owned());
        self
    }

    /// Builds everything but the service itself, for tests that start it as separate processes.
    pub(crate) async fn without_service(self) -> Shop {
        let database = match self.database {
            Some(url) => url,
            None => new_database().await,
        };
        let topic = Topic {
            bootstrap_servers: self.bootstrap_servers,
            name: format!("order-events-{}", Uuid::new_v4().simple()),
        };
        let payments = Topic { name: topic.name.replace("order", "payment"), ..topic.clone() };
        if topic.bootstrap_servers == stack().kafka {
            match &stack().cluster {
                Some(cluster) => {
                    cluster.create_topic(&topic.name, 3).unwrap();
                    cluster.create_topic(&payments.name, 3).unwrap();
                }
                // The service creates the other topic.
                None => payments.create(3).await,
            }
        }
        let own = [
            ("BIND_ADDRESS", "127.0.0.1:0".to_owned()),
            ("DATABASE_URL", database.clone()),
            ("KAFKA_BOOTSTRAP_SERVERS", topic.bootstrap_servers.clone()),
            ("ORDER_EVENTS_TOPIC", topic.name.clone()),
            ("PAYMENT_EVENTS_TOPIC", payments.name.clone()),
            ("KAFKA_CONSUMER_GROUP", payments.name.clone()),
            ("KAFKA_TOPIC_PARTITIONS", "3".to_owned()),
            ("PRODUCT_SERVICE_URL", stack().product_service.clone()),
            ("DATABASE_MAX_CONNECTIONS", "6".to_owned()),
            ("SHUTDOWN_DELAY_MS", "0".to_owned()),
            // Tests place the same lines repeatedly; tests of duplicates and payments switch these settings on.
            ("DUPLICATE_WINDOW_SECONDS", "0".to_owned()),
            ("PAYMENT_EVENTS_ENABLED", "false".to_owned()),
        ];
        let environment = self.environment.or(own.map(|(name, value)| (name.to_owned(), value)));
        Shop {
            url: String::new(),
            topic,
            payments,
            database: PgPool::connect_lazy(&database).unwrap(),
            environment,
            client: http_client(),
            prefix: format!("T{}", &Uuid::new_v4().simple().to_string()[..12]),
            app: None,
        }
    }

    /// Starts the service and waits until it serves.
    pub(crate) async fn start(self) -> Shop {
        let mut shop = self.without_service().await;
        shop.start_service().await;
        shop
    }
}

impl Shop {
    /// A service with default settings.
    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    /// A builder for a service with other settings.
    pub(crate) fn builder() -> Builder {
        let bootstrap_servers = stack().kafka.clone();
        Builder { environment: Environment::default(), bootstrap_servers, database: None }
    }

    /// The URL of a new database with the schema.
    pub(crate) async fn new_database() -> String {
        new_database().await
    }

    /// The same shop, through another replica.
    pub(crate) fn through(&self, url: &str) -> Self {
        Self {
            url: url.to_owned(),
            topic: self.topic.clone(),
            payments: self.payments.clone(),
            database: self.database.clone(),
            environment: self.environment.clone(),
            client: self.client.clone(),
            prefix: self.prefix.clone(),
            app: None,
        }
    }

    /// The URL of a new database without a schema.
    pub(crate) async fn empty_database() -> String {
        empty_database().await
    }

    /// Starts the service in this process with the environment of the shop.
    pub(crate) async fn start_service(&mut self) {
        let app = App::start(Config::read(&self.environment).unwrap()).await.unwrap();
        app.ready().await;
        self.url = format!("http://{}", app.address);
        self.app = Some(app);
    }

    /// The management address, if one is set.
    pub(crate) fn management_url(&self) -> String {
        let app = self.app.as_ref().expect("a running service");
        format!("http://{}", app.management_address.expect("an address"))
    }

    /// Stops the service like SIGTERM.
    pub(crate) async fn stop_service(&mut self) {
        self.app.take().expect("a running service").stop().await.unwrap();
    }

    /// Begins any call.
    pub(crate) fn call(&self, method: &str, path: &str) -> Call {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        Call::new(&self.client, method, format!("{}{path}", self.url))
    }

    /// `GET` as this caller.
    pub(crate) async fn get(&self, who: Who<'_>, path: &str) -> Answer {
        self.call("GET", path).by(who).send().await
    }

    /// `POST /api/orders`.
    pub(crate) async fn place(&self, who: Who<'_>, body: &Value) -> Answer {
        self.call("POST", "/api/orders").by(who).json(body).send().await
    }

    /// Places an order, which must succeed, and returns its id.
    pub(crate) async fn placed(&self, email: &str, order: &[(&str, u32)]) -> String {
        self.place(super::customer(email), &lines(order)).await.expect(201).order_id()
    }

    /// `PUT /api/orders/{order}/status` as the admin.
    pub(crate) async fn set_status(&self, order: &str, status: &str) -> Answer {
        let path = format!("/api/orders/{order}/status");
        self.call("PUT", &path).by(super::admin()).json(&json!({"status": status})).send().await
    }

    /// Creates a product of this test, with a price as JSON text; returns its id.
    pub(crate) async fn product(&self, name: &str, price: &str, stock: i64) -> String {
        let id = format!("{}-{name}", self.prefix);
        let body = format!(r#"{{"price":{price},"stock":{stock}}}"#);
        self.demo("PUT", &format!("/demo/products/{id}"), body).await.expect(200);
        id
    }

    /// The current stock of a product.
    pub(crate) async fn stock(&self, product: &str) -> i64 {
        let answer = self.demo("GET", &format!("/api/products/{product}"), String::new()).await.expect(200);
        answer.body["stock"].as_i64().unwrap()
    }

    /// Sets the stock of a product and keeps its price.
    pub(crate) async fn set_stock(&self, product: &str, stock: i64) {
        let path = format!("/api/products/{product}");
        let price = self.demo("GET", &path, String::new()).await.expect(200).body["price"].clone();
        let body = json!({"price": price, "stock": stock}).to_string();
        self.demo("PUT", &format!("/demo/products/{product}"), body).await.expect(200);
    }

    /// Publishes a payment event.
    pub(crate) async fn pay(&self, payment: &super::Payment) {
        self.payments.publish(&payment.order, payment.record.to_string().as_bytes()).await;
    }

    /// The status of an order.
    pub(crate) async fn status(&self, order: &str) -> String {
        let shown = self.get(super::admin(), &format!("/api/orders/{order}")).await.expect(200);
        shown.body["status"].as_str().unwrap().to_owned()
    }

    /// Withdraws a product.
    pub(crate) async fn withdraw(&self, product: &str) {
        self.demo("DELETE", &format!("/demo/products/{product}"), String::new()).await;
    }

    /// Injects a fault of the Product Service for one product (`src/dev/products.rs` lists the faults).
    pub(crate) async fn fault(&self, product: &str, fault: &Value) {
        self.demo("PUT", &format!("/demo/products/{product}/fault"), fault.to_string()).await;
    }

    /// Removes the fault of a product.
    pub(crate) async fn heal(&self, product: &str) {
        self.demo("DELETE", &format!("/demo/products/{product}/fault"), String::new()).await;
    }

    /// The requests that the Product Service received for one product, or for all products of this test.
    pub(crate) async fn requests_seen(&self, product: Option<&str>) -> Value {
        let id = product.unwrap_or(&self.prefix);
        self.demo("GET", &format!("/demo/requests/{id}"), String::new()).await.expect(200).body
    }

    pub(super) async fn demo(&self, method: &str, path: &str, body: String) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        Call::new(&self.client, method, format!("{}{path}", stack().product_service)).body(body).send().await
    }

    /// The number of rows of a table.
    pub(crate) async fn count(&self, table: &str) -> i64 {
        let count = AssertSqlSafe(format!("select count(*) from {table}"));
        sqlx::query_scalar(count).fetch_one(&self.database).await.unwrap()
    }

    /// Checks that the service wrote and published nothing.
    pub(crate) async fn expect_nothing_happened(&self) {
        for table in ["orders", "order_items", "order_history", "outbox"] {
            assert_eq!(self.count(table).await, 0, "{table}");
        }
        assert_eq!(self.topic.everything().await, []);
    }

    /// The orders of the database, each with its version, which is its number of events.
    pub(crate) async fn versions(&self) -> BTreeMap<String, i64> {
        let versions = sqlx::query_as::<_, (Uuid, i32)>("select id, version from orders");
        let versions = versions.fetch_all(&self.database).await.unwrap();
        versions.into_iter().map(|(id, version)| (id.to_string(), version.into())).collect()
    }

    /// Checks that each order has its lines and its history: no partial writes.
    pub(crate) async fn expect_whole_orders(&self) {
        let broken: Vec<Uuid> = sqlx::query_scalar(
            "select id from orders
             where not exists (select from order_items where order_id = id)
                or version <> (select count(*) from order_history where order_id = id)",
        )
        .fetch_all(&self.database)
        .await
        .unwrap();
        assert!(broken.is_empty(), "half written: {broken:?}");
    }

    /// Waits for the relay, then checks that the topic has exactly the events of the orders in the database, in order.
    pub(crate) async fn expect_every_event(&self) {
        self.relayed().await;
        expect_history(&self.topic.everything().await, &self.versions().await);
    }

    /// Waits until the relay has published everything.
    pub(crate) async fn relayed(&self) {
        eventually("the outbox is empty", async || self.count("outbox").await == 0).await;
    }
}
