//! A reader that keeps a snapshot of the database open, so that vacuum cannot remove rows that are deleted meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::world::World;

/// Holds a snapshot until `stop`, and takes a new one after each kill of the database. Returns the number of snapshots
/// and the total time.
pub(super) async fn hold(world: Arc<World>, stop: CancellationToken) -> (usize, Duration) {
    let (mut taken, mut held) = (0, Duration::ZERO);
    while !stop.is_cancelled() {
        let since = Instant::now();
        if hold_one(&world.database, &stop).await.is_ok() || since.elapsed() > Duration::from_secs(1) {
            taken += 1;
            held += since.elapsed();
        }
        sleep(Duration::from_millis(50)).await;
    }
    (taken, held)
}

/// Returns an error as soon as the connection is lost.
async fn hold_one(database: &PgPool, stop: &CancellationToken) -> sqlx::Result<()> {
    let mut snapshot = database.begin_with("begin isolation level repeatable read").await?;
    while !stop.is_cancelled() {
        // The first statement takes the snapshot.
        sqlx::query("select").execute(&mut *snapshot).await?;
        sleep(Duration::from_millis(100)).await;
    }
    snapshot.rollback().await
}
