//! What any replica does in the background, beside relaying and stock work (`stock_worker`): old keys, old orders.
//! Unpaid orders are in `events/payments/unpaid.rs`, because Kafka is asked before one is cancelled.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::OrderService;
use crate::domain::Status;
use crate::store::StoreError;
use crate::store::retention::RetentionCursor;
use crate::telemetry::error_chain;

/// When and how often things are tidied up.
#[derive(Clone, Copy, Debug)]
pub struct HousekeepingSettings {
    /// After how long an order that nobody paid is cancelled. None: never.
    pub unpaid_order_ttl: Option<Duration>,
    /// After how long an order that is finished is deleted. None: never.
    pub order_retention: Option<Duration>,
    /// How often to look.
    pub interval: Duration,
}

/// How much is tidied up by one statement.
const BATCH: i64 = 500;

/// How many batches of old orders are looked at before the housekeeping rests: up to 500 orders a second.
const RETENTION_BATCHES: u32 = 10;

/// Orders that may be deleted when they are old. One that is CREATED is not finished.
const FINISHED: [Status; 2] = [Status::Confirmed, Status::Cancelled];

impl OrderService {
    /// Forgets old keys and old orders, now and then, until `stop`.
    pub async fn run_housekeeping(self, settings: HousekeepingSettings, stop: CancellationToken) {
        let mut cursors = [RetentionCursor::default(); FINISHED.len()];
        while !stop.is_cancelled() {
            if let Err(error) = self.tidy_up(&stop).await {
                warn!(error = error_chain(&error), "the housekeeping failed; it goes on");
            }
            if let Some(age) = settings.order_retention
                && let Err(error) = self.forget_old_orders(age, &mut cursors, &stop).await
            {
                warn!(error = error_chain(&error), "old orders could not be deleted; they are tried again");
            }
            tokio::select! {
                () = sleep(settings.interval) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn tidy_up(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let duplicates = self.duplicates;
        let past_any_window =
            duplicates.window.unwrap_or_default() + duplicates.longest_commit + Duration::from_mins(1);
        // Until nothing is left: every placement adds a row, so a fixed share would never catch up.
        while !stop.is_cancelled() && self.store.forget_requests(past_any_window, BATCH).await? > 0 {}
        Ok(())
    }

    /// Deletes orders that are older than `age`, a bounded number; the next time it goes on behind them, and at the end
    /// it begins again.
    async fn forget_old_orders(
        &self,
        age: Duration,
        cursors: &mut [RetentionCursor; FINISHED.len()],
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let mut deleted = 0;
        for (status, cursor) in FINISHED.into_iter().zip(cursors) {
            for _ in 0..RETENTION_BATCHES {
                if stop.is_cancelled() {
                    return Ok(());
                }
                let batch = self.store.forget_orders(status, age, *cursor, BATCH).await?;
                deleted += batch.deleted;
                *cursor = batch.next.unwrap_or_default();
                if batch.next.is_none() {
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
