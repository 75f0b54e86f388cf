//! PostgreSQL: the only module with SQL.
//!
//! No other module sees a connection or a transaction. A use case passes plain data, and gets its answer when the data
//! is durable.

pub mod check;
mod connection;
mod error;
mod group_commit;
mod history;
pub mod idempotency;
pub mod list;
pub mod migrate;
pub mod orders;
pub mod outbox;
pub mod parked_orders;
pub mod payments;
pub mod place;
mod pool;
pub mod replay;
pub mod retention;
pub mod settle;
mod shared_read;
pub mod stock;
pub mod stock_claims;
#[cfg(test)]
mod tests;
mod unpaid;
mod update;
pub mod work;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::metrics::Metrics;

use connection::Database;
use group_commit::GroupCommit;
use idempotency::KeyReads;
use list::CustomerPages;
use orders::OrderReads;
use place::Placements;
use shared_read::SharedRead;
use update::Updates;

pub use connection::DatabaseSettings;
pub use error::StoreError;
pub use list::{Cursor, ListQuery};
pub use outbox::{Lease, PendingEvent};
pub use place::{Deduplication, InsertOutcome};
pub use stock::StockTimes;
pub use unpaid::UnpaidCursor;

/// The database of the service. Cheap to clone: clones share the pools.
#[derive(Clone)]
pub struct Store {
    database: Database,
    /// The pool for shared reads and lists.
    readers: Database,
    order_reads: Arc<SharedRead<OrderReads>>,
    customer_pages: Arc<SharedRead<CustomerPages>>,
    key_reads: Arc<SharedRead<KeyReads>>,
    /// The pool for placements.
    placing: Database,
    placements: Arc<GroupCommit<Placements>>,
    updates: Arc<GroupCommit<Updates>>,
    stock: StockTimes,
    outbox_written: Arc<Notify>,
}

/// Session settings that make every plan an index scan, independent of statistics.
const INDEX_SCANS: [(&str, &str); 5] = [
    ("plan_cache_mode", "force_custom_plan"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
];

impl Store {
    /// Creates a store. It connects at its first use, so that the service can start before the database.
    pub fn new(settings: &DatabaseSettings, stock: StockTimes, metrics: &Arc<Metrics>) -> Self {
        let (database, readers) = Database::for_requests(settings, metrics);
        let order_reads = SharedRead::start(OrderReads(readers.clone()), 128, settings.deadline);
        // Each page has up to 200 rows.
        let customer_pages = SharedRead::start(CustomerPages(readers.clone()), 32, settings.deadline);
        let key_reads = SharedRead::start(KeyReads(readers.clone()), 128, settings.deadline);
        let placing = place::pool(&database);
        let outbox_written = Arc::<Notify>::default();
        let placements = Placements::start(&placing, &database, &outbox_written);
        let updates = Updates::start(&database, stock, &outbox_written);
        Self {
            database,
            readers,
            order_reads,
            customer_pages,
            key_reads,
            placing,
            placements,
            updates,
            stock,
            outbox_written,
        }
    }

    /// A store for background work. It has a small pool of its own for everything except shared reads and lists, so
    /// that requests and background work do not starve each other.
    #[must_use]
    pub fn with_own_pool(&self, max_connections: u32) -> Self {
        let database = self.database.with_own_pool("background", max_connections, &[]);
        let updates = Updates::start(&database, self.stock, &self.outbox_written);
        Self { database, updates, ..self.clone() }
    }

    /// A store for the relay, whose pool plans only index scans. The outbox may be empty now and have millions of rows
    /// a moment later, and a plan for an empty table is wrong for a full one.
    #[must_use]
    pub fn for_relay(&self, max_connections: u32) -> Self {
        Self { database: self.database.with_own_pool("relay", max_connections, &INDEX_SCANS), ..self.clone() }
    }

    /// A store for scrapes: one connection, on which no operation takes longer than `longest`, with the relay's plans.
    #[must_use]
    pub fn for_scrapes(&self, longest: Duration) -> Self {
        let database = self.database.with_bounded_connection("metrics", longest, &INDEX_SCANS);
        Self { database, ..self.clone() }
    }

    /// Resolves after this process committed events. One permit is kept, so that a commit between two waits is not
    /// missed.
    pub async fn outbox_written(&self) {
        self.outbox_written.notified().await;
    }

    /// Closes all connections, and waits for those in use.
    pub async fn close(&self) {
        self.database.close().await;
        self.readers.close().await;
        self.placing.close().await;
    }
}
