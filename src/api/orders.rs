//! `/api/orders`: the shapes of the contract, and handlers that only translate.

use axum::extract::{Extension, State};
use axum::http::header::{ETAG, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::conditional::{client_has, etag, only_if};
use super::extract::{Json, OptionalJson, OrderIdPath};
use super::idempotency;
use super::identity::Caller;
use super::problem::Problem;
use crate::domain::{
    Actor, ActorRole, CustomerId, Line, Money, Order, OrderId, RequestedLine, Role, Status, TraceParent, time,
};
use crate::json::Object;
use crate::orders::{CancelOrder, ChangeStatus, OrderService, PlaceOrder, Placed};

#[derive(Deserialize)]
pub(super) struct PlaceBody {
    items: Vec<Object<RequestedLine>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PlacedBody {
    order_id: OrderId,
    status: Status,
    total_amount: Money,
}

/// `POST /api/orders`
pub(super) async fn place(
    State(orders): State<OrderService>,
    Caller(caller): Caller,
    Extension(trace): Extension<TraceParent>,
    headers: HeaderMap,
    Json(body): Json<PlaceBody>,
) -> Result<Response, Problem> {
    let key = idempotency::key(&headers)?;
    let lines = body.items.into_iter().map(|Object(line)| line).collect();
    let Placed { order, replayed } = orders.place(PlaceOrder { caller, lines, key, trace }).await?;
    let location = format!("/api/orders/{}", order.id);
    // What the first answer said: a replay does not tell what became of the order since.
    let body = PlacedBody { order_id: order.id, status: Status::Created, total_amount: order.total };
    let headers = [(LOCATION, header(&location)?), (ETAG, etag(1))];
    let mut response = (StatusCode::CREATED, headers, json(&body)?).into_response();
    if replayed {
        response.headers_mut().insert(idempotency::REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OrderBody<'a> {
    order_id: OrderId,
    customer_id: &'a CustomerId,
    status: Status,
    #[serde(serialize_with = "time::serialize")]
    order_date: DateTime<Utc>,
    total_amount: Money,
    items: &'a [Line],
}

/// `GET /api/orders/{orderId}`
pub(super) async fn get(
    State(orders): State<OrderService>,
    Caller(caller): Caller,
    OrderIdPath(id): OrderIdPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let order = orders.get(&caller, id).await?;
    if client_has(&headers, order.version)? {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag(order.version))]).into_response());
    }
    show(&order)
}

#[derive(Deserialize)]
pub(super) struct StatusBody {
    #[serde(deserialize_with = "status")]
    status: Status,
    #[serde(default, deserialize_with = "reason")]
    reason: Option<String>,
}

fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Status, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

/// A reason is for people and goes into the event: one line of at most 200 characters.
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

/// `PUT /api/orders/{orderId}/status`
pub(super) async fn change_status(
    State(orders): State<OrderService>,
    Caller(caller): Caller,
    Extension(trace): Extension<TraceParent>,
    id: Result<OrderIdPath, Problem>,
    headers: HeaderMap,
    body: Result<Json<StatusBody>, Problem>,
) -> Result<Response, Problem> {
    // The role first: who may not do this learns nothing about the rest of the request.
    let admin = caller.admin()?;
    let OrderIdPath(id) = id?;
    let Json(StatusBody { status: to, reason }) = body?;
    let change = ChangeStatus { id, to, reason, only_if: only_if(&headers)? };
    show(&orders.change_status(admin, change, &trace).await?)
}

#[derive(Default, Deserialize)]
pub(super) struct CancelBody {
    #[serde(default, deserialize_with = "reason")]
    reason: Option<String>,
}

/// `POST /api/orders/{orderId}/cancel`; the body may be left out.
pub(super) async fn cancel(
    State(orders): State<OrderService>,
    Caller(caller): Caller,
    Extension(trace): Extension<TraceParent>,
    OrderIdPath(id): OrderIdPath,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<CancelBody>,
) -> Result<Response, Problem> {
    let cancel = CancelOrder { id, reason: body.reason, only_if: only_if(&headers)? };
    show(&orders.cancel(&caller, cancel, &trace).await?)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HistoryBody {
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_status: Option<Status>,
    #[serde(serialize_with = "time::serialize")]
    changed_at: DateTime<Utc>,
    actor_role: ActorRole,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// `GET /api/orders/{orderId}/history`, oldest first. A customer sees their own address and nobody else's.
pub(super) async fn history(
    State(orders): State<OrderService>,
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
