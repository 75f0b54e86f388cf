//! Writing a new order, unless the same request was an order already.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::Connection;
use uuid::Uuid;

use super::connection::CommitSent;
use super::idempotency::KeyClaim;
use super::{Store, StoreError};
use crate::domain::event::bucket_of;
use crate::domain::{CustomerId, Money, Order, OrderEvent, OrderId, Role, TraceParent};

/// What keeps a request from becoming a second order.
#[derive(Clone, Debug)]
pub enum Guard {
    /// Nothing: every request is an order.
    None,
    /// No other order of the customer with the same lines since `since`, unless it was cancelled.
    Window {
        /// SHA-256 of the lines.
        fingerprint: [u8; 32],
        /// The beginning of the window.
        since: DateTime<Utc>,
    },
    /// The key that the customer sent, and that this attempt holds.
    Key(KeyClaim),
}

/// What became of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The order is new.
    New,
    /// The same request is this order already.
    Duplicate(PlacedBefore),
    /// Another attempt has taken the key over meanwhile, or goes on being just ahead.
    KeyLost,
}

/// What the answer to a placement says, of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedBefore {
    /// The order.
    pub id: OrderId,
    /// What it costs.
    pub total: Money,
}

/// The order, its lines, the first row of its history and its event: one statement, so that a placement costs
/// one round trip between BEGIN and COMMIT, and none of the four can be forgotten. It writes nothing where
/// the guard yields no row.
macro_rules! insert_order {
    ($guard:literal) => {
        concat!(
            "with guard as (",
            $guard,
            "),
    placed as (
        insert into orders (id, customer_id, status, total_amount, placed_at, version, changed_at)
        select $1, $2, $3, $4, $5, 1, $5 from guard
    ),
    items as (
        insert into order_items (order_id, line_number, product_id, quantity, unit_price)
        select $1, line.number, line.product_id, line.quantity, line.unit_price
        from guard, unnest($6::text[], $7::integer[], $8::numeric[])
            with ordinality as line (product_id, quantity, unit_price, number)
    ),
    history as (
        insert into order_history (order_id, version, to_status, actor_role, actor_id, changed_at)
        select $1, 1, $3, $9, $2, $5 from guard
    )
insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
select $10, $11, $1, 1, $12, $13, $14 from guard
"
        )
    };
}

const INSERT: &str = insert_order!("select 1");

/// Of two requests at once the second waits here for the first, then finds its row. An order that this statement does
/// not see was committed while it waited: however old its row is, it is no older than this request.
const INSERT_UNLESS_RECENT: &str = insert_order!(
    "insert into recent_orders (customer_id, fingerprint, order_id, placed_at) values ($2, $15, $1, $5)
     on conflict (customer_id, fingerprint) do update
     set order_id = excluded.order_id, placed_at = excluded.placed_at
     where (select status = 'CANCELLED' or recent_orders.placed_at <= $16
            from orders where id = recent_orders.order_id)
     returning 1"
);

const INSERT_WITH_KEY: &str = insert_order!(
    "update idempotency_keys set order_id = $1
     where customer_id = $2 and key = $15 and token = $16 and order_id is null
     returning 1"
);

const FIND_RECENT: &str = "
select orders.id, orders.total_amount
from recent_orders join orders on orders.id = recent_orders.order_id
where recent_orders.customer_id = $1 and recent_orders.fingerprint = $2
  and ($3::timestamptz is null or (recent_orders.placed_at > $3 and orders.status <> 'CANCELLED'))
";

/// Between the two statements the first order may be forgotten; then nothing is in the way any more.
const ATTEMPTS: u32 = 2;

impl Store {
    /// Makes a new order durable together with its lines, its history and its `ORDER_PLACED` (invariant 1),
    /// and with what the guard remembers of the request.
    ///
    /// `placed_as` is the role in which the customer acted.
    ///
    /// `New` says: committed on the primary, and acknowledged by the synchronous standbys, if there are any, unless an
    /// operator cancelled that wait. `OutcomeUnknown` says: the commit was sent, and the order has not been seen.
    pub async fn place(
        &self,
        order: &Order,
        placed_as: Role,
        trace: &TraceParent,
        guard: &Guard,
    ) -> Result<Placement, StoreError> {
        let event = OrderEvent::placed(order, trace)?;
        for _ in 0..ATTEMPTS {
            if self.insert_or_find_out(order, placed_as, &event, guard).await? {
                self.outbox_written.notify_one();
                return Ok(Placement::New);
            }
            let Guard::Window { fingerprint, .. } = guard else { break };
            if let Some(first) = self.find_recent(&order.customer, fingerprint, None).await? {
                return Ok(Placement::Duplicate(first));
            }
        }
        Ok(Placement::KeyLost)
    }

    /// Whether the guard let it happen. Where the database does not say, it is asked for the order.
    async fn insert_or_find_out(
        &self,
        order: &Order,
        placed_as: Role,
        event: &OrderEvent,
        guard: &Guard,
    ) -> Result<bool, StoreError> {
        let sent = CommitSent::default();
        let inserted = self.bounded(self.insert_order(order, placed_as, event, guard, &sent)).await;
        match inserted.map_err(|error| sent.judge(error)) {
            Err(StoreError::OutcomeUnknown(_)) if self.was_written(order).await => Ok(true),
            inserted => inserted,
        }
    }

    async fn insert_order(
        &self,
        order: &Order,
        placed_as: Role,
        event: &OrderEvent,
        guard: &Guard,
        sent: &CommitSent,
    ) -> Result<bool, StoreError> {
        let lines = &order.lines;
        let products: Vec<&str> = lines.iter().map(|line| line.product_id.as_str()).collect();
        let quantities: Vec<i32> = lines.iter().map(|line| line.quantity.get().cast_signed()).collect();
        let prices: Vec<_> = lines.iter().map(|line| line.price.decimal()).collect();
        let statement = match guard {
            Guard::None => INSERT,
            Guard::Window { .. } => INSERT_UNLESS_RECENT,
            Guard::Key(_) => INSERT_WITH_KEY,
        };
        let insert = sqlx::query(statement)
            .bind(order.id.0)
            .bind(order.customer.as_str())
            .bind(order.status.as_str())
            .bind(order.total.decimal())
            .bind(order.placed_at)
            .bind(products)
            .bind(quantities)
            .bind(prices)
            .bind(placed_as.as_str())
            .bind(bucket_of(order.id))
            .bind(event.id)
            .bind(event.event_type.as_str())
            .bind(&event.payload)
            .bind(&event.headers);
        let insert = match guard {
            Guard::None => insert,
            Guard::Window { fingerprint, since } => insert.bind(fingerprint.as_slice()).bind(since),
            Guard::Key(claim) => insert.bind(&claim.key).bind(claim.token),
        };

        let mut connection = self.connection().await?;
        let mut transaction = connection.begin().await?;
        let written = insert.execute(&mut *transaction).await?.rows_affected() > 0;
        sent.mark();
        transaction.commit().await?;
        connection.give_back();
        Ok(written)
    }

    /// The latest order of the customer for the same lines without a key; where `since` is given, only if it
    /// is younger and not cancelled.
    pub async fn find_recent(
        &self,
        customer: &CustomerId,
        fingerprint: &[u8; 32],
        since: Option<DateTime<Utc>>,
    ) -> Result<Option<PlacedBefore>, StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            let found: Option<(Uuid, Decimal)> = sqlx::query_as(FIND_RECENT)
                .bind(customer.as_str())
                .bind(fingerprint.as_slice())
                .bind(since)
                .fetch_optional(&mut *connection)
                .await?;
            connection.give_back();
            found.map(|(id, total)| PlacedBefore::read(id, total)).transpose()
        })
        .await
    }
}

impl PlacedBefore {
    pub(super) fn read(id: Uuid, total: Decimal) -> Result<Self, StoreError> {
        let wrong = |_| StoreError::Inconsistent { table: "orders", column: "total_amount", id };
        Ok(Self { id: OrderId(id), total: Money::new(total).map_err(wrong)? })
    }
}
