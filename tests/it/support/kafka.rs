//! Reads a topic like a consumer of the platform.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;

use super::events::expect_described;
use super::{PATIENCE, eventually};

/// A topic on a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) bootstrap_servers: String,
    pub(crate) name: String,
}

/// A record of the topic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) key: String,
    pub(crate) payload: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

impl Record {
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(&self.payload).expect("JSON")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn event_type(&self) -> String {
        self.value()["eventType"].as_str().expect("an eventType").to_owned()
    }

    pub(crate) fn sequence(&self) -> i64 {
        self.value()["metadata"]["sequence"].as_i64().expect("a sequence")
    }
}

impl Topic {
    /// Reads from the beginning until `enough` returns true; fails after [`PATIENCE`].
    pub(crate) async fn read_until(
        &self,
        enough: impl Fn(&[Record]) -> bool + Send + 'static,
    ) -> Vec<Record> {
        let topic = self.clone();
        tokio::task::spawn_blocking(move || topic.read(PATIENCE, &enough)).await.unwrap()
    }

    /// Waits for `count` records.
    pub(crate) async fn records(&self, count: usize) -> Vec<Record> {
        self.read_until(move |records| records.len() >= count).await
    }

    /// Waits for `count` records of one order, and returns only those.
    pub(crate) async fn records_of(&self, order: &str, count: usize) -> Vec<Record> {
        let of = |records: &[Record], order: &str| -> Vec<Record> {
            records.iter().filter(|record| record.key == order).cloned().collect()
        };
        let wanted = order.to_owned();
        let all = self.read_until(move |records| of(records, &wanted).len() >= count).await;
        of(&all, order)
    }

    /// Creates the topic on a real broker; the embedded one has no admin API and needs another call.
    pub(crate) async fn create(&self, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap_servers).create().unwrap();
        let topic = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(1));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        self.is_known(partitions).await;
    }

    /// Waits until the broker knows the topic: the controller acknowledges its creation before that.
    pub(crate) async fn is_known(&self, partitions: i32) {
        let known = async || self.count_partitions().await == usize::try_from(partitions).unwrap();
        eventually("the broker knows the topic", known).await;
    }

    /// 0 for a topic that the broker does not know.
    async fn count_partitions(&self) -> usize {
        let topic = self.clone();
        tokio::task::spawn_blocking(move || topic.partitions(&topic.consumer()).len()).await.unwrap()
    }

    /// Publishes a record and waits for the broker's acknowledgement.
    pub(crate) async fn publish(&self, key: &str, payload: &[u8]) {
        let producer: FutureProducer =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap_servers).create().unwrap();
        let record = FutureRecord::to(&self.name).key(key).payload(payload);
        producer.send(record, PATIENCE).await.expect("an acknowledgement");
    }

    /// Publishes a record with headers and waits for the broker's acknowledgement.
    pub(crate) async fn publish_with(&self, key: &str, payload: &[u8], headers: &[(&str, String)]) {
        let producer: FutureProducer =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap_servers).create().unwrap();
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(value) }));
        let record = FutureRecord::to(&self.name).key(key).payload(payload).headers(headers);
        producer.send(record, PATIENCE).await.expect("an acknowledgement");
    }

    /// Publishes records in this order and waits for all acknowledgements.
    pub(crate) async fn publish_all(&self, records: &[(String, Vec<u8>)]) {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("enable.idempotence", "true")
            .create()
            .unwrap();
        let sent: Vec<_> = records
            .iter()
            .map(|(key, payload)| {
                let record = FutureRecord::to(&self.name).key(key).payload(payload);
                producer.send_result(record).map_err(|(error, _)| error).expect("room in the queue")
            })
            .collect();
        for delivery in sent {
            delivery.await.unwrap().expect("an acknowledgement");
        }
    }

    /// All current records of the topic.
    pub(crate) async fn everything(&self) -> Vec<Record> {
        let topic = self.clone();
        tokio::task::spawn_blocking(move || topic.read_to_end()).await.unwrap()
    }

    fn consumer(&self) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("group.id", "it")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()
            .unwrap()
    }

    fn partitions(&self, consumer: &BaseConsumer) -> Vec<i32> {
        let metadata = consumer.fetch_metadata(Some(&self.name), PATIENCE).expect("metadata");
        let topic = metadata.topics().first().expect("the topic");
        topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect()
    }

    fn assign(&self, consumer: &BaseConsumer, partitions: &[i32]) {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition_offset(&self.name, *partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
    }

    fn read(&self, patience: Duration, enough: &dyn Fn(&[Record]) -> bool) -> Vec<Record> {
        let (deadline, mut records) = (Instant::now() + patience, Vec::new());
        let consumer = self.consumer();
        let mut assigned = Vec::new();
        while !enough(&records) {
            assert!(Instant::now() < deadline, "the topic never had enough records; it has {records:#?}");
            // The service may not have created the topic yet.
            if assigned.is_empty() {
                assigned = self.partitions(&consumer);
                self.assign(&consumer, &assigned);
            }
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                let record = record(&message);
                // A record without headers was inserted into the outbox by a test's SQL.
                if self.name.starts_with("order-events") && !record.headers.is_empty() {
                    expect_described(&record);
                }
                records.push(record);
            }
        }
        records
    }

    /// The end offset of a partition. A new partition has no leader at first, so the request is repeated.
    fn end_of(&self, consumer: &BaseConsumer, partition: i32) -> i64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match consumer.fetch_watermarks(&self.name, partition, PATIENCE) {
                Ok((_, end)) => return end,
                Err(error) => assert!(Instant::now() < deadline, "watermarks: {error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn read_to_end(&self) -> Vec<Record> {
        let consumer = self.consumer();
        let partitions = self.partitions(&consumer);
        let ends: Vec<i64> = partitions.iter().map(|partition| self.end_of(&consumer, *partition)).collect();
        let wanted = usize::try_from(ends.iter().sum::<i64>()).unwrap();
        self.read(PATIENCE, &|records| records.len() >= wanted)
    }
}

fn record(message: &impl Message) -> Record {
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("UTF-8");
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    Record {
        key: text(message.key()),
        payload: text(message.payload()),
        headers: headers.map(|header| (header.key.to_owned(), text(header.value))).collect(),
        partition: message.partition(),
        offset: message.offset(),
    }
}
