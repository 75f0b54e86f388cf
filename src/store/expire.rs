//! Orders that nobody pays for.

use std::time::Duration;

use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::OrderId;

/// Read along `orders_by_status`. An order whose payment has arrived is being confirmed and is left alone; so is
/// one for which money came that a person has to look at.
const SELECT: &str = "
select id from orders
where status = 'CREATED' and placed_at < now() - $1
  and not exists (
      select from stock_jobs where order_id = orders.id and state = 'TAKING'
  )
  and not exists (select from parked_payments where order_id = orders.id)
order by placed_at, id
limit $2
";

impl Store {
    /// The oldest orders that are CREATED for longer than `ttl`, at most `limit`.
    pub async fn unpaid_orders(&self, ttl: Duration, limit: i64) -> Result<Vec<OrderId>, StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            let ids: Vec<Uuid> =
                sqlx::query_scalar(SELECT).bind(ttl).bind(limit).fetch_all(&mut *connection).await?;
            connection.give_back();
            Ok(ids.into_iter().map(OrderId).collect())
        })
        .await
    }
}
