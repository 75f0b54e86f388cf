//! Kafka in: payments. An offset is stored after the database transaction that did its record's work, so a
//! crash repeats records and loses none; the transaction remembers the event, so a repeat does nothing.

pub(crate) mod decode;
mod progress;
mod retry;
mod unpaid;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use opentelemetry::trace::SpanKind;
use rdkafka::ClientConfig;
use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::Offset;
use serde::Deserialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, info_span, warn};

use super::KafkaSettings;
use super::kafka::connection_config;
use crate::domain::payment::{ParkReason, PaymentOutcome};
use crate::domain::{OrderId, TraceParent};
use crate::metrics::Metrics;
use crate::orders::OrderService;
use crate::store::StoreError;
use crate::store::payments::{IncomingPayment, Received, RecordPlace};
use crate::telemetry::chain as chain_of;
use crate::telemetry::span::{self, Span};
use decode::{Decoded, decode};
pub use retry::{Retried, retry_parked};
pub use unpaid::{UnpaidOrders, UnpaidSettings};

/// What is read of the Payment Service.
#[derive(Clone, Debug)]
pub struct PaymentSettings {
    /// Whether payments are read at all.
    pub enabled: bool,
    /// The topic.
    pub topic: String,
    /// The consumer group, which all replicas share.
    pub group: String,
    /// How long a replica may be silent before its partitions go to others.
    pub session_timeout: Duration,
}

/// Reads the payments of its share of the partitions.
pub struct PaymentConsumer {
    consumer: Arc<StreamConsumer<Context>>,
    orders: OrderService,
    topic: String,
    metrics: Arc<Metrics>,
}

struct Context(Arc<Metrics>);

/// What is read of librdkafka's statistics.
#[derive(Deserialize)]
struct Statistics {
    topics: HashMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: HashMap<String, PartitionStatistics>,
}

#[derive(Deserialize)]
struct PartitionStatistics {
    partition: i32,
    /// Whether the partition is this replica's.
    desired: bool,
    /// From the stored offset to the end; -1 where it is not known.
    consumer_lag_stored: i64,
    /// From the committed offset to the end; -1 where it is not known.
    consumer_lag: i64,
}

impl PartitionStatistics {
    fn lag(&self) -> Option<i64> {
        let known = [self.consumer_lag_stored, self.consumer_lag].into_iter().find(|lag| *lag >= 0);
        known.filter(|_| self.desired)
    }
}

impl rdkafka::ClientContext for Context {
    /// What matters of it comes back from `recv`, too, and is logged there.
    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "the Kafka client reports");
    }

    /// Called every [`STATISTICS_INTERVAL`].
    fn stats_raw(&self, statistics: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else { return };
        for (topic, TopicStatistics { partitions }) in &statistics.topics {
            // One of them, -1, is of records that have no partition yet.
            for partition in partitions.values().filter(|partition| partition.partition >= 0) {
                self.0.payments.show_lag(topic, partition.partition, partition.lag());
            }
        }
    }
}
impl ConsumerContext for Context {}

/// How often the lag is looked at.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(1);
/// Records that are applied at once.
const LARGEST_SET: usize = 512;
/// How long a partition rests after its record could not be written.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the consumer may take for one exchange with the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

impl PaymentConsumer {
    /// A consumer that has read nothing yet; it connects in the background.
    pub fn new(
        settings: &KafkaSettings,
        orders: OrderService,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, KafkaError> {
        let payments = &settings.payments;
        let mut config: ClientConfig = connection_config(settings);
        let consumer: StreamConsumer<Context> = config
            .set("group.id", &payments.group)
            // Stored offsets are committed in the background; what is stored is decided here.
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("enable.auto.offset.store", "false")
            // A new group starts with the oldest payment, not with the next one.
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .set("session.timeout.ms", payments.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (payments.session_timeout.as_millis() / 4).to_string())
            .set("queued.max.messages.kbytes", "4096")
            .set("topic.metadata.refresh.interval.ms", "10000")
            .set("statistics.interval.ms", STATISTICS_INTERVAL.as_millis().to_string())
            .create_with_context(Context(Arc::clone(metrics)))?;
        consumer.subscribe(&[&payments.topic])?;
        let (topic, metrics) = (payments.topic.clone(), Arc::clone(metrics));
        Ok(Self { consumer: Arc::new(consumer), orders, topic, metrics })
    }

    /// Applies payments until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        info!(topic = self.topic, "reading payments");
        let (mut failures, mut said) = (0, None);
        loop {
            let set = tokio::select! {
                // First, because after a stop in the middle of stepping back the next record is not the next one.
                biased;
                () = stop.cancelled() => break,
                set = self.next_set() => set,
            };
            match set {
                Ok(set) => {
                    said = None;
                    let payments = &self.metrics.payments;
                    payments.oldest_is(oldest(&set, |_| true));
                    let failed = self.apply_set(&set).await;
                    payments.oldest_is(oldest(&set, |record| failed.contains(&record.place)));
                    let progress = SetProgress::of(&set, &failed);
                    self.store_offsets(&progress);
                    failures = if progress.failed.is_empty() { 0 } else { failures + 1 };
                    self.step_back(&progress.failed, pause(failures), &stop).await;
                }
                Err(error) => self.say(&error, &mut said),
            }
        }
        // Leaving the group commits what is stored and hands the partitions over; it waits for the broker.
        let left = tokio::task::spawn_blocking(move || drop(self.consumer));
        if timeout(BROKER_TIMEOUT, left).await.is_err() {
            warn!("the consumer group could not be left in time; the broker notices by itself");
        }
    }

    /// The next record, and what has arrived behind it.
    async fn next_set(&self) -> Result<Vec<Record>, KafkaError> {
        let mut set = vec![Record::of(&self.consumer.recv().await?)];
        // An error among the records is about the connection: if it lasts, it comes again.
        while set.len() < LARGEST_SET
            && let Some(Ok(message)) = self.consumer.recv().now_or_never()
        {
            set.push(Record::of(&message));
        }
        Ok(set)
    }

    /// Applies the records of a set at once, those of one order in sequence; then what names no order. The places of
    /// those that were not applied.
    async fn apply_set(&self, set: &[Record]) -> HashSet<RecordPlace> {
        let mut chains: HashMap<OrderId, Vec<(&Record, Decoded)>> = HashMap::new();
        let mut others = Vec::new();
        for record in set {
            let decoded = decode(&record.payload, &record.place);
            match decoded.order() {
                Some(order) => chains.entry(order).or_default().push((record, decoded)),
                None => others.push((record, decoded)),
            }
        }
        let failed = join_all(chains.into_values().map(|chain| self.apply_chain(chain))).await;
        let failed_others = self.apply_chain(others).await;
        failed.into_iter().flatten().chain(failed_others).collect()
    }

    /// Applies records one after the other, up to the first that cannot be written now. The places of the others.
    async fn apply_chain(&self, chain: Vec<(&Record, Decoded)>) -> Vec<RecordPlace> {
        let mut left = chain.into_iter();
        while let Some((record, decoded)) = left.next() {
            if let Err(error) = self.apply(record, decoded).await {
                let place = &record.place;
                warn!(?place, error = chain_of(&error), "a payment could not be written; it is read again");
                return iter::once(record)
                    .chain(left.map(|(record, _)| record))
                    .map(|r| r.place.clone())
                    .collect();
            }
        }
        Vec::new()
    }

    /// Applies one record as a part of its trace, or parks it where it can never be applied.
    async fn apply(&self, record: &Record, decoded: Decoded) -> Result<(), StoreError> {
        let event_type = match &decoded {
            Decoded::Payment { event_type, .. } => event_type,
            Decoded::Ignored => "other",
            Decoded::Undecodable { .. } => "unreadable",
        };
        // A record of another kind has no span.
        let outcome = if matches!(decoded, Decoded::Ignored) {
            "ignored"
        } else {
            self.apply_traced(record, decoded).await?
        };
        self.metrics.payments.applied(event_type, outcome);
        Ok(())
    }

    async fn apply_traced(&self, record: &Record, decoded: Decoded) -> Result<&'static str, StoreError> {
        let (mut span, trace) = self.span(record);
        let log = info_span!("payment", trace_id = %trace.trace_id(), span_id = %trace.span_id());
        let applied = span::within(&trace, self.apply_decoded(&trace, record, decoded)).instrument(log).await;
        if let Err(error) = &applied {
            span.fail(error.as_str());
        }
        applied
    }

    /// The span of one record. Its parent is what the record names, so that the payment, its order's change and the
    /// event of that belong to the trace that the Payment Service goes on with.
    fn span(&self, record: &Record) -> (Span, TraceParent) {
        let topic = &self.topic;
        let name = || format!("process {topic}");
        let (mut span, trace) = Span::entry(SpanKind::Consumer, name, record.caller.clone());
        if span.is_recorded() {
            span.set("messaging.system", "kafka");
            span.set("messaging.operation.type", "process");
            span.set("messaging.operation.name", "process");
            span.set("messaging.destination.name", topic.clone());
            span.set("messaging.destination.partition.id", record.place.partition.to_string());
            span.set("messaging.kafka.offset", record.place.offset);
        }
        (span, trace)
    }

    /// What became of the record, as a metric has it.
    async fn apply_decoded(
        &self,
        trace: &TraceParent,
        record: &Record,
        decoded: Decoded,
    ) -> Result<&'static str, StoreError> {
        let (place, payload) = (&record.place, &record.payload);
        match decoded {
            Decoded::Ignored => Ok("ignored"),
            Decoded::Payment { key, order, event, event_type } => {
                let (trace, offset) = (trace.clone(), place.offset);
                let (place, payload) = (place.clone(), payload.clone());
                let payment = Arc::new(IncomingPayment {
                    key,
                    order,
                    event,
                    event_type,
                    place,
                    trace,
                    payload,
                    retried_by: None,
                });
                match self.orders.receive_payment(Arc::clone(&payment)).await {
                    Ok(Received::Repeated) => {
                        debug!(%order, event_type, offset, "a payment was repeated");
                        Ok("repeated")
                    }
                    Ok(Received::OtherEvent) => {
                        warn!(%order, event_type, offset, "parked a payment that has the key of another");
                        Ok("key_reused")
                    }
                    Ok(Received::UnknownOrder) => {
                        warn!(%order, event_type, offset, "parked a payment of no order");
                        Ok("unknown_order")
                    }
                    // Only said of one that an operator retries.
                    Ok(Received::NotParked) => Ok("repeated"),
                    Ok(Received::Applied(outcome)) => {
                        if outcome.needs_a_person() {
                            warn!(%order, event_type, offset, ?outcome, "a payment waits for a person");
                        } else {
                            info!(%order, event_type, ?outcome, "payment applied");
                        }
                        Ok(word(&outcome))
                    }
                    // Read again, it would be refused again, and hold up its partition for good.
                    Err(refusal) if refusal.is_about_the_data() => {
                        let error = chain_of(&refusal);
                        error!(%order, event_type, offset, error, "parked a payment that cannot be written");
                        let IncomingPayment { place, payload, .. } = &*payment;
                        let why = (ParkReason::Unwritable, error.as_str());
                        self.orders.park_payment(place, Some(order), payload, why).await?;
                        Ok("unreadable")
                    }
                    Err(error) => Err(error),
                }
            }
            Decoded::Undecodable { order, error } => {
                warn!(?place, error, "parked a record that is no payment event");
                let why = (ParkReason::Undecodable, error.as_str());
                self.orders.park_payment(place, order, payload, why).await?;
                Ok("unreadable")
            }
        }
    }

    /// After this the records before the first failure of each partition count as read. An error means that the
    /// partition has gone to another replica, which reads them again and finds them done.
    fn store_offsets(&self, progress: &SetProgress) {
        for RecordPlace { topic, partition, offset } in &progress.applied {
            if let Err(error) = self.consumer.store_offset(topic, *partition, *offset) {
                info!(%error, "an offset was not stored");
            }
        }
    }

    /// Rests and goes back to the first record of each partition that was not applied. Nothing is skipped: as long as
    /// a partition is ours, nothing else is read of it before. The group keeps its member meanwhile, because the
    /// client's own threads go on talking to the broker.
    async fn step_back(&self, failed: &[RecordPlace], pause: Duration, stop: &CancellationToken) {
        if !failed.is_empty() {
            let _ = timeout(pause, stop.cancelled()).await;
        }
        for place in failed {
            while !stop.is_cancelled() {
                let Err(error) = self.seek(place).await else { break };
                if !self.holds(place) {
                    info!(%error, "the partition has moved; its new owner starts from the stored offset");
                    break;
                }
                warn!(%error, ?place, "could not go back to a record; trying again");
                let _ = timeout(FIRST_PAUSE, stop.cancelled()).await;
            }
        }
    }

    /// On a thread of its own, because the client waits for its answer there.
    async fn seek(&self, place: &RecordPlace) -> Result<(), KafkaError> {
        let (consumer, place) = (Arc::clone(&self.consumer), place.clone());
        let offset = Offset::Offset(place.offset);
        let seek = move || consumer.seek(&place.topic, place.partition, offset, BROKER_TIMEOUT);
        tokio::task::spawn_blocking(seek).await.unwrap_or(Err(KafkaError::Canceled))
    }

    /// Whether the partition is still this replica's; unless the client says otherwise, it is.
    fn holds(&self, place: &RecordPlace) -> bool {
        let assignment = self.consumer.assignment();
        assignment.map_or(true, |ours| ours.find_partition(&place.topic, place.partition).is_some())
    }

    /// At most once a minute as long as it is the same trouble. The client queues an error for each of its
    /// attempts to connect, before the payments that come after them: resting at each would hold those up long
    /// after the broker is back.
    fn say(&self, error: &KafkaError, said: &mut Option<(Trouble, Instant)>) {
        const AGAIN_AFTER: Duration = Duration::from_mins(1);
        let trouble = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Trouble::NoTopic,
            _ => Trouble::Away,
        };
        if said.is_some_and(|(same, at)| same == trouble && at.elapsed() < AGAIN_AFTER) {
            return;
        }
        *said = Some((trouble, Instant::now()));
        match trouble {
            Trouble::NoTopic => info!(topic = self.topic, "the topic of the payments is not there yet"),
            Trouble::Away => warn!(%error, "payments cannot be read right now"),
        }
    }
}

/// An outcome, as a metric has it.
const fn word(outcome: &PaymentOutcome) -> &'static str {
    match outcome {
        PaymentOutcome::Confirming => "confirming",
        PaymentOutcome::Cancelled => "cancelled",
        PaymentOutcome::RefundDue => "refund_due",
        PaymentOutcome::Ignored => "ignored",
        PaymentOutcome::PaidAgain => "paid_again",
        PaymentOutcome::AmountMismatch => "amount_mismatch",
    }
}

/// Why nothing can be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    NoTopic,
    Away,
}

/// A record, read.
struct Record {
    place: RecordPlace,
    payload: Vec<u8>,
    /// The trace that the record names.
    caller: Option<TraceParent>,
    /// When it was written, by Kafka's clock, in milliseconds of the epoch; none where Kafka does not say.
    written: Option<i64>,
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        Self {
            place: RecordPlace {
                topic: message.topic().to_owned(),
                partition: message.partition(),
                offset: message.offset(),
            },
            payload: message.payload().unwrap_or_default().to_vec(),
            caller: TraceParent::extract(header(message, "traceparent"), header(message, "tracestate")),
            written: message.timestamp().to_millis(),
        }
    }
}

/// When the oldest of these records was written.
fn oldest(set: &[Record], which: impl Fn(&Record) -> bool) -> Option<i64> {
    set.iter().filter(|record| which(record)).filter_map(|record| record.written).min()
}

/// How far a set has brought its partitions.
struct SetProgress {
    /// For each partition the last record before its first failure.
    applied: Vec<RecordPlace>,
    /// For each partition with a failure the first.
    failed: Vec<RecordPlace>,
}

impl SetProgress {
    fn of(set: &[Record], failed: &HashSet<RecordPlace>) -> Self {
        /// The last offset before the first failure, and the first failure.
        type Offsets = (Option<i64>, Option<i64>);
        let mut partitions: BTreeMap<(&str, i32), Offsets> = BTreeMap::new();
        for Record { place, .. } in set {
            let (applied, first_failed) = partitions.entry((&place.topic, place.partition)).or_default();
            if first_failed.is_none() {
                *(if failed.contains(place) { first_failed } else { applied }) = Some(place.offset);
            }
        }
        let place = |((topic, partition), offset): ((&str, i32), i64)| RecordPlace {
            topic: topic.to_owned(),
            partition,
            offset,
        };
        let applied = partitions.iter().filter_map(|(of, (applied, _))| Some(place((*of, (*applied)?))));
        let failed = partitions.iter().filter_map(|(of, (_, failed))| Some(place((*of, (*failed)?))));
        Self { applied: applied.collect(), failed: failed.collect() }
    }
}

fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16))).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(partition: i32, offset: i64) -> RecordPlace {
        RecordPlace { topic: "payment-events".into(), partition, offset }
    }

    #[test]
    fn no_offset_is_stored_beyond_the_first_failure_of_its_partition() {
        let records = [(0, 4), (1, 9), (0, 5), (0, 7), (2, 3), (1, 10), (2, 4)];
        let set: Vec<Record> = records
            .into_iter()
            .map(|(partition, offset)| Record {
                place: place(partition, offset),
                payload: Vec::new(),
                caller: None,
                written: None,
            })
            .collect();
        let failed = HashSet::from([place(0, 5), place(2, 3), place(2, 4)]);

        let progress = SetProgress::of(&set, &failed);

        assert_eq!(progress.applied, [place(0, 4), place(1, 10)]);
        assert_eq!(progress.failed, [place(0, 5), place(2, 3)]);
    }
}
