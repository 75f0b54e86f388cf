//! Migrating the schema while replicas serve requests, and checking whether it is current.
//!
//! A migration that waits for a lock blocks all later lock requests. So a statement waits at most `LOCK_TIMEOUT`; then
//! the migration is retried after a pause. Indexes on tables that grow are built `concurrently`, in files of one
//! statement that begin with `-- no-transaction`.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sqlx::migrate::{Migrate, MigrateError, Migration, Migrator};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::error::is_temporary;
use super::{DatabaseSettings, Store, StoreError};
use crate::domain::time;
use crate::metrics::Query;

/// The lock timeout of a statement while others wait behind it.
const LOCK_TIMEOUT: &str = "500ms";
/// `concurrently` waits for open transactions, but blocks no others.
const CONCURRENT_LOCK_TIMEOUT: &str = "10min";
/// The advisory lock is polled. A statement that waits for it would hold a snapshot, and `concurrently` in another
/// replica would wait for that snapshot.
const REPLICA_LOCK_TIMEOUT: &str = "100ms";
/// The maximum number of attempts to get the lock of a migration: about five minutes with the pauses.
const ATTEMPTS: u32 = 60;

/// Migrations whose file was changed after databases had applied it, with the SHA-384 of the old file, which built an
/// index under a lock that blocks writers. New databases get the old checksum, too, so that a release with either file
/// starts on a database of the other.
const CHANGED: [(i64, &str); 2] = [
    (20_261_122_000_008, "wGPMPwlBIbrosPakLQpSkXLW6deiAHjmuPeq5l1/+OdP1tUwrJg6b0mOGlqa6mmn"),
    (20_261_122_000_009, "+FUb80zEVoBfb+0amt9fookIHkkkkzawAxQOMZ9x95JtwNA5dS/P9yOx3po5rR99"),
];

/// The compiled migrations of `migrations/`, in the order in which they are applied.
fn migrations() -> Vec<Migration> {
    let compiled: Migrator = sqlx::migrate!();
    let mut migrations: Vec<Migration> = compiled.iter().cloned().collect();
    for migration in &mut migrations {
        let checksum = CHANGED.iter().find(|(version, _)| *version == migration.version);
        if let Some(checksum) = checksum.and_then(|(_, text)| STANDARD.decode(text).ok()) {
            migration.checksum = checksum.into();
        }
    }
    migrations
}

/// Why the migration failed.
#[derive(Debug, Error)]
pub enum MigrationError {
    /// The database could not be reached; a later retry may succeed.
    #[error("the database is not available")]
    Unavailable(#[source] StoreError),
    /// Other transactions hold a lock for too long.
    #[error("migration {0} did not get its lock: long transactions hold its table (pg_stat_activity)")]
    Locked(i64, #[source] sqlx::Error),
    /// A migration failed, or an applied one differs from that of this release.
    #[error("a migration failed")]
    Failed(#[source] MigrateError),
}

impl From<MigrateError> for MigrationError {
    fn from(error: MigrateError) -> Self {
        use MigrateError::{Execute, ExecuteMigration};
        match error {
            Execute(error) | ExecuteMigration(error, _) if is_temporary(&error) => {
                Self::Unavailable(StoreError::Unavailable(error.into()))
            }
            error => Self::Failed(error),
        }
    }
}

/// Applies the pending migrations, in one replica at a time (an advisory lock on the database). Returns the version of
/// the schema.
///
/// It uses its own connection, because building an index may take longer than any request. Only connecting has the
/// deadline of the store; longer waits are logged.
pub async fn migrate(settings: &DatabaseSettings) -> Result<i64, MigrationError> {
    let connecting = timeout(settings.deadline, PgConnection::connect_with(&settings.options));
    let connected = connecting.await.map_err(|_| StoreError::Deadline);
    let mut connection = connected.and_then(|result| Ok(result?)).map_err(MigrationError::Unavailable)?;
    let migrations = migrations();
    let (mut missed_by, mut attempts) = (None, 0);
    loop {
        log_progress("waiting for the lock of another replica that migrates", lock(&mut connection)).await?;
        let (version, error) = match apply_pending(&mut connection, &migrations).await {
            Ok(()) => break,
            Err(MigrateError::ExecuteMigration(error, version)) if missed_lock(&error) => (version, error),
            Err(error) => return Err(error.into()),
        };
        attempts = if missed_by == Some(version) { attempts + 1 } else { 1 };
        missed_by = Some(version);
        if attempts == ATTEMPTS {
            return Err(MigrationError::Locked(version, error));
        }
        warn!(version, attempts, "a migration did not get its lock: retrying after a pause");
        connection.unlock().await?;
        // So that transactions that waited behind the last attempt can finish.
        sleep(time::backoff(Duration::from_secs(1), attempts, Duration::from_secs(5))).await;
    }
    // This also releases the advisory lock.
    connection.close().await.map_err(|error| MigrationError::Unavailable(error.into()))?;
    Ok(migrations.last().map(|migration| migration.version).unwrap_or_default())
}

/// Takes the same lock as sqlx, so that releases that use sqlx for it wait, too.
async fn lock(connection: &mut PgConnection) -> Result<(), MigrateError> {
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        set_lock_timeout(connection, REPLICA_LOCK_TIMEOUT).await?;
        match connection.lock().await {
            Err(MigrateError::Execute(error)) if missed_lock(&error) => sleep(PAUSE).await,
            locked => return locked,
        }
    }
}

async fn set_lock_timeout(connection: &mut PgConnection, lock_timeout: &str) -> Result<(), MigrateError> {
    // Overrides the settings of the role, which are for requests.
    let settings = AssertSqlSafe(format!("set statement_timeout = 0; set lock_timeout = '{lock_timeout}'"));
    connection.execute(settings).await?;
    Ok(())
}

/// `lock_not_available`, `deadlock_detected` (appendix A of PostgreSQL's manual).
fn missed_lock(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| ["55P03", "40P01"].contains(&&*code))
}

/// Applies the pending migrations like `Migrator::run_direct`, each with its lock timeout. An applied migration that is
/// not in this release is not an error, because replicas of an old release still start during a rollout.
async fn apply_pending(connection: &mut PgConnection, migrations: &[Migration]) -> Result<(), MigrateError> {
    const TABLE: &str = "_sqlx_migrations";
    set_lock_timeout(connection, LOCK_TIMEOUT).await?;
    connection.ensure_migrations_table(TABLE).await?;
    if let Some(version) = connection.dirty_version(TABLE).await? {
        return Err(MigrateError::Dirty(version));
    }
    let applied = connection.list_applied_migrations(TABLE).await?;
    let applied: HashMap<_, _> =
        applied.into_iter().map(|migration| (migration.version, migration.checksum)).collect();
    for migration in migrations {
        match applied.get(&migration.version) {
            Some(checksum) if *checksum == migration.checksum => {}
            Some(_) => return Err(MigrateError::VersionMismatch(migration.version)),
            None => {
                set_lock_timeout(
                    connection,
                    if migration.no_tx { CONCURRENT_LOCK_TIMEOUT } else { LOCK_TIMEOUT },
                )
                .await?;
                let applying = async {
                    drop_invalid_index(connection, migration).await?;
                    connection.apply(TABLE, migration).await
                };
                log_progress("still migrating", applying).await?;
            }
        }
    }
    Ok(())
}

/// Drops the invalid index that a failed `create index concurrently` left.
async fn drop_invalid_index(
    connection: &mut PgConnection,
    migration: &Migration,
) -> Result<(), MigrateError> {
    if !migration.no_tx {
        return Ok(());
    }
    let failed = |error| MigrateError::ExecuteMigration(error, migration.version);
    let invalid: Vec<String> = sqlx::query_scalar(
        "select format('%I', relname) from pg_index join pg_class on pg_class.oid = indexrelid
         where not indisvalid and pg_table_is_visible(indexrelid)
           and relname = any (regexp_split_to_array($1, '\\W+'))",
    )
    .bind(migration.sql.as_str())
    .fetch_all(&mut *connection)
    .await?;
    for index in invalid {
        let drop = AssertSqlSafe(format!("drop index concurrently if exists {index}"));
        connection.execute(drop).await.map_err(failed)?;
    }
    Ok(())
}

/// Logs every few seconds that `work` is still running.
async fn log_progress<T>(what: &'static str, work: impl Future<Output = T>) -> T {
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
    /// Whether all migrations of this release are applied.
    pub async fn is_migrated(&self) -> Result<bool, StoreError> {
        let versions: Vec<i64> = migrations().iter().map(|migration| migration.version).collect();
        self.query(Query::Readiness, async |connection| {
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
            Ok(migrated)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The statements of a file, without its comments.
    fn statements(migration: &Migration) -> String {
        let lines = migration.sql.as_str().lines().filter(|line| !line.trim_start().starts_with("--"));
        lines.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_migration_without_a_transaction_is_one_repeatable_statement() {
        for migration in migrations().iter().filter(|migration| migration.no_tx) {
            let sql = statements(migration);
            let one = sql.trim_end_matches(';').matches(';').count() == 0;
            let safe = ["index concurrently if not exists ", "drop index concurrently if exists "];
            assert!(one && safe.iter().any(|words| sql.contains(words)), "{}: {sql}", migration.version);
        }
    }

    #[test]
    fn a_migration_in_a_transaction_builds_indexes_only_on_its_own_new_tables() {
        for migration in migrations().iter().filter(|migration| !migration.no_tx) {
            let sql = statements(migration);
            for (at, _) in sql
                .match_indices(" index ")
                .filter(|(at, _)| sql[..*at].ends_with("create") || sql[..*at].ends_with("create unique"))
            {
                let table = sql[at..].split(" on ").nth(1).and_then(|rest| rest.split([' ', '(']).next());
                let table = table.unwrap_or_default();
                assert!(sql.contains(&format!("create table {table} ")), "{}: {table}", migration.version);
            }
        }
    }

    #[test]
    fn an_edited_migration_keeps_its_recorded_checksum() {
        for (version, text) in CHANGED {
            let migration = migrations().into_iter().find(|migration| migration.version == version);
            let checksum = migration.map(|migration| migration.checksum.into_owned());
            assert_eq!(
                checksum,
                STANDARD.decode(text).ok().filter(|checksum| checksum.len() == 48),
                "{version}"
            );
        }
    }
}
