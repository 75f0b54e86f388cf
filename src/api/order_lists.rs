//! The lists of `/api/orders`: bare arrays, newest first, paged by `limit`, `cursor` and `Link`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::LINK;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::Query;
use super::identity::Caller;
use super::orders::{header, json};
use super::problem::{Problem, kinds};
use crate::domain::{CustomerId, Money, OrderId, OrderSummary, Status, time};
use crate::orders::OrderService;
use crate::store::{Cursor, ListQuery};

/// One of the caller's own orders, without its lines.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = MyOrder)]
struct MineBody {
    order_id: OrderId,
    status: Status,
    total_amount: Money,
    /// When it was placed, in UTC.
    #[serde(serialize_with = "time::serialize")]
    #[schema(value_type = String, format = DateTime, example = "2026-01-21T12:30:00.123456Z")]
    order_date: DateTime<Utc>,
}

/// Lists the caller's own orders
///
/// Newest first. Orders that are placed meanwhile neither skip nor repeat a row.
#[utoipa::path(
    get, path = "/api/orders/my", operation_id = "listMyOrders", tag = "orders",
    params(
        ("limit" = Option<u8>, Query, nullable = false, minimum = 1, maximum = 200,
         description = "The maximum number of orders; 50 by default."),
        ("cursor" = Option<String>, Query, nullable = false, format = "cursor",
         description = "From the `Link` of the previous page. It is valid only with the filters of that page."),
    ),
    responses(
        (status = 200, description = "A page of orders.", body = Vec<MineBody>,
         headers(("Link" = String, description = "`<…>; rel=\"next\"` if there is a next page (RFC 8288)."))),
    ),
    extensions(("x-problems" = json!([kinds::INVALID_REQUEST.code]))),
)]
pub(super) async fn list_mine(
    State(orders): State<Arc<OrderService>>,
    Caller(caller): Caller,
    query: Query,
) -> Result<Response, Problem> {
    let filters = ListQuery { customer: Some(caller.customer.clone()), ..ListQuery::default() };
    let page = page_of(&query, filters)?;
    let (orders, next) = orders.list_mine(&caller, page.clone()).await?;
    let body: Vec<MineBody> = orders
        .into_iter()
        .map(|order: OrderSummary| MineBody {
            order_id: order.id,
            status: order.status,
            total_amount: order.total,
            order_date: order.placed_at,
        })
        .collect();
    list("/api/orders/my", &page, &[], next, &body)
}

/// An order, without its lines.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OrderSummary)]
struct SummaryBody {
    order_id: OrderId,
    customer_id: CustomerId,
    status: Status,
    total_amount: Money,
    /// When it was placed, in UTC.
    #[serde(serialize_with = "time::serialize")]
    #[schema(value_type = String, format = DateTime, example = "2026-01-21T12:30:00.123456Z")]
    order_date: DateTime<Utc>,
}

/// Lists all orders
///
/// Newest first. Orders that are placed meanwhile neither skip nor repeat a row. For admins.
#[utoipa::path(
    get, path = "/api/orders", operation_id = "listOrders", tag = "orders",
    params(
        ("status" = Option<Status>, Query, nullable = false, description = "Only orders with this status."),
        ("customerId" = Option<CustomerId>, Query, nullable = false, description = "Only this customer's orders."),
        ("from" = Option<String>, Query, nullable = false, format = DateTime,
         description = "Only orders that were placed at this moment or later (RFC 3339)."),
        ("to" = Option<String>, Query, nullable = false, format = DateTime,
         description = "Only orders that were placed before this moment (RFC 3339)."),
        ("limit" = Option<u8>, Query, nullable = false, minimum = 1, maximum = 200,
         description = "The maximum number of orders; 50 by default."),
        ("cursor" = Option<String>, Query, nullable = false, format = "cursor",
         description = "From the `Link` of the previous page. It is valid only with the filters of that page."),
    ),
    responses(
        (status = 200, description = "A page of orders.", body = Vec<SummaryBody>,
         headers(("Link" = String, description = "`<…>; rel=\"next\"` if there is a next page (RFC 8288)."))),
    ),
    extensions(("x-problems" = json!([kinds::INVALID_REQUEST.code, kinds::FORBIDDEN.code]))),
)]
pub(super) async fn list_all(
    State(orders): State<Arc<OrderService>>,
    Caller(caller): Caller,
    query: Query,
) -> Result<Response, Problem> {
    let admin = caller.admin()?;
    let filters = ListQuery {
        customer: query.parse("customerId", CustomerId::parse)?,
        status: query.parse("status", Status::parse)?,
        from: query.parse("from", timestamp)?,
        to: query.parse("to", timestamp)?,
        ..ListQuery::default()
    };
    let page = page_of(&query, filters)?;
    let (orders, next) = orders.list_all(admin, page.clone()).await?;
    let body: Vec<SummaryBody> = orders
        .into_iter()
        .map(|order: OrderSummary| SummaryBody {
            order_id: order.id,
            customer_id: order.customer,
            status: order.status,
            total_amount: order.total,
            order_date: order.placed_at,
        })
        .collect();
    list("/api/orders", &page, &["customerId", "status", "from", "to"], next, &body)
}

/// Reads the limit and the cursor of a page with these filters.
fn page_of(query: &Query, filters: ListQuery) -> Result<ListQuery, Problem> {
    const DEFAULT_LIMIT: u8 = 50;
    let limit = query.parse("limit", |text| {
        let limit = text.parse::<u8>().ok().filter(|limit| (1..=200).contains(limit));
        limit.ok_or("must be a whole number from 1 to 200")
    })?;
    let after = query.parse("cursor", |text| Cursor::decode(text, &filters))?;
    Ok(ListQuery { after, limit: limit.unwrap_or(DEFAULT_LIMIT), ..filters })
}

fn timestamp(text: &str) -> Result<DateTime<Utc>, &'static str> {
    DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .ok()
        // The years of RFC 3339, also after the conversion to UTC.
        .filter(|time| (0..10_000).contains(&chrono::Datelike::year(time)))
        .ok_or("must be a time such as 2026-01-21T12:30:00Z")
}

/// Responds with a bare array, and a `Link` header to the next page (RFC 8288).
fn list<T: Serialize>(
    path: &str,
    page: &ListQuery,
    filters: &[&str],
    next: Option<Cursor>,
    body: &[T],
) -> Result<Response, Problem> {
    let mut response = json(body)?.into_response();
    if let Some(next) = next {
        let link = format!("<{path}?{}>; rel=\"next\"", next_page(page, filters, next));
        response.headers_mut().insert(LINK, header(&link)?);
    }
    Ok(response)
}

/// The query string of the next page: the filters that the caller may set, and the next cursor.
fn next_page(page: &ListQuery, filters: &[&str], next: Cursor) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    let values = [
        ("customerId", page.customer.as_ref().map(|customer| customer.as_str().to_owned())),
        ("status", page.status.map(|status| status.to_string())),
        ("from", page.from.map(time::rfc3339)),
        ("to", page.to.map(time::rfc3339)),
    ];
    for (name, value) in values {
        if let Some(value) = value.filter(|_| filters.contains(&name)) {
            query.append_pair(name, &value);
        }
    }
    query.append_pair("limit", &page.limit.to_string()).append_pair("cursor", &next.encode(page));
    query.finish()
}
