//! The stock worker: claims jobs that are due, many at a time, and makes their calls.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::confirm::BatchResult;
use super::probe_mode::ProbeMode;
use super::{ConfirmSettings, OrderService};
use crate::store::stock_claims::ClaimOrder;
use crate::telemetry::error_chain;

/// How many batches the worker has under way for each stock call that it may have: those beyond have made their calls
/// and write down what they brought.
const BATCHES_PER_CALL: usize = 4;

/// What the stock worker has under way.
struct StockWork {
    batches: JoinSet<BatchResult>,
    slots: CallSlots,
    probe: ProbeMode,
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

/// The slots of one batch. Dropped, they wake the worker.
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
            batches: JoinSet::new(),
            slots: CallSlots::new(settings.concurrency),
            probe: ProbeMode::new(settings.concurrency, settings.poll_interval),
            claim_failed: false,
            more: true,
            latest: (1, 1),
        }
    }

    /// How many calls may be added now.
    fn room(&self, settings: ConfirmSettings) -> usize {
        let is_full = self.batches.len() >= settings.concurrency * BATCHES_PER_CALL;
        if is_full { 0 } else { self.slots.free.available_permits() }
    }

    /// How many jobs may be claimed where there is room for so many calls.
    fn jobs(&self, room: usize) -> usize {
        let (jobs, calls) = self.latest;
        (room * jobs).div_ceil(calls.max(1)).min(room)
    }

    fn note_ended(&mut self) {
        while let Some(ended) = self.batches.try_join_next() {
            self.probe.record(finished(ended));
        }
    }
}

impl OrderService {
    /// Does stock work until `stop`, then finishes the batches that it has begun. Jobs are claimed many at a time,
    /// whatever is under way; a job that waits for a slow product holds up no other, as long as fewer than
    /// `concurrency` calls do. While the Product Service is away the worker rests.
    pub async fn run_stock_worker(self, stop: CancellationToken) {
        // Tasks, because a batch that nobody polls would keep the connection that the next claim waits for.
        let mut work = StockWork::new(self.confirmation);
        while !stop.is_cancelled() {
            let begun = self.claim_stock_work(&mut work).await;
            if begun > 0 && work.more {
                work.note_ended();
                continue;
            }
            let may_claim = work.room(self.confirmation) > 0 && !work.probe.is_on();
            tokio::select! {
                Some(ended) = work.batches.join_next() => {
                    work.probe.record(finished(ended));
                    work.note_ended();
                }
                () = self.stock_wanted.notified(), if may_claim => work.more = true,
                () = work.slots.freed.notified(), if work.more && !work.probe.is_on() => {}
                () = sleep(self.confirmation.poll_interval) => work.more = true,
                () = stop.cancelled() => {}
            }
        }
        while let Some(ended) = work.batches.join_next().await {
            finished(ended);
        }
    }

    /// Claims jobs and begins their batches. How many that were.
    async fn claim_stock_work(&self, work: &mut StockWork) -> usize {
        let room = if work.more || work.probe.is_on() { work.room(self.confirmation) } else { 0 };
        let room = work.probe.limit(room, Instant::now());
        if room == 0 {
            return 0;
        }
        let first = if work.probe.is_on() { ClaimOrder::NewestFirst } else { ClaimOrder::OldestFirst };
        let claimed = if work.claim_failed {
            self.claim_single().await
        } else {
            self.claim_batches(work.jobs(room), room, first).await
        };
        match claimed {
            Ok(claimed) => {
                work.claim_failed = false;
                work.more = claimed.more;
                let batches = claimed.batches.len();
                if batches > 0 {
                    work.latest = (batches, claimed.batches.iter().map(|batch| batch.calls.len()).sum());
                }
                for batch in claimed.batches {
                    let (service, slots) = (self.clone(), work.slots.hold(batch.calls.len()));
                    work.batches.spawn(async move { service.send_batch(batch, slots).await });
                }
                batches
            }
            Err(error) => {
                warn!(error = error_chain(&error), "stock jobs could not be claimed; one is tried next");
                work.claim_failed = true;
                work.more = false;
                work.probe.leave();
                0
            }
        }
    }
}

/// A panic is a bug: it ends the worker, and with it the process, whose jobs others take up.
fn finished(ended: Result<BatchResult, JoinError>) -> Option<bool> {
    match ended {
        Ok(stepped) => stepped.answered,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}
