//! A consumer of `order-events` that records the arrival time of each event.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};

use crate::Result;
use crate::load::histogram;
use crate::parts::Parts;

const PARTITIONS: i32 = 6;
const BROKER: Duration = Duration::from_secs(10);
/// Events that have not arrived this long after the load count as missing.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Watcher {
    seen: Receiver<(String, Instant)>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watcher {
    /// Reads every partition from its end.
    pub(crate) fn start(bootstrap_servers: &str, topic: &str) -> Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("group.id", "bench")
            .set("enable.auto.commit", "false")
            // The embedded broker answers an empty fetch only after this time.
            .set("fetch.wait.max.ms", "5")
            .create()?;
        consumer.assign(&ends_of(&consumer, topic)?)?;
        let (found, seen) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let Some(Ok(record)) = consumer.poll(Duration::from_millis(50)) else { continue };
                let key = record.key().unwrap_or_default();
                if found.send((String::from_utf8_lossy(key).into_owned(), Instant::now())).is_err() {
                    return;
                }
            }
        });
        Ok(Self { seen, stop, thread })
    }

    /// The time from each acknowledgement to its event in microseconds, and the number of missing events.
    pub(crate) fn finish(self, acknowledged: &[(String, Instant)]) -> Result<(Histogram<u64>, u64)> {
        let mut waiting: HashMap<&str, Instant> =
            acknowledged.iter().map(|(order, at)| (order.as_str(), *at)).collect();
        let mut latency = histogram();
        let deadline = Instant::now() + PATIENCE;
        while !waiting.is_empty()
            && let Ok((order, came)) =
                self.seen.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            if let Some(acknowledged) = waiting.remove(order.as_str()) {
                // An event may arrive before the answer.
                let after = came.saturating_duration_since(acknowledged);
                latency.saturating_record(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
            }
        }
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| "the consumer crashed")?;
        Ok((latency, waiting.len() as u64))
    }
}

fn ends_of(consumer: &BaseConsumer, topic: &str) -> Result<TopicPartitionList> {
    let metadata = consumer.fetch_metadata(Some(topic), BROKER)?;
    let mut assignment = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
        assignment.add_partition_offset(topic, partition.id(), Offset::End)?;
    }
    Ok(assignment)
}

/// Creates a topic and waits until it exists.
pub(crate) fn make_topic(parts: &Parts, topic: &str) -> Result<()> {
    if let Some(kafka) = parts.embedded_kafka() {
        return Ok(kafka.create_topic(topic, PARTITIONS)?);
    }
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", parts.bootstrap_servers());
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    for made in parts.runtime.block_on(admin.create_topics([&new], &AdminOptions::new()))? {
        made.map_err(|(topic, code)| format!("the topic {topic} was not created: {code}"))?;
    }
    Ok(())
}
