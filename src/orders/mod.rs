//! The use cases, one per file.
//!
//! This layer uses the concrete [`Store`] and [`ProductClient`], not traits: each has one implementation, and the tests
//! run the real ones.

mod cancel;
mod change_status;
mod fingerprint;
mod get;
mod history;
mod housekeeping;
mod keys;
mod list;
mod outcomes;
mod payments;
mod place;
mod probe_mode;
mod stock;
mod stock_worker;
mod unpaid;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;

pub(crate) use change_status::{ChangeStatus, ConfirmSettings, OrderError, Versions};
pub(crate) use housekeeping::HousekeepingSettings;
pub(crate) use place::{DuplicateSettings, PlaceError, Placed, ShortLine, UnknownProduct};

use self::outcomes::Outcomes;
use crate::domain::OrderId;
use keys::KeysInFlight;

use crate::metrics::Metrics;
use crate::products::ProductClient;
use crate::store::Store;
use crate::telemetry::RateLimitedLog;

#[derive(Clone, Copy, Debug)]
pub struct OrderSettings {
    /// The maximum number of concurrent placements; more are refused, not queued.
    pub max_placements: usize,
    pub duplicates: DuplicateSettings,
    pub confirmation: ConfirmSettings,
}

/// The use cases. Cheap to clone.
#[derive(Clone)]
pub struct OrderService {
    store: Store,
    products: Arc<ProductClient>,
    duplicates: DuplicateSettings,
    keys: KeysInFlight,
    confirmation: ConfirmSettings,
    tasks: TaskTracker,
    place_permits: Arc<Semaphore>,
    confirm_permits: Arc<Semaphore>,
    stock_wanted: Arc<Notify>,
    outcomes: Arc<Outcomes>,
    overdue: Arc<RateLimitedLog>,
    metrics: Arc<Metrics>,
}

impl OrderService {
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
            place_permits: Arc::new(Semaphore::new(settings.max_placements)),
            confirm_permits: Arc::new(Semaphore::new(settings.confirmation.max_requests)),
            stock_wanted: Arc::default(),
            outcomes: Arc::default(),
            overdue: Arc::new(RateLimitedLog::new(Duration::from_mins(1))),
            metrics: Arc::clone(metrics),
        }
    }

    /// The same use cases on another connection pool, for background work.
    #[must_use]
    pub fn with_store(&self, store: Store) -> Self {
        Self { store, ..self.clone() }
    }

    /// Wakes the stock worker, and the requests that wait for the confirmation of this order.
    fn stock_changed(&self, order: OrderId) {
        self.stock_wanted.notify_one();
        self.outcomes.changed(order);
    }

    /// Waits for all tasks of requests. The caller must have stopped accepting requests.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
