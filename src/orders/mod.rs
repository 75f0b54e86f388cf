//! What the service does: one use case a file.
//!
//! This layer names the concrete [`Store`] and [`ProductClient`] on purpose: each exists once, and the tests
//! run the real ones.

mod cancel;
mod change_status;
mod confirm;
mod fingerprint;
mod get;
mod history;
mod keys;
mod list;
mod outcomes;
mod pay;
mod place;
mod rest;
mod stock_worker;
mod unpaid;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;

pub use cancel::{CancelError, CancelOrder};
pub use change_status::{ChangeStatus, ChangeStatusError, Versions};
pub use confirm::ConfirmSettings;
pub use get::GetError;
pub use place::{DuplicateSettings, PlaceError, PlaceOrder, Placed, ShortLine, UnknownProduct};
pub use workers::HousekeepingSettings;

use self::outcomes::Outcomes;
use crate::domain::OrderId;
use keys::KeysInFlight;

use crate::metrics::Metrics;
use crate::products::ProductClient;
use crate::store::Store;
use crate::telemetry::Seldom;

/// How the use cases behave.
#[derive(Clone, Copy, Debug)]
pub struct OrderSettings {
    /// How many placements run at once; more are refused, not queued.
    pub max_placements: usize,
    /// What a repeated request finds.
    pub duplicates: DuplicateSettings,
    /// How stock work is done.
    pub confirmation: ConfirmSettings,
}

/// The use cases, with the parts that they need. Cheap to clone.
#[derive(Clone)]
pub struct OrderService {
    store: Store,
    products: Arc<ProductClient>,
    duplicates: DuplicateSettings,
    keys: KeysInFlight,
    confirmation: ConfirmSettings,
    tasks: TaskTracker,
    permits: Arc<Semaphore>,
    confirm_permits: Arc<Semaphore>,
    stock_wanted: Arc<Notify>,
    outcomes: Arc<Outcomes>,
    overdue: Arc<Seldom>,
    metrics: Arc<Metrics>,
}

impl OrderService {
    /// Puts the parts together.
    pub fn new(
        store: Store,
        products: Arc<ProductClient>,
        settings: &OrderSettings,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            store,
            products,
            duplicates: settings.duplicates,
            keys: KeysInFlight::default(),
            confirmation: settings.confirmation,
            tasks: TaskTracker::new(),
            permits: Arc::new(Semaphore::new(settings.max_placements)),
            confirm_permits: Arc::new(Semaphore::new(settings.confirmation.max_requests)),
            stock_wanted: Arc::default(),
            outcomes: Arc::default(),
            overdue: Arc::new(Seldom::new(Duration::from_mins(1))),
            metrics: Arc::clone(metrics),
        }
    }

    /// The same use cases on another pool: for what runs in the background.
    #[must_use]
    pub fn with_store(&self, store: Store) -> Self {
        Self { store, ..self.clone() }
    }

    /// Wakes the stock worker, and the requests that wait for the outcome of a confirmation of this order.
    fn stock_changed(&self, order: OrderId) {
        self.stock_wanted.notify_one();
        self.outcomes.changed(order);
    }

    /// Waits until nothing is running any more that a request has started. New requests can still come
    /// meanwhile; whoever calls this has stopped accepting them first.
    pub async fn settle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
