//! Lists of orders, newest first, with keyset pagination: page 10,000 costs as much as page 1, and inserts neither skip
//! nor repeat a row.
//!
//! A page reads at most the rows that it shows and one more per status, independent of statistics. For each combination
//! of filters, exactly one index has the rows in the order of the list, and these connections do not sort
//! (`connection.rs`).

use std::cmp::Reverse;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sha2::{Digest, Sha256};
use sqlx::{Postgres, QueryBuilder};
use strum::VariantArray;
use uuid::Uuid;

use super::connection::{Database, column};
use super::shared_read::ReadSet;
use super::{Store, StoreError};
use crate::domain::{CustomerId, Money, OrderId, OrderSummary, Status};
use crate::metrics::Query;

/// A position in a list: the next page starts after this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// When the last order of the previous page was placed.
    pub placed_at: DateTime<Utc>,
    /// Its id, to order those of the same microsecond.
    pub id: OrderId,
}

impl Cursor {
    /// The opaque form: base64url of the microseconds since 1970, the id, and the hash of the filters.
    pub fn encode(self, list: &ListQuery) -> String {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.placed_at.timestamp_micros().to_be_bytes());
        bytes[8..24].copy_from_slice(self.id.0.as_bytes());
        bytes[24..].copy_from_slice(&list.filters());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Decodes a cursor of a list with the same filters.
    pub fn decode(text: &str, list: &ListQuery) -> Result<Self, &'static str> {
        const RULE: &str = "must be a cursor from the Link header of an earlier page";
        let bytes: [u8; 32] =
            URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(RULE)?;
        let micros = i64::from_be_bytes(bytes[..8].try_into().map_err(|_| RULE)?);
        // PostgreSQL has no timestamps beyond these years.
        let placed_at = DateTime::from_timestamp_micros(micros)
            .filter(|time| (1970..10_000).contains(&chrono::Datelike::year(time)))
            .ok_or(RULE)?;
        let id = OrderId(Uuid::from_slice(&bytes[8..24]).map_err(|_| RULE)?);
        if bytes[24..] != list.filters() {
            return Err(
                "belongs to a list with other filters: send it with the filters of the page that it came from",
            );
        }
        Ok(Self { placed_at, id })
    }
}

/// The filters and the position of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only orders of this customer.
    pub customer: Option<CustomerId>,
    /// Only orders with this status.
    pub status: Option<Status>,
    /// Only orders placed at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Only orders placed before this time.
    pub to: Option<DateTime<Utc>>,
    /// Only orders after this position.
    pub after: Option<Cursor>,
    /// The maximum number of orders.
    pub limit: u8,
}

impl ListQuery {
    /// The hash of the filters, which the cursors of the list contain. The limit is not a filter.
    fn filters(&self) -> [u8; 8] {
        let micros = |time: Option<DateTime<Utc>>| time.map(|time| time.timestamp_micros());
        let (customer, status) =
            (self.customer.as_ref().map(CustomerId::as_str), self.status.map(Status::as_str));
        let all = format!("{customer:?} {status:?} {:?} {:?}", micros(self.from), micros(self.to));
        let mut filters = [0; 8];
        filters.copy_from_slice(&Sha256::digest(all)[..8]);
        filters
    }
}

/// A page of a list, and the cursor of the next page, if there is one.
pub type Page = (Vec<OrderSummary>, Option<Cursor>);

impl Store {
    /// Reads a page of a list. Concurrent pages of all orders of one customer share a round trip.
    pub async fn list_orders(&self, query: &ListQuery) -> Result<Page, StoreError> {
        if let Some(page) = CustomerPage::of(query) {
            return self.customer_pages.ask(page).await?;
        }
        let rows = self.readers.read(Query::ListOrders, |connection| {
            let mut page = select_page("", query);
            Box::pin(async move { page.build_query_as().fetch_all(connection).await })
        });
        let rows: Vec<SummaryRow> = rows.await?;
        let orders = rows.into_iter().map(OrderSummary::try_from).collect::<Result<Vec<_>, _>>()?;
        Ok(page_of(orders, query.limit))
    }

    /// The plan of a page (`explain (analyze, buffers, format json)`), for the test of what a page reads. Not in the
    /// production image.
    #[cfg(feature = "dev")]
    pub async fn explain_list(&self, query: &ListQuery) -> Result<serde_json::Value, StoreError> {
        const EXPLAIN: &str = "explain (analyze, buffers, timing off, format json) ";
        let page = CustomerPage::of(query);
        let read = self.readers.read(Query::ListOrders, |connection| {
            let mut explained = match &page {
                Some(page) => select_customer_pages(EXPLAIN, std::slice::from_ref(page)),
                None => select_page(EXPLAIN, query),
            };
            Box::pin(async move { explained.build_query_scalar().fetch_one(connection).await })
        });
        let plan: sqlx::types::Json<_> = read.await?;
        Ok(plan.0)
    }
}

/// One row more than the limit shows that there is a next page.
fn page_of(mut orders: Vec<OrderSummary>, limit: u8) -> Page {
    let more = orders.len() > usize::from(limit);
    orders.truncate(usize::from(limit));
    let next = orders.last().filter(|_| more);
    let next = next.map(|last| Cursor { placed_at: last.placed_at, id: last.id });
    (orders, next)
}

/// A page of all orders of one customer.
#[derive(Clone, Debug)]
pub(super) struct CustomerPage {
    customer: CustomerId,
    after: Option<Cursor>,
    limit: u8,
}

impl CustomerPage {
    fn of(query: &ListQuery) -> Option<Self> {
        match query {
            ListQuery { customer: Some(customer), status: None, from: None, to: None, after, limit } => {
                Some(Self { customer: customer.clone(), after: *after, limit: *limit })
            }
            _ => None,
        }
    }
}

/// Reads pages of customers in sets.
pub(super) struct CustomerPages(pub(super) Database);

impl ReadSet for CustomerPages {
    const QUERY: Query = Query::ListOwnOrders;

    type Question = CustomerPage;
    type Answer = Result<Page, StoreError>;

    async fn read(&self, pages: &[CustomerPage]) -> Result<Vec<Self::Answer>, StoreError> {
        let rows = self.0.read(Query::ListOwnOrders, |connection| {
            let mut select = select_customer_pages("", pages);
            Box::pin(async move { select.build_query_as().fetch_all(connection).await })
        });
        Ok(assign(pages, rows.await?))
    }
}

/// Assigns the rows to the pages by number.
fn assign(pages: &[CustomerPage], rows: Vec<PageRow>) -> Vec<Result<Page, StoreError>> {
    let mut orders: Vec<Result<Vec<OrderSummary>, StoreError>> =
        pages.iter().map(|_| Ok(Vec::new())).collect();
    for (number, id, status, total, placed_at) in rows {
        let index = usize::try_from(number - 1).unwrap_or(usize::MAX);
        let (Some(page), Some(orders)) = (pages.get(index), orders.get_mut(index)) else { continue };
        let order = summary(id, page.customer.clone(), &status, total, placed_at);
        match (order, orders) {
            (Ok(order), Ok(orders)) => orders.push(order),
            (Err(error), orders) => *orders = Err(error),
            (Ok(_), Err(_)) => {}
        }
    }
    let newest_first = |mut orders: Vec<OrderSummary>| {
        // Usually in this order already, but PostgreSQL may join in another.
        orders.sort_by_key(|order| Reverse((order.placed_at, order.id)));
        orders
    };
    orders
        .into_iter()
        .zip(pages)
        .map(|(orders, page)| Ok(page_of(newest_first(orders?), page.limit)))
        .collect()
}

/// The number of the page, counted from 1; id, status, total and time of an order.
pub(super) type PageRow = (i64, Uuid, String, Decimal, DateTime<Utc>);

/// Reads each page along the index by customer, like a single page. `start` precedes the statement.
fn select_customer_pages(start: &str, pages: &[CustomerPage]) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new(start);
    sql.push(
        "select page.number, newest.id, newest.status, newest.total_amount, newest.placed_at from unnest(",
    );
    sql.push_bind(column(pages, |page| page.customer.as_str().to_owned()));
    sql.push(", ").push_bind(column(pages, |page| page.after.map(|after| after.placed_at)));
    sql.push(", ").push_bind(column(pages, |page| page.after.map(|after| after.id.0)));
    sql.push(", ").push_bind(column(pages, |page| i64::from(page.limit) + 1));
    sql.push(
        ") with ordinality as page (customer, placed_at, id, rows, number)
cross join lateral (
    select id, status, total_amount, placed_at from orders
    where customer_id = page.customer
      and (placed_at, id) < (coalesce(page.placed_at, 'infinity'), coalesce(page.id, '00000000-0000-0000-0000-000000000000'))
    order by placed_at desc, id desc
    limit page.rows
) newest",
    );
    sql
}

/// The statement has only the conditions of the query, because with a generic `$1 is null or …` the planner could not
/// use the index. There are few combinations, and each is prepared once per connection. `start` precedes the statement.
pub(super) fn select_page(start: &str, query: &ListQuery) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new(start);
    match (&query.customer, query.status) {
        (Some(customer), Some(status)) => {
            // Along orders_by_customer_and_status. With two conditions, PostgreSQL could use an index for one of them,
            // and read all the rows that the other excludes.
            push_rows(
                &mut sql,
                query,
                "(customer_id || ' ' || status) collate \"C\"",
                format!("{} {status}", customer.as_str()),
            );
        }
        (Some(customer), None) => push_rows(&mut sql, query, "customer_id", customer.as_str().to_owned()),
        (None, Some(status)) => push_rows(&mut sql, query, "status", status.to_string()),
        (None, None) => {
            // Along orders_by_status, once per status: merged, not sorted.
            let mut before = "select * from ((";
            for status in Status::VARIANTS {
                sql.push(before);
                push_rows(&mut sql, query, "status", status.to_string());
                before = ") union all (";
            }
            sql.push(")) orders").push(NEWEST_FIRST);
        }
    }
    sql.push(" limit ").push_bind(i64::from(query.limit) + 1);
    sql
}

const NEWEST_FIRST: &str = " order by placed_at desc, id desc";

/// Selects the rows whose `key` is `value`, within the times of the query.
fn push_rows(sql: &mut QueryBuilder<Postgres>, query: &ListQuery, key: &'static str, value: String) {
    sql.push("select id, customer_id, status, total_amount, placed_at from orders where ");
    sql.push(key).push(" = ").push_bind(value);
    if let Some(from) = query.from {
        sql.push(" and placed_at >= ").push_bind(from);
    }
    // Only the earlier of both limits: an index scan starts at one condition, and would read all rows between it and
    // the other.
    match (query.to, query.after) {
        (Some(to), after) if after.is_none_or(|after| to <= after.placed_at) => {
            sql.push(" and placed_at < ").push_bind(to);
        }
        (_, Some(after)) => {
            sql.push(" and (placed_at, id) < (").push_bind(after.placed_at);
            sql.push(", ").push_bind(after.id.0).push(")");
        }
        _ => {}
    }
    sql.push(NEWEST_FIRST);
}

#[derive(sqlx::FromRow)]
pub(super) struct SummaryRow {
    id: Uuid,
    customer_id: String,
    status: String,
    total_amount: Decimal,
    placed_at: DateTime<Utc>,
}

impl TryFrom<SummaryRow> for OrderSummary {
    type Error = StoreError;

    fn try_from(row: SummaryRow) -> Result<Self, StoreError> {
        let customer = CustomerId::parse(&row.customer_id).map_err(|_| wrong("customer_id", row.id))?;
        summary(row.id, customer, &row.status, row.total_amount, row.placed_at)
    }
}

fn summary(
    id: Uuid,
    customer: CustomerId,
    status: &str,
    total: Decimal,
    placed_at: DateTime<Utc>,
) -> Result<OrderSummary, StoreError> {
    let status = status.parse().map_err(|_| wrong("status", id))?;
    let total = Money::new(total).map_err(|_| wrong("total_amount", id))?;
    Ok(OrderSummary { id: OrderId(id), customer, status, total, placed_at })
}

const fn wrong(column: &'static str, id: Uuid) -> StoreError {
    StoreError::Inconsistent { table: "orders", column, id }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lists() -> [ListQuery; 6] {
        let ada = CustomerId::parse("ada@example.com").ok();
        let at = |time: &str| Some(time.parse().unwrap());
        let all = ListQuery::default();
        [
            all.clone(),
            ListQuery { customer: ada.clone(), ..all.clone() },
            ListQuery { status: Some(Status::Created), ..all.clone() },
            ListQuery { customer: ada, status: Some(Status::Created), ..all.clone() },
            ListQuery { from: at("2026-01-21T12:30:00Z"), ..all.clone() },
            ListQuery { to: at("2026-01-21T12:30:00Z"), ..all },
        ]
    }

    proptest! {
        #[test]
        fn a_cursor_can_be_decoded_only_for_its_own_list(
            micros in 0_i64..253_402_300_800_000_000,
            id in any::<u128>(),
        ) {
            let cursor = Cursor {
                placed_at: DateTime::from_timestamp_micros(micros).unwrap(),
                id: OrderId(Uuid::from_u128(id)),
            };
            for (from, list) in lists().iter().enumerate() {
                let text = cursor.encode(list);
                for (to, other) in lists().iter().enumerate() {
                    prop_assert_eq!(Cursor::decode(&text, other).ok(), (from == to).then_some(cursor));
                }
                let smaller = ListQuery { limit: 7, ..list.clone() };
                prop_assert_eq!(Cursor::decode(&text, &smaller), Ok(cursor));
            }
        }

        #[test]
        fn any_other_text_is_refused_as_a_cursor(text in ".{0,64}") {
            let list = ListQuery::default();
            if let Ok(cursor) = Cursor::decode(&text, &list) {
                prop_assert_eq!(cursor.encode(&list), text);
            }
        }
    }

    #[test]
    fn a_time_out_of_range_for_postgresql_is_refused_as_a_cursor() {
        let list = ListQuery::default();
        for micros in [i64::MIN, -1, i64::MAX] {
            let mut bytes = [7; 32];
            bytes[..8].copy_from_slice(&micros.to_be_bytes());
            bytes[24..].copy_from_slice(&list.filters());
            assert!(Cursor::decode(&URL_SAFE_NO_PAD.encode(bytes), &list).is_err(), "{micros}");
        }
    }
}
