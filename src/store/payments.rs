//! What the Payment Service told us: remembered in the transaction of what it did.

use std::iter;

use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::orders::lock;
use super::{Store, StoreError};
use crate::domain::payment::{PaymentEvent, PaymentOutcome};
use crate::domain::{OrderAggregate, OrderId, TraceParent};

/// Where a record stands in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordPlace {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// By which repeats of a payment event are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventKey {
    /// The key.
    pub key: String,
    /// The key under which earlier releases remembered such an event, if another: it had the order in the place
    /// of the entity.
    pub earlier: Option<String>,
}

impl EventKey {
    /// A key that earlier releases made in the same way.
    pub const fn new(key: String) -> Self {
        Self { key, earlier: None }
    }
}

/// A payment event that can be applied.
#[derive(Clone, Debug)]
pub struct IncomingPayment {
    /// By which repeats are told.
    pub key: EventKey,
    /// The order.
    pub order: OrderId,
    /// What happened.
    pub event: PaymentEvent,
    /// The word on the wire.
    pub event_type: &'static str,
    /// Where it stands.
    pub place: RecordPlace,
    /// The record's own trace, else a new one.
    pub trace: TraceParent,
    /// The record as it came, for parking it.
    pub payload: Vec<u8>,
}

/// What became of an incoming payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It was applied, with this outcome.
    Applied(PaymentOutcome),
    /// It was applied before.
    Repeated,
    /// It has the key of another event: it was parked.
    OtherEvent,
    /// There is no such order: it was parked.
    UnknownOrder,
}

const REMEMBER: &str = "
insert into payment_events
    (event_key, order_id, event_type, outcome, topic, partition, \"offset\", payload_sha256)
values ($1, $2, $3, $4, $5, $6, $7, $8)
";

const PARK: &str = "
insert into parked_payments (topic, partition, \"offset\", order_id, payload, error)
values ($1, $2, $3, $4, $5, $6)
on conflict do nothing
";

const FIND: &str = "
select event_key, order_id, topic, partition, \"offset\", payload_sha256
from payment_events
where event_key = any($1)
";

/// An event that was applied before under the key of another, or under the key that it had in earlier releases.
#[derive(sqlx::FromRow)]
struct KnownEvent {
    event_key: String,
    order_id: Uuid,
    topic: String,
    partition: i32,
    offset: i64,
    /// Absent where an earlier release applied the event.
    payload_sha256: Option<Vec<u8>>,
}

impl KnownEvent {
    fn place(&self) -> RecordPlace {
        RecordPlace { topic: self.topic.clone(), partition: self.partition, offset: self.offset }
    }

    /// Whether the payment is a repeat of this event: it has the same bytes. Where the bytes were not remembered,
    /// the key has to do; not the earlier one, which two events of an order could share.
    fn is_repeated_by(&self, payment: &IncomingPayment) -> bool {
        match &self.payload_sha256 {
            Some(hash) => hash[..] == payment.payload_sha256(),
            None if self.order_id != payment.order.0 => false,
            None => self.event_key == payment.key.key || self.place() == payment.place,
        }
    }

    /// Why a record with this event's key is parked.
    fn is_not_repeated(&self) -> String {
        let Self { topic, partition, offset, .. } = self;
        let bytes = if self.payload_sha256.is_some() { "has other bytes" } else { "may have been another" };
        format!("its key is that of the event at {topic}/{partition}/{offset}, which {bytes}")
    }
}

impl IncomingPayment {
    fn payload_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.payload).into()
    }
}

impl Store {
    /// Applies a payment event to its order and remembers it, in one transaction. What a person has to look at
    /// is parked in the same.
    pub async fn receive_payment(&self, payment: &IncomingPayment) -> Result<Received, StoreError> {
        let received = self
            .bounded(async {
                let mut connection = self.connection().await?;
                let mut transaction = connection.begin().await?;
                let received = self.apply(&mut transaction, payment).await?;
                transaction.commit().await?;
                connection.give_back();
                Ok(received)
            })
            .await?;
        self.outbox_written.notify_one();
        Ok(received)
    }

    /// The order is locked first, so that two repeats at once do not both find that they are the first.
    async fn apply(
        &self,
        connection: &mut PgConnection,
        payment: &IncomingPayment,
    ) -> Result<Received, StoreError> {
        let Some(aggregate) = lock(connection, payment.order, None).await? else {
            let error = "there is no such order";
            park(connection, &payment.place, Some(payment.order), &payment.payload, error).await?;
            return Ok(Received::UnknownOrder);
        };
        let keys: Vec<&String> = iter::once(&payment.key.key).chain(&payment.key.earlier).collect();
        let known: Vec<KnownEvent> = sqlx::query_as(FIND).bind(keys).fetch_all(&mut *connection).await?;
        if known.iter().any(|event| event.is_repeated_by(payment)) {
            return Ok(Received::Repeated);
        }
        if let Some(event) = known.first() {
            let error = event.is_not_repeated();
            park(connection, &payment.place, Some(payment.order), &payment.payload, &error).await?;
            return Ok(Received::OtherEvent);
        }
        let total = aggregate.order.total;
        let apply = |aggregate: &mut OrderAggregate| {
            Ok::<_, std::convert::Infallible>(aggregate.apply_payment(payment.event, &payment.trace))
        };
        let outcome = match self.decide_and_write(connection, aggregate, apply).await? {
            Ok((_, outcome)) => outcome,
            Err(never) => match never {},
        };
        let for_a_person = match (&outcome, payment.event) {
            (PaymentOutcome::AmountMismatch, PaymentEvent::Succeeded(amount)) => {
                Some(format!("{amount} was paid and the order costs {total}"))
            }
            (PaymentOutcome::PaidAgain, PaymentEvent::Succeeded(amount)) => {
                Some(format!("{amount} was paid and the order was paid before"))
            }
            _ => None,
        };
        if let Some(error) = for_a_person {
            park(connection, &payment.place, Some(payment.order), &payment.payload, &error).await?;
        }
        sqlx::query(REMEMBER)
            .bind(&payment.key.key)
            .bind(payment.order.0)
            .bind(payment.event_type)
            .bind(outcome.as_str())
            .bind(&payment.place.topic)
            .bind(payment.place.partition)
            .bind(payment.place.offset)
            .bind(payment.payload_sha256().as_slice())
            .execute(connection)
            .await?;
        Ok(Received::Applied(outcome))
    }

    /// Keeps a record that cannot be applied, for a person.
    pub async fn park_payment(
        &self,
        place: &RecordPlace,
        order: Option<OrderId>,
        payload: &[u8],
        error: &str,
    ) -> Result<(), StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            park(&mut connection, place, order, payload, error).await?;
            connection.give_back();
            Ok(())
        })
        .await
    }
}

async fn park(
    connection: &mut PgConnection,
    place: &RecordPlace,
    order: Option<OrderId>,
    payload: &[u8],
    error: &str,
) -> Result<(), StoreError> {
    sqlx::query(PARK)
        .bind(&place.topic)
        .bind(place.partition)
        .bind(place.offset)
        .bind(order.map(|order| order.0))
        .bind(payload)
        .bind(error)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes what an aggregate says of money.
pub(super) async fn write(
    connection: &mut PgConnection,
    aggregate: &OrderAggregate,
) -> Result<(), StoreError> {
    let id: Uuid = aggregate.order.id.0;
    if let Some(amount) = aggregate.changes.payment {
        sqlx::query("insert into payments (order_id, amount) values ($1, $2)")
            .bind(id)
            .bind(amount.decimal())
            .execute(&mut *connection)
            .await?;
    }
    if let Some(refund) = &aggregate.changes.refund {
        sqlx::query("insert into refunds_due (order_id, amount, reason) values ($1, $2, $3)")
            .bind(id)
            .bind(refund.amount.decimal())
            .bind(&refund.reason)
            .execute(connection)
            .await?;
    }
    Ok(())
}
