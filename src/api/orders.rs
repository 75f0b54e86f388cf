//! `/api/orders`: the request and response bodies of the contract, and thin handlers.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::header::{ETAG, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use super::conditional::{IfNoneMatch, etag, only_if};
use super::extract::{Json, OptionalJson, OrderIdPath};
use super::idempotency::{IdempotencyKey, REPLAYED};
use super::identity::Caller;
use super::problem::{Problem, kinds};
use crate::domain::{
    Actor, ActorRole, CustomerId, Line, Money, Order, OrderId, RequestedLine, Role, Status, TraceParent, time,
};
use crate::json::Object;
use crate::orders::{ChangeStatus, OrderService, Placed};

/// An order to place.
#[derive(Deserialize, ToSchema)]
#[schema(as = PlaceOrderRequest)]
pub(super) struct PlaceBody {
    /// The products to order. The service adds up lines of one product; the sum has the limit of one line.
    #[schema(value_type = Vec<RequestedLine>, min_items = 1, max_items = 100)]
    items: Vec<Object<RequestedLine>>,
}

/// An order as it was placed.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PlacedOrder)]
struct PlacedBody {
    order_id: OrderId,
    status: Status,
    total_amount: Money,
}

/// Places an order
///
/// Asks the Product Service for price and stock, and writes the order together with its event. A repeated request
/// returns the same order: with the same `Idempotency-Key` for 24 hours, without a key if it has the same lines within
/// `DUPLICATE_WINDOW_SECONDS`.
#[utoipa::path(
    post, path = "/api/orders", operation_id = "placeOrder", tag = "orders",
    params(
        ("Idempotency-Key" = Option<String>, Header, nullable = false, min_length = 1, max_length = 255,
         pattern = r#"^[!#-~]{1,255}$"#,
         description = "Identifies repeats of a request. Keys of different customers are independent. Bare or as a quoted string."),
    ),
    request_body(content = PlaceBody, example = json!({"items": [{"productId": "PROD123", "quantity": 2}]})),
    responses(
        (status = 201, description = "The order is placed. A repeat gets the answer of the first request.", body = PlacedBody,
         headers(
            ("Location" = String, description = "The path of the order."),
            ("ETag" = String, description = "The version of the order, for `If-Match`."),
            ("Idempotency-Replayed" = String, description = "`true` if an earlier request placed the order; else absent.")
         ),
         // The example is last, because the macro accepts no attribute after it.
         example = json!({"orderId": "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10", "status": "CREATED", "totalAmount": 4998})),
    ),
    extensions(("x-problems" = json!([
        kinds::PRODUCT_NOT_FOUND.code, kinds::INSUFFICIENT_STOCK.code, kinds::REQUEST_IN_PROGRESS.code,
        kinds::IDEMPOTENCY_KEY_REUSED.code, kinds::PRODUCT_SERVICE_UNAVAILABLE.code, kinds::OUTCOME_UNKNOWN.code,
    ]))),
)]
pub(super) async fn place(
    State(orders): State<Arc<OrderService>>,
    Caller(caller): Caller,
    Extension(trace): Extension<TraceParent>,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<PlaceBody>,
) -> Result<Response, Problem> {
    let key = key?;
    let lines = body.items.into_iter().map(|Object(line)| line).collect();
    let Placed { order, replayed } = orders.place(caller, lines, key, trace).await?;
    let location = format!("/api/orders/{}", order.id);
    // The same as the first response: a replay does not show later changes of the order.
    let body = PlacedBody { order_id: order.id, status: Status::Created, total_amount: order.total };
    let headers = [(LOCATION, header(&location)?), (ETAG, etag(1))];
    let mut response = (StatusCode::CREATED, headers, json(&body)?).into_response();
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// An order.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Order)]
pub(super) struct OrderBody<'a> {
    order_id: OrderId,
    customer_id: &'a CustomerId,
    status: Status,
    /// When it was placed, in UTC.
    #[serde(serialize_with = "time::serialize")]
    #[schema(value_type = String, format = DateTime, example = "2026-01-21T12:30:00.123456Z")]
    order_date: DateTime<Utc>,
    total_amount: Money,
    items: &'a [Line],
}

/// Shows an order
///
/// For its owner and for admins.
#[utoipa::path(
    get, path = "/api/orders/{orderId}", operation_id = "getOrder", tag = "orders",
    params(
        ("orderId" = OrderId, Path, description = "The order."),
        ("If-None-Match" = Option<String>, Header, nullable = false,
         format = "entity-tags", description = "`*`, or the client's entity tags, separated by commas: 304 if one of them is current (RFC 9110, 13.1.2)."),
    ),
    responses(
        (status = 200, description = "The order.", body = OrderBody<'static>,
         headers(("ETag" = String, description = "The version of the order, for `If-None-Match` and `If-Match`."))),
        (status = 304, description = "The client has the current version.",
         headers(("ETag" = String, description = "The version of the order."))),
    ),
    extensions(("x-problems" = json!([
        kinds::INVALID_REQUEST.code, kinds::FORBIDDEN.code, kinds::ORDER_NOT_FOUND.code,
    ]))),
)]
pub(super) async fn get(
    State(orders): State<Arc<OrderService>>,
    Caller(caller): Caller,
    OrderIdPath(id): OrderIdPath,
    known: IfNoneMatch,
) -> Result<Response, Problem> {
    let order = orders.get(&caller, id).await?;
    if known.has(order.version)? {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag(order.version))]).into_response());
    }
    show(&order)
}

/// A status for an order.
#[derive(Deserialize, ToSchema)]
#[schema(as = ChangeStatusRequest)]
pub(super) struct StatusBody {
    #[serde(deserialize_with = "status")]
    status: Status,
    /// The reason, for people: one line. It is part of the history and of the event.
    #[serde(default, deserialize_with = "reason")]
    #[schema(min_length = 1, max_length = 200, pattern = r"^[^\u0000-\u001F\u007F-\u009F]*$")]
    reason: Option<String>,
}

fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Status, D::Error> {
    Status::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// A reason is text for people and part of the event: one line of at most 200 characters.
fn reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let reason = Option::<String>::deserialize(deserializer)?;
    let fits =
        |text: &String| (1..=200).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    match reason {
        Some(text) if !fits(&text) => {
            Err(de::Error::custom("must have 1 to 200 characters, and no control characters"))
        }
        reason => Ok(reason),
    }
}

/// Changes the status of an order
///
/// CREATED becomes CONFIRMED or CANCELLED, CONFIRMED becomes CANCELLED. Confirming takes the stock of all lines,
/// cancelling a confirmed order gives it back. The same status again changes nothing. For admins.
#[utoipa::path(
    put, path = "/api/orders/{orderId}/status", operation_id = "changeOrderStatus", tag = "orders",
    params(
        ("orderId" = OrderId, Path, description = "The order."),
        ("If-Match" = Option<String>, Header, nullable = false,
         format = "entity-tags", description = "Only for these versions of the order: `*`, or entity tags separated by commas (RFC 9110, 13.1.1)."),
    ),
    request_body(content = StatusBody, example = json!({"status": "CONFIRMED"})),
    responses(
        (status = 200, description = "The order as it is now.", body = OrderBody<'static>,
         headers(("ETag" = String, description = "The version of the order."))),
    ),
    extensions(("x-problems" = json!([
        kinds::FORBIDDEN.code, kinds::ORDER_NOT_FOUND.code, kinds::INVALID_TRANSITION.code,
        kinds::STOCK_UNAVAILABLE.code, kinds::PRECONDITION_FAILED.code, kinds::PRODUCT_SERVICE_UNAVAILABLE.code,
        kinds::OUTCOME_UNKNOWN.code,
    ]))),
)]
pub(super) async fn change_status(
    State(orders): State<Arc<OrderService>>,
    Caller(caller): Caller,
    Extension(trace): Extension<TraceParent>,
    id: Result<OrderIdPath, Problem>,
    headers: HeaderMap,
    body: Result<Json<StatusBody>, Problem>,
) -> Result<Response, Problem> {
    // The role is checked first, so that callers without it learn nothing about the request.
    let admin = caller.admin()?;
    let OrderIdPath(id) = id?;
    let Json(StatusBody { status: to, reason }) = body?;
    let change = ChangeStatus { id, to, reason, only_if: only_if(&headers)? };
    show(&orders.change_status(admin, change, &trace).await?)
}

/// Why an order is cancelled.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = CancelOrderRequest)]
pub(super) struct CancelBody {
    /// The reason, for people: one line. It is part of the history and of the event.
    #[serde(default, deserialize_with = "reason")]
    #[schema(min_length = 1, max_length = 200, pattern = r"^[^\u0000-\u001F\u007F-\u009F]*$")]
    reason: Option<String>,
}

/// Cancels an order
///
/// Only while it is CREATED; cancelling a cancelled order changes nothing. For its owner and for admins.
#[utoipa::path(
    post, path = "/api/orders/{orderId}/cancel", operation_id = "cancelOrder", tag = "orders",
    params(
        ("orderId" = OrderId, Path, description = "The order."),
        ("If-Match" = Option<String>, Header, nullable = false,
         format = "entity-tags", description = "Only for these versions of the order: `*`, or entity tags separated by commas (RFC 9110, 13.1.1)."),
    ),
    request_body(content = Option<CancelBody>, description = "Optional.",
        example = json!({"reason": "ordered twice"})),
    responses(
        (status = 200, description = "The order as it is now.", body = OrderBody<'static>,
         headers(("ETag" = String, description = "The version of the order."))),
    ),
    extensions(("x-problems" = json!([
        kinds::FORBIDDEN.code, kinds::ORDER_NOT_FOUND.code, kinds::INVALID_TRANSITION.code,
        kinds::PRECONDITION_FAILED.code, kinds::OUTCOME_UNKNOWN.code,
    ]))),
)]
pub(super) async fn cancel(
    State(orders): State<Arc<OrderService>>,
    Caller(caller): Caller,
    Extension(trace): Extension<TraceParent>,
    OrderIdPath(id): OrderIdPath,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<CancelBody>,
) -> Result<Response, Problem> {
    show(&orders.cancel(&caller, id, body.reason, only_if(&headers)?, &trace).await?)
}

/// One change of an order.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OrderChange)]
struct HistoryBody {
    status: Status,
    /// The status before; absent for the first entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    previous_status: Option<Status>,
    /// When, in UTC.
    #[serde(serialize_with = "time::serialize")]
    #[schema(value_type = String, format = DateTime, example = "2026-01-21T12:30:00.123456Z")]
    changed_at: DateTime<Utc>,
    actor_role: ActorRole,
    /// An e-mail address or the name of a service. Customers see only their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    actor_id: Option<String>,
    /// The reason, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// Shows the history of an order
///
/// Oldest first. For its owner and for admins. A customer sees only their own address.
#[utoipa::path(
    get, path = "/api/orders/{orderId}/history", operation_id = "getOrderHistory", tag = "orders",
    params(("orderId" = OrderId, Path, description = "The order.")),
    responses((status = 200, description = "The changes of the order, oldest first.", body = Vec<HistoryBody>)),
    extensions(("x-problems" = json!([
        kinds::INVALID_REQUEST.code, kinds::FORBIDDEN.code, kinds::ORDER_NOT_FOUND.code,
    ]))),
)]
pub(super) async fn history(
    State(orders): State<Arc<OrderService>>,
    Caller(caller): Caller,
    OrderIdPath(id): OrderIdPath,
) -> Result<Response, Problem> {
    let shown = |actor: &Actor| caller.role == Role::Admin || actor.id == caller.customer.as_str();
    let history = orders.history(&caller, id).await?;
    let body: Vec<HistoryBody> = history
        .into_iter()
        .map(|entry| HistoryBody {
            status: entry.to,
            previous_status: entry.from,
            changed_at: entry.changed_at,
            actor_role: entry.actor.role,
            actor_id: shown(&entry.actor).then_some(entry.actor.id),
            reason: entry.reason,
        })
        .collect();
    Ok(json(&body)?.into_response())
}

fn show(order: &Order) -> Result<Response, Problem> {
    let body = OrderBody {
        order_id: order.id,
        customer_id: &order.customer,
        status: order.status,
        order_date: order.placed_at,
        total_amount: order.total,
        items: &order.lines,
    };
    Ok(([(ETAG, etag(order.version))], json(&body)?).into_response())
}

pub(super) fn json<T: Serialize + ?Sized>(body: &T) -> Result<impl IntoResponse + use<T>, Problem> {
    let content_type = [(axum::http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((content_type, serde_json::to_vec(body).map_err(Problem::internal)?))
}

pub(super) fn header(value: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(value).map_err(Problem::internal)
}
