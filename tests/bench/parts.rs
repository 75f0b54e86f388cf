//! The parts around a load: PostgreSQL with default durability, Kafka, the stub, and the service as a process.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use order_service::dev::postgres::Durability;
use order_service::dev::{Kafka, Postgres};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::runtime::Runtime;

use crate::settings::Settings;
use crate::{Result, cpu, events};

/// The service of this build, which includes the embedded Kafka.
const PROGRAM: &str = env!("CARGO_BIN_EXE_order-service");

const READY_WITHIN: Duration = Duration::from_mins(1);
const STOPPED_WITHIN: Duration = Duration::from_secs(40);
const FILLED_AT_ONCE: u64 = 50_000;

/// Everything but the service.
pub(crate) struct Parts {
    pub(crate) settings: Settings,
    pub(crate) runtime: Runtime,
    postgres: Postgres,
    stub: Stub,
    kafka: Option<Kafka>,
    bootstrap_servers: String,
    databases: u32,
}

/// A second process of this program, as the Product Service.
struct Stub {
    child: Child,
    address: String,
    _lifeline: Option<ChildStdin>,
}

/// A running `order-service serve`.
pub(crate) struct Service {
    child: Child,
    pub(crate) address: SocketAddr,
    /// From the start of the process to the first 200 of `/health/ready`.
    pub(crate) ready_after: Duration,
    pub(crate) payment_topic: String,
    pub(crate) order_topic: String,
}

impl Parts {
    pub(crate) fn start(settings: Settings) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let postgres = runtime.block_on(Postgres::start_with(Durability::Default))?;
        let stub = Stub::start()?;
        let (bootstrap_servers, kafka) = match &settings.kafka {
            Some(servers) => (servers.clone(), None),
            None => Kafka::start(Path::new(PROGRAM), 1)
                .map(|kafka| (kafka.bootstrap_servers().to_owned(), Some(kafka)))?,
        };
        Ok(Self { settings, runtime, postgres, stub, kafka, bootstrap_servers, databases: 0 })
    }

    pub(crate) fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// The mock cluster of librdkafka, unless a real Kafka is set.
    pub(crate) fn embedded_kafka(&self) -> Option<&Kafka> {
        self.kafka.as_ref()
    }

    pub(crate) fn kafka_name(&self) -> &'static str {
        if self.kafka.is_some() { "embedded (librdkafka's mock cluster)" } else { "Apache Kafka" }
    }

    /// The processes whose CPU time is counted, except the service.
    pub(crate) fn watched(&self) -> cpu::Watched {
        let mut watched =
            cpu::Watched::default().with("generator", std::process::id()).with("stub", self.stub.child.id());
        if let Some(pid) = self.postmaster() {
            watched = watched.with("postgres", pid);
        }
        if let Some(pid) = self.kafka.as_ref().map(Kafka::pid).or_else(real_kafka) {
            watched = watched.with("kafka", pid);
        }
        watched
    }

    fn postmaster(&self) -> Option<u32> {
        let file = std::fs::read_to_string(self.postgres.data_dir().join("postmaster.pid")).ok()?;
        file.lines().next()?.trim().parse().ok()
    }

    /// Creates a database with the schema of a binary, this number of orders, and its topics; returns its URL.
    pub(crate) fn database(&mut self, binary: &Path, orders: u64) -> Result<String> {
        self.databases += 1;
        // The topics have the same name, and a real Kafka may have those of an earlier run.
        let name = format!("bench_{}_{}", std::process::id(), self.databases);
        let server = self.postgres.url().to_owned();
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&server).await?;
            connection.execute(AssertSqlSafe(format!("create database {name}"))).await?;
            connection.close().await
        })?;
        let url = match server.rsplit_once('/') {
            Some((server, _)) => format!("{server}/{name}"),
            None => return Err("PostgreSQL's URL names no database".into()),
        };
        let migrated = Command::new(binary)
            .arg("migrate")
            .env_clear()
            .env("DATABASE_URL", &url)
            .env("LOG_FILTER", "warn")
            .current_dir("/tmp")
            .status()?;
        if !migrated.success() {
            return Err(format!("{} migrate: {migrated}", binary.display()).into());
        }
        for topic in topics(&name) {
            events::make_topic(self, &topic)?;
        }
        self.fill(&url, 0, orders)?;
        Ok(url)
    }

    /// Adds the orders of a range of numbers and runs vacuum, because an automatic vacuum during the load would distort
    /// the figures.
    pub(crate) fn fill(&self, url: &str, from: u64, to: u64) -> Result<()> {
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(url).await?;
            let mut first = from;
            while first < to {
                let end = to.min(first + FILLED_AT_ONCE);
                sqlx::query(include_str!("sql/fill.sql"))
                    .bind(i64::try_from(first)?)
                    .bind(i64::try_from(end)?)
                    .execute(&mut connection)
                    .await?;
                first = end;
            }
            if to > from {
                connection.execute("vacuum analyze").await?;
            }
            connection.close().await?;
            Ok(())
        })
    }

    /// Adds the events of this number of orders to the outbox.
    pub(crate) fn fill_outbox(&self, url: &str, events: u64) -> Result<()> {
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(url).await?;
            let mut first = 0;
            while first < events {
                let end = events.min(first + FILLED_AT_ONCE);
                sqlx::query(include_str!("sql/outbox.sql"))
                    .bind(i64::try_from(first)?)
                    .bind(i64::try_from(end)?)
                    .execute(&mut connection)
                    .await?;
                first = end;
            }
            connection.execute("checkpoint").await?;
            connection.close().await?;
            Ok(())
        })
    }

    /// Drops an unused database, to free the disk space of a large one.
    pub(crate) fn drop_database(&self, url: &str) -> Result<()> {
        let name = url.rsplit('/').next().unwrap_or_default();
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(self.postgres.url()).await?;
            connection.execute(AssertSqlSafe(format!("drop database {name} with (force)"))).await?;
            connection.close().await
        })?;
        Ok(())
    }

    /// Starts a binary on a database and waits until it is ready. Each database has its own topics.
    pub(crate) fn serve(&self, binary: &Path, url: &str) -> Result<Service> {
        let name = url.rsplit('/').next().unwrap_or_default();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let [order_topic, payment_topic] = topics(name);
        let log = self.settings.folder.join(format!("service-{name}.log"));
        let mut command = Command::new(binary);
        command
            .arg("serve")
            .env_clear()
            .env("DATABASE_URL", url)
            .env("KAFKA_BOOTSTRAP_SERVERS", &self.bootstrap_servers)
            .env("PRODUCT_SERVICE_URL", format!("http://{}", self.stub.address))
            .env("BIND_ADDRESS", address.to_string())
            .env("SHUTDOWN_DELAY_MS", "0")
            .env("ORDER_EVENTS_TOPIC", &order_topic)
            .env("PAYMENT_EVENTS_TOPIC", &payment_topic)
            .env("KAFKA_CONSUMER_GROUP", name)
            .env("LOG_FILTER", &self.settings.log_filter)
            .envs(self.settings.service.iter().map(|(name, value)| (name, value)))
            .current_dir("/tmp")
            .stderr(File::options().create(true).append(true).open(log)?);
        let started = Instant::now();
        let mut service = Service {
            child: command.spawn()?,
            address,
            ready_after: Duration::ZERO,
            payment_topic,
            order_topic,
        };
        while !ready(address) {
            if started.elapsed() > READY_WITHIN || service.child.try_wait()?.is_some() {
                return Err(format!(
                    "{} did not become ready: see its log in {}",
                    binary.display(),
                    self.settings.folder.display()
                )
                .into());
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        service.ready_after = started.elapsed();
        Ok(service)
    }

    pub(crate) fn stop(mut self) {
        let postgres = self.postgres;
        self.stub.end();
        drop(self.kafka);
        self.runtime.block_on(postgres.stop());
    }
}

impl Service {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops the service like a deployment; returns its maximum memory in MB.
    pub(crate) fn stop(mut self) -> Result<Option<f64>> {
        let memory = cpu::peak_memory(self.pid());
        Command::new("kill").arg(self.pid().to_string()).status()?;
        let deadline = Instant::now() + STOPPED_WITHIN;
        while self.child.try_wait()?.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(memory)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stub {
    fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("stub")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().ok_or("the stub has no output")?;
        let mut address = String::new();
        BufReader::new(out).read_line(&mut address)?;
        let lifeline = child.stdin.take();
        Ok(Self { child, address: address.trim().to_owned(), _lifeline: lifeline })
    }

    fn end(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.end();
    }
}

/// The order and payment topics of a database.
fn topics(database: &str) -> [String; 2] {
    ["order-events", "payment-events"].map(|topic| format!("{database}.{topic}"))
}

/// The process of the broker that `.ci/kafka` runs.
fn real_kafka() -> Option<u32> {
    let state = PathBuf::from(std::env::var_os("KAFKA_STATE")?);
    std::fs::read_to_string(state.join("pid")).ok()?.trim().parse().ok()
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether `/health/ready` answers 200.
fn ready(address: SocketAddr) -> bool {
    let asked = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health/ready HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        Ok(start.ends_with(b" 200"))
    };
    asked().unwrap_or(false)
}
