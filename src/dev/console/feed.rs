//! The records of both topics, as they arrive.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::Shared;
use crate::dev::kafka::Journal;
use crate::events::{KafkaSettings, connection_config};

/// The maximum number of records that are kept for pages that open later.
const KEPT: usize = 500;
const POLL: Duration = Duration::from_millis(100);
/// At the stop, the time limit for reading the topics to their ends.
const DRAINED_WITHIN: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(500);
const METADATA_WITHIN: Duration = Duration::from_secs(2);
/// The number of older records that are read of each partition if `dev` did not start this Kafka.
const TAIL: i64 = 20;

/// A Kafka client that logs only at debug level, because the console breaks Kafka on purpose.
#[derive(Clone)]
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(facility, message, "the Kafka client of the console logs");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "the Kafka client of the console reports");
    }
}

impl ConsumerContext for Quiet {}

/// The newest records, numbered from 0.
pub(super) struct Feed {
    records: Mutex<VecDeque<String>>,
    /// The number of the next record.
    count: watch::Sender<u64>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { records: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl Feed {
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }

    /// The record with this number, or the oldest later one that is kept.
    pub(super) fn at(&self, number: u64) -> Option<(u64, String)> {
        let records = self.records();
        let first = *self.count.borrow() - records.len() as u64;
        let number = number.max(first);
        let index = usize::try_from(number - first).ok()?;
        records.get(index).map(|record| (number, record.clone()))
    }

    fn push(&self, record: String) {
        let mut records = self.records();
        records.push_back(record);
        if records.len() > KEPT {
            records.pop_front();
        }
        self.count.send_modify(|count| *count += 1);
    }

    fn records(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads both topics until the console stops, and with a journal then up to their ends. Blocks its thread.
pub(super) fn read_topics(settings: &KafkaSettings, console: &Shared, mut journal: Option<Journal>) {
    let consumer = connection_config(settings)
        .set("group.id", "order-service-console")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("reconnect.backoff.max.ms", "1000")
        .create_with_context(Quiet);
    let consumer: BaseConsumer<Quiet> = match consumer {
        Ok(consumer) => consumer,
        Err(error) => return warn!(%error, "the console cannot read Kafka"),
    };
    let topics = [settings.topic.as_str(), settings.payments.topic.as_str()];
    // The embedded Kafka contains only the records of this `dev`; another one may contain those of years.
    let from = if console.stack.cluster.is_some() { Offset::Beginning } else { Offset::OffsetTail(TAIL) };
    let mut assigned = BTreeMap::new();
    while !console.stopping.is_cancelled() {
        // The service may not have created a topic yet.
        if assigned.len() < topics.len()
            && !matches!(assign(&consumer, &topics, from, &mut assigned), Ok(true))
        {
            thread::sleep(RETRY);
        }
        read_one(&consumer, console, &mut journal);
    }
    if journal.is_some() {
        let deadline = Instant::now() + DRAINED_WITHIN;
        // A poll without a record means that every partition is at its end.
        while read_one(&consumer, console, &mut journal) && Instant::now() < deadline {}
    }
}

/// Polls once. Returns whether a record arrived.
fn read_one(consumer: &BaseConsumer<Quiet>, console: &Shared, journal: &mut Option<Journal>) -> bool {
    let message = consumer.poll(POLL).and_then(Result::ok);
    let written = match (&message, journal.as_mut()) {
        (Some(message), Some(journal)) => journal.append(message),
        (None, Some(journal)) => journal.flush(),
        (_, None) => Ok(()),
    };
    if let Err(error) = written {
        warn!(%error, "writing Kafka's records to --data failed; later ones will not be written");
        *journal = None;
    }
    if let Some(message) = &message {
        console.feed.push(shown(message));
    }
    message.is_some()
}

/// Assigns the partitions of the topics that exist. Returns whether all topics exist.
fn assign<'a>(
    consumer: &BaseConsumer<Quiet>,
    topics: &[&'a str],
    from: Offset,
    assigned: &mut BTreeMap<&'a str, usize>,
) -> KafkaResult<bool> {
    // Asks for all topics, because some brokers create a topic that a client asks for by name.
    let metadata = consumer.fetch_metadata(None, METADATA_WITHIN)?;
    for topic in metadata.topics() {
        let Some(name) = topics.iter().find(|name| **name == topic.name()) else { continue };
        if assigned.contains_key(name) || topic.partitions().is_empty() {
            continue;
        }
        let mut list = TopicPartitionList::new();
        for partition in topic.partitions() {
            list.add_partition_offset(name, partition.id(), from)?;
        }
        consumer.incremental_assign(&list)?;
        assigned.insert(name, topic.partitions().len());
    }
    Ok(assigned.len() == topics.len())
}

fn shown(message: &BorrowedMessage<'_>) -> String {
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let payload = message.payload().unwrap_or_default();
    let value =
        serde_json::from_slice::<Value>(payload).unwrap_or_else(|_| Value::String(text(Some(payload))));
    json!({
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "key": text(message.key()),
        "arrivedAt": Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
        "value": value,
    })
    .to_string()
}
