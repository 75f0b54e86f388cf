//! The broker under test: three embedded brokers, or a real one behind a command.

use std::process::Command;
use std::time::Duration;

use order_service::dev::Kafka;
use order_service::dev::kafka::ALL_BROKERS;
use tempfile::TempDir;
use tokio::time::sleep;

use super::random::Random;
use crate::support::{Topic, embedded_kafka};

const BROKERS: i32 = 3;

pub(super) enum Broker {
    /// The mock cluster of librdkafka: a stopped broker closes its connections and keeps its records.
    Embedded(Kafka),
    Real(RealBroker),
}

/// A broker in its own folder, which a command such as `.ci/kafka` starts and kills.
pub(super) struct RealBroker {
    command: String,
    address: String,
    state: TempDir,
}

impl Broker {
    pub(super) async fn start(command: Option<&str>) -> Self {
        match command {
            None => Self::Embedded(embedded_kafka(BROKERS)),
            Some(command) => {
                let command = command.to_owned();
                Self::Real(tokio::task::spawn_blocking(|| RealBroker::start(command)).await.unwrap())
            }
        }
    }

    pub(super) fn bootstrap_servers(&self) -> &str {
        match self {
            Self::Embedded(kafka) => kafka.bootstrap_servers(),
            Self::Real(broker) => &broker.address,
        }
    }

    /// The shortest usable session timeout of a consumer group: the embedded broker delays the first members by three
    /// seconds, and drops members whose session expires meanwhile.
    pub(super) fn session_timeout(&self) -> Duration {
        match self {
            Self::Embedded(_) => Duration::from_millis(3_500),
            Self::Real(_) => Duration::from_secs(6),
        }
    }

    pub(super) async fn create_topic(&self, name: &str, partitions: i32) {
        match self {
            Self::Embedded(kafka) => kafka.create_topic(name, partitions).unwrap(),
            Self::Real(broker) => {
                let topic = Topic { bootstrap_servers: broker.address.clone(), name: name.to_owned() };
                topic.create(partitions).await;
            }
        }
    }

    /// Stops and restarts all brokers.
    pub(super) async fn outage(&self) {
        match self {
            Self::Embedded(kafka) => {
                kafka.broker_down(ALL_BROKERS).unwrap();
                sleep(Duration::from_secs(2)).await;
                kafka.broker_up(ALL_BROKERS).unwrap();
            }
            Self::Real(broker) => broker.restart().await,
        }
    }

    /// Stops one embedded broker or all of them, for less or more than the relay's delivery timeout; or kills and
    /// restarts the real broker.
    pub(super) async fn kill(&self, random: &mut Random) {
        match self {
            Self::Embedded(kafka) => {
                let one = i32::try_from(random.between(1, BROKERS.unsigned_abs().into())).unwrap();
                let killed = if random.percent(25) { 1..=BROKERS } else { one..=one };
                killed.clone().for_each(|broker| kafka.broker_down(broker).unwrap());
                sleep(Duration::from_millis(random.between(100, 2_500))).await;
                killed.for_each(|broker| kafka.broker_up(broker).unwrap());
            }
            Self::Real(broker) => broker.restart().await,
        }
    }
}

impl RealBroker {
    fn start(command: String) -> Self {
        let state = TempDir::with_prefix("order-service-proof-kafka-").unwrap();
        let mut broker = Self { command, address: String::new(), state };
        broker.address = broker.run("start");
        broker
    }

    async fn restart(&self) {
        let mut command = self.command("restart");
        let ended = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(ended.status.success(), "the broker did not come back: {ended:?}");
    }

    /// Runs one command and returns the last line that it prints.
    fn run(&self, what: &str) -> String {
        let ended = self.command(what).output().unwrap();
        assert!(ended.status.success(), "{} {what}: {ended:?}", self.command);
        String::from_utf8_lossy(&ended.stdout).lines().last().unwrap_or_default().trim().to_owned()
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(&self.command);
        command.arg(what).env("KAFKA_STATE", self.state.path().join("broker"));
        command
    }
}

impl Drop for RealBroker {
    fn drop(&mut self) {
        // Anything that remains is in a temporary folder.
        let _ = self.command("stop").output();
    }
}
