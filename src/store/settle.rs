//! Parked payments and due refunds, which operators list and settle. Each change is recorded in `interventions` in the
//! same statement.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use uuid::Uuid;

use super::payments::RecordPlace;
use super::{Store, StoreError};
use crate::metrics::Query;

/// A parked record of the payment topic.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ParkedPayment {
    /// The position in Kafka, which is also the key.
    #[sqlx(flatten)]
    pub place: RecordPlace,
    /// The order, if the record names one.
    pub order_id: Option<Uuid>,
    /// The reason as a code.
    pub reason: String,
    /// The reason in full.
    pub error: String,
    /// The time of parking.
    pub parked_at: DateTime<Utc>,
    /// The value, if it was requested; in a list its first 64 KiB.
    pub payload: Option<Vec<u8>>,
}

/// A refund that is due.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct RefundDue {
    /// The order.
    pub order_id: Uuid,
    /// The amount.
    pub amount: Decimal,
    /// The reason.
    pub reason: String,
    /// The time since which it is due.
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
    /// The oldest `limit` parked records, with their values if `with_payload`.
    pub async fn parked_payments(
        &self,
        with_payload: bool,
        limit: i64,
    ) -> Result<Vec<ParkedPayment>, StoreError> {
        self.fetch_all(Query::Operate, sqlx::query_as(LIST).bind(with_payload).bind(limit)).await
    }

    /// A parked record with its value. `None` if it is not parked.
    pub async fn parked_payment(&self, place: &RecordPlace) -> Result<Option<ParkedPayment>, StoreError> {
        self.query(Query::Operate, async |connection| {
            let find = sqlx::query_as(FIND).bind(&place.topic).bind(place.partition).bind(place.offset);
            Ok(find.fetch_optional(connection).await?)
        })
        .await
    }

    /// Marks a parked record as settled by other means. Returns whether it was parked.
    pub async fn settle_payment(
        &self,
        place: &RecordPlace,
        note: &str,
        actor: &str,
    ) -> Result<bool, StoreError> {
        let settle = sqlx::query(SETTLE)
            .bind(&place.topic)
            .bind(place.partition)
            .bind(place.offset)
            .bind(format!("{place}: {note}"))
            .bind(actor);
        Ok(self.execute(Query::Operate, settle).await? > 0)
    }

    /// The oldest `limit` due refunds.
    pub async fn refunds_due(&self, limit: i64) -> Result<Vec<RefundDue>, StoreError> {
        self.fetch_all(Query::Operate, sqlx::query_as(REFUNDS).bind(limit)).await
    }

    /// Marks the refund of an order as done. Returns whether one was due.
    pub async fn refund_done(&self, order: Uuid, note: &str, actor: &str) -> Result<bool, StoreError> {
        let done = sqlx::query(REFUND_DONE).bind(order).bind(note).bind(actor);
        Ok(self.execute(Query::Operate, done).await? > 0)
    }
}
