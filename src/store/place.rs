//! Writing a new order.

use sqlx::Connection;

use super::{Store, StoreError};
use crate::domain::event::bucket_of;
use crate::domain::{Order, OrderEvent, Role, TraceParent};

/// The order, its lines, the first row of its history and its event: one statement, so that a placement costs
/// one round trip between BEGIN and COMMIT, and none of the four can be forgotten.
const INSERT: &str = "
with
    placed as (
        insert into orders (id, customer_id, status, total_amount, placed_at, version, changed_at)
        values ($1, $2, $3, $4, $5, 1, $5)
    ),
    items as (
        insert into order_items (order_id, line_number, product_id, quantity, unit_price)
        select $1, line.number, line.product_id, line.quantity, line.unit_price
        from unnest($6::text[], $7::integer[], $8::numeric[])
            with ordinality as line (product_id, quantity, unit_price, number)
    ),
    history as (
        insert into order_history (order_id, version, to_status, actor_role, actor_id, changed_at)
        values ($1, 1, $3, $9, $2, $5)
    )
insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
values ($10, $11, $1, 1, $12, $13, $14)
";

impl Store {
    /// Makes a new order durable together with its lines, its history and its `ORDER_PLACED` (invariant 1).
    ///
    /// `placed_as` is the role in which the customer acted.
    pub async fn place(&self, order: &Order, placed_as: Role, trace: &TraceParent) -> Result<(), StoreError> {
        let event = OrderEvent::placed(order, trace)?;
        self.bounded(self.insert_order(order, placed_as, &event)).await?;
        self.outbox_written.notify_one();
        Ok(())
    }

    async fn insert_order(
        &self,
        order: &Order,
        placed_as: Role,
        event: &OrderEvent,
    ) -> Result<(), StoreError> {
        let lines = &order.lines;
        let products: Vec<&str> = lines.iter().map(|line| line.product_id.as_str()).collect();
        let quantities: Vec<i32> = lines.iter().map(|line| line.quantity.get().cast_signed()).collect();
        let prices: Vec<_> = lines.iter().map(|line| line.price.decimal()).collect();
        let insert = sqlx::query(INSERT)
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

        let mut connection = self.connection().await?;
        let mut transaction = connection.begin().await?;
        insert.execute(&mut *transaction).await?;
        transaction.commit().await?;
        connection.give_back();
        Ok(())
    }
}
