//! PostgreSQL: the only place with SQL.
//!
//! Nothing outside this module sees a connection or a transaction. A use case hands over plain data and is
//! answered when it is durable. How many placements share a transaction is this module's secret.

mod connection;
mod error;
pub mod list;
pub mod migrate;
pub mod orders;
pub mod outbox;
mod place;

use std::sync::Arc;

use sqlx::PgPool;
use tokio::sync::Notify;

pub use connection::DatabaseSettings;
pub use error::StoreError;
pub use list::{Cursor, ListQuery};
pub use outbox::{Lease, PendingEvent};

/// The database of the service. Cheap to clone: every clone is the same pool.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    settings: DatabaseSettings,
    outbox_written: Arc<Notify>,
}

impl Store {
    /// A store that connects when it is first asked, so that a database that is away delays the start and
    /// does not prevent it.
    pub fn new(settings: DatabaseSettings) -> Self {
        Self { pool: connection::pool(&settings), settings, outbox_written: Arc::default() }
    }

    /// A store with a small pool of its own, so that the relay and the requests do not starve each other.
    #[must_use]
    pub fn for_relay(&self) -> Self {
        let settings = DatabaseSettings { max_connections: 2, ..self.settings.clone() };
        Self { pool: connection::pool(&settings), settings, outbox_written: Arc::clone(&self.outbox_written) }
    }

    /// Resolves after something was committed to the outbox by this process. One permit is kept, so that a
    /// commit between two waits is not missed.
    pub async fn outbox_written(&self) {
        self.outbox_written.notified().await;
    }

    /// Closes the connections that are idle and waits for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
