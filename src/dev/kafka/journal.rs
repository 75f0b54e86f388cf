//! Keeps the records of the embedded cluster for the next start, because the cluster itself writes nothing to disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::{Deserialize, Serialize};

use crate::dev::DevError;
use crate::dev::data::DataFolder;

const DELIVERED_WITHIN: Duration = Duration::from_secs(30);

/// One record, as a line of JSON. Keys and values may be any bytes, so they are in base64.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Line {
    topic: String,
    partition: i32,
    timestamp: Option<i64>,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<(String, Option<String>)>,
}

/// The file of the records.
#[derive(Debug)]
pub struct Journal {
    file: BufWriter<File>,
    /// The number of records of earlier starts in each partition. The consumer reads them again, and the journal skips
    /// them.
    known: HashMap<(String, i32), i64>,
}

impl Journal {
    /// Publishes the records of the file to a new cluster. Each goes to its former partition, in the former order, so
    /// it also gets its former offset.
    pub(super) async fn restore(folder: &DataFolder, servers: &str) -> Result<Self, DevError> {
        let (file, records) = folder.read_lines::<Line>("kafka.jsonl")?;
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", servers)
            .set("acks", "all")
            .set("max.in.flight.requests.per.connection", "1")
            .create()?;
        for chunk in records.chunks(10_000) {
            let sent = chunk.iter().map(|record| record.send(&producer));
            for delivered in join_all(sent).await {
                delivered.map_err(|why| {
                    folder.refuse(format!("has a kafka.jsonl that Kafka does not accept: {why}"))
                })?;
            }
        }
        let mut known = HashMap::new();
        for record in records {
            *known.entry((record.topic, record.partition)).or_default() += 1;
        }
        Ok(Self { file: BufWriter::new(file), known })
    }

    /// Appends a record, unless it came from the file.
    pub(in crate::dev) fn append(&mut self, message: &BorrowedMessage<'_>) -> std::io::Result<()> {
        let place = (message.topic().to_owned(), message.partition());
        if self.known.get(&place).is_some_and(|known| message.offset() < *known) {
            return Ok(());
        }
        let mut line = serde_json::to_string(&Line::of(message))?;
        line.push('\n');
        self.file.write_all(line.as_bytes())
    }

    /// Writes buffered records to the file.
    pub(in crate::dev) fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Line {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(encode),
            value: message.payload().map(encode),
            headers: headers.map(|header| (header.key.to_owned(), header.value.map(encode))).collect(),
        }
    }

    async fn send(&self, producer: &FutureProducer) -> Result<(), String> {
        let decode = |text: &String| BASE64_STANDARD.decode(text).map_err(|error| error.to_string());
        let key = self.key.as_ref().map(decode).transpose()?;
        let value = self.value.as_ref().map(decode).transpose()?;
        let mut headers = OwnedHeaders::new_with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            let value = value.as_ref().map(decode).transpose()?;
            headers = headers.insert(Header { key: name, value: value.as_ref() });
        }
        let mut record = FutureRecord::to(&self.topic).partition(self.partition).headers(headers);
        record.timestamp = self.timestamp;
        record.key = key.as_deref();
        record.payload = value.as_deref();
        let delivered = producer.send(record, DELIVERED_WITHIN).await;
        delivered.map(drop).map_err(|(error, _)| format!("{} refuses a record: {error}", self.topic))
    }
}
