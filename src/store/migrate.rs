//! Bringing the schema up to date, and telling whether it is.

use std::pin::pin;
use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::{Connection, Executor, PgConnection};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::error::is_about_the_moment;
use super::{DatabaseSettings, Store, StoreError};

/// The migrations of `migrations/`, compiled in.
///
/// A migration of a newer release that is already applied is no error: while a new release rolls out, replicas
/// of the old one still start.
fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!();
    migrator.set_ignore_missing(true);
    migrator
}

/// Why the schema could not be brought up to date.
#[derive(Debug, Error)]
pub enum MigrationError {
    /// The database could not be reached; trying again later may help.
    #[error("the database is not available")]
    Unavailable(#[source] StoreError),
    /// A migration failed, or an applied one is not the one of this release.
    #[error("a migration failed")]
    Failed(#[source] MigrateError),
}

impl From<MigrateError> for MigrationError {
    fn from(error: MigrateError) -> Self {
        use MigrateError::{Execute, ExecuteMigration};
        match error {
            Execute(error) | ExecuteMigration(error, _) if is_about_the_moment(&error) => {
                Self::Unavailable(StoreError::Unavailable(error))
            }
            error => Self::Failed(error),
        }
    }
}

/// Applies what is pending, one replica at a time (an advisory lock on the database); returns the version
/// that the schema then has.
///
/// It uses a connection of its own: building an index may take longer than any request may. Only the
/// connecting has the store's deadline; what comes after it is said in the log for as long as it takes.
pub async fn migrate(settings: &DatabaseSettings) -> Result<i64, MigrationError> {
    let connecting = timeout(settings.deadline, PgConnection::connect_with(&settings.options));
    let connected = connecting.await.map_err(|_| StoreError::Deadline);
    let mut connection = connected.and_then(|result| Ok(result?)).map_err(MigrationError::Unavailable)?;
    watched("waiting for the lock of another replica that migrates", lock(&mut connection)).await?;
    // It is held for as long as this connection lives.
    let mut migrator = migrator();
    migrator.set_locking(false);
    watched("still migrating", migrator.run_direct(None, &mut connection, false)).await?;
    connection.close().await.map_err(|error| MigrationError::Unavailable(error.into()))?;
    Ok(latest())
}

/// Waits in short statements: `create index concurrently` of the replica that migrates waits for the end of every
/// statement that began before it, and a replica that waited for this lock in one long statement would never end.
async fn lock(connection: &mut PgConnection) -> Result<(), MigrateError> {
    const PAUSE: Duration = Duration::from_millis(100);
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    connection.execute("set lock_timeout = '100ms'").await?;
    loop {
        match connection.lock().await {
            Err(MigrateError::Execute(sqlx::Error::Database(error)))
                if error.code().as_deref() == Some(LOCK_NOT_AVAILABLE) => {}
            locked => {
                locked?;
                break;
            }
        }
        sleep(PAUSE).await;
    }
    connection.execute("reset lock_timeout").await?;
    Ok(())
}

/// Says in the log every few seconds what is being waited for.
async fn watched<T>(what: &'static str, work: impl Future<Output = T>) -> T {
    const PAUSE: Duration = Duration::from_secs(3);
    let started = Instant::now();
    let mut work = pin!(work);
    loop {
        if let Ok(done) = timeout(PAUSE, &mut work).await {
            return done;
        }
        warn!(seconds = started.elapsed().as_secs(), "{what}");
    }
}

impl Store {
    /// Whether every migration of this release is applied; an error when the database cannot be asked.
    pub async fn is_migrated(&self) -> Result<bool, StoreError> {
        let versions: Vec<i64> = migrator().iter().map(|migration| migration.version).collect();
        self.bounded(async {
            let mut connection = self.connection().await?;
            let exists: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
                .fetch_one(&mut *connection)
                .await?;
            let migrated = exists
                && sqlx::query_scalar::<_, bool>(
                    "select count(*) = cardinality($1) from _sqlx_migrations where version = any ($1) and success",
                )
                .bind(&versions)
                .fetch_one(&mut *connection)
                .await?;
            connection.give_back();
            Ok(migrated)
        })
        .await
    }
}

/// The version of the last migration of this release.
fn latest() -> i64 {
    migrator().iter().map(|migration| migration.version).max().unwrap_or_default()
}
