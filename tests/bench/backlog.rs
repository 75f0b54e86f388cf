//! The rate at which the relay drains a backlog of events after an outage of Kafka.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};

use crate::load::as_f64;
use crate::parts::{Parts, Service};
use crate::{Result, cpu};

const BROKER: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// The maximum duration of the drain.
const PATIENCE: Duration = Duration::from_mins(10);

pub(crate) struct Drained {
    /// Events per second, from the first in Kafka to the last.
    pub(crate) rate: f64,
    seconds: f64,
    cpu: cpu::Usage,
}

impl Drained {
    pub(crate) fn text(&self, events: u64) -> String {
        let parts = self.cpu.0.iter().filter(|(part, _)| **part != "idle");
        let parts: Vec<String> = parts
            .map(|(part, seconds)| format!("{part} {:.1}", seconds * 1e6 / as_f64(events.max(1))))
            .collect();
        format!("{events} events in {:.1} s; CPU µs each: {}", self.seconds, parts.join(", "))
    }
}

/// Waits until Kafka has all the events.
pub(crate) fn drain(
    parts: &Parts,
    service: &Service,
    events: u64,
    watched: &cpu::Watched,
    mut tick: impl FnMut(),
) -> Result<Drained> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", parts.bootstrap_servers()).create()?;
    let topic = &service.order_topic;
    let metadata = consumer.fetch_metadata(Some(topic), BROKER)?;
    let partitions: Vec<i32> =
        metadata.topics().iter().flat_map(MetadataTopic::partitions).map(MetadataPartition::id).collect();
    let arrived = || -> Result<u64> {
        let mut all = 0;
        for partition in &partitions {
            all += u64::try_from(consumer.fetch_watermarks(topic, *partition, BROKER)?.1)?;
        }
        Ok(all)
    };
    let waiting = Instant::now();
    let mut first = 0;
    while first == 0 {
        if waiting.elapsed() > BROKER {
            return Err("no event was relayed: see the log of the service".into());
        }
        std::thread::sleep(POLL);
        first = arrived()?;
    }
    let (started, before) = (Instant::now(), watched.usage());
    let mut seen = first;
    while seen < events && started.elapsed() < PATIENCE {
        std::thread::sleep(POLL);
        seen = arrived()?;
        tick();
    }
    let seconds = started.elapsed().as_secs_f64().max(0.001);
    let rate = as_f64(seen.saturating_sub(first)) / seconds;
    Ok(Drained { rate, seconds, cpu: watched.usage().since(&before) })
}
