//! The progress of the consumer group, as Kafka reports it.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use crate::events::KafkaSettings;
use crate::events::client::connection_config;

/// The deadline of one query, with all its exchanges.
const DEADLINE: Duration = Duration::from_secs(10);

const NO_TOPIC: &str = "the topic of the payments does not exist";

/// The end offset of each partition at some time: all lower offsets were in the topic then.
pub(super) type Ends = BTreeMap<i32, i64>;

/// Why no unpaid order can be cancelled now. It is only logged.
pub(super) type Failure = Box<dyn Error + Send + Sync>;

/// Queries Kafka. Each query opens and closes its own connection, because a client that is not polled collects errors
/// without bound. Blocks, at most until [`DEADLINE`].
#[derive(Clone)]
pub(super) struct Progress {
    config: ClientConfig,
    topic: String,
}

struct ProgressQuery<'a> {
    progress: &'a Progress,
    client: BaseConsumer,
    deadline: Instant,
}

impl Progress {
    pub(super) fn new(settings: &KafkaSettings) -> Self {
        let mut config = connection_config(settings);
        // It reads the offsets of the group without joining it.
        config
            .set("group.id", &settings.payments.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest");
        Self { config, topic: settings.payments.topic.clone() }
    }

    /// The end of each partition now, including records of open transactions.
    pub(super) fn ends(&self) -> Result<Ends, Failure> {
        let query = self.ask("read_uncommitted", Instant::now() + DEADLINE)?;
        let partitions = query.partitions()?;
        let read = query.read_so_far(&partitions)?;
        let ends = query.ends(&partitions)?;
        match ends.iter().find(|(partition, end)| read.get(partition).is_some_and(|read| read > end)) {
            // The topic was recreated, or a broker lost records, so the committed offsets mean nothing.
            Some((partition, _)) => {
                Err(format!("the group has read beyond the end of partition {partition}").into())
            }
            None => Ok(ends),
        }
    }

    /// Whether every record below `ends` has been applied.
    ///
    /// A consumer never reads transaction markers, so its committed offset may stay below an end forever. So a group
    /// whose offset is below an end is behind only if a record can be read from that offset.
    pub(super) fn is_read(&self, ends: &Ends) -> Result<bool, Failure> {
        let query = self.ask("read_committed", Instant::now() + DEADLINE)?;
        let partitions = query.partitions()?;
        if !partitions.iter().eq(ends.keys()) {
            return Err("the partitions of the topic have changed".into());
        }
        let read = query.read_so_far(&partitions)?;
        let is_behind = |partition: &i32| read.get(partition).copied().unwrap_or(0) < ends[partition];
        let behind: Vec<i32> = partitions.into_iter().filter(is_behind).collect();
        if behind.is_empty() {
            return Ok(true);
        }
        // Records of an open transaction count, although they cannot be read yet.
        let stable = query.ends(&behind)?;
        if stable.iter().any(|(partition, end)| *end < ends[partition]) {
            return Ok(false);
        }
        query.find_no_record(behind, &read, ends)
    }

    fn ask(&self, isolation: &str, deadline: Instant) -> Result<ProgressQuery<'_>, Failure> {
        let client = self.config.clone().set("isolation.level", isolation).create()?;
        Ok(ProgressQuery { progress: self, client, deadline })
    }
}

impl ProgressQuery<'_> {
    fn left(&self) -> Duration {
        // For some calls of librdkafka, 0 means forever.
        self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    fn list(
        &self,
        partitions: &[i32],
        offset: impl Fn(i32) -> Offset,
    ) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition_offset(&self.progress.topic, *partition, offset(*partition))?;
        }
        Ok(list)
    }

    /// The partitions of the topic, in ascending order.
    fn partitions(&self) -> Result<Vec<i32>, Failure> {
        let metadata = self.client.fetch_metadata(Some(&self.progress.topic), self.left())?;
        let topic = metadata.topics().first().ok_or(NO_TOPIC)?;
        let mut partitions: Vec<i32> = match topic.error() {
            None => topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect(),
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => Vec::new(),
            Some(error) => return Err(KafkaError::MetadataFetch(error.into()).into()),
        };
        partitions.sort_unstable();
        if partitions.is_empty() { Err(NO_TOPIC.into()) } else { Ok(partitions) }
    }

    /// The committed offset of each partition that has one.
    fn read_so_far(&self, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, Failure> {
        let asked = self.list(partitions, |_| Offset::Invalid)?;
        let mut read = BTreeMap::new();
        for element in self.client.committed_offsets(asked, self.left())?.elements() {
            element.error()?;
            if let Offset::Offset(offset) = element.offset() {
                read.insert(element.partition(), offset);
            }
        }
        Ok(read)
    }

    /// The ends of these partitions at the isolation level of the client.
    fn ends(&self, partitions: &[i32]) -> Result<Ends, Failure> {
        let asked = self.list(partitions, |_| Offset::End)?;
        let answer = self.client.offsets_for_times(asked, self.left())?;
        let end = |partition: i32| -> Result<_, Failure> {
            let element = answer.find_partition(&self.progress.topic, partition);
            let offset = element.map(|element| element.error().map(|()| element.offset())).transpose()?;
            match offset {
                Some(Offset::Offset(end)) => Ok((partition, end)),
                _ => Err(format!("Kafka did not return the offset of partition {partition}").into()),
            }
        };
        partitions.iter().copied().map(end).collect()
    }

    /// Whether these partitions have no record below their ends, which are all stable.
    fn find_no_record(
        &self,
        mut left: Vec<i32>,
        read: &BTreeMap<i32, i64>,
        ends: &Ends,
    ) -> Result<bool, Failure> {
        let from = |partition| read.get(&partition).map_or(Offset::Beginning, |read| Offset::Offset(*read));
        self.client.assign(&self.list(&left, from)?)?;
        while !left.is_empty() {
            if Instant::now() >= self.deadline {
                return Err(format!("the partitions {left:?} could not be read in time").into());
            }
            match self.client.poll(self.left()) {
                Some(Ok(record)) if record.offset() < ends[&record.partition()] => return Ok(false),
                Some(Ok(record)) => left.retain(|partition| *partition != record.partition()),
                Some(Err(KafkaError::PartitionEOF(end))) => left.retain(|partition| *partition != end),
                Some(Err(error)) => return Err(error.into()),
                None => {}
            }
        }
        Ok(true)
    }
}
