//! Idempotency keys: a key of a customer belongs to one order.

use std::time::Duration;

use rust_decimal::Decimal;
use uuid::Uuid;

use super::place::PlacedOrder;
use super::{Store, StoreError};
use crate::domain::CustomerId;

/// A key that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownKey {
    /// SHA-256 of the lines of its order.
    pub fingerprint: Vec<u8>,
    /// The order; none while a replica of an older release is placing it.
    pub order: Option<PlacedOrder>,
}

/// A row without an order comes from an older release, whose replicas claimed a key before they placed its order.
pub(super) const FIND: &str = "
select known.fingerprint, orders.id, orders.total_amount
from idempotency_keys known left join orders on orders.id = known.order_id
where known.customer_id = $1 and known.key = $2 and known.expires_at > now()
  and (known.order_id is not null or known.locked_until > now())
";

/// A row that was renewed is checked again later. The rows are locked first and then found by `ctid`, so that the plan does
/// not depend on statistics.
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
    /// Finds a key of the customer; none if it is free.
    pub async fn find_key(&self, customer: &CustomerId, key: &str) -> Result<Option<KnownKey>, StoreError> {
        let found = self.database.read(|connection| {
            let find = sqlx::query_as(FIND).bind(customer.as_str().to_owned()).bind(key.to_owned());
            Box::pin(find.fetch_optional(connection))
        });
        let found: Option<(Vec<u8>, Option<Uuid>, Option<Decimal>)> = found.await?;
        let Some((fingerprint, id, total)) = found else { return Ok(None) };
        let order = id.zip(total).map(|(id, total)| PlacedOrder::read(id, total)).transpose()?;
        Ok(Some(KnownKey { fingerprint, order }))
    }

    /// Deletes expired keys, and rows of recent orders past `window`; at most `limit` of each. Returns how many rows it
    /// processed.
    ///
    /// The condition on keys is repeated in the outer query, which PostgreSQL checks again if a key is renewed concurrently.
    pub async fn delete_expired_requests(&self, window: Duration, limit: i64) -> Result<u64, StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
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
            connection.release();
            Ok(keys.rows_affected() + recent.unsigned_abs())
        })
        .await
    }
}
