//! The pools and the use of their connections: session settings, deadlines, and the retry of reads.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::{Query as Statement, QueryAs};
use sqlx::{FromRow, PgConnection, Postgres};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::pool::{Pool, PooledConnection};
use super::{Store, StoreError};
use crate::domain::Order;
use crate::metrics::{Metrics, Query};
use crate::telemetry::span::Span;

/// The settings of the database.
#[derive(Clone)]
pub struct DatabaseSettings {
    /// Host, database, user and password.
    pub options: PgConnectOptions,
    /// The maximum number of connections.
    pub max_connections: u32,
    /// The timeout for acquiring a connection.
    pub acquire_timeout: Duration,
    /// The deadline of one operation of the store.
    pub deadline: Duration,
}

/// Leaves out the options, which contain the password.
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

/// The connect options with the settings of a session, and then `more`.
fn session(settings: &DatabaseSettings, more: &[(&str, &str)]) -> PgConnectOptions {
    // The server times out shortly before the client, so that the server cleans up.
    let server_limit = (settings.deadline.as_millis() * 9 / 10).to_string();
    let options = settings.options.clone().options([
        ("statement_timeout", server_limit.as_str()),
        ("lock_timeout", server_limit.as_str()),
        ("idle_in_transaction_session_timeout", server_limit.as_str()),
        // Every statement has an index. A plan that was cached while its table was empty, or made from outdated
        // statistics, would be a sequential scan, and would stay one while the table grows. If there is no other plan,
        // its cost exceeds every threshold of the JIT compiler.
        ("enable_seqscan", "off"),
        ("jit", "off"),
    ]);
    options.options(more.iter().copied())
}

/// A connection pool with its deadlines. Cheap to clone: clones share the pool.
#[derive(Clone)]
pub(super) struct Database {
    pool: Pool,
    pub(super) settings: Arc<DatabaseSettings>,
    pub(super) metrics: Arc<Metrics>,
}

impl Database {
    /// The database for requests, and the one for their shared reads and lists. Each gets half of the connections.
    pub(super) fn for_requests(settings: &DatabaseSettings, metrics: &Arc<Metrics>) -> (Self, Self) {
        let reads = (settings.max_connections / 2).max(1);
        let others = settings.max_connections.saturating_sub(reads).max(1);
        let of = |max_connections| DatabaseSettings { max_connections, ..settings.clone() };
        // The plans of reads do not depend on statistics. Without sorts, PostgreSQL reads a list along the only index
        // that has its order (`list.rs`). The plan is the same for all values and for sets of any size, so planning
        // again would be wasted work.
        let of_reads = [("enable_sort", "off"), ("plan_cache_mode", "force_generic_plan")];
        (Self::new("requests", of(others), &[], metrics), Self::new("reads", of(reads), &of_reads, metrics))
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

    /// The same database with its own pool, and with more session settings.
    pub(super) fn with_own_pool(
        &self,
        name: &'static str,
        max_connections: u32,
        more: &[(&str, &str)],
    ) -> Self {
        let settings = DatabaseSettings { max_connections, ..(*self.settings).clone() };
        Self::new(name, settings, more, &self.metrics)
    }

    /// The same database with one connection of its own. No operation on it takes longer than `longest`.
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

    /// Closes all connections, and waits for those in use.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// A connection from the pool.
    pub(super) async fn connection(&self) -> Result<PooledConnection, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// Runs a read-only statement within the deadline. If its connection was lost, perhaps while idle, the statement is
    /// retried once on another connection.
    pub(super) async fn read<T>(
        &self,
        query: Query,
        mut statement: impl FnMut(&mut PgConnection) -> BoxFuture<'_, Result<T, sqlx::Error>> + Send,
    ) -> Result<T, StoreError> {
        self.measured(query, async {
            let mut connection = self.connection().await?;
            let mut result = statement(&mut connection).await.map_err(StoreError::from);
            if result.as_ref().is_err_and(StoreError::is_lost_connection) {
                // Dropped first, because the pool may have only one connection.
                drop(connection);
                connection = self.connection().await?;
                result = statement(&mut connection).await.map_err(StoreError::from);
            }
            let result = result?;
            connection.release();
            Ok(result)
        })
        .await
    }

    /// Runs `work` within the deadline, with its metrics and a span.
    async fn measured<T>(
        &self,
        query: Query,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (started, mut span) = (Instant::now(), Span::of_database(query.as_str()));
        let result = timeout(self.settings.deadline, work).await.unwrap_or(Err(StoreError::Deadline));
        self.metrics.database.used(query, started.elapsed());
        if let Err(error) = &result {
            span.fail(error.error_type());
        }
        result
    }
}

impl Store {
    /// Runs `work` on a connection from the pool within the deadline, and measures its duration. The connection is
    /// reused only if the work succeeds.
    pub(super) async fn query<T>(
        &self,
        query: Query,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let work = async {
            let mut connection = self.database.connection().await?;
            let result = work(&mut connection).await?;
            connection.release();
            Ok(result)
        };
        self.database.measured(query, work).await
    }

    /// Runs one statement; returns the number of affected rows.
    pub(super) async fn execute(
        &self,
        query: Query,
        statement: Statement<'_, Postgres, PgArguments>,
    ) -> Result<u64, StoreError> {
        self.query(query, async |connection| Ok(statement.execute(connection).await?.rows_affected())).await
    }

    /// Reads all rows of one statement.
    pub(super) async fn fetch_all<R>(
        &self,
        query: Query,
        statement: QueryAs<'_, Postgres, R, PgArguments>,
    ) -> Result<Vec<R>, StoreError>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        self.query(query, async |connection| Ok(statement.fetch_all(connection).await?)).await
    }
}

/// A column of the rows of a statement, as an array.
pub(super) fn column<'a, R, C>(rows: &'a [R], value: impl Fn(&'a R) -> C) -> Vec<C> {
    rows.iter().map(value).collect()
}

/// Whether the commit of a write was sent. It decides whether a failure leaves the outcome unknown.
#[derive(Debug, Default)]
pub(super) struct CommitSent(AtomicBool);

impl CommitSent {
    /// Marks that the write may be durable from now on.
    pub(super) fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The error of the write: `error`, or that the outcome is unknown.
    pub(super) fn classify(&self, error: StoreError) -> StoreError {
        let sent = self.0.load(Ordering::Relaxed);
        if sent && !error.is_rolled_back() { StoreError::unknown(error) } else { error }
    }
}

/// The history row of a version is written with that version, and never changed.
pub(super) const FIND_VERSIONS: &str = "
select order_id from order_history
where order_id = any ($1) and (order_id, version, changed_at) in (
    select * from unnest($1::uuid[], $2::integer[], $3::timestamptz[])
)
";

impl Database {
    /// Finds the versions of orders that a transaction with an unknown outcome committed: all that it wrote, or none.
    /// Polls for up to the acquire timeout.
    ///
    /// A found version is certain. A missing one is not: a commit that waits for a standby is not visible yet.
    pub(super) async fn find_written(&self, orders: &[&Order]) -> HashSet<Uuid> {
        const POLL_INTERVAL: Duration = Duration::from_millis(50);
        let poll = async {
            loop {
                match self.find_versions(orders).await {
                    Ok(found) if !found.is_empty() => return found.into_iter().collect(),
                    _ => sleep(POLL_INTERVAL).await,
                }
            }
        };
        timeout(self.settings.acquire_timeout, poll).await.unwrap_or_default()
    }

    async fn find_versions(&self, orders: &[&Order]) -> Result<Vec<Uuid>, StoreError> {
        let mut connection = self.connection().await?;
        let found = sqlx::query_scalar(FIND_VERSIONS)
            .bind(column(orders, |order| order.id.0))
            .bind(column(orders, |order| order.version))
            .bind(column(orders, |order| order.changed_at))
            .fetch_all(&mut *connection)
            .await?;
        connection.release();
        Ok(found)
    }
}
