//! The pools, and what is the same for every use of a connection: its settings, its bounds, and the second try of a read.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::orders::column;
use super::pool::{Pool, PooledConnection};
use super::{Store, StoreError};
use crate::domain::Order;
use crate::metrics::{Metrics, Query};
use crate::telemetry::span::Span;

/// How the service uses its database.
#[derive(Clone)]
pub struct DatabaseSettings {
    /// Where it is, and as whom.
    pub options: PgConnectOptions,
    /// The most connections at once.
    pub max_connections: u32,
    /// How long one use of the store may wait for a free connection.
    pub acquire_timeout: Duration,
    /// How long one use of the store may take altogether.
    pub deadline: Duration,
}

/// Without the options, which hold the password.
impl fmt::Debug for DatabaseSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseSettings")
            .field("host", &self.options.get_host())
            .field("port", &self.options.get_port())
            .field("database", &self.options.get_database())
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

/// What a session of the service sets, before `more`.
fn session(settings: &DatabaseSettings, more: &[(&str, &str)]) -> PgConnectOptions {
    // The server gives up a little before the client does, so that it is the one to clean up.
    let server_limit = (settings.deadline.as_millis() * 9 / 10).to_string();
    let options = settings.options.clone().options([
        ("statement_timeout", server_limit.as_str()),
        ("lock_timeout", server_limit.as_str()),
        ("idle_in_transaction_session_timeout", server_limit.as_str()),
        // Every statement has an index. A plan that was cached while its table was empty would be a sequential
        // scan, and would stay one while the table fills; so would one by statistics that are out of date. Where
        // there is no other plan, its cost is beyond any bound of the just-in-time compiler.
        ("enable_seqscan", "off"),
        ("jit", "off"),
    ]);
    options.options(more.iter().copied())
}

/// A pool of connections, and the bounds of their use. Cheap to clone: every clone is the same pool.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pool: Pool,
    settings: Arc<DatabaseSettings>,
    metrics: Arc<Metrics>,
}

impl Database {
    /// The database for the requests, and for their shared reads and lists: half of the connections that the settings
    /// allow for each.
    pub(super) fn for_requests(settings: &DatabaseSettings, metrics: &Arc<Metrics>) -> (Self, Self) {
        let reads = (settings.max_connections / 2).max(1);
        let others = settings.max_connections.saturating_sub(reads).max(1);
        let of = |max_connections| DatabaseSettings { max_connections, ..settings.clone() };
        (Self::new("requests", of(others), &[], metrics), Self::for_reads(of(reads), metrics))
    }

    fn new(
        name: &'static str,
        settings: DatabaseSettings,
        more: &[(&str, &str)],
        metrics: &Arc<Metrics>,
    ) -> Self {
        let options = session(&settings, more);
        let pool_metrics = metrics.database.pool(name, settings.max_connections);
        let pool = Pool::new(options, settings.max_connections, settings.acquire_timeout, pool_metrics);
        Self { pool, settings: Arc::new(settings), metrics: Arc::clone(metrics) }
    }

    /// For reads along an index whose plan must not depend on statistics: the one plan without a sort, made once.
    ///
    /// Where sorting is out, a list is read along the only index that has its sequence (`list.rs`). The plan is the same
    /// for all values and for sets of any size, so planning anew for each would be wasted.
    fn for_reads(settings: DatabaseSettings, metrics: &Arc<Metrics>) -> Self {
        let more = [("enable_sort", "off"), ("plan_cache_mode", "force_generic_plan")];
        Self::new("reads", settings, &more, metrics)
    }

    /// The same database by a pool of its own, with these settings of PostgreSQL.
    pub(super) fn with_own_pool(
        &self,
        name: &'static str,
        max_connections: u32,
        more: &[(&str, &str)],
    ) -> Self {
        let settings = DatabaseSettings { max_connections, ..(*self.settings).clone() };
        Self::new(name, settings, more, &self.metrics)
    }

    /// The same database by one connection of its own, on which nothing takes longer than `longest`.
    pub(super) fn with_bounded_connection(
        &self,
        name: &'static str,
        longest: Duration,
        more: &[(&str, &str)],
    ) -> Self {
        let mut settings = DatabaseSettings { max_connections: 1, ..(*self.settings).clone() };
        settings.deadline = settings.deadline.min(longest);
        settings.acquire_timeout = settings.acquire_timeout.min(longest);
        Self::new(name, settings, more, &self.metrics)
    }

    /// How it is used.
    pub(super) fn settings(&self) -> &DatabaseSettings {
        &self.settings
    }

    /// The metrics of the service.
    pub(super) const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Closes the connections that are idle and waits for those in use.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// A connection from the pool.
    pub(super) async fn connection(&self) -> Result<PooledConnection, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// Runs a statement that changes nothing, within the deadline. Where its connection was lost, perhaps while it was idle,
    /// the statement runs once more on another.
    pub(super) async fn read<T>(
        &self,
        query: Query,
        mut statement: impl FnMut(&mut PgConnection) -> BoxFuture<'_, Result<T, sqlx::Error>> + Send,
    ) -> Result<T, StoreError> {
        self.query(query, async {
            let mut connection = self.connection().await?;
            let mut result = statement(&mut connection).await.map_err(StoreError::from);
            if result.as_ref().is_err_and(StoreError::is_lost_connection) {
                // Closed first: a pool may have no more than one.
                drop(connection);
                connection = self.connection().await?;
                result = statement(&mut connection).await.map_err(StoreError::from);
            }
            let result = result?;
            connection.give_back();
            Ok(result)
        })
        .await
    }

    /// Bounds one use of the store by its deadline.
    pub(super) async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout(self.settings.deadline, work).await.unwrap_or(Err(StoreError::Deadline))
    }

    /// Bounds one use of the store by its deadline, and measures how long it takes. A span shows it in its trace.
    pub(super) async fn query<T>(
        &self,
        query: Query,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (started, mut span) = (Instant::now(), Span::of_database(query.as_str()));
        let result = self.bounded(work).await;
        self.metrics.database.used(query, started.elapsed());
        if let Err(error) = &result {
            span.fail(error.as_str());
        }
        result
    }
}

impl Store {
    /// A connection from the pool.
    pub(super) async fn connection(&self) -> Result<PooledConnection, StoreError> {
        self.database.connection().await
    }

    /// Runs `work` on a connection from the pool, within the deadline. The connection is given back where it succeeds.
    pub(super) async fn with_connection<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            let result = work(&mut connection).await?;
            connection.give_back();
            Ok(result)
        })
        .await
    }

    /// Bounds one use of the store by its deadline.
    pub(super) async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.database.bounded(work).await
    }

    /// Bounds one use of the store by its deadline, and measures how long it takes.
    pub(super) async fn query<T>(
        &self,
        query: Query,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.database.query(query, work).await
    }
}

/// Whether the commit of a write was sent, which decides what its failure means.
#[derive(Debug, Default)]
pub(super) struct CommitSent(AtomicBool);

impl CommitSent {
    /// From here on the write may be durable.
    pub(super) fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Tells a write that failed from one whose outcome nobody knows.
    pub(super) fn judge(&self, error: StoreError) -> StoreError {
        let sent = self.0.load(Ordering::Relaxed);
        if sent && !error.is_rolled_back() { StoreError::unknown(error) } else { error }
    }
}

/// A row of the history is written together with its version of the order, and never changed.
const FIND_VERSIONS: &str = "
select order_id from order_history
where order_id = any ($1) and (order_id, version, changed_at) in (
    select * from unnest($1::uuid[], $2::integer[], $3::timestamptz[])
)
";

impl Database {
    /// Which of these versions of orders a transaction whose outcome is unknown made durable: all or none of those that
    /// it wrote. They are looked for within the time that a connection may be waited for.
    ///
    /// What is found is certain; nothing is not: a commit that waits for a standby is not seen yet.
    pub(super) async fn find_written(&self, orders: &[&Order]) -> HashSet<Uuid> {
        const LOOK_AGAIN: Duration = Duration::from_millis(50);
        let look = async {
            loop {
                match self.find_versions(orders).await {
                    Ok(found) if !found.is_empty() => return found.into_iter().collect(),
                    _ => sleep(LOOK_AGAIN).await,
                }
            }
        };
        timeout(self.settings.acquire_timeout, look).await.unwrap_or_default()
    }

    async fn find_versions(&self, orders: &[&Order]) -> Result<Vec<Uuid>, StoreError> {
        let mut connection = self.connection().await?;
        let found = sqlx::query_scalar(FIND_VERSIONS)
            .bind(column(orders, |order| order.id.0))
            .bind(column(orders, |order| order.version))
            .bind(column(orders, |order| order.changed_at))
            .fetch_all(&mut *connection)
            .await?;
        connection.give_back();
        Ok(found)
    }
}
