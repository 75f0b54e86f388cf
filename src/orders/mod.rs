//! What the service does: one use case a file.
//!
//! This layer names the concrete [`Store`] and [`ProductClient`] on purpose: each exists once, and the tests
//! run the real ones.

mod change_status;
mod get;
mod list;
mod place;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub use change_status::{ChangeStatus, ChangeStatusError, Versions};
pub use get::GetError;
pub use place::{PlaceError, ShortLine, UnknownProduct};

use crate::products::ProductClient;
use crate::store::Store;

/// The use cases, with the parts that they need. Cheap to clone.
#[derive(Clone)]
pub struct OrderService {
    store: Store,
    products: Arc<ProductClient>,
    placements: TaskTracker,
    permits: Arc<Semaphore>,
}

impl OrderService {
    /// Puts the parts together. At most `max_placements` run at once; more are refused, not queued.
    pub fn new(store: Store, products: Arc<ProductClient>, max_placements: usize) -> Self {
        Self {
            store,
            products,
            placements: TaskTracker::new(),
            permits: Arc::new(Semaphore::new(max_placements)),
        }
    }

    /// Waits until no placement is running any more. New ones can still start meanwhile; whoever calls this
    /// has stopped accepting requests first.
    pub async fn settle(&self) {
        self.placements.close();
        self.placements.wait().await;
    }
}
