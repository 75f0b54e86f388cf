//! The embedded stack, for `order-service dev` and for the tests: everything that the service talks to,
//! without a container or an installation. Each part is replaced by a real one where the environment names
//! it.

mod binaries;
pub mod console;
mod data;
pub mod fetch;
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

pub use console::{Console, ConsoleSettings};
pub use data::DataFolder;
pub use kafka::Kafka;
pub use postgres::Postgres;
pub use products::DemoProducts;

/// An error of a part of the embedded stack.
#[derive(Debug, Error)]
pub enum DevError {
    /// PostgreSQL is not installed and could not be fetched.
    #[error("no PostgreSQL on this machine, and none could be fetched; install it with: {install}")]
    NoPostgres {
        /// The command that helps.
        install: &'static str,
        /// Why fetching failed.
        #[source]
        cause: fetch::FetchError,
    },
    /// PostgreSQL refuses root, and there is no other account.
    #[error("PostgreSQL refuses to run as root, and /etc/passwd has neither a user postgres nor nobody")]
    NoAccount,
    /// The server failed.
    #[error("PostgreSQL {what}; the end of its log:\n{log}")]
    Postgres {
        /// What it failed at.
        what: &'static str,
        /// The last lines of its log.
        log: String,
    },
    /// librdkafka refused.
    #[error("the embedded Kafka cluster failed: {0}")]
    Kafka(#[from] KafkaError),
    /// librdkafka started without its cluster.
    #[error("librdkafka came without its embedded cluster")]
    NoCluster,
    /// The process of the embedded cluster failed a command.
    #[error("the embedded Kafka answered {command:?} with: {answer}")]
    KafkaRefuses {
        /// The command.
        command: String,
        /// Its answer, or how it ended.
        answer: String,
    },
    /// The process of the embedded cluster received an unknown command.
    #[error("{0:?} is no command of the embedded Kafka")]
    UnknownCommand(String),
    /// The folder of `dev --data` cannot be used.
    #[error("--data {}: it {why}", folder.display())]
    Data {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        why: String,
    },
    /// The second replica ended, or did not serve in time.
    #[error("the second replica did not start; the log says why")]
    ReplicaNotReady,
    /// No HTTP client can be made.
    #[error("the HTTP client of the console cannot be made")]
    Http(#[from] reqwest::Error),
    /// The operating system refused.
    #[error("could not {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
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
    database_url: String,
    kafka: String,
    product_service: String,
}

impl Stack {
    /// Starts what `get` does not name: `DATABASE_URL`, `KAFKA_BOOTSTRAP_SERVERS`, `PRODUCT_SERVICE_URL`. An
    /// empty value names nothing. `program` is the `order-service` binary, which runs the embedded Kafka.
    ///
    /// The demo Product Service lives no longer than the runtime that this is called in.
    pub async fn start(
        program: &Path,
        get: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self, DevError> {
        Self::start_in(None, program, get).await
    }

    /// As [`start`](Self::start), with the data of a folder.
    pub async fn start_in(
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
            None => DemoProducts::start_in(data, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
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

    /// Where PostgreSQL is.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// Where Kafka is.
    pub fn kafka(&self) -> &str {
        &self.kafka
    }

    /// Where the Product Service is.
    pub fn product_service(&self) -> &str {
        &self.product_service
    }

    /// Stops every embedded part; nothing of it is left when this returns.
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
