//! Payment events: their keys are stored in the transaction that applies them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::iter;
use std::str::FromStr;
use std::sync::Arc;

use rust_decimal::Decimal;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::connection::column;
use super::{Store, StoreError};
use crate::domain::aggregate::Refund;
use crate::domain::payments::{ParkReason, PaymentEvent, PaymentOutcome};
use crate::domain::{OrderAggregate, OrderId, TraceParent};
use crate::metrics::Query;

/// The position of a record in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Hash, sqlx::FromRow)]
pub struct RecordPlace {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// `topic/partition/offset`.
impl fmt::Display for RecordPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for RecordPlace {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let mut parts = text.rsplitn(3, '/');
            let (offset, partition) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let topic = parts.next().filter(|topic| !topic.is_empty())?.to_owned();
            Some(Self { topic, partition, offset })
        };
        read().ok_or("must be topic/partition/offset, such as payment-events/2/1234")
    }
}

/// The key that identifies repeats of a payment event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventKey {
    /// The key.
    pub key: String,
    /// The key that older releases stored for such an event, if it differs: it had the order instead of the entity.
    pub earlier: Option<String>,
}

impl EventKey {
    /// A key that older releases computed in the same way.
    pub const fn new(key: String) -> Self {
        Self { key, earlier: None }
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        iter::once(&self.key).chain(&self.earlier)
    }
}

/// A payment event that can be applied.
#[derive(Clone, Debug)]
pub struct IncomingPayment {
    /// The key that identifies repeats.
    pub key: EventKey,
    /// The order.
    pub order: OrderId,
    /// The event.
    pub event: PaymentEvent,
    /// The event type on the wire.
    pub event_type: &'static str,
    /// The position of its record.
    pub place: RecordPlace,
    /// The trace of the work on the payment.
    pub trace: TraceParent,
    /// The bytes of the record, for parking it.
    pub payload: Vec<u8>,
    /// The operator who retries the parked payment.
    pub retried_by: Option<String>,
}

/// The result of an incoming payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Applied, with this outcome.
    Applied(PaymentOutcome),
    /// Applied before.
    Repeated,
    /// Parked, because another event has its key.
    OtherEvent,
    /// Parked, because the order does not exist.
    UnknownOrder,
    /// The payment of a retry is not parked any more; nothing was done.
    NotParked,
}

/// Sorted, so that two transactions with the same keys do not deadlock.
pub(super) const REMEMBER: &str = "
insert into payment_events
    (event_key, order_id, event_type, outcome, topic, partition, \"offset\", payload_sha256)
select * from unnest(
    $1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::bigint[], $8::bytea[]
) as event (event_key)
order by event_key
";

pub(super) const PARK: &str = "
insert into parked_payments (topic, partition, \"offset\", order_id, payload, reason, error)
select * from unnest($1::text[], $2::integer[], $3::bigint[], $4::uuid[], $5::bytea[], $6::text[], $7::text[])
on conflict do nothing
";

/// Locks the parked payment, after its order, so that no operator settles it meanwhile.
pub(super) const LOCK_PARKED: &str = "
select topic, partition, \"offset\" from parked_payments
where topic = $1 and partition = $2 and \"offset\" = $3 and settled_at is null
for update
";

/// Records the retry of an operator: the payment is settled, or stays parked for another reason.
pub(super) const RETRIED: &str = "
with record as (
    update parked_payments
    set settled_at = case when $4::text is null then now() end, reason = coalesce($4, reason), error = coalesce($5, error)
    where topic = $1 and partition = $2 and \"offset\" = $3
)
insert into interventions (order_id, action, detail, actor) values ($6, 'PAYMENT_RETRY', $7, $8)
";

/// Counts the first $1 open records by reason.
pub(super) const COUNT_PARKED: &str = "
select reason, count(*)
from (select reason from parked_payments where settled_at is null order by parked_at limit $1) parked
group by 1
";

pub(super) const PAY: &str =
    "insert into payments (order_id, amount) select * from unnest($1::uuid[], $2::numeric[])";

pub(super) const REFUND: &str = "
insert into refunds_due (order_id, amount, reason) select * from unnest($1::uuid[], $2::numeric[], $3::text[])
";

pub(super) const FIND: &str = "
select event_key, order_id, topic, partition, \"offset\", payload_sha256
from payment_events
where event_key = any($1)
";

/// An applied event with the key of a payment, or with its key of older releases.
#[derive(sqlx::FromRow)]
pub(super) struct KnownEvent {
    event_key: String,
    order_id: Uuid,
    #[sqlx(flatten)]
    place: RecordPlace,
    /// `None` if an older release applied the event.
    payload_sha256: Option<Vec<u8>>,
}

impl KnownEvent {
    /// The event of a payment that is being applied.
    fn of(payment: &IncomingPayment) -> Self {
        Self {
            event_key: payment.key.key.clone(),
            order_id: payment.order.0,
            place: payment.place.clone(),
            payload_sha256: Some(payment.payload_sha256().to_vec()),
        }
    }

    /// Whether the payment is a repeat of this event: it has the same bytes. If the bytes are not stored, the key
    /// decides, but not the key of older releases, which two events of an order could share.
    fn is_repeated_by(&self, payment: &IncomingPayment) -> bool {
        match &self.payload_sha256 {
            Some(hash) => hash[..] == payment.payload_sha256(),
            None if self.order_id != payment.order.0 => false,
            None => self.event_key == payment.key.key || self.place == payment.place,
        }
    }

    /// Why a record with this event's key is parked.
    fn is_not_repeated(&self) -> String {
        let bytes = if self.payload_sha256.is_some() { "has other bytes" } else { "may have been another" };
        format!("its key is that of the event at {}, which {bytes}", self.place)
    }
}

impl IncomingPayment {
    fn payload_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.payload).into()
    }
}

/// The events that the payments may repeat: those in the database, and those of the same transaction.
#[derive(Default)]
pub(super) struct KnownEvents {
    events: HashMap<String, KnownEvent>,
    /// The records of retries that are still parked.
    parked: HashSet<RecordPlace>,
}

/// The writes of the payments of a transaction, besides their orders.
#[derive(Default)]
pub(super) struct PaymentRows {
    applied: Vec<(Arc<IncomingPayment>, PaymentOutcome)>,
    parked: Vec<(Arc<IncomingPayment>, ParkReason, String)>,
}

impl PaymentRows {
    pub(super) const fn is_empty(&self) -> bool {
        self.applied.is_empty() && self.parked.is_empty()
    }
}

/// Reads the events that have the keys of these payments.
pub(super) async fn known_events(
    connection: &mut PgConnection,
    payments: &[Arc<IncomingPayment>],
) -> Result<KnownEvents, StoreError> {
    if payments.is_empty() {
        return Ok(KnownEvents::default());
    }
    let keys: Vec<&String> = payments.iter().flat_map(|payment| payment.key.all()).collect();
    let events: Vec<KnownEvent> = sqlx::query_as(FIND).bind(keys).fetch_all(&mut *connection).await?;
    let mut parked = HashSet::new();
    for payment in payments.iter().filter(|payment| payment.retried_by.is_some()) {
        let RecordPlace { topic, partition, offset } = &payment.place;
        let lock = sqlx::query_as(LOCK_PARKED).bind(topic).bind(partition).bind(offset);
        parked.extend(lock.fetch_optional(&mut *connection).await?);
    }
    let events = events.into_iter().map(|event| (event.event_key.clone(), event)).collect();
    Ok(KnownEvents { events, parked })
}

impl KnownEvents {
    /// Applies a payment to its order in memory, and adds its writes to `rows`. Returns the order if it may have
    /// changed.
    pub(super) fn apply(
        &mut self,
        payment: &Arc<IncomingPayment>,
        aggregate: Option<OrderAggregate>,
        rows: &mut PaymentRows,
    ) -> (Received, Option<OrderAggregate>) {
        if payment.retried_by.is_some() && !self.parked.contains(&payment.place) {
            return (Received::NotParked, None);
        }
        let mut park = |reason, error: String| rows.parked.push((Arc::clone(payment), reason, error));
        let Some(mut aggregate) = aggregate else {
            park(ParkReason::UnknownOrder, "there is no such order".to_owned());
            return (Received::UnknownOrder, None);
        };
        let mut known = payment.key.all().filter_map(|key| self.events.get(key)).peekable();
        if let Some(first) = known.peek() {
            let error = first.is_not_repeated();
            if known.any(|event| event.is_repeated_by(payment)) {
                return (Received::Repeated, None);
            }
            park(ParkReason::KeyReused, error);
            return (Received::OtherEvent, None);
        }
        let total = aggregate.order.total;
        let outcome = aggregate.apply_payment(payment.event, &payment.trace);
        match (&outcome, payment.event) {
            (PaymentOutcome::AmountMismatch, PaymentEvent::Succeeded(amount)) => {
                park(ParkReason::AmountMismatch, format!("{amount} was paid and the order costs {total}"));
            }
            (PaymentOutcome::PaidAgain, PaymentEvent::Succeeded(amount)) => {
                park(ParkReason::PaidAgain, format!("{amount} was paid and the order was paid before"));
            }
            _ => {}
        }
        self.events.insert(payment.key.key.clone(), KnownEvent::of(payment));
        rows.applied.push((Arc::clone(payment), outcome));
        (Received::Applied(outcome), Some(aggregate))
    }
}

/// Writes the payments and refunds of these orders.
pub(super) async fn write(
    connection: &mut PgConnection,
    aggregates: &[&OrderAggregate],
) -> Result<(), StoreError> {
    let paid = aggregates.iter().filter_map(|a| Some((a.order.id.0, a.changes.payment?.decimal())));
    let (orders, amounts): (Vec<Uuid>, Vec<Decimal>) = paid.unzip();
    if !orders.is_empty() {
        sqlx::query(PAY).bind(orders).bind(amounts).execute(&mut *connection).await?;
    }
    let refunds = aggregates.iter().filter_map(|a| Some((a.order.id.0, a.changes.refund.as_ref()?)));
    let refunds: Vec<(Uuid, &Refund)> = refunds.collect();
    if !refunds.is_empty() {
        sqlx::query(REFUND)
            .bind(column(&refunds, |(order, _)| *order))
            .bind(column(&refunds, |(_, refund)| refund.amount.decimal()))
            .bind(column(&refunds, |(_, refund)| refund.reason.as_str()))
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Stores the keys of applied events, and parks the payments that an operator must look at.
pub(super) async fn write_events(
    connection: &mut PgConnection,
    rows: &PaymentRows,
) -> Result<(), StoreError> {
    let PaymentRows { applied, parked } = rows;
    if !applied.is_empty() {
        sqlx::query(REMEMBER)
            .bind(column(applied, |(payment, _)| payment.key.key.as_str()))
            .bind(column(applied, |(payment, _)| payment.order.0))
            .bind(column(applied, |(payment, _)| payment.event_type))
            .bind(column(applied, |(_, outcome)| outcome.into_str()))
            .bind(column(applied, |(payment, _)| payment.place.topic.as_str()))
            .bind(column(applied, |(payment, _)| payment.place.partition))
            .bind(column(applied, |(payment, _)| payment.place.offset))
            .bind(column(applied, |(payment, _)| payment.payload_sha256().to_vec()))
            .execute(&mut *connection)
            .await?;
    }
    let new = parked.iter().filter(|(payment, ..)| payment.retried_by.is_none());
    let records: Vec<ParkedRecord<'_>> = new
        .map(|(payment, reason, error)| ParkedRecord {
            place: &payment.place,
            order: Some(payment.order),
            payload: &payment.payload,
            reason: *reason,
            error,
        })
        .collect();
    if !records.is_empty() {
        park(&mut *connection, &records).await?;
    }
    for (payment, outcome) in applied.iter().filter(|(payment, _)| payment.retried_by.is_some()) {
        let parked = parked.iter().find(|(parked, ..)| Arc::ptr_eq(parked, payment));
        let (place, outcome) = (&payment.place, outcome.into_str());
        // The reason is null unless the payment stays parked.
        sqlx::query(RETRIED)
            .bind(&place.topic)
            .bind(place.partition)
            .bind(place.offset)
            .bind(parked.map(|(_, reason, _)| reason.into_str()))
            .bind(parked.map(|(.., error)| error))
            .bind(payment.order.0)
            .bind(format!("{place}: {outcome}"))
            .bind(&payment.retried_by)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// A record that cannot be applied, for an operator.
#[derive(Clone, Copy, Debug)]
pub struct ParkedRecord<'a> {
    /// The place of the record.
    pub place: &'a RecordPlace,
    /// The order, if the record names one.
    pub order: Option<OrderId>,
    /// The bytes of the record.
    pub payload: &'a [u8],
    /// Why it is parked.
    pub reason: ParkReason,
    /// The reason in full.
    pub error: &'a str,
}

async fn park(connection: &mut PgConnection, records: &[ParkedRecord<'_>]) -> Result<(), StoreError> {
    sqlx::query(PARK)
        .bind(column(records, |record| record.place.topic.as_str()))
        .bind(column(records, |record| record.place.partition))
        .bind(column(records, |record| record.place.offset))
        .bind(column(records, |record| record.order.map(|order| order.0)))
        .bind(column(records, |record| record.payload))
        .bind(column(records, |record| record.reason.into_str()))
        .bind(column(records, |record| record.error))
        .execute(connection)
        .await?;
    Ok(())
}

impl Store {
    /// Parks a record that cannot be applied, for an operator.
    pub async fn park_payment(&self, record: ParkedRecord<'_>) -> Result<(), StoreError> {
        self.query(Query::Park, async |connection| park(connection, &[record]).await).await
    }
}
