//! The state of the parts, and the calls that break and repair them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Refusal, Shared, refuse, reply};
use crate::dev::DevError;
use crate::dev::kafka::ALL_BROKERS;
use crate::dev::products::{DemoProducts, ProductState};

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Switch {
    Up,
    Down,
}

#[derive(Deserialize)]
struct Wanted<T> {
    state: T,
}

/// Whether Kafka or the Product Service is broken now.
pub(super) fn is_any_broken(console: &Shared) -> bool {
    console.kafka_down.load(Ordering::Relaxed) || product_state(console) != ProductState::Up
}

/// The state of the demo Product Service; up if another one is used.
fn product_state(console: &Shared) -> ProductState {
    console.stack.products.as_ref().map(DemoProducts::state).unwrap_or_default()
}

/// The state of the parts, for the page.
pub(super) fn state(console: &Shared, health: Option<&Value>) -> Value {
    console.second.check();
    let stack = &console.stack;
    let kafka = if console.kafka_down.load(Ordering::Relaxed) { Switch::Down } else { Switch::Up };
    json!({
        "run": console.run,
        "service": {"url": &console.gateway.first, "health": health},
        "kafka": {"address": &stack.kafka, "embedded": stack.cluster.is_some(), "state": kafka},
        "products": {
            "address": &stack.product_service,
            "embedded": stack.products.is_some(),
            "state": product_state(console),
            "catalogue": stack.products.as_ref().map(DemoProducts::catalogue),
        },
        "replica": console.second.status(),
    })
}

/// Breaks or repairs a part.
pub(super) async fn set(
    State(console): State<Arc<Shared>>,
    Path(part): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    match part.as_str() {
        "kafka" => set_kafka(&console, read(&body)?).await?,
        "product-service" => set_products(&console, read(&body)?)?,
        "replica" => set_replica(&console, read(&body)?).await?,
        _ => return Err(refuse(StatusCode::NOT_FOUND, "the parts are kafka, product-service and replica")),
    }
    console.changed.notify_one();
    Ok(reply(&json!({})))
}

async fn set_kafka(console: &Arc<Shared>, wanted: Switch) -> Result<(), Refusal> {
    let is_down = matches!(wanted, Switch::Down);
    let stack = Arc::clone(&console.stack);
    let switch = move || {
        let Some(cluster) = &stack.cluster else { return Ok(false) };
        if is_down { cluster.broker_down(ALL_BROKERS) } else { cluster.broker_up(ALL_BROKERS) }.map(|()| true)
    };
    match tokio::task::spawn_blocking(switch).await {
        Ok(Ok(true)) => {
            console.kafka_down.store(is_down, Ordering::Relaxed);
            Ok(())
        }
        Ok(Ok(false)) => Err(not_ours("KAFKA_BOOTSTRAP_SERVERS")),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "a helper thread failed")),
    }
}

fn set_products(console: &Shared, wanted: ProductState) -> Result<(), Refusal> {
    let products = console.stack.products.as_ref().ok_or_else(|| not_ours("PRODUCT_SERVICE_URL"))?;
    products.set_state(wanted);
    Ok(())
}

async fn set_replica(console: &Arc<Shared>, wanted: Switch) -> Result<(), Refusal> {
    // In a task of its own, so that closing the page does not interrupt it.
    let shared = Arc::clone(console);
    let change = tokio::spawn(async move {
        match wanted {
            Switch::Up => shared.second.start().await,
            Switch::Down => shared.second.kill().await,
        }
    });
    match change.await {
        Ok(changed) => changed.map_err(|error| failed(&error)),
        Err(_) => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "a task failed")),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let wanted = serde_json::from_slice::<Wanted<T>>(body);
    wanted
        .map(|wanted| wanted.state)
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("state: {error}")))
}

fn not_ours(variable: &str) -> Refusal {
    refuse(StatusCode::CONFLICT, format!("{variable} names a part that `dev` did not start"))
}

fn failed(error: &DevError) -> Refusal {
    refuse(StatusCode::INTERNAL_SERVER_ERROR, crate::telemetry::error_chain(error))
}
