//! The consumer of payments. The offset of a record is stored after the database transaction that applied it, so a
//! crash repeats records and loses none. The transaction also stores the key of the event, so a repeat changes nothing.

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
use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::Offset;
use rdkafka::{ClientConfig, Statistics};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, info_span, warn};

use super::KafkaSettings;
use super::client::connection_config;
use crate::domain::payments::{ParkReason, PaymentOutcome};
use crate::domain::{OrderId, TraceParent, time};
use crate::metrics::Metrics;
use crate::orders::OrderService;
use crate::store::StoreError;
use crate::store::payments::{IncomingPayment, ParkedRecord, Received, RecordPlace};
use crate::telemetry::error_chain;
use crate::telemetry::span::{self, Span};
use decode::{Decoded, decode};
pub use retry::{Retried, retry_parked};
pub(crate) use unpaid::UnpaidOrders;

/// Reads payments from the partitions of this replica.
pub(crate) struct PaymentConsumer {
    consumer: Arc<StreamConsumer<Context>>,
    orders: OrderService,
    topic: String,
    metrics: Arc<Metrics>,
}

struct Context(Arc<Metrics>);

impl rdkafka::ClientContext for Context {
    /// Logs at debug level, because `recv` returns the important errors, too.
    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "the Kafka client reports");
    }

    /// Called every [`STATISTICS_INTERVAL`]. Replaces the default, which logs an error for each text that is not JSON.
    fn stats_raw(&self, statistics: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else { return };
        for (topic, of_topic) in &statistics.topics {
            // Partition -1 is librdkafka's queue of records without a partition.
            for partition in of_topic.partitions.values().filter(|partition| partition.partition >= 0) {
                // -1 is unknown. The lag of the committed offset stands in for that of the stored one.
                let lag = [partition.consumer_lag_stored, partition.consumer_lag];
                let lag = lag.into_iter().find(|lag| *lag >= 0).filter(|_| partition.desired);
                self.0.payments.show_lag(topic, partition.partition, lag);
            }
        }
    }
}

impl ConsumerContext for Context {}

/// The interval at which librdkafka reports the lag.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(1);
/// The maximum number of records applied together.
const LARGEST_SET: usize = 512;
/// The backoff after a record could not be written.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// The timeout of one exchange with the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

impl PaymentConsumer {
    /// Creates a consumer. It connects in the background.
    pub(crate) fn new(
        settings: &KafkaSettings,
        orders: OrderService,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, KafkaError> {
        let payments = &settings.payments;
        let mut config: ClientConfig = connection_config(settings);
        let consumer: StreamConsumer<Context> = config
            .set("group.id", &payments.group)
            // The client commits stored offsets in the background; this code decides which offsets are stored.
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("enable.auto.offset.store", "false")
            // A new group starts with the oldest payment.
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

    pub(crate) async fn run(self, stop: CancellationToken) {
        info!(topic = self.topic, "reading payments");
        let (mut failures, mut logged) = (0, None);
        loop {
            let set = tokio::select! {
                // Checked first: after a stop during a seek back, the next record would skip others.
                biased;
                () = stop.cancelled() => break,
                set = self.next_set() => set,
            };
            match set {
                Ok(set) => {
                    logged = None;
                    let payments = &self.metrics.payments;
                    payments.set_oldest(oldest(&set, |_| true));
                    let failed = self.apply_set(&set).await;
                    payments.set_oldest(oldest(&set, |record| failed.contains(&record.place)));
                    let progress = SetProgress::of(&set, &failed);
                    self.store_offsets(&progress);
                    failures = if progress.failed.is_empty() { 0 } else { failures + 1 };
                    let pause = time::backoff(INITIAL_BACKOFF, failures, MAX_BACKOFF);
                    self.seek_back(&progress.failed, pause, &stop).await;
                }
                Err(error) => self.log_error(&error, &mut logged),
            }
        }
        // Leaving the group commits the stored offsets and releases the partitions. It waits for the broker.
        let left = tokio::task::spawn_blocking(move || drop(self.consumer));
        if timeout(BROKER_TIMEOUT, left).await.is_err() {
            warn!(
                "the consumer did not leave its group in time; the broker removes it after the session timeout"
            );
        }
    }

    /// Waits for the next record, and takes the records that have arrived after it.
    async fn next_set(&self) -> Result<Vec<Record>, KafkaError> {
        let mut set = vec![Record::of(&self.consumer.recv().await?)];
        // An error among the records concerns the connection. If it lasts, `recv` returns it again.
        while set.len() < LARGEST_SET
            && let Some(Ok(message)) = self.consumer.recv().now_or_never()
        {
            set.push(Record::of(&message));
        }
        Ok(set)
    }

    /// Applies a set of records: concurrently, but the records of one order one after the other; then those without an
    /// order. Returns the records that were not applied.
    async fn apply_set(&self, set: &[Record]) -> HashSet<RecordPlace> {
        let mut by_order: HashMap<OrderId, Vec<(&Record, Option<Decoded>)>> = HashMap::new();
        let mut others = Vec::new();
        for record in set {
            let decoded = decode(&record.payload, &record.place);
            match decoded.as_ref().and_then(Decoded::order) {
                Some(order) => by_order.entry(order).or_default().push((record, decoded)),
                None => others.push((record, decoded)),
            }
        }
        let failed = join_all(by_order.into_values().map(|records| self.apply_in_order(records))).await;
        let failed_others = self.apply_in_order(others).await;
        failed.into_iter().flatten().chain(failed_others).collect()
    }

    /// Applies records one after the other, up to the first that cannot be written now. Returns that one and the rest.
    async fn apply_in_order(&self, records: Vec<(&Record, Option<Decoded>)>) -> Vec<RecordPlace> {
        let mut left = records.into_iter();
        while let Some((record, decoded)) = left.next() {
            if let Err(error) = self.apply(record, decoded).await {
                let place = &record.place;
                warn!(
                    ?place,
                    error = error_chain(&error),
                    "a payment could not be written; reading it again"
                );
                return iter::once(record)
                    .chain(left.map(|(record, _)| record))
                    .map(|r| r.place.clone())
                    .collect();
            }
        }
        Vec::new()
    }

    /// Applies a record within its trace, or parks it if it can never be applied.
    async fn apply(&self, record: &Record, decoded: Option<Decoded>) -> Result<(), StoreError> {
        let event_type = match &decoded {
            Some(Decoded::Payment { event_type, .. }) => event_type,
            Some(Decoded::Undecodable { .. }) => "unreadable",
            None => "other",
        };
        let outcome = match decoded {
            Some(decoded) => self.apply_traced(record, decoded).await?,
            // An ignored record has no span.
            None => "ignored",
        };
        self.metrics.payments.applied(event_type, outcome);
        Ok(())
    }

    async fn apply_traced(&self, record: &Record, decoded: Decoded) -> Result<&'static str, StoreError> {
        let (mut span, trace) = self.span(record);
        let log = info_span!("payment", trace_id = %trace.trace_id(), span_id = %trace.span_id());
        let applied = span::within(&trace, self.apply_decoded(&trace, record, decoded)).instrument(log).await;
        if let Err(error) = &applied {
            span.fail(error.error_type());
        }
        applied
    }

    /// The span of a record. Its parent is the context of the record, so that the payment, the change of the order and
    /// its event belong to the trace of the Payment Service.
    fn span(&self, record: &Record) -> (Span, TraceParent) {
        let topic = &self.topic;
        let name = || format!("process {topic}");
        let (mut span, trace) = Span::entry(SpanKind::Consumer, name, record.caller.clone());
        span.set_kafka_operation("process", topic);
        span.set_kafka_record(record.place.partition, record.place.offset);
        (span, trace)
    }

    /// Applies or parks a record. Returns its outcome for the metrics.
    async fn apply_decoded(
        &self,
        trace: &TraceParent,
        record: &Record,
        decoded: Decoded,
    ) -> Result<&'static str, StoreError> {
        let Record { place, payload, .. } = record;
        match decoded {
            Decoded::Payment { key, order, event, event_type } => {
                let (place, trace, payload) = (place.clone(), trace.clone(), payload.clone());
                let retried_by = None;
                let payment =
                    IncomingPayment { key, order, event, event_type, place, trace, payload, retried_by };
                self.apply_payment(Arc::new(payment)).await
            }
            Decoded::Undecodable { order, error } => {
                warn!(?place, error, "record parked: it is not a payment event");
                let reason = ParkReason::Undecodable;
                let parked = ParkedRecord { place, order, payload, reason, error: &error };
                self.orders.park_payment(parked).await?;
                Ok("unreadable")
            }
        }
    }

    /// Applies a payment. Returns its outcome for the metrics.
    async fn apply_payment(&self, payment: Arc<IncomingPayment>) -> Result<&'static str, StoreError> {
        let (order, event_type, offset) = (payment.order, payment.event_type, payment.place.offset);
        match self.orders.receive_payment(Arc::clone(&payment)).await {
            Ok(Received::Repeated) => {
                debug!(%order, event_type, offset, "repeated payment ignored");
                Ok("repeated")
            }
            Ok(Received::OtherEvent) => {
                warn!(%order, event_type, offset, "payment parked: its key belongs to another event");
                Ok("key_reused")
            }
            Ok(Received::UnknownOrder) => {
                warn!(%order, event_type, offset, "payment parked: its order does not exist");
                Ok("unknown_order")
            }
            // Only the retry of an operator gets this answer.
            Ok(Received::NotParked) => Ok("repeated"),
            Ok(Received::Applied(outcome)) => {
                if outcome.needs_an_operator() {
                    warn!(%order, event_type, offset, ?outcome, "a payment needs an operator");
                } else {
                    info!(%order, event_type, ?outcome, "payment applied");
                }
                Ok(metric_outcome(outcome))
            }
            // A repeat would be refused again, and block the partition.
            Err(refusal) if refusal.is_about_the_data() => {
                let error = error_chain(&refusal);
                error!(%order, event_type, offset, error, "payment parked: it cannot be written");
                let IncomingPayment { place, payload, .. } = &*payment;
                let (reason, order) = (ParkReason::Unwritable, Some(order));
                let parked = ParkedRecord { place, order, payload, reason, error: &error };
                self.orders.park_payment(parked).await?;
                Ok("unreadable")
            }
            Err(error) => Err(error),
        }
    }

    /// Stores the offset before the first failure of each partition. It fails if the partition has moved to another
    /// replica, which reads the records again and finds them applied.
    fn store_offsets(&self, progress: &SetProgress) {
        for RecordPlace { topic, partition, offset } in &progress.applied {
            if let Err(error) = self.consumer.store_offset(topic, *partition, *offset) {
                info!(%error, "an offset was not stored");
            }
        }
    }

    /// Waits, and seeks back to the first record of each partition that was not applied. No record is skipped: while
    /// this replica holds the partition, nothing else is read from it. The client's threads keep the group membership
    /// alive.
    async fn seek_back(&self, failed: &[RecordPlace], pause: Duration, stop: &CancellationToken) {
        if !failed.is_empty() {
            let _ = timeout(pause, stop.cancelled()).await;
        }
        for place in failed {
            while !stop.is_cancelled() {
                let Err(error) = self.seek(place).await else { break };
                if !self.holds(place) {
                    info!(%error, "the partition has moved; its new consumer starts from the stored offset");
                    break;
                }
                warn!(%error, ?place, "could not seek back to a record; retrying");
                let _ = timeout(INITIAL_BACKOFF, stop.cancelled()).await;
            }
        }
    }

    /// Seeks on a blocking thread, because the client waits for the broker.
    async fn seek(&self, place: &RecordPlace) -> Result<(), KafkaError> {
        let (consumer, place) = (Arc::clone(&self.consumer), place.clone());
        let offset = Offset::Offset(place.offset);
        let seek = move || consumer.seek(&place.topic, place.partition, offset, BROKER_TIMEOUT);
        tokio::task::spawn_blocking(seek).await.unwrap_or(Err(KafkaError::Canceled))
    }

    /// Whether this replica holds the partition. If the client does not know, the answer is yes.
    fn holds(&self, place: &RecordPlace) -> bool {
        let assignment = self.consumer.assignment();
        assignment.map_or(true, |ours| ours.find_partition(&place.topic, place.partition).is_some())
    }

    /// Logs an error, the same kind at most once a minute. The client queues an error per connection attempt ahead of
    /// the payments, so a wait after each error would delay payments long after the broker is back.
    fn log_error(&self, error: &KafkaError, logged: &mut Option<(ErrorKind, Instant)>) {
        const LOG_INTERVAL: Duration = Duration::from_mins(1);
        let kind = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) => ErrorKind::NoTopic,
            _ => ErrorKind::Away,
        };
        if logged.is_some_and(|(same, at)| same == kind && at.elapsed() < LOG_INTERVAL) {
            return;
        }
        *logged = Some((kind, Instant::now()));
        match kind {
            ErrorKind::NoTopic => info!(topic = self.topic, "the payment topic does not exist yet"),
            ErrorKind::Away => warn!(%error, "payments cannot be read"),
        }
    }
}

/// The outcome in the metrics.
const fn metric_outcome(outcome: PaymentOutcome) -> &'static str {
    match outcome {
        PaymentOutcome::Confirming => "confirming",
        PaymentOutcome::Cancelled => "cancelled",
        PaymentOutcome::RefundDue => "refund_due",
        PaymentOutcome::Ignored => "ignored",
        PaymentOutcome::PaidAgain => "paid_again",
        PaymentOutcome::AmountMismatch => "amount_mismatch",
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ErrorKind {
    NoTopic,
    Away,
}

struct Record {
    place: RecordPlace,
    payload: Vec<u8>,
    /// The trace of the record, if it names one.
    caller: Option<TraceParent>,
    /// When it was written, by Kafka's clock, in milliseconds since 1970. `None` if Kafka has no time for it.
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

/// The time of the oldest of these records, in milliseconds since 1970.
fn oldest(set: &[Record], which: impl Fn(&Record) -> bool) -> Option<i64> {
    set.iter().filter(|record| which(record)).filter_map(|record| record.written).min()
}

struct SetProgress {
    /// The last record before the first failure of each partition.
    applied: Vec<RecordPlace>,
    /// The first failed record of each partition.
    failed: Vec<RecordPlace>,
}

impl SetProgress {
    fn of(set: &[Record], failed: &HashSet<RecordPlace>) -> Self {
        // The last record before the first failure, and the first failure.
        let mut partitions: BTreeMap<_, (Option<&RecordPlace>, Option<&RecordPlace>)> = BTreeMap::new();
        for Record { place, .. } in set {
            let (applied, first_failed) = partitions.entry((&place.topic, place.partition)).or_default();
            if first_failed.is_none() {
                *(if failed.contains(place) { first_failed } else { applied }) = Some(place);
            }
        }
        let applied = partitions.values().filter_map(|(applied, _)| applied.cloned()).collect();
        let failed = partitions.values().filter_map(|(_, failed)| failed.cloned()).collect();
        Self { applied, failed }
    }
}

fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
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
