//! The parts that all tests share: one PostgreSQL server, one Kafka cluster, one demo Product Service.
//!
//! They run on their own runtime, because each test's runtime ends with the test. `DATABASE_URL`,
//! `KAFKA_BOOTSTRAP_SERVERS` and `PRODUCT_SERVICE_URL` replace them if set.

use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use order_service::config::Environment;
use order_service::dev::{Kafka, Postgres, Stack};
use order_service::{config, store};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::eventually;
use super::process::PROGRAM;

struct Shared {
    stack: Stack,
    _runtime: tokio::runtime::Runtime,
}

/// The shared parts; the first call starts them.
pub(crate) fn stack() -> &'static Stack {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    let start = || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stack = runtime
            .block_on(Stack::start(None, Path::new(PROGRAM), |name| std::env::var(name).ok()))
            .unwrap();
        Shared { stack, _runtime: runtime }
    };
    // On a separate thread, because a runtime cannot be started inside another.
    &SHARED.get_or_init(|| std::thread::spawn(start).join().unwrap()).stack
}

/// A Kafka cluster for one test, which may stop its brokers.
pub(crate) fn embedded_kafka(brokers: i32) -> Kafka {
    Kafka::start(Path::new(PROGRAM), brokers).unwrap()
}

/// Creates a database with the schema, copied from a template that was migrated once; returns its URL.
pub(crate) async fn new_database() -> String {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let template = TEMPLATE
        .get_or_init(|| async {
            let name = create_database(None).await;
            let env = Environment::default().with("DATABASE_URL", url_of(&name));
            store::migrate::migrate(&config::read_database(&env).unwrap()).await.unwrap();
            name
        })
        .await;
    url_of(&create_database(Some(template)).await)
}

/// Creates a database without a schema; returns its URL.
pub(crate) async fn empty_database() -> String {
    url_of(&create_database(None).await)
}

async fn create_database(template: Option<&str>) -> String {
    let name = format!("it_{}", Uuid::new_v4().simple());
    let template = template.map(|template| format!(" template {template}")).unwrap_or_default();
    let mut connection = connect().await;
    // PostgreSQL copies one template at a time; the lock makes the others wait instead of fail.
    connection.execute("select pg_advisory_lock(4711)").await.unwrap();
    connection.execute(AssertSqlSafe(format!("create database {name}{template}"))).await.unwrap();
    connection.close().await.unwrap();
    name
}

/// Connects to the shared server. After a crash of the server, the first test fails with the end of the server's log,
/// which has the cause; the other tests wait until the server is back.
async fn connect() -> PgConnection {
    let options = PgConnectOptions::from_str(&stack().database_url).unwrap();
    let failure = match PgConnection::connect_with(&options).await {
        Ok(connection) => return connection,
        Err(failure) => failure,
    };
    let log = stack().postgres.as_ref().map(Postgres::log_tail).unwrap_or_default();
    let crash = format!("the shared PostgreSQL refused a connection: {failure}; its log ends with\n{log}");
    eventually(&crash, async || PgConnection::connect_with(&options).await.is_ok()).await;
    panic!("{crash}");
}

fn url_of(database: &str) -> String {
    let mut url: reqwest::Url = stack().database_url.parse().unwrap();
    url.set_path(database);
    url.into()
}
