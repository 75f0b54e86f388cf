//! The demo Product Service over HTTP.

use std::future::pending;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::Shop;
use super::fault_injection::{Call, Fault, FaultPlan};
use super::ledger::{Answer, Change};

const ENDLESS_CHUNK: Bytes = Bytes::from_static(&[b' '; 8192]);

pub(super) fn router(shop: Arc<Shop>) -> Router {
    Router::new()
        .route("/api/products/{id}", get(read))
        .route("/api/products/{id}/reduce-stock", post(reduce))
        .route("/api/products/{id}/restore-stock", post(restore))
        .route("/demo/products/{id}", put(put_product).delete(withdraw))
        .route("/demo/products/{id}/fault", put(put_fault).delete(end_fault))
        .route("/demo/ledger", get(async |State(shop): Shared| json_of(&shop.ledger().entries(None))))
        .route("/demo/ledger/{id}", get(ledger_of))
        .route("/demo/requests/{id}", get(calls))
        .route("/health", get(healthy))
        .route("/health/live", get(healthy))
        .route("/health/ready", get(healthy))
        .with_state(shop)
}

type Shared = State<Arc<Shop>>;

#[derive(Deserialize)]
struct Quantity {
    quantity: u64,
}

async fn healthy() -> Response {
    json_of(&json!({"status": "UP"}))
}

async fn read(State(shop): Shared, Path(id): Path<String>) -> Response {
    let (owner, product) = (Arc::clone(&shop), id.clone());
    let running = Running { shop, id, key: None };
    call(running, Call::Read, move || owner.ledger().read(&product)).await
}

async fn reduce(shop: Shared, id: Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    change(shop, id, &headers, &body, Call::ReduceStock).await
}

async fn restore(shop: Shared, id: Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    change(shop, id, &headers, &body, Call::RestoreStock).await
}

async fn change(
    State(shop): Shared,
    Path(product): Path<String>,
    headers: &HeaderMap,
    body: &[u8],
    kind: Call,
) -> Response {
    let key = headers.get("idempotency-key").map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
    let change = match serde_json::from_slice(body) {
        Ok(Quantity { quantity }) if quantity > 0 => {
            Ok(Change { product: product.clone(), call: kind, quantity })
        }
        Ok(_) => Err(bad("the quantity has to be positive")),
        Err(error) => Err(bad(&error.to_string())),
    };
    let (owner, held) = (Arc::clone(&shop), key.clone());
    let running = Running { shop, id: product, key: held };
    let work = move || match change {
        Ok(change) => owner.ledger().change(change, key),
        Err(bad) => bad,
    };
    call(running, kind, work).await
}

/// A running call. It also ends when the client disconnects and the future is dropped.
struct Running {
    shop: Arc<Shop>,
    id: String,
    key: Option<String>,
}

/// Another call has the key.
struct StillRunning;

impl Running {
    /// Counts the call, and returns its fault.
    fn begin(&mut self, kind: Call) -> Result<Option<Fault>, StillRunning> {
        let mut ledger = self.shop.ledger();
        // The other call holds the key: this one must not release it.
        if self.key.take_if(|key| !ledger.hold(key)).is_some() {
            ledger.count(&self.id);
            return Err(StillRunning);
        }
        Ok(ledger.begin(&self.id, kind))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut ledger = self.shop.ledger();
        ledger.end(&self.id);
        if let Some(key) = &self.key {
            ledger.let_go(key);
        }
    }
}

/// Applies a stock change, subject to the fault of the product.
async fn call(mut running: Running, kind: Call, work: impl FnOnce() -> Answer + Send + 'static) -> Response {
    let Ok(fault) = running.begin(kind) else { return in_progress() };
    let shop = Arc::clone(&running.shop);
    match fault {
        None => answer(work()),
        Some(Fault::Slow(delay)) => {
            let keyed = running.key.is_some();
            let slowly = async move {
                until_stopped(&running.shop, sleep(delay)).await;
                answer(work())
            };
            // In its own task, so that it finishes even if the client disconnects.
            if keyed { tokio::spawn(slowly).await.unwrap_or_else(|_| no_answer()) } else { slowly.await }
        }
        Some(Fault::Status(status)) => answer((status, json!({"error": "told to fail"}))),
        Some(Fault::Body(body)) => with_body(StatusCode::OK, Body::from(body)),
        Some(Fault::Hang) => {
            until_stopped(&shop, pending()).await;
            no_answer()
        }
        Some(Fault::LoseAnswer) => {
            work();
            no_answer()
        }
        Some(Fault::Endless) => {
            let chunks = stream::repeat_with(|| Ok::<_, io::Error>(ENDLESS_CHUNK));
            let stopped = shop.stopping.clone().cancelled_owned();
            with_body(StatusCode::OK, Body::from_stream(chunks.take_until(stopped)))
        }
    }
}

async fn until_stopped(shop: &Shop, wait: impl Future<Output = ()>) {
    shop.stopping.run_until_cancelled(wait).await;
}

async fn put_product(State(shop): Shared, Path(id): Path<String>, body: Bytes) -> Response {
    match serde_json::from_slice(&body) {
        Ok(new) => answer(shop.ledger().put(&id, new)),
        Err(error) => answer(bad(&error.to_string())),
    }
}

async fn withdraw(State(shop): Shared, Path(id): Path<String>) -> Response {
    answer(shop.ledger().withdraw(&id))
}

async fn put_fault(State(shop): Shared, Path(id): Path<String>, body: Bytes) -> Response {
    match FaultPlan::parse(&body) {
        Ok(plan) => {
            shop.ledger().set_fault(&id, Some(plan));
            answer((StatusCode::OK, json!({})))
        }
        Err(error) => answer(bad(&error)),
    }
}

async fn end_fault(State(shop): Shared, Path(id): Path<String>) -> Response {
    shop.ledger().set_fault(&id, None);
    answer((StatusCode::OK, json!({})))
}

async fn ledger_of(State(shop): Shared, Path(id): Path<String>) -> Response {
    json_of(&shop.ledger().entries(Some(&id)))
}

async fn calls(State(shop): Shared, Path(id): Path<String>) -> Response {
    json_of(&shop.ledger().calls(&id))
}

fn bad(why: &str) -> Answer {
    (StatusCode::BAD_REQUEST, json!({"error": why}))
}

fn in_progress() -> Response {
    let body = json!({
        "type": "urn:problem:demo-products:request-in-progress", "status": 409,
        "title": "A request is outstanding for this Idempotency-Key",
    });
    let headers = [(header::CONTENT_TYPE, "application/problem+json"), (header::RETRY_AFTER, "1")];
    (StatusCode::CONFLICT, headers, body.to_string()).into_response()
}

fn answer((status, body): (StatusCode, Value)) -> Response {
    with_body(status, Body::from(body.to_string()))
}

fn json_of(value: &impl Serialize) -> Response {
    answer((StatusCode::OK, json!(value)))
}

fn with_body(status: StatusCode, body: Body) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// hyper closes the connection when a body fails, and at that moment has not sent the head yet.
fn no_answer() -> Response {
    let failing = stream::iter([Err::<Bytes, _>(io::Error::other("told to lose the answer"))]);
    with_body(StatusCode::OK, Body::from_stream(failing))
}
