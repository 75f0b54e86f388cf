//! Reads orders with their history by pages, for the replay of events.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::Connection;
use uuid::Uuid;

use super::check::{Page, SNAPSHOT};
use super::connection::column;
use super::history::HistoryRow;
use super::orders::{OrderRow, SELECT};
use super::{Store, StoreError};
use crate::domain::event::RecordedChange;
use crate::domain::{Money, Order, OrderId};
use crate::metrics::Query;

/// The orders of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayRange {
    /// These orders, with their whole history.
    Orders(Vec<OrderId>),
    /// The orders that changed within a period, with the changes of that period.
    Changed {
        /// The start of the period, inclusive.
        from: DateTime<Utc>,
        /// The end of the period, exclusive.
        to: DateTime<Utc>,
    },
}

/// A page of orders.
#[derive(Clone, Debug)]
pub struct ReplayPage {
    /// Each order with the changes to replay, in order.
    pub orders: Vec<(Order, Vec<RecordedChange>)>,
    /// The number of orders that were read.
    pub looked_at: usize,
    /// The last order. `None` on the last page.
    pub next: Option<OrderId>,
}

pub(super) const PAGE_OF_ORDERS: &str = "
select id, true as is_wanted from orders where id = any ($3) and id > $1 order by id limit $2
";

/// Reads all orders, because the history has no index by time, and an old order may have changed within the period.
pub(super) const PAGE_OF_TIME: &str = "
select id, changed_at >= $3 and placed_at < $4 as is_wanted from orders where id > $1 order by id limit $2
";

/// The refund of a payment that came after the cancellation is not part of its event.
pub(super) const CHANGES: &str = "
select history.order_id, history.version, history.from_status, history.to_status, history.actor_role,
       history.actor_id, history.reason, history.changed_at, history.event_id, history.traceparent,
       (
           select amount from refunds_due
           where order_id = history.order_id and history.to_status = 'CANCELLED' and reason <> 'PAID_AFTER_CANCELLED'
           limit 1
       ) as refund_due
from order_history history
where history.order_id = any ($1)
order by history.order_id, history.version
";

pub(super) const RECORD: &str = "
insert into interventions (order_id, action, detail, actor) values ($1, 'EVENTS_REPLAY', $2, $3)
";

#[derive(sqlx::FromRow)]
pub(super) struct ChangeRow {
    order_id: Uuid,
    #[sqlx(flatten)]
    entry: HistoryRow,
    event_id: Option<Uuid>,
    traceparent: Option<String>,
    refund_due: Option<Decimal>,
}

impl Store {
    /// Reads the next orders after `after`, at most `limit`, with their history, in one snapshot.
    pub async fn replay_page(
        &self,
        range: &ReplayRange,
        after: OrderId,
        limit: i64,
    ) -> Result<ReplayPage, StoreError> {
        self.query(Query::Operate, async |connection| {
            let mut transaction = connection.begin_with(SNAPSHOT).await?;
            let page = match range {
                ReplayRange::Orders(ids) => {
                    let ids = column(ids, |id| id.0);
                    sqlx::query_as(PAGE_OF_ORDERS).bind(after.0).bind(limit).bind(ids)
                }
                ReplayRange::Changed { from, to } => {
                    sqlx::query_as(PAGE_OF_TIME).bind(after.0).bind(limit).bind(from).bind(to)
                }
            };
            let page: Page<(Uuid, bool)> = Page::of(page.fetch_all(&mut *transaction).await?, limit);
            let wanted = page.keys.iter().filter(|(_, is_wanted)| *is_wanted);
            let wanted: Vec<Uuid> = wanted.map(|(id, _)| *id).collect();
            let mut orders: Vec<OrderRow> =
                sqlx::query_as(SELECT).bind(&wanted).fetch_all(&mut *transaction).await?;
            orders.sort_unstable_by_key(|order| order.id);
            let changes = sqlx::query_as(CHANGES).bind(&wanted).fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            let next = page.keys.last().filter(|_| page.is_full).map(|(id, _)| OrderId(*id));
            Ok(ReplayPage { orders: join(orders, changes, range)?, looked_at: page.keys.len(), next })
        })
        .await
    }

    /// Records a replay of an operator, before the first event is sent.
    pub async fn record_replay(
        &self,
        order: Option<OrderId>,
        detail: &str,
        actor: &str,
    ) -> Result<(), StoreError> {
        let record = sqlx::query(RECORD).bind(order.map(|order| order.0)).bind(detail).bind(actor);
        self.execute(Query::Operate, record).await?;
        Ok(())
    }
}

/// Joins orders and changes, both sorted by order.
fn join(
    orders: Vec<OrderRow>,
    changes: Vec<ChangeRow>,
    range: &ReplayRange,
) -> Result<Vec<(Order, Vec<RecordedChange>)>, StoreError> {
    let mut changes = changes.into_iter().peekable();
    let mut all = Vec::with_capacity(orders.len());
    for row in orders {
        let order = Order::try_from(row)?;
        let mut of_order = Vec::new();
        while let Some(change) = changes.next_if(|change| change.order_id == order.id.0) {
            let is_wanted = match range {
                ReplayRange::Orders(_) => true,
                ReplayRange::Changed { from, to } => (*from..*to).contains(&change.entry.changed_at),
            };
            if is_wanted {
                of_order.push(change.into_change()?);
            }
        }
        all.push((order, of_order));
    }
    Ok(all)
}

impl ChangeRow {
    fn into_change(self) -> Result<RecordedChange, StoreError> {
        let id = self.order_id;
        let wrong = |_| StoreError::Inconsistent { table: "refunds_due", column: "amount", id };
        Ok(RecordedChange {
            entry: self.entry.into_entry(id)?,
            refund_due: self.refund_due.map(Money::new).transpose().map_err(wrong)?,
            event_id: self.event_id,
            traceparent: self.traceparent,
        })
    }
}
