//! A pool of connections to PostgreSQL.
//!
//! sqlx's own pool pings a connection whenever it is released, in a new task: a second round trip per statement. Here,
//! a released connection is available at once. Its user releases it only if it is healthy. The next use of a connection
//! that broke while idle fails; if it was idle for long, a ping detects it before the use.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Error, PgConnection};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::metrics::{Counted, PoolMetrics};

/// An idle connection is closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_mins(10);
/// A connection is closed at this age, so that sessions of the server do not grow old.
const MAX_LIFETIME: Duration = Duration::from_mins(30);
/// A connection that was idle for longer is pinged before it is used.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);
/// How often the pool closes old idle connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// The timeout for closing a session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection pool. Cheap to clone: clones share the pool.
#[derive(Clone, Debug)]
pub(super) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: PgConnectOptions,
    max_connections: u32,
    acquire_timeout: Duration,
    /// One permit per connection in use. Its holder takes an idle connection, and opens one only if none is idle. So
    /// there are never more connections than permits.
    permits: Semaphore,
    idle: Mutex<IdleConnections>,
    is_closed: AtomicBool,
    metrics: PoolMetrics,
}

#[derive(Debug, Default)]
struct IdleConnections {
    /// A stack: the connection that was used last is used next.
    stack: VecDeque<Idle>,
    /// When a connection was last lost or dropped. Connections that were idle then are pinged before use, because a
    /// restart of the server ends all of them.
    last_loss: Option<Instant>,
}

#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

/// A connection in use. Unless it is returned by [`PooledConnection::release`], its drop closes it: after an error, a
/// deadline, or a cancelled statement, its state is unknown.
#[derive(Debug)]
pub(super) struct PooledConnection {
    connection: PgConnection,
    opened: Instant,
    /// Declared last, so that it is dropped after the connection.
    permit: Permit,
}

/// The permission to use a connection.
#[derive(Debug)]
struct Permit {
    pool: Arc<Inner>,
    /// Whether its connection was returned to the pool.
    is_released: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_released {
            self.pool.lock().last_loss = Some(Instant::now());
        }
        self.pool.metrics.used.dec();
        self.pool.permits.add_permits(1);
    }
}

impl Pool {
    /// Creates a pool. It connects at its first use. Needs a Tokio runtime.
    pub(super) fn new(
        options: PgConnectOptions,
        max_connections: u32,
        acquire_timeout: Duration,
        metrics: PoolMetrics,
    ) -> Self {
        let permits = Semaphore::new(usize::try_from(max_connections).unwrap_or(Semaphore::MAX_PERMITS));
        let inner = Arc::new(Inner {
            options,
            max_connections,
            acquire_timeout,
            permits,
            idle: Mutex::default(),
            is_closed: AtomicBool::new(false),
            metrics,
        });
        tokio::spawn(sweep(Arc::downgrade(&inner)));
        Self(inner)
    }

    /// Acquires a connection within the acquire timeout.
    pub(super) async fn acquire(&self) -> Result<PooledConnection, Error> {
        let acquired = self.try_acquire().await;
        if matches!(acquired, Err(Error::PoolTimedOut)) {
            self.0.metrics.timeouts.inc();
        }
        acquired
    }

    async fn try_acquire(&self) -> Result<PooledConnection, Error> {
        let now = Instant::now();
        let deadline = now + self.0.acquire_timeout;
        let permit = self.permit(deadline).await?;
        while let Some((mut idle, is_suspect)) = self.0.pop(now) {
            if now.saturating_duration_since(idle.opened) > MAX_LIFETIME {
                tokio::spawn(close(idle.connection));
                continue;
            }
            if is_suspect {
                match timeout_at(deadline, idle.connection.ping()).await {
                    Ok(Ok(())) => {}
                    // The connection broke while it was idle.
                    Ok(Err(_)) => continue,
                    Err(_) => return Err(Error::PoolTimedOut),
                }
            }
            return Ok(PooledConnection { connection: idle.connection, opened: idle.opened, permit });
        }
        let connection = self.0.connect(deadline).await?;
        Ok(PooledConnection { connection, opened: Instant::now(), permit })
    }

    /// Refuses new users, waits for the connections in use, and closes all connections.
    pub(super) async fn close(&self) {
        self.0.is_closed.store(true, Ordering::Release);
        let in_use = self.0.permits.acquire_many(self.0.max_connections).await;
        let idle = std::mem::take(&mut self.0.lock().stack);
        self.0.metrics.idle.set(0);
        drop(in_use);
        join_all(idle.into_iter().map(|idle| close(idle.connection))).await;
    }

    async fn permit(&self, deadline: Instant) -> Result<Permit, Error> {
        self.refuse_if_closed()?;
        let permit = if let Ok(permit) = self.0.permits.try_acquire() {
            permit
        } else {
            let _pending = Counted::new(&self.0.metrics.pending);
            match timeout_at(deadline, self.0.permits.acquire()).await {
                Ok(permit) => permit.map_err(|_| Error::PoolClosed)?,
                Err(_) => return Err(Error::PoolTimedOut),
            }
        };
        permit.forget();
        self.0.metrics.used.inc();
        let permit = Permit { pool: Arc::clone(&self.0), is_released: false };
        // The pool may have been closed since.
        self.refuse_if_closed().map(|()| permit)
    }

    fn refuse_if_closed(&self) -> Result<(), Error> {
        if self.0.is_closed.load(Ordering::Acquire) { Err(Error::PoolClosed) } else { Ok(()) }
    }
}

impl Inner {
    /// Ignores poisoning: the state is consistent after every statement.
    fn lock(&self) -> MutexGuard<'_, IdleConnections> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The idle connection that was used last, and whether it must be pinged first.
    fn pop(&self, now: Instant) -> Option<(Idle, bool)> {
        let mut connections = self.lock();
        let idle = connections.stack.pop_back()?;
        self.metrics.idle.dec();
        let is_suspect = connections.last_loss.is_some_and(|loss| idle.since <= loss)
            || now.saturating_duration_since(idle.since) > PING_AFTER_IDLE;
        Some((idle, is_suspect))
    }

    /// Opens a connection. Retries while the server is starting, or has no free connection.
    async fn connect(&self, deadline: Instant) -> Result<PgConnection, Error> {
        const MAX_BACKOFF: Duration = Duration::from_millis(250);
        let mut backoff = Duration::from_millis(10);
        loop {
            match timeout_at(deadline, self.options.connect()).await {
                Ok(Err(error)) if is_transient(&error) => {}
                Ok(connected) => return connected,
                Err(_) => return Err(Error::PoolTimedOut),
            }
            if timeout_at(deadline, sleep(backoff)).await.is_err() {
                return Err(Error::PoolTimedOut);
            }
            backoff = MAX_BACKOFF.min(backoff * 2);
        }
    }

    /// Takes the connections that were idle or open for too long.
    fn take_old(&self) -> Vec<PgConnection> {
        let now = Instant::now();
        let is_old = |idle: &Idle| {
            now.saturating_duration_since(idle.since) > IDLE_TIMEOUT
                || now.saturating_duration_since(idle.opened) > MAX_LIFETIME
        };
        let mut connections = self.lock();
        let (old, kept) = std::mem::take(&mut connections.stack).into_iter().partition(is_old);
        connections.stack = kept;
        self.metrics.idle.set(i64::try_from(connections.stack.len()).unwrap_or(i64::MAX));
        drop(connections);
        let old: VecDeque<Idle> = old;
        old.into_iter().map(|idle| idle.connection).collect()
    }
}

fn is_transient(error: &Error) -> bool {
    match error {
        Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        Error::Database(error) => DatabaseError::is_transient_in_connect_phase(&**error),
        _ => false,
    }
}

/// Closes a session gracefully, so that the server frees it at once.
async fn close(connection: PgConnection) {
    // After the timeout the drop of the connection closes its socket.
    let _ = timeout(CLOSE_TIMEOUT, connection.close()).await;
}

/// Closes old connections until the pool is dropped.
async fn sweep(pool: Weak<Inner>) {
    loop {
        sleep(SWEEP_INTERVAL).await;
        let Some(pool) = pool.upgrade() else { return };
        let old = pool.take_old();
        drop(pool);
        join_all(old.into_iter().map(close)).await;
    }
}

impl PooledConnection {
    /// Returns a healthy connection to the pool.
    pub(super) fn release(self) {
        let Self { connection, opened, mut permit } = self;
        // A transaction is open, or a rollback is not sent yet: close the connection.
        if connection.is_in_transaction() || connection.should_flush() {
            return;
        }
        permit.is_released = true;
        let mut connections = permit.pool.lock();
        connections.stack.push_back(Idle { connection, opened, since: Instant::now() });
        permit.pool.metrics.idle.inc();
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

#[cfg(test)]
mod tests;
