//! Idempotency keys: a key of a customer belongs to one order.

use std::time::Duration;

use rust_decimal::Decimal;
use uuid::Uuid;

use super::connection::{Database, column};
use super::place::PlacedOrder;
use super::shared_read::ReadSet;
use super::{Store, StoreError};
use crate::domain::CustomerId;
use crate::metrics::Query;

/// A key that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownKey {
    /// SHA-256 of the lines of its order.
    pub fingerprint: Vec<u8>,
    /// The order. `None` while a replica of an older release is placing it.
    pub order: Option<PlacedOrder>,
}

/// Reads each key by its primary key, independent of statistics, and checks afterwards whether it is still valid. A row
/// without an order comes from an older release, whose replicas claimed a key before they placed its order.
pub(super) const FIND: &str = "
select asked.number, known.fingerprint, orders.id, orders.total_amount
from unnest($1::text[], $2::text[]) with ordinality as asked (customer_id, key, number)
cross join lateral (
    select fingerprint, order_id, locked_until, expires_at from idempotency_keys
    where customer_id = asked.customer_id and key = asked.key
    offset 0
) known
left join lateral (
    select id, total_amount from orders where id = known.order_id
    offset 0
) orders on true
where known.expires_at > now() and (known.order_id is not null or known.locked_until > now())
";

/// Reads keys in sets.
pub(super) struct KeyReads(pub(super) Database);

/// The number of the question, from 1; the fingerprint; id and total of the order.
pub(super) type KeyRow = (i64, Vec<u8>, Option<Uuid>, Option<Decimal>);

impl ReadSet for KeyReads {
    const QUERY: Query = Query::FindKey;

    /// The customer and the key.
    type Question = (CustomerId, String);
    type Answer = Result<Option<KnownKey>, StoreError>;

    async fn read(&self, keys: &[Self::Question]) -> Result<Vec<Self::Answer>, StoreError> {
        let rows = self.0.read(Query::FindKey, |connection| {
            let find = sqlx::query_as(FIND)
                .bind(column(keys, |(customer, _)| customer.as_str().to_owned()))
                .bind(column(keys, |(_, key)| key.clone()));
            Box::pin(find.fetch_all(connection))
        });
        Ok(assign(keys.len(), rows.await?))
    }
}

/// Assigns the rows to the questions by number.
fn assign(questions: usize, rows: Vec<KeyRow>) -> Vec<Result<Option<KnownKey>, StoreError>> {
    let mut answers: Vec<_> = std::iter::repeat_with(|| Ok(None)).take(questions).collect();
    for (number, fingerprint, id, total) in rows {
        let order = id.zip(total).map(|(id, total)| PlacedOrder::read(id, total)).transpose();
        let known = order.map(|order| Some(KnownKey { fingerprint, order }));
        if let Some(answer) = usize::try_from(number - 1).ok().and_then(|index| answers.get_mut(index)) {
            *answer = known;
        }
    }
    answers
}

/// A row that was renewed is checked again later. The rows are locked first and then found by `ctid`, so that the plan
/// does not depend on statistics.
pub(super) const DELETE_RECENT: &str = "
with due as materialized (
    select ctid as place, placed_at < now() - $2 as is_over
    from recent_orders where check_after <= now() order by check_after limit $1
    for update skip locked
),
renewed as (
    update recent_orders set check_after = placed_at + $2
    where ctid = any (array(select place from due where not is_over))
    returning 1
),
forgotten as (
    delete from recent_orders where ctid = any (array(select place from due where is_over)) returning 1
)
select (select count(*) from renewed) + (select count(*) from forgotten)
";

impl Store {
    /// Finds a key of the customer. `None` if it is free. Concurrent reads share a round trip.
    pub async fn find_key(&self, customer: &CustomerId, key: &str) -> Result<Option<KnownKey>, StoreError> {
        self.key_reads.ask((customer.clone(), key.to_owned())).await?
    }

    /// Deletes expired keys, and rows of recent orders past `window`; at most `limit` of each. Returns how many rows it
    /// processed.
    ///
    /// The condition on keys is repeated in the outer query, which PostgreSQL checks again if a key is renewed
    /// concurrently.
    pub async fn delete_expired_requests(&self, window: Duration, limit: i64) -> Result<u64, StoreError> {
        self.query(Query::Housekeeping, async |connection| {
            let keys = sqlx::query(
                "delete from idempotency_keys where ctid = any (array(
                     select ctid from idempotency_keys where expires_at <= now() order by expires_at limit $1))
                 and expires_at <= now()",
            )
            .bind(limit)
            .execute(&mut *connection)
            .await?;
            let recent: i64 = sqlx::query_scalar(DELETE_RECENT)
                .bind(limit)
                .bind(window)
                .fetch_one(&mut *connection)
                .await?;
            Ok(keys.rows_affected() + recent.unsigned_abs())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// PostgreSQL returns rows in any order.
        #[test]
        fn each_caller_of_a_shared_read_gets_its_own_key(
            known in proptest::collection::vec(any::<bool>(), 1..20)
                .prop_flat_map(|known| (Just(known.clone()), Just((0..known.len()).collect::<Vec<_>>()).prop_shuffle())),
        ) {
            let (known, sequence) = known;
            let row = |index: &usize| -> KeyRow {
                let id = Uuid::from_u128(*index as u128);
                (i64::try_from(index + 1).unwrap(), vec![0; 32], Some(id), Some(Decimal::ONE))
            };
            let rows = sequence.iter().filter(|index| known[**index]).map(row).collect();
            let dealt = assign(known.len(), rows);
            prop_assert_eq!(dealt.len(), known.len());
            for (index, answer) in dealt.into_iter().enumerate() {
                let order = answer.unwrap().map(|key| key.order.unwrap().id.0.as_u128());
                prop_assert_eq!(order, known[index].then_some(index as u128));
            }
        }
    }
}
