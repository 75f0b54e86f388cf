//! How far the consumer group has read the payments, as Kafka says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use thiserror::Error;

use crate::events::KafkaSettings;
use crate::events::kafka::connection_config;

/// How long one question may take, with all its exchanges.
const DEADLINE: Duration = Duration::from_secs(10);

/// The end of each partition at some moment: all offsets below it were in the topic then.
pub(super) type Ends = BTreeMap<i32, i64>;

/// Why Kafka cannot tell how far the payments have been read.
#[derive(Debug, Error)]
pub(super) enum ProgressError {
    /// The broker, or the way to it, failed.
    #[error("Kafka did not answer")]
    Kafka(#[from] KafkaError),
    /// The topic does not exist.
    #[error("the topic of the payments does not exist")]
    NoTopic,
    /// Kafka gave no offset of a partition.
    #[error("Kafka gave no offset of partition {0}")]
    NoOffset(i32),
    /// The topic was created anew, or a broker lost records: what the group has read says nothing.
    #[error("the group has read beyond the end of partition {0}")]
    BeyondTheEnd(i32),
    /// The topic has other partitions than before.
    #[error("the partitions of the topic have changed")]
    PartitionsChanged,
    /// A partition could not be read within the deadline.
    #[error("the partitions {0:?} could not be read in time")]
    Timeout(Vec<i32>),
}

/// Asks Kafka. Each question opens a connection of its own and closes it, because a client that nobody polls
/// collects its errors without a bound. Blocks, and takes no longer than [`DEADLINE`].
#[derive(Clone)]
pub(super) struct Progress {
    config: ClientConfig,
    topic: String,
}

struct Question<'a> {
    progress: &'a Progress,
    client: BaseConsumer,
    deadline: Instant,
}

impl Progress {
    pub(super) fn new(settings: &KafkaSettings) -> Self {
        let mut config = connection_config(settings);
        // It reads the offsets of the group and never joins it.
        config
            .set("group.id", &settings.payments.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest");
        Self { config, topic: settings.payments.topic.clone() }
    }

    /// The end of each partition now, records of open transactions included.
    pub(super) fn ends(&self) -> Result<Ends, ProgressError> {
        let question = self.ask("read_uncommitted", Instant::now() + DEADLINE)?;
        let partitions = question.partitions()?;
        let read = question.read_so_far(&partitions)?;
        let ends = question.ends(&partitions)?;
        match ends.iter().find(|(partition, end)| read.get(partition).is_some_and(|read| read > end)) {
            Some((partition, _)) => Err(ProgressError::BeyondTheEnd(*partition)),
            None => Ok(ends),
        }
    }

    /// Whether every record below `ends` has been applied.
    ///
    /// A consumer never reads the markers of transactions, so that what it commits may stay below an end for
    /// ever: where the group is behind, it is behind a record only if one can be read from there.
    pub(super) fn is_read(&self, ends: &Ends) -> Result<bool, ProgressError> {
        let question = self.ask("read_committed", Instant::now() + DEADLINE)?;
        let partitions = question.partitions()?;
        if !partitions.iter().eq(ends.keys()) {
            return Err(ProgressError::PartitionsChanged);
        }
        let read = question.read_so_far(&partitions)?;
        let is_behind = |partition: &i32| read.get(partition).copied().unwrap_or(0) < ends[partition];
        let behind: Vec<i32> = partitions.into_iter().filter(is_behind).collect();
        if behind.is_empty() {
            return Ok(true);
        }
        // What a transaction that is still open has written cannot be read, and counts.
        let stable = question.ends(&behind)?;
        if stable.iter().any(|(partition, end)| *end < ends[partition]) {
            return Ok(false);
        }
        question.find_no_record(behind, &read, ends)
    }

    fn ask(&self, isolation: &str, deadline: Instant) -> Result<Question<'_>, ProgressError> {
        let client = self.config.clone().set("isolation.level", isolation).create()?;
        Ok(Question { progress: self, client, deadline })
    }
}

impl Question<'_> {
    fn left(&self) -> Duration {
        // Zero would mean for ever to librdkafka in some calls.
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
    fn partitions(&self) -> Result<Vec<i32>, ProgressError> {
        let metadata = self.client.fetch_metadata(Some(&self.progress.topic), self.left())?;
        let topic = metadata.topics().first().ok_or(ProgressError::NoTopic)?;
        let mut partitions: Vec<i32> = match topic.error() {
            None => topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect(),
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => Vec::new(),
            Some(error) => return Err(KafkaError::MetadataFetch(error.into()).into()),
        };
        partitions.sort_unstable();
        if partitions.is_empty() { Err(ProgressError::NoTopic) } else { Ok(partitions) }
    }

    /// The offset that the group reads next, for each partition of which it has committed one.
    fn read_so_far(&self, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, ProgressError> {
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

    /// The end of these partitions, as far as the client's isolation level lets it read.
    fn ends(&self, partitions: &[i32]) -> Result<Ends, ProgressError> {
        let asked = self.list(partitions, |_| Offset::End)?;
        let answer = self.client.offsets_for_times(asked, self.left())?;
        let end = |partition: i32| {
            let element = answer.find_partition(&self.progress.topic, partition);
            let element = element.ok_or(ProgressError::NoOffset(partition))?;
            element.error()?;
            match element.offset() {
                Offset::Offset(end) => Ok((partition, end)),
                _ => Err(ProgressError::NoOffset(partition)),
            }
        };
        partitions.iter().copied().map(end).collect()
    }

    /// Whether no record is left below the ends of these partitions, of which all are stable.
    fn find_no_record(
        &self,
        mut left: Vec<i32>,
        read: &BTreeMap<i32, i64>,
        ends: &Ends,
    ) -> Result<bool, ProgressError> {
        let from = |partition| read.get(&partition).map_or(Offset::Beginning, |read| Offset::Offset(*read));
        self.client.assign(&self.list(&left, from)?)?;
        while !left.is_empty() {
            if Instant::now() >= self.deadline {
                return Err(ProgressError::Timeout(left));
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
