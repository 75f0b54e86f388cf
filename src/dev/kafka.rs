//! A Kafka cluster inside this process.

use std::sync::PoisonError;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::{DevError, FORKS};

/// Addresses every broker at once where a broker's number is asked for.
pub const ALL_BROKERS: i32 = -1;

/// librdkafka's own cluster for tests, which speaks Kafka's protocol on 127.0.0.1 to any process: consumer
/// groups, idempotent and transactional producers, and topics that appear when they are first named (with
/// four partitions). Brokers are numbered from 1.
///
/// What it cannot do:
/// * tell a repeated batch of an idempotent producer: it checks sequence numbers only for producers with a
///   transactional id, so an acknowledgement that is lost on the way ends in a second copy of the record, and
///   an injected error that hits one of several batches on their way loses it: the producer takes the
///   acknowledgement of a later batch for one of the earlier;
/// * hide what a transaction has not committed, or keep the offsets that were committed in one;
/// * keep anything on disk: it ends, with all its records, when it is dropped or this process dies;
/// * keep much: of each partition only the newest 5 MiB (or 100,000 batches), older ones vanish
///   without a word;
/// * create, change, list or delete topics, groups or settings for an admin client
///   ([`create_topic`](Self::create_topic) is the only way);
/// * find an offset by time, compact, authenticate, encrypt, or stamp records (every acknowledgement says
///   1234);
/// * move leadership when a broker goes down: its partitions are away until it is back.
#[allow(missing_debug_implementations, reason = "the client inside has nothing to show")]
pub struct Kafka {
    /// The cluster's own handle is bound to one thread; a client that carries a cluster is not.
    host: BaseProducer,
    bootstrap_servers: String,
}

impl Kafka {
    /// Starts a cluster of so many brokers.
    pub fn start(brokers: i32) -> Result<Self, DevError> {
        let host: BaseProducer = ClientConfig::new()
            .set("test.mock.num.brokers", brokers.to_string())
            .set("log_level", "0")
            .create()?;
        let bootstrap_servers = cluster(&host)?.bootstrap_servers();
        Ok(Self { host, bootstrap_servers })
    }

    /// Where to connect, as `KAFKA_BOOTSTRAP_SERVERS`.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Creates a topic, each partition on as many brokers as Kafka's default asks for (at most three).
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), DevError> {
        let brokers = self.bootstrap_servers.split(',').count();
        let replicas = i32::try_from(brokers.min(3)).unwrap_or(1);
        Ok(cluster(&self.host)?.create_topic(name, partitions, replicas)?)
    }

    /// Cuts the broker's connections and refuses new ones until [`broker_up`](Self::broker_up).
    pub fn broker_down(&self, broker: i32) -> Result<(), DevError> {
        let _nobody_forks = FORKS.write().unwrap_or_else(PoisonError::into_inner);
        Ok(cluster(&self.host)?.broker_down(broker)?)
    }

    /// Lets the broker take connections again.
    pub fn broker_up(&self, broker: i32) -> Result<(), DevError> {
        Ok(cluster(&self.host)?.broker_up(broker)?)
    }

    /// Makes the broker answer so much later.
    pub fn round_trip_time(&self, broker: i32, delay: Duration) -> Result<(), DevError> {
        Ok(cluster(&self.host)?.broker_round_trip_time(broker, delay)?)
    }

    /// Answers the next requests of this kind with these errors, one each. `RD_KAFKA_RESP_ERR__TRANSPORT`
    /// cuts the connection instead.
    pub fn request_errors(&self, request: RDKafkaApiKey, errors: &[RDKafkaRespErr]) -> Result<(), DevError> {
        cluster(&self.host)?.request_errors(request, errors);
        Ok(())
    }

    /// Forgets the errors that are still waiting for requests of this kind.
    pub fn clear_request_errors(&self, request: RDKafkaApiKey) -> Result<(), DevError> {
        cluster(&self.host)?.clear_request_errors(request);
        Ok(())
    }

    /// Makes the broker the leader of a partition; `None` leaves it without one.
    pub fn partition_leader(&self, topic: &str, partition: i32, broker: Option<i32>) -> Result<(), DevError> {
        Ok(cluster(&self.host)?.partition_leader(topic, partition, broker)?)
    }
}

fn cluster(host: &BaseProducer) -> Result<MockCluster<'_, DefaultProducerContext>, DevError> {
    host.client().mock_cluster().ok_or(DevError::NoCluster)
}
