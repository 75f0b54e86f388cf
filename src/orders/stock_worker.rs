//! The stock worker: claims due jobs in sets, and sends their calls.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::probe_mode::ProbeMode;
use super::stock::BatchResult;
use super::{ConfirmSettings, OrderService};
use crate::store::stock_claims::ClaimOrder;
use crate::telemetry::error_chain;

/// The maximum number of running batches per stock call in flight. The other batches have their answers and record
/// them.
const BATCHES_PER_CALL: usize = 4;

struct StockWork {
    batches: JoinSet<BatchResult>,
    slots: CallSlots,
    probe: ProbeMode,
    /// Whether the last claim failed. One of its jobs may be the cause.
    claim_failed: bool,
    /// Whether more jobs may be due.
    more: bool,
    /// The number of jobs and calls in the last claim. It limits the next claim to the jobs whose calls fit.
    latest: (usize, usize),
}

/// Bounds the stock calls of the worker in flight.
#[derive(Clone)]
struct CallSlots {
    free: Arc<Semaphore>,
    freed: Arc<Notify>,
}

/// The slots of one batch. Their drop wakes the worker.
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

    /// Takes one slot per call, or all that are left. Only the worker takes slots, so the count cannot change in
    /// between.
    fn acquire(&self, calls: usize) -> HeldSlots {
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

    /// How many more calls may be in flight.
    fn room(&self, settings: ConfirmSettings) -> usize {
        let is_full = self.batches.len() >= settings.concurrency * BATCHES_PER_CALL;
        if is_full { 0 } else { self.slots.free.available_permits() }
    }

    /// How many jobs to claim for `room` calls.
    fn jobs(&self, room: usize) -> usize {
        let (jobs, calls) = self.latest;
        (room * jobs).div_ceil(calls.max(1)).min(room)
    }

    fn record_ended(&mut self) {
        while let Some(ended) = self.batches.try_join_next() {
            self.probe.record(answered(ended));
        }
    }
}

impl OrderService {
    /// Runs stock work until `stop`, then finishes the running batches. A slow product does not block other jobs while
    /// fewer than `concurrency` calls wait for it. While the Product Service is down, the worker is in probe mode.
    pub async fn run_stock_worker(self, stop: CancellationToken) {
        // Batches run as tasks, because a batch that is not polled would keep the connection that the next claim needs.
        let mut work = StockWork::new(self.confirmation);
        while !stop.is_cancelled() {
            let claimed = self.claim_stock_work(&mut work).await;
            if claimed > 0 && work.more {
                work.record_ended();
                continue;
            }
            let may_claim = work.room(self.confirmation) > 0 && !work.probe.is_on();
            tokio::select! {
                Some(ended) = work.batches.join_next() => {
                    work.probe.record(answered(ended));
                    work.record_ended();
                }
                () = self.stock_wanted.notified(), if may_claim => work.more = true,
                () = work.slots.freed.notified(), if work.more && !work.probe.is_on() => {}
                () = sleep(self.confirmation.poll_interval) => work.more = true,
                () = stop.cancelled() => {}
            }
        }
        while let Some(ended) = work.batches.join_next().await {
            answered(ended);
        }
    }

    /// Claims jobs and spawns their batches; returns the number of batches.
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
                    let (service, slots) = (self.clone(), work.slots.acquire(batch.calls.len()));
                    work.batches.spawn(async move { service.send_batch(batch, slots).await });
                }
                batches
            }
            Err(error) => {
                warn!(
                    error = error_chain(&error),
                    "stock jobs could not be claimed; the next claim takes one job"
                );
                work.claim_failed = true;
                work.more = false;
                work.probe.leave();
                0
            }
        }
    }
}

/// Resumes a panic, which is a bug. It ends the process, and other replicas claim its jobs.
fn answered(ended: Result<BatchResult, JoinError>) -> Option<bool> {
    match ended {
        Ok(result) => result.answered,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}
