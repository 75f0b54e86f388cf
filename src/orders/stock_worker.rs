//! The stock worker: claims jobs that are due, many at a time, and makes their calls.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::confirm::Stepped;
use super::probe_mode::Rest;
use super::{ConfirmSettings, OrderService};
use crate::store::stock_claims::TakeUp;
use crate::telemetry::error_chain;

/// How many steps the worker has under way for each stock call that it may have: those beyond have made their calls
/// and write down what they brought.
const STEPS_PER_CALL: usize = 4;

/// What the stock worker has under way.
struct StockWork {
    steps: JoinSet<Stepped>,
    slots: CallSlots,
    rest: Rest,
    /// The last claim failed: one of its jobs may be what failed it.
    claim_failed: bool,
    /// The last claim left jobs behind that are due.
    more: bool,
    /// How many jobs and calls the last claim brought, to claim no more jobs than there is room for their calls.
    latest: (usize, usize),
}

/// The stock calls of the worker that are under way.
#[derive(Clone)]
struct CallSlots {
    free: Arc<Semaphore>,
    freed: Arc<Notify>,
}

/// The slots of one step. Dropped, they wake the worker.
struct HeldSlots {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for HeldSlots {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.freed.notify_one();
    }
}

impl CallSlots {
    fn new(slots: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(slots)), freed: Arc::default() }
    }

    /// As many slots as calls, or all that are left. The worker alone takes slots, so there are as many as it saw.
    fn hold(&self, calls: usize) -> HeldSlots {
        let slots = u32::try_from(calls.min(self.free.available_permits())).unwrap_or_default();
        let permit = Arc::clone(&self.free).try_acquire_many_owned(slots).ok();
        HeldSlots { permit, freed: Arc::clone(&self.freed) }
    }
}

impl StockWork {
    fn new(settings: ConfirmSettings) -> Self {
        Self {
            steps: JoinSet::new(),
            slots: CallSlots::new(settings.concurrency),
            rest: Rest::new(settings.concurrency, settings.poll_interval),
            claim_failed: false,
            more: true,
            latest: (1, 1),
        }
    }

    /// How many calls may be added now.
    fn room(&self, settings: ConfirmSettings) -> usize {
        let is_full = self.steps.len() >= settings.concurrency * STEPS_PER_CALL;
        if is_full { 0 } else { self.slots.free.available_permits() }
    }

    /// How many jobs may be claimed where there is room for so many calls.
    fn jobs(&self, room: usize) -> usize {
        let (jobs, calls) = self.latest;
        (room * jobs).div_ceil(calls.max(1)).min(room)
    }

    fn note_ended(&mut self) {
        while let Some(ended) = self.steps.try_join_next() {
            self.rest.note(finished(ended));
        }
    }
}

impl OrderService {
    /// Does stock work until `stop`, then finishes the steps that it has begun. Jobs are claimed many at a time,
    /// whatever is under way; a job that waits for a slow product holds up no other, as long as fewer than
    /// `concurrency` calls do. While the Product Service is away the worker rests.
    pub async fn run_stock_worker(self, stop: CancellationToken) {
        // Tasks, because a step that nobody polls would keep the connection that the next claim waits for.
        let mut work = StockWork::new(self.confirmation);
        while !stop.is_cancelled() {
            let begun = self.claim_stock_work(&mut work).await;
            if begun > 0 && work.more {
                work.note_ended();
                continue;
            }
            let may_claim = work.room(self.confirmation) > 0 && !work.rest.is_on();
            tokio::select! {
                Some(ended) = work.steps.join_next() => {
                    work.rest.note(finished(ended));
                    work.note_ended();
                }
                () = self.stock_wanted.notified(), if may_claim => work.more = true,
                () = work.slots.freed.notified(), if work.more && !work.rest.is_on() => {}
                () = sleep(self.confirmation.poll_interval) => work.more = true,
                () = stop.cancelled() => {}
            }
        }
        while let Some(ended) = work.steps.join_next().await {
            finished(ended);
        }
    }

    /// Claims jobs and begins their steps. How many that were.
    async fn claim_stock_work(&self, work: &mut StockWork) -> usize {
        let room = if work.more || work.rest.is_on() { work.room(self.confirmation) } else { 0 };
        let room = work.rest.allows(room, Instant::now());
        if room == 0 {
            return 0;
        }
        let first = if work.rest.is_on() { TakeUp::Newest } else { TakeUp::Oldest };
        let claimed = if work.claim_failed {
            self.claim_one_step().await
        } else {
            self.claim_steps(work.jobs(room), room, first).await
        };
        match claimed {
            Ok(claimed) => {
                work.claim_failed = false;
                work.more = claimed.more;
                let steps = claimed.steps.len();
                if steps > 0 {
                    work.latest = (steps, claimed.steps.iter().map(|step| step.calls.len()).sum());
                }
                for step in claimed.steps {
                    let (service, slots) = (self.clone(), work.slots.hold(step.calls.len()));
                    work.steps.spawn(async move { service.take_step(step, slots).await });
                }
                steps
            }
            Err(error) => {
                warn!(error = error_chain(&error), "stock jobs could not be claimed; one is tried next");
                work.claim_failed = true;
                work.more = false;
                work.rest.end();
                0
            }
        }
    }
}

/// A panic is a bug: it ends the worker, and with it the process, whose jobs others take up.
fn finished(ended: Result<Stepped, JoinError>) -> Option<bool> {
    match ended {
        Ok(stepped) => stepped.answered,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}
