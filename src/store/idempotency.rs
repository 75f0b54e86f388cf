//! Idempotency keys: one key of one customer is one order.

use std::time::Duration;

use rust_decimal::Decimal;
use uuid::Uuid;

use super::place::PlacedBefore;
use super::{Store, StoreError};
use crate::domain::CustomerId;

/// A key that an attempt holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyClaim {
    /// The key, as the customer sent it.
    pub key: String,
    /// Of this attempt.
    pub token: Uuid,
}

/// What a key turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Free: this attempt holds it now.
    Held(KeyClaim),
    /// This order already.
    Done(PlacedBefore),
    /// Held by an attempt that is running.
    InProgress,
    /// Used for other lines.
    OtherLines,
}

/// How long a key counts.
#[derive(Clone, Copy, Debug)]
pub struct KeyTimes {
    /// How long an attempt holds its key at the most: a crash keeps it no longer.
    pub lock: Duration,
    /// How long an order is found by its key.
    pub expiry: Duration,
}

/// Takes the key if nobody has it: a new one, one that has expired, or one whose attempt died. The second
/// part sees the table as it was before.
const CLAIM: &str = "
with claimed as (
    insert into idempotency_keys as known (customer_id, key, fingerprint, token, locked_until, expires_at)
    values ($1, $2, $3, $4, now() + $5, now() + $6)
    on conflict (customer_id, key) do update
    set fingerprint = excluded.fingerprint, token = excluded.token, order_id = null,
        locked_until = excluded.locked_until, expires_at = excluded.expires_at
    where known.expires_at <= now() or (known.order_id is null and known.locked_until <= now())
    returning true
)
select exists (select from claimed) as held, known.fingerprint, orders.id, orders.total_amount
from (select) as always
left join idempotency_keys known on known.customer_id = $1 and known.key = $2
left join orders on orders.id = known.order_id
";

/// A row that was renewed since it was written is looked at again later.
const FORGET_BASKETS: &str = "
with due as (
    select customer_id, fingerprint from recent_orders
    where check_after <= now() order by check_after limit $1
    for update skip locked
),
renewed as (
    update recent_orders basket set check_after = placed_at + $2 from due
    where (basket.customer_id, basket.fingerprint) = (due.customer_id, due.fingerprint) and placed_at >= now() - $2
    returning 1
),
forgotten as (
    delete from recent_orders basket using due
    where (basket.customer_id, basket.fingerprint) = (due.customer_id, due.fingerprint) and placed_at < now() - $2
    returning 1
)
select (select count(*) from renewed) + (select count(*) from forgotten)
";

#[derive(sqlx::FromRow)]
struct ClaimRow {
    held: bool,
    fingerprint: Option<Vec<u8>>,
    id: Option<Uuid>,
    total_amount: Option<Decimal>,
}

impl Store {
    /// Takes a key for an attempt, or says whose it is. One round trip.
    pub async fn claim_key(
        &self,
        customer: &CustomerId,
        key: &str,
        fingerprint: &[u8; 32],
        times: KeyTimes,
    ) -> Result<Claimed, StoreError> {
        let token = Uuid::new_v4();
        let row: ClaimRow = self
            .bounded(async {
                let mut connection = self.connection().await?;
                let row = sqlx::query_as(CLAIM)
                    .bind(customer.as_str())
                    .bind(key)
                    .bind(fingerprint.as_slice())
                    .bind(token)
                    .bind(times.lock)
                    .bind(times.expiry)
                    .fetch_one(&mut *connection)
                    .await?;
                connection.give_back();
                Ok(row)
            })
            .await?;
        if row.held {
            return Ok(Claimed::Held(KeyClaim { key: key.to_owned(), token }));
        }
        // A key that was inserted at this very moment is not seen yet: its attempt is running.
        match (row.fingerprint, row.id.zip(row.total_amount)) {
            (Some(known), _) if known != fingerprint => Ok(Claimed::OtherLines),
            (_, Some((id, total))) => Ok(Claimed::Done(PlacedBefore::read(id, total)?)),
            (_, None) => Ok(Claimed::InProgress),
        }
    }

    /// Frees the key of an attempt that failed.
    pub async fn release_key(&self, customer: &CustomerId, claim: &KeyClaim) -> Result<(), StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            sqlx::query(
                "delete from idempotency_keys
                 where customer_id = $1 and key = $2 and token = $3 and order_id is null",
            )
            .bind(customer.as_str())
            .bind(&claim.key)
            .bind(claim.token)
            .execute(&mut *connection)
            .await?;
            connection.give_back();
            Ok(())
        })
        .await
    }

    /// Deletes keys that have expired and baskets past `window`; looks at no more than `limit` of each. Returns how many
    /// it dealt with.
    ///
    /// Each condition stands twice: of a row that is renewed at this very moment only the outer one is looked
    /// at again.
    pub async fn forget_requests(&self, window: Duration, limit: i64) -> Result<u64, StoreError> {
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
            let baskets: i64 = sqlx::query_scalar(FORGET_BASKETS)
                .bind(limit)
                .bind(window)
                .fetch_one(&mut *connection)
                .await?;
            connection.give_back();
            Ok(keys.rows_affected() + baskets.unsigned_abs())
        })
        .await
    }
}
