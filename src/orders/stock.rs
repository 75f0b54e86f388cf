//! Stock work: claims due jobs in the database, sends their calls over HTTP, and records the outcomes.
//!
//! Calls are recorded before they are sent. No connection is held while they are in flight (invariant 3).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::sleep;
use tracing::{Instrument, error, info_span, warn};
use uuid::Uuid;

use super::OrderService;
use crate::domain::order::InvalidTransition;
use crate::domain::stock::{CallOutcome, CallRules, StockCall, Verdict};
use crate::domain::{Order, OrderAggregate, OrderId, TraceParent, time};
use crate::store::StoreError;
use crate::store::stock_claims::{ClaimOrder, DueJob};
use crate::telemetry::{error_chain, span};

/// The maximum number of attempts to record the outcomes of a batch. Without them the service must repeat the calls or,
/// if the Product Service does not honour keys, park the job for an operator.
const RECORD_ATTEMPTS: u32 = 5;

/// The maximum number of calls in a batch, which run concurrently. A longer order takes several batches, so that each
/// batch ends within its lease.
const MAX_BATCH_CALLS: usize = 8;

/// Calls of one job that are recorded and can be sent.
#[derive(Debug)]
pub(super) struct CallBatch {
    pub(super) order: OrderId,
    pub(super) attempt: i16,
    pub(super) holder: Uuid,
    pub(super) calls: Vec<StockCall>,
    pub(super) trace: TraceParent,
}

#[derive(Debug)]
pub(super) struct BatchResult {
    /// Whether any call was answered. `None` for an empty batch.
    pub(super) answered: Option<bool>,
    /// The order, if the batch confirmed it.
    pub(super) confirmed: Option<Order>,
}

/// Batches that were claimed together.
#[derive(Debug, Default)]
pub(super) struct ClaimedBatches {
    pub(super) batches: Vec<CallBatch>,
    /// Whether more jobs may be due.
    pub(super) more: bool,
}

enum ClaimDecision {
    Calls(CallBatch),
    /// The job waits, or has ended.
    NoCalls,
    /// The job waits for an operator, for this reason.
    Parked(String),
    Contradiction(InvalidTransition),
}

impl OrderService {
    pub(super) fn call_rules(&self) -> CallRules {
        let settings = self.products.stock_settings();
        CallRules {
            key_is_honoured: settings.key_is_honoured,
            key_ttl: settings.key_ttl,
            refusal_retries: settings.refusal_retries,
            at_once: MAX_BATCH_CALLS.min(self.confirmation.concurrency),
            now: time::now(),
        }
    }

    /// Claims up to `jobs` due jobs of any replica and records their calls, while there is `room` for calls. The calls
    /// of the last job may exceed it.
    pub(super) async fn claim_batches(
        &self,
        jobs: usize,
        mut room: usize,
        first: ClaimOrder,
    ) -> Result<ClaimedBatches, StoreError> {
        let (holder, rules) = (Uuid::new_v4(), self.call_rules());
        let decide = move |aggregate: &mut OrderAggregate| {
            if room == 0 {
                return None;
            }
            let decision = decide_batch(aggregate, holder, rules);
            if let ClaimDecision::Calls(batch) = &decision {
                room = room.saturating_sub(batch.calls.len());
            }
            Some(decision)
        };
        let limit = i64::try_from(jobs).unwrap_or(i64::MAX);
        let claimed = self.store.claim_stock_jobs(limit, first, decide).await?;
        let batches = claimed.jobs.into_iter().filter_map(|(job, decision)| self.batch_of(&job, decision));
        Ok(ClaimedBatches { batches: batches.collect(), more: claimed.more })
    }

    /// Claims one job alone. If it cannot be read, its lease keeps it out of the next claims for a while.
    pub(super) async fn claim_single(&self) -> Result<ClaimedBatches, StoreError> {
        let (holder, rules) = (Uuid::new_v4(), self.call_rules());
        let Some(job) = self.store.claim_stock_job_unread(holder).await? else {
            return Ok(ClaimedBatches::default());
        };
        let decide = move |aggregate: &mut OrderAggregate| {
            let is_held = aggregate.job.as_ref().is_some_and(|job| job.holder == Some(holder));
            Ok::<_, Infallible>(is_held.then(|| decide_batch(aggregate, holder, rules)))
        };
        let decided = self.store.update_order(job.order_id, Some(job.attempt), decide).await;
        let batches = match decided {
            Ok(Some(Ok((_, Some(decision))))) => self.batch_of(&job, decision).into_iter().collect(),
            Ok(_) => Vec::new(),
            Err(error) => {
                let (order, attempt) = (job.order_id, job.attempt);
                warn!(%order, attempt, error = error_chain(&error), "a stock job could not be read; it stays due");
                Vec::new()
            }
        };
        Ok(ClaimedBatches { batches, more: true })
    }

    /// The batch of a claimed job, if it has calls. Logs overdue, parked and inconsistent jobs for operators.
    fn batch_of(&self, job: &DueJob, decision: ClaimDecision) -> Option<CallBatch> {
        let DueJob { order_id: id, attempt, overdue, failures } = *job;
        if overdue && let Some(suppressed) = self.overdue.allow() {
            error!(order = %id, attempt, failures, suppressed, "a stock job is past its deadline; retrying");
        }
        match decision {
            ClaimDecision::Calls(batch) => return Some(batch),
            // The job may have ended, or turned from taking to returning.
            ClaimDecision::NoCalls => self.stock_changed(id),
            ClaimDecision::Parked(parked) => {
                self.outcomes.changed(id);
                error!(order = %id, attempt, parked, "a stock job is parked: an operator must look at it");
            }
            ClaimDecision::Contradiction(error) => {
                error!(order = %id, attempt, %error, "a stock job contradicts its order");
            }
        }
        None
    }

    /// Sends the recorded stock calls outside any transaction, and records their outcomes. `slots` are released
    /// before the outcomes are recorded.
    pub(super) async fn send_batch<S>(&self, batch: CallBatch, slots: S) -> BatchResult {
        let trace = batch.trace.clone();
        let log = info_span!("stock job", trace_id = %trace.trace_id(), span_id = %trace.span_id());
        span::within(&trace, self.send_and_record(batch, slots)).instrument(log).await
    }

    async fn send_and_record<S>(&self, batch: CallBatch, slots: S) -> BatchResult {
        let CallBatch { order: id, attempt, holder, calls, trace } = batch;
        let outcomes: Vec<_> = futures_util::stream::iter(calls)
            .map(async |call| {
                let outcome = self.products.send_stock_call(&call, &trace).await;
                (call, outcome)
            })
            .buffer_unordered(MAX_BATCH_CALLS)
            .collect()
            .await;
        drop(slots);
        let is_answer = |(_, outcome): &_| matches!(outcome, CallOutcome::Done | CallOutcome::Refused(_));
        let answered = (!outcomes.is_empty()).then(|| outcomes.iter().any(is_answer));
        let confirmed = self.record_outcomes(id, attempt, holder, outcomes.into()).await;
        self.outcomes.changed(id);
        BatchResult { answered, confirmed }
    }

    /// Records the outcomes in the database. Returns the order if they confirm it.
    async fn record_outcomes(
        &self,
        id: OrderId,
        attempt: i16,
        holder: Uuid,
        outcomes: Arc<[(StockCall, CallOutcome)]>,
    ) -> Option<Order> {
        for attempts_left in (0..RECORD_ATTEMPTS).rev() {
            let outcomes = Arc::clone(&outcomes);
            let apply = move |aggregate: &mut OrderAggregate| aggregate.apply_outcomes(&outcomes, holder);
            match self.store.update_order(id, Some(attempt), apply).await {
                Ok(Some(Ok((order, Verdict::AllTaken)))) => return Some(order),
                Ok(Some(Ok(_))) => {
                    // The job may have more calls, or a later attempt may have waited for it.
                    self.stock_wanted.notify_one();
                    return None;
                }
                Ok(None) => return None,
                Ok(Some(Err(error))) => {
                    error!(order = %id, attempt, %error, "a stock job contradicts its order");
                    return None;
                }
                Err(error) => {
                    warn!(order = %id, attempt, attempts_left, error = error_chain(&error), "stock outcomes not recorded");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
        None
    }
}

fn decide_batch(aggregate: &mut OrderAggregate, holder: Uuid, rules: CallRules) -> ClaimDecision {
    let calls = match aggregate.claim_stock_job(holder, rules) {
        Ok(calls) => calls,
        Err(error) => return ClaimDecision::Contradiction(error),
    };
    let Some(job) = &aggregate.job else { return ClaimDecision::NoCalls };
    match &job.parked {
        Some(parked) => ClaimDecision::Parked(parked.clone()),
        None if calls.is_empty() => ClaimDecision::NoCalls,
        None => {
            let (order, attempt, trace) = (job.order, job.attempt, job.trace.clone());
            ClaimDecision::Calls(CallBatch { order, attempt, holder, calls, trace })
        }
    }
}
