//! Lists of orders, newest first, by keyset: page 10,000 costs what page 1 costs, and inserts neither skip
//! nor repeat a row.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::{CustomerId, Money, OrderId, OrderSummary, Status};

/// The place between two rows of a list: everything older than this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// When the last order of the page before was placed.
    pub placed_at: DateTime<Utc>,
    /// Its id, for orders of the same microsecond.
    pub id: OrderId,
}

impl Cursor {
    /// The opaque form: base64url of the microseconds since 1970 and the id.
    pub fn encode(self) -> String {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.placed_at.timestamp_micros().to_be_bytes());
        bytes[8..].copy_from_slice(self.id.0.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what [`Cursor::encode`] wrote.
    pub fn decode(text: &str) -> Result<Self, &'static str> {
        const RULE: &str = "must be a cursor from the Link header of an earlier page";
        let bytes: [u8; 24] =
            URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(RULE)?;
        let (micros, id) = bytes.split_at(8);
        let micros = i64::from_be_bytes(micros.try_into().map_err(|_| RULE)?);
        // Beyond these years PostgreSQL has no timestamp, and no order was placed there.
        let placed_at = DateTime::from_timestamp_micros(micros)
            .filter(|time| (1970..10_000).contains(&chrono::Datelike::year(time)))
            .ok_or(RULE)?;
        Ok(Self { placed_at, id: OrderId(Uuid::from_slice(id).map_err(|_| RULE)?) })
    }
}

/// Which orders a page shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only this customer's.
    pub customer: Option<CustomerId>,
    /// Only those that are here in their life.
    pub status: Option<Status>,
    /// Only those placed at this moment or later.
    pub from: Option<DateTime<Utc>>,
    /// Only those placed before this moment.
    pub to: Option<DateTime<Utc>>,
    /// Only those after this place in the list.
    pub after: Option<Cursor>,
    /// How many at the most.
    pub limit: u8,
}

impl Store {
    /// One page, and the cursor of the next one where there is more. One round trip.
    pub async fn list_orders(
        &self,
        query: &ListQuery,
    ) -> Result<(Vec<OrderSummary>, Option<Cursor>), StoreError> {
        let mut rows: Vec<SummaryRow> = self
            .bounded(async {
                let mut connection = self.connection().await?;
                let rows = select_page(query).build_query_as().fetch_all(&mut *connection).await?;
                connection.give_back();
                Ok(rows)
            })
            .await?;
        // One row more than was asked for tells whether there is a next page.
        let more = rows.len() > usize::from(query.limit);
        rows.truncate(usize::from(query.limit));
        let orders = rows.into_iter().map(OrderSummary::try_from).collect::<Result<Vec<_>, _>>()?;
        let next = orders.last().filter(|_| more);
        let next = next.map(|last| Cursor { placed_at: last.placed_at, id: last.id });
        Ok((orders, next))
    }

    /// How PostgreSQL would run a page, one line a step; for the test that no list sorts or scans a table. Not in
    /// the production image, which has no use for it.
    #[cfg(feature = "dev")]
    pub async fn explain_list(&self, query: &ListQuery) -> Result<Vec<String>, StoreError> {
        self.bounded(async {
            let mut explained = QueryBuilder::new("explain ");
            push_page(&mut explained, query);
            let mut connection = self.connection().await?;
            let plan = explained.build_query_scalar().fetch_all(&mut *connection).await?;
            connection.give_back();
            Ok(plan)
        })
        .await
    }
}

fn select_page(query: &ListQuery) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new("");
    push_page(&mut sql, query);
    sql
}

/// Only the conditions that are asked for are in the statement: a generic `$1 is null or …` would cost the
/// planner its index. There are few combinations, and each is prepared once a connection.
fn push_page(sql: &mut QueryBuilder<Postgres>, query: &ListQuery) {
    sql.push("select id, customer_id, status, total_amount, placed_at from orders where true");
    if let Some(customer) = &query.customer {
        sql.push(" and customer_id = ").push_bind(customer.as_str().to_owned());
    }
    if let Some(status) = query.status {
        sql.push(" and status = ").push_bind(status.as_str());
    }
    if let Some(from) = query.from {
        sql.push(" and placed_at >= ").push_bind(from);
    }
    if let Some(to) = query.to {
        sql.push(" and placed_at < ").push_bind(to);
    }
    if let Some(after) = query.after {
        sql.push(" and (placed_at, id) < (").push_bind(after.placed_at);
        sql.push(", ").push_bind(after.id.0).push(")");
    }
    sql.push(" order by placed_at desc, id desc limit ").push_bind(i64::from(query.limit) + 1);
}

#[derive(sqlx::FromRow)]
struct SummaryRow {
    id: Uuid,
    customer_id: String,
    status: String,
    total_amount: Decimal,
    placed_at: DateTime<Utc>,
}

impl TryFrom<SummaryRow> for OrderSummary {
    type Error = StoreError;

    fn try_from(row: SummaryRow) -> Result<Self, StoreError> {
        let wrong = |column| StoreError::Inconsistent { table: "orders", column, id: row.id };
        Ok(Self {
            id: OrderId(row.id),
            customer: CustomerId::parse(&row.customer_id).map_err(|_| wrong("customer_id"))?,
            status: row.status.parse().map_err(|_| wrong("status"))?,
            total: Money::new(row.total_amount).map_err(|_| wrong("total_amount"))?,
            placed_at: row.placed_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_survives_its_opaque_form(micros in 0_i64..253_402_300_800_000_000, id in any::<u128>()) {
            let cursor = Cursor {
                placed_at: DateTime::from_timestamp_micros(micros).unwrap(),
                id: OrderId(Uuid::from_u128(id)),
            };
            prop_assert_eq!(Cursor::decode(&cursor.encode()), Ok(cursor));
        }

        #[test]
        fn anything_else_is_refused_without_harm(text in ".{0,64}") {
            if let Ok(cursor) = Cursor::decode(&text) {
                prop_assert_eq!(cursor.encode(), text);
            }
        }
    }

    #[test]
    fn a_time_that_no_order_has_is_no_cursor() {
        for micros in [i64::MIN, -1, i64::MAX] {
            let mut bytes = [7; 24];
            bytes[..8].copy_from_slice(&micros.to_be_bytes());
            assert!(Cursor::decode(&URL_SAFE_NO_PAD.encode(bytes)).is_err(), "{micros}");
        }
    }
}
