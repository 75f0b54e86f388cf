//! The demo Product Service: a catalogue with stock, and with faults on request.
//!
//! | call | answer |
//! |---|---|
//! | `GET /api/products/{id}` | the product; 404 unknown or withdrawn |
//! | `POST /api/products/{id}/reduce-stock` `{"quantity":2}` | 200 the product; 409 not enough; 404 |
//! | `POST /api/products/{id}/restore-stock` `{"quantity":2}` | 200 the product; 404 |
//! | `PUT /demo/products/{id}` `{"price":2499.10,"stock":5}` | creates or replaces a product |
//! | `DELETE /demo/products/{id}` | withdraws it |
//! | `PUT /demo/products/{id}/fault` `{"kind":"slow","millis":300,"times":2,"on":"read"}` | see below |
//! | `DELETE /demo/products/{id}/fault` | ends it |
//! | `GET /demo/ledger`, `GET /demo/ledger/{id}` | every stock change that was applied, in order |
//! | `GET /demo/requests/{id}` | `{"total","atOnce"}`: the number of calls so far, and the most in flight |
//! | `GET /health`, `GET /health/live`, `GET /health/ready` | 200; the last two for `order-service healthcheck` |
//!
//! Stock changes honour `Idempotency-Key` (IETF draft): a repeat gets the first answer and changes nothing; another
//! request with the key gets 422; a repeat while the first is running gets 409 with `Retry-After`. A refusal leaves
//! its key free. A slow change continues after its client disconnects.
//!
//! A fault belongs to one product, so that parallel tests do not interfere: `slow` (`millis`), `status` (`status`),
//! `body` (`body`, sent unchanged with 200), `hang` (never answers), `lose-answer` (applies the call, then closes the
//! connection), `endless` (200 and an endless body). `times` limits it to a number of calls, and `on` to one of
//! `read`, `reduce-stock`, `restore-stock`.
//!
//! `/demo/requests/{id}` also counts groups: calls for `a1-x` and `a1-y` are counted as `a1`, too.

mod fault_injection;
mod ledger;
mod routes;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{DataFolder, DevError};
use crate::config::reachable;
use ledger::Ledger;

/// The time limit of calls after the stop. Calls that hang on purpose end at once.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);

/// A running demo Product Service. It stops with [`stop`](Self::stop), on drop, and with the runtime it was
/// started in.
#[derive(Debug)]
pub struct DemoProducts {
    url: String,
    stopping: CancellationToken,
    server: AbortOnDropHandle<io::Result<()>>,
    shop: Arc<Shop>,
}

/// The state of the demo Product Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProductState {
    /// Calls are answered.
    #[default]
    Up,
    /// Every call is answered 503.
    Errors,
    /// No call is answered.
    Hangs,
    /// Every call is applied, and its answer lost.
    LosesAnswers,
}

impl DemoProducts {
    /// Starts with the catalogue, stock and keys of a data folder, or with the demo catalogue. Port 0 selects a free
    /// one.
    pub async fn start(data: Option<&DataFolder>, addr: SocketAddr) -> Result<Self, DevError> {
        let ledger = data.map_or_else(|| Ok(Ledger::demo()), Ledger::open)?;
        let failed = || DevError::io("listen for the demo Product Service");
        let listener = TcpListener::bind(addr).await.map_err(failed())?;
        let bound = listener.local_addr().map_err(failed())?;
        let stopping = CancellationToken::new();
        let shop = Arc::new(Shop { ledger: Mutex::new(ledger), stopping: stopping.clone() });
        let app = routes::router(Arc::clone(&shop));
        let stopped = stopping.clone().cancelled_owned();
        let server = async move { axum::serve(listener, app).with_graceful_shutdown(stopped).await };
        let server = AbortOnDropHandle::new(tokio::spawn(server));
        Ok(Self { url: format!("http://{}", reachable(bound)), stopping, server, shop })
    }

    /// The products that are sold, by id, each as `GET /api/products/{id}` shows it.
    pub(crate) fn catalogue(&self) -> Vec<Value> {
        self.shop.ledger().catalogue()
    }

    pub(crate) fn set_state(&self, state: ProductState) {
        self.shop.ledger().state = state;
    }

    pub(crate) fn state(&self) -> ProductState {
        self.shop.ledger().state
    }

    /// The address of the service, as a `PRODUCT_SERVICE_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops listening and ends every call.
    pub async fn stop(mut self) {
        self.stopping.cancel();
        // After a timeout, the drop of the handle aborts the server.
        let _ = timeout(STOPPED_WITHIN, &mut self.server).await;
    }
}

impl Drop for DemoProducts {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

#[derive(Debug)]
struct Shop {
    ledger: Mutex<Ledger>,
    stopping: CancellationToken,
}

impl Shop {
    /// The ledger is consistent after every statement, so a panic elsewhere does not corrupt it.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
