//! Reading one order, and changing its status.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::connection::CommitSent;
use super::{Store, StoreError, payments, stock};
use crate::domain::aggregate::Changes;
use crate::domain::event::bucket_of;
use crate::domain::{
    CustomerId, Line, Money, Order, OrderAggregate, OrderEvent, OrderId, Owned, ProductId, Quantity, Status,
    StatusChange,
};

/// One order with its lines as three arrays: one round trip, and each amount stays a `numeric`.
macro_rules! select_order {
    ($lock:literal) => {
        concat!(
            "
select o.id, o.customer_id, o.status, o.total_amount, o.placed_at, o.version, o.changed_at,
       items.products, items.quantities, items.prices
from orders o
cross join lateral (
    select array_agg(product_id order by line_number) as products,
           array_agg(quantity order by line_number) as quantities,
           array_agg(unit_price order by line_number) as prices
    from order_items
    where order_id = o.id
) items
where o.id = $1
",
            $lock
        )
    };
}

const SELECT: &str = select_order!("");

/// Nobody else changes the order until the transaction ends. The lock comes before the new outbox row gets
/// its position, which is why positions follow the sequence within an order.
const SELECT_FOR_UPDATE: &str = select_order!("for update of o");

/// The new status, its row of the history and its event, in one statement.
const CHANGE_STATUS: &str = "
with
    changed as (
        update orders set status = $2, version = $3, changed_at = $4 where id = $1
    ),
    history as (
        insert into order_history
            (order_id, version, from_status, to_status, actor_role, actor_id, reason, changed_at)
        values ($1, $3, $5, $2, $6, $7, $8, $4)
    )
insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
values ($9, $10, $1, $3, $11, $12, $13)
";

impl Store {
    /// The order, for those who may see it; nothing where there is none. One round trip.
    pub async fn find_order(&self, id: OrderId) -> Result<Option<Owned<Order>>, StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            let row: Option<OrderRow> =
                sqlx::query_as(SELECT).bind(id.0).fetch_optional(&mut *connection).await?;
            connection.give_back();
            let order = row.map(Order::try_from).transpose()?;
            Ok(order.map(|order| Owned::new(order.customer.clone(), order)))
        })
        .await
    }

    /// Locks the order, lets `decide` change it and what belongs to it, and makes all changes durable together
    /// with the history and the event of a new status (invariant 1). Nothing where there is no such order.
    ///
    /// `job` picks the stock job that is at hand: that attempt, else the latest. A refusal of `decide` leaves
    /// everything as it was.
    pub async fn update_order<T: Send, E: Send>(
        &self,
        id: OrderId,
        job: Option<i16>,
        decide: impl FnOnce(&mut OrderAggregate) -> Result<T, E> + Send,
    ) -> Result<Option<Result<(Order, T), E>>, StoreError> {
        let (sent, mut decided) = (CommitSent::default(), None);
        let committed = self
            .bounded(async {
                let mut connection = self.connection().await?;
                let mut transaction = connection.begin().await?;
                if let Some(aggregate) = lock(&mut transaction, id, job).await? {
                    let version = aggregate.order.version;
                    let outcome = self.decide_and_write(&mut transaction, aggregate, decide).await?;
                    decided = Some((version, outcome));
                }
                sent.mark();
                transaction.commit().await?;
                connection.give_back();
                Ok(())
            })
            .await
            .map_err(|error| sent.judge(error));
        if let Err(error) = committed {
            // A refusal wrote nothing. A change of another thing than the status leaves no version to look for.
            let is_durable = matches!(error, StoreError::OutcomeUnknown(_))
                && match &decided {
                    None | Some((_, Err(_))) => true,
                    Some((before, Ok((order, _)))) => {
                        order.version > *before && self.was_written(order).await
                    }
                };
            if !is_durable {
                return Err(error);
            }
        }
        self.outbox_written.notify_one();
        Ok(decided.map(|(_, outcome)| outcome))
    }

    pub(super) async fn decide_and_write<T, E>(
        &self,
        connection: &mut PgConnection,
        mut aggregate: OrderAggregate,
        decide: impl FnOnce(&mut OrderAggregate) -> Result<T, E>,
    ) -> Result<Result<(Order, T), E>, StoreError> {
        let decision = match decide(&mut aggregate) {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(decision) => decision,
        };
        if let Some(change) = &aggregate.changes.status {
            write_status(connection, &aggregate.order, change).await?;
        }
        stock::write_jobs(connection, &[&aggregate], self.stock).await?;
        payments::write(connection, &aggregate).await?;
        Ok(Ok((aggregate.order, decision)))
    }
}

/// The order and what belongs to it, locked until the transaction ends.
pub(super) async fn lock(
    connection: &mut PgConnection,
    id: OrderId,
    job: Option<i16>,
) -> Result<Option<OrderAggregate>, StoreError> {
    let row: Option<OrderRow> =
        sqlx::query_as(SELECT_FOR_UPDATE).bind(id.0).fetch_optional(&mut *connection).await?;
    let Some(order) = row.map(Order::try_from).transpose()? else { return Ok(None) };
    let (job, paid) = stock::load_job(connection, id, job).await?;
    Ok(Some(OrderAggregate { order, job, paid, changes: Changes::default() }))
}

async fn write_status(
    connection: &mut PgConnection,
    order: &Order,
    change: &StatusChange,
) -> Result<(), StoreError> {
    let event = OrderEvent::status_updated(order, change)?;
    sqlx::query(CHANGE_STATUS)
        .bind(order.id.0)
        .bind(order.status.as_str())
        .bind(order.version)
        .bind(order.changed_at)
        .bind(change.from.as_str())
        .bind(change.actor.role.as_str())
        .bind(change.actor.id.as_str())
        .bind(change.reason.as_deref())
        .bind(bucket_of(order.id))
        .bind(event.id)
        .bind(event.event_type.as_str())
        .bind(&event.payload)
        .bind(&event.headers)
        .execute(connection)
        .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct OrderRow {
    id: Uuid,
    customer_id: String,
    status: String,
    total_amount: Decimal,
    placed_at: DateTime<Utc>,
    version: i32,
    changed_at: DateTime<Utc>,
    products: Vec<String>,
    quantities: Vec<i32>,
    prices: Vec<Decimal>,
}

impl TryFrom<OrderRow> for Order {
    type Error = StoreError;

    fn try_from(row: OrderRow) -> Result<Self, StoreError> {
        let wrong = |table, column| StoreError::Inconsistent { table, column, id: row.id };
        let lines = row
            .products
            .iter()
            .zip(&row.quantities)
            .zip(&row.prices)
            .map(|((product, quantity), price)| {
                Ok(Line {
                    product_id: ProductId::parse(product).map_err(|_| wrong("order_items", "product_id"))?,
                    quantity: Quantity::new(u64::from(quantity.unsigned_abs()))
                        .map_err(|_| wrong("order_items", "quantity"))?,
                    price: Money::new(*price).map_err(|_| wrong("order_items", "unit_price"))?,
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        Ok(Self {
            id: OrderId(row.id),
            customer: CustomerId::parse(&row.customer_id).map_err(|_| wrong("orders", "customer_id"))?,
            status: row.status.parse::<Status>().map_err(|_| wrong("orders", "status"))?,
            placed_at: row.placed_at,
            total: Money::new(row.total_amount).map_err(|_| wrong("orders", "total_amount"))?,
            version: row.version,
            changed_at: row.changed_at,
            lines,
        })
    }
}
