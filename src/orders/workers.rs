//! What any replica does in the background, beside relaying: stock work, unpaid orders, old keys.

use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::OrderService;
use super::rest::Rest;
use crate::domain::aggregate::reason::PAYMENT_TIMEOUT;
use crate::domain::order::Change;
use crate::domain::stock::JobState;
use crate::domain::{Actor, OrderAggregate, OrderId, Status, TraceParent};
use crate::store::StoreError;
use crate::store::stock_queue::TakeUp;
use crate::telemetry::chain;

/// When and how often things are tidied up.
#[derive(Clone, Copy, Debug)]
pub struct HousekeepingSettings {
    /// After how long an order that nobody paid is cancelled. None: never.
    pub unpaid_order_ttl: Option<Duration>,
    /// How often to look.
    pub interval: Duration,
}

/// How much is tidied up by one statement.
const BATCH: i64 = 500;

impl OrderService {
    /// Does stock work until `stop`, then finishes the jobs that it has taken up. A job that waits for a slow
    /// product holds up no other, as long as fewer than `concurrency` do. While the Product Service is away
    /// the worker rests.
    pub async fn run_stock_worker(self, stop: CancellationToken) {
        // Tasks, because a step that nobody polls would keep the connection that the next look waits for.
        let mut steps = JoinSet::new();
        let mut rest = Rest::new(self.confirmation.concurrency, self.confirmation.poll_interval);
        while !stop.is_cancelled() {
            let room = self.confirmation.concurrency.saturating_sub(steps.len());
            let jobs = rest.allows(room, Instant::now());
            let first = if rest.is_on() { TakeUp::Newest } else { TakeUp::Oldest };
            let taken_up =
                if jobs == 0 { Ok(Vec::new()) } else { self.take_up_stock_jobs(jobs, first).await };
            match taken_up {
                Ok(jobs) => jobs.into_iter().for_each(|job| {
                    steps.spawn(self.clone().step(job));
                }),
                Err(error) => warn!(error = chain(&error), "the stock worker failed; it goes on"),
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

    /// Cancels unpaid orders and forgets old keys, now and then, until `stop`.
    pub async fn run_housekeeping(self, settings: HousekeepingSettings, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.tidy_up(&settings, &stop).await {
                warn!(error = chain(&error), "the housekeeping failed; it goes on");
            }
            tokio::select! {
                () = sleep(settings.interval) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn tidy_up(
        &self,
        settings: &HousekeepingSettings,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let past_any_window = self.duplicates.window.unwrap_or_default() + Duration::from_mins(1);
        // Until nothing is left: every placement adds a row, so a fixed share would never catch up.
        while !stop.is_cancelled() && self.store.forget_requests(past_any_window, BATCH).await? > 0 {}
        match settings.unpaid_order_ttl {
            Some(ttl) => self.cancel_all_unpaid(ttl, stop).await,
            None => Ok(()),
        }
    }

    /// Batch after batch, until one brings nothing more. An order that cannot be cancelled is passed over.
    async fn cancel_all_unpaid(&self, ttl: Duration, stop: &CancellationToken) -> Result<(), StoreError> {
        let mut all = 0;
        loop {
            let mut cancelled = 0;
            for id in self.store.unpaid_orders(ttl, BATCH).await? {
                if stop.is_cancelled() {
                    return Ok(());
                }
                match self.cancel_unpaid(id).await {
                    Ok(is_cancelled) => cancelled += usize::from(is_cancelled),
                    Err(error) if error.is_transient() => return Err(error),
                    Err(error) => error!(order = %id, error = chain(&error), "an unpaid order stays"),
                }
            }
            all += cancelled;
            if cancelled == 0 {
                break;
            }
        }
        if all > 0 {
            info!(cancelled = all, "cancelled orders that nobody paid");
        }
        Ok(())
    }

    /// Looks again under the lock: the payment may have come meanwhile, or another replica may have been first.
    async fn cancel_unpaid(&self, id: OrderId) -> Result<bool, StoreError> {
        let decide = |aggregate: &mut OrderAggregate| {
            let confirming = aggregate.job.as_ref().is_some_and(|job| job.state == JobState::Taking);
            if aggregate.order.status != Status::Created || aggregate.paid.is_some() || confirming {
                return Ok(Change::None);
            }
            let trace = TraceParent::continue_or_start(None);
            aggregate.cancel(Actor::system(), Some(PAYMENT_TIMEOUT.to_owned()), &trace)
        };
        let changed = self.store.update_order(id, None, decide).await?;
        Ok(matches!(changed, Some(Ok((_, Change::Real)))))
    }
}

/// A panic is a bug: it ends the worker, and with it the process, whose jobs others take up.
fn finished<T>(ended: Result<Option<T>, JoinError>) -> Option<T> {
    ended.unwrap_or_else(|error| if error.is_panic() { resume_unwind(error.into_panic()) } else { None })
}
