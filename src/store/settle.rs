//! Parked payments and refunds that are due: which wait for a person, and which a person has dealt with. Every change is
//! recorded in the transaction that makes it.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use uuid::Uuid;

use super::payments::RecordPlace;
use super::{Store, StoreError};
use crate::metrics::Query;

/// A record of the payment topic that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ParkedPayment {
    /// Where it stands in Kafka, which is also its key here.
    #[sqlx(flatten)]
    pub place: RecordPlace,
    /// The order, where the record names one.
    pub order_id: Option<Uuid>,
    /// Why it is parked, as a word.
    pub reason: String,
    /// Why, in full.
    pub error: String,
    /// Since when.
    pub parked_at: DateTime<Utc>,
    /// The record's value, where it was asked for; in a list its first 64 KiB.
    pub payload: Option<Vec<u8>>,
}

/// Money that has to go back.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct RefundDue {
    /// The order.
    pub order_id: Uuid,
    /// How much.
    pub amount: Decimal,
    /// Why.
    pub reason: String,
    /// Since when.
    pub due_at: DateTime<Utc>,
}

pub(super) const LIST: &str = "
select topic, partition, \"offset\", order_id, reason, error, parked_at, case when $1 then substr(payload, 1, 65536) end as payload
from parked_payments
where settled_at is null
order by parked_at
limit $2
";

pub(super) const FIND: &str = "
select topic, partition, \"offset\", order_id, reason, error, parked_at, payload
from parked_payments
where topic = $1 and partition = $2 and \"offset\" = $3 and settled_at is null
";

pub(super) const SETTLE: &str = "
with record as (
    update parked_payments set settled_at = now()
    where topic = $1 and partition = $2 and \"offset\" = $3 and settled_at is null
    returning order_id
)
insert into interventions (order_id, action, detail, actor)
select order_id, 'PAYMENT_SETTLE', $4, $5 from record
";

pub(super) const REFUNDS: &str = "
select order_id, amount, reason, due_at from refunds_due where done_at is null order by due_at limit $1
";

pub(super) const REFUND_DONE: &str = "
with refund as (
    update refunds_due set done_at = now() where order_id = $1 and done_at is null returning order_id, amount
)
insert into interventions (order_id, action, detail, actor)
select order_id, 'REFUND_DONE', format('%s: %s', amount, $2::text), $3 from refund
";

impl Store {
    /// The `limit` records that wait for longest, with their values where `with_payload` says so.
    pub async fn parked_payments(
        &self,
        with_payload: bool,
        limit: i64,
    ) -> Result<Vec<ParkedPayment>, StoreError> {
        self.query(Query::Operate, async |connection| {
            Ok(sqlx::query_as(LIST).bind(with_payload).bind(limit).fetch_all(connection).await?)
        })
        .await
    }

    /// One record that waits, with its value. Nothing where it does not wait.
    pub async fn parked_payment(&self, place: &RecordPlace) -> Result<Option<ParkedPayment>, StoreError> {
        self.query(Query::Operate, async |connection| {
            let find = sqlx::query_as(FIND).bind(&place.topic).bind(place.partition).bind(place.offset);
            Ok(find.fetch_optional(connection).await?)
        })
        .await
    }

    /// Marks a record as dealt with by other means. Whether it waited.
    pub async fn settle_payment(
        &self,
        place: &RecordPlace,
        note: &str,
        actor: &str,
    ) -> Result<bool, StoreError> {
        self.query(Query::Operate, async |connection| {
            let settle = sqlx::query(SETTLE)
                .bind(&place.topic)
                .bind(place.partition)
                .bind(place.offset)
                .bind(format!("{place}: {note}"))
                .bind(actor);
            Ok(settle.execute(connection).await?.rows_affected() > 0)
        })
        .await
    }

    /// The `limit` refunds that are due for longest.
    pub async fn refunds_due(&self, limit: i64) -> Result<Vec<RefundDue>, StoreError> {
        self.query(Query::Operate, async |connection| {
            Ok(sqlx::query_as(REFUNDS).bind(limit).fetch_all(connection).await?)
        })
        .await
    }

    /// Marks the refund of an order as paid back. Whether one was due.
    pub async fn refund_done(&self, order: Uuid, note: &str, actor: &str) -> Result<bool, StoreError> {
        self.query(Query::Operate, async |connection| {
            let done = sqlx::query(REFUND_DONE).bind(order).bind(note).bind(actor);
            Ok(done.execute(connection).await?.rows_affected() > 0)
        })
        .await
    }
}
