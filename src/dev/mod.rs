//! The embedded stack, for `order-service dev` and for the tests: every system that the service talks to, without a
//! container or an installation. An address in the environment replaces the embedded part by a real one.

mod binaries;
pub mod console;
mod data;
mod fetch;
pub mod kafka;
pub mod postgres;
pub mod products;
pub mod replica;
mod run_as;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rdkafka::error::KafkaError;
use thiserror::Error;

pub use console::Console;
pub use data::DataFolder;
pub use kafka::Kafka;
pub use postgres::Postgres;
pub use products::DemoProducts;

/// An error of a part of the embedded stack.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DevError {
    #[error("this machine has no PostgreSQL, and the download failed; install it with: {install}")]
    NoPostgres {
        install: &'static str,
        #[source]
        cause: fetch::FetchError,
    },
    #[error("PostgreSQL refuses to run as root, and /etc/passwd has neither a user postgres nor nobody")]
    NoAccount,
    #[error("PostgreSQL {what}; the end of its log:\n{log}")]
    Postgres { what: &'static str, log: String },
    #[error("the embedded Kafka cluster failed: {0}")]
    Kafka(#[from] KafkaError),
    #[error("this librdkafka has no embedded cluster")]
    NoCluster,
    #[error("the embedded Kafka answered {command:?} with: {answer}")]
    KafkaRefuses { command: String, answer: String },
    #[error("the embedded Kafka has no command {0:?}")]
    UnknownCommand(String),
    #[error("--data {}: it {why}", folder.display())]
    Data { folder: PathBuf, why: String },
    #[error("the second replica did not start; the log says why")]
    ReplicaNotReady,
    #[error("the HTTP client of the console cannot be created")]
    Http(#[from] reqwest::Error),
    #[error("could not {what}")]
    Io { what: &'static str, source: io::Error },
}

impl DevError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// PostgreSQL, Kafka and a Product Service, each embedded unless its address was given.
#[derive(Debug)]
pub struct Stack {
    /// The embedded database, unless `DATABASE_URL` names another.
    pub postgres: Option<Postgres>,
    /// The embedded cluster, unless `KAFKA_BOOTSTRAP_SERVERS` names another.
    pub cluster: Option<Kafka>,
    /// The demo service, unless `PRODUCT_SERVICE_URL` names another.
    pub products: Option<DemoProducts>,
    /// The URL of PostgreSQL.
    pub database_url: String,
    /// The addresses of Kafka's brokers.
    pub kafka: String,
    /// The URL of the Product Service.
    pub product_service: String,
}

impl Stack {
    /// Starts each part whose address `get` does not return: `DATABASE_URL`, `KAFKA_BOOTSTRAP_SERVERS`,
    /// `PRODUCT_SERVICE_URL`. An empty value counts as absent. `program` is the `order-service` binary, which runs the
    /// embedded Kafka. `data` keeps the data of embedded parts.
    ///
    /// The demo Product Service ends with the runtime that calls this function.
    pub async fn start(
        data: Option<&DataFolder>,
        program: &Path,
        get: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self, DevError> {
        let given = |name: &'static str| get(name).filter(|value| !value.trim().is_empty());
        let (kafka, cluster) = match given("KAFKA_BOOTSTRAP_SERVERS") {
            Some(servers) => (servers, None),
            None => {
                Kafka::start(program, 1).map(|kafka| (kafka.bootstrap_servers().to_owned(), Some(kafka)))?
            }
        };
        let (product_service, products) = match given("PRODUCT_SERVICE_URL") {
            Some(url) => (url, None),
            None => DemoProducts::start(data, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
                .await
                .map(|demo| (demo.url().to_owned(), Some(demo)))?,
        };
        let (database_url, postgres) = if let Some(url) = given("DATABASE_URL") {
            (url, None)
        } else {
            let server = match data {
                Some(data) => Postgres::start_in(data).await?,
                None => Postgres::start().await?,
            };
            (server.url().to_owned(), Some(server))
        };
        Ok(Self { postgres, cluster, products, database_url, kafka, product_service })
    }

    /// Stops every embedded part, and returns when all of them have ended.
    pub async fn stop(self) {
        if let Some(products) = self.products {
            products.stop().await;
        }
        drop(self.cluster);
        if let Some(postgres) = self.postgres {
            postgres.stop().await;
        }
    }
}
