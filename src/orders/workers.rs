//! What any replica does in the background, beside relaying: stock work, old keys, old orders. Unpaid orders
//! are in `events/payments/unpaid.rs`, because Kafka is asked before one is cancelled.

use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::OrderService;
use super::rest::Rest;
use crate::domain::Status;
use crate::store::StoreError;
use crate::store::retention::RetentionCursor;
use crate::store::stock_queue::TakeUp;
use crate::telemetry::chain;

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
    /// Does stock work until `stop`, then finishes the jobs that it has taken up. A job that waits for a slow
    /// product holds up no other, as long as fewer than `concurrency` do. While the Product Service is away
    /// the worker rests.
    pub async fn run_stock_worker(self, stop: CancellationToken) {
        // Tasks, because a step that nobody polls would keep the connection that the next look waits for.
        let mut steps = JoinSet::new();
        let mut rest = Rest::new(self.confirmation.concurrency, self.confirmation.poll_interval);
        let mut claim_failed = false;
        while !stop.is_cancelled() {
            let room = self.confirmation.concurrency.saturating_sub(steps.len());
            let allowed = rest.allows(room, Instant::now());
            let (jobs, first) = match (claim_failed, rest.is_on()) {
                // The cheapest claim there is.
                (true, _) => (allowed.min(1), TakeUp::Oldest),
                (false, true) => (allowed, TakeUp::Newest),
                (false, false) => (allowed, TakeUp::Oldest),
            };
            let claimed = if jobs == 0 { Ok(Vec::new()) } else { self.take_up_stock_jobs(jobs, first).await };
            match claimed {
                Ok(claimed) => {
                    claim_failed &= jobs == 0;
                    for job in claimed {
                        steps.spawn(self.clone().step(job));
                    }
                }
                Err(error) => {
                    warn!(error = chain(&error), "stock jobs could not be claimed; one is tried next");
                    claim_failed = true;
                    rest.end();
                }
            }
            tokio::select! {
                Some(ended) = steps.join_next() => rest.note(finished(ended)),
                () = self.stock_wanted.notified(), if room > 0 && !rest.is_on() => {}
                () = sleep(self.confirmation.poll_interval) => {}
                () = stop.cancelled() => {}
            }
        }
        while let Some(ended) = steps.join_next().await {
            finished(ended);
        }
    }

    /// Forgets old keys and old orders, now and then, until `stop`.
    pub async fn run_housekeeping(self, settings: HousekeepingSettings, stop: CancellationToken) {
        let mut cursors = [RetentionCursor::default(); FINISHED.len()];
        while !stop.is_cancelled() {
            if let Err(error) = self.tidy_up(&stop).await {
                warn!(error = chain(&error), "the housekeeping failed; it goes on");
            }
            if let Some(age) = settings.order_retention
                && let Err(error) = self.forget_old_orders(age, &mut cursors, &stop).await
            {
                warn!(error = chain(&error), "old orders could not be deleted; they are tried again");
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

/// A panic is a bug: it ends the worker, and with it the process, whose jobs others take up.
fn finished<T>(ended: Result<Option<T>, JoinError>) -> Option<T> {
    ended.unwrap_or_else(|error| if error.is_panic() { resume_unwind(error.into_panic()) } else { None })
}
