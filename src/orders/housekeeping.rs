//! Housekeeping on every replica: deletes old idempotency keys and old orders.
//!
//! Unpaid orders are in `events/payments/unpaid.rs`, because Kafka is read before one is cancelled.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::OrderService;
use crate::domain::Status;
use crate::store::StoreError;
use crate::store::retention::RetentionCursor;
use crate::telemetry::error_chain;

/// What housekeeping deletes, and how often it runs.
#[derive(Clone, Copy, Debug)]
pub struct HousekeepingSettings {
    /// The age at which an unpaid order is cancelled. None: never.
    pub unpaid_order_ttl: Option<Duration>,
    /// The age at which a finished order is deleted. None: never.
    pub order_retention: Option<Duration>,
    pub interval: Duration,
}

/// The maximum number of rows per statement.
const BATCH: i64 = 500;

/// The maximum number of batches of old orders per run.
const RETENTION_BATCHES: u32 = 10;

/// The statuses of orders that may be deleted. A CREATED order is not finished.
const FINISHED: [Status; 2] = [Status::Confirmed, Status::Cancelled];

impl OrderService {
    /// Deletes old keys and old orders every interval, until `stop`.
    pub async fn run_housekeeping(self, settings: HousekeepingSettings, stop: CancellationToken) {
        let mut cursors = [RetentionCursor::default(); FINISHED.len()];
        while !stop.is_cancelled() {
            if let Err(error) = self.delete_old_keys(&stop).await {
                warn!(
                    error = error_chain(&error),
                    "old idempotency keys could not be deleted; retrying at the next interval"
                );
            }
            if let Some(age) = settings.order_retention
                && let Err(error) = self.apply_retention(age, &mut cursors, &stop).await
            {
                warn!(
                    error = error_chain(&error),
                    "old orders and settled payments could not be deleted; retrying at the next interval"
                );
            }
            tokio::select! {
                () = sleep(settings.interval) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn delete_old_keys(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let duplicates = self.duplicates;
        let past_any_window =
            duplicates.window.unwrap_or_default() + duplicates.longest_commit + Duration::from_mins(1);
        // Runs until none is left: every placement adds a row, so a fixed number of batches might never catch up.
        while !stop.is_cancelled() && self.store.delete_expired_requests(past_any_window, BATCH).await? > 0 {}
        Ok(())
    }

    /// Deletes a bounded number of settled payments and of orders that are older than `age`. The cursors continue at
    /// the next run, and start again after the last order.
    async fn apply_retention(
        &self,
        age: Duration,
        cursors: &mut [RetentionCursor; FINISHED.len()],
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        self.store.delete_settled_payments(age, BATCH).await?;
        let mut deleted = 0;
        for (status, cursor) in FINISHED.into_iter().zip(cursors) {
            for _ in 0..RETENTION_BATCHES {
                if stop.is_cancelled() {
                    return Ok(());
                }
                let (of_batch, next) = self.store.delete_old_orders(status, age, *cursor, BATCH).await?;
                deleted += of_batch;
                *cursor = next.unwrap_or_default();
                if next.is_none() {
                    break;
                }
            }
        }
        if deleted > 0 {
            info!(deleted, "deleted orders that are older than ORDER_RETENTION");
        }
        Ok(())
    }
}
