//! Reading the history of an order.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::order::HistoryEntry;
use crate::domain::{Actor, CustomerId, OrderId, Owned, Status};
use crate::metrics::Query;

pub(super) const SELECT: &str = "
select orders.customer_id, history.version, history.from_status, history.to_status, history.actor_role,
       history.actor_id, history.reason, history.changed_at
from orders
join order_history history on history.order_id = orders.id
where orders.id = $1
order by history.version
";

#[derive(sqlx::FromRow)]
pub(super) struct OwnedRow {
    customer_id: String,
    #[sqlx(flatten)]
    entry: HistoryRow,
}

#[derive(sqlx::FromRow)]
pub(super) struct HistoryRow {
    version: i32,
    from_status: Option<String>,
    to_status: String,
    actor_role: String,
    actor_id: String,
    reason: Option<String>,
    pub(super) changed_at: DateTime<Utc>,
}

impl Store {
    /// Reads the history of an order, protected by its owner. `None` if the order does not exist. One round trip.
    pub async fn find_history(&self, id: OrderId) -> Result<Option<Owned<Vec<HistoryEntry>>>, StoreError> {
        let rows: Vec<OwnedRow> = self
            .database
            .read(Query::ReadHistory, |connection| {
                Box::pin(sqlx::query_as(SELECT).bind(id.0).fetch_all(connection))
            })
            .await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let wrong = |_| StoreError::Inconsistent { table: "orders", column: "customer_id", id: id.0 };
        let owner = CustomerId::parse(&first.customer_id).map_err(wrong)?;
        let entries = rows.into_iter().map(|row| row.entry.into_entry(id.0)).collect::<Result<_, _>>()?;
        Ok(Some(Owned::new(owner, entries)))
    }
}

impl HistoryRow {
    pub(super) fn into_entry(self, id: Uuid) -> Result<HistoryEntry, StoreError> {
        let wrong = |column| StoreError::Inconsistent { table: "order_history", column, id };
        let from = self.from_status.map(|from| from.parse::<Status>()).transpose();
        Ok(HistoryEntry {
            version: self.version,
            from: from.map_err(|_| wrong("from_status"))?,
            to: self.to_status.parse().map_err(|_| wrong("to_status"))?,
            actor: Actor {
                role: self.actor_role.parse().map_err(|_| wrong("actor_role"))?,
                id: self.actor_id,
            },
            reason: self.reason,
            changed_at: self.changed_at,
        })
    }
}
