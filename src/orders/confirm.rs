//! Confirming an order takes its stock: the intention is durable first, then every line is taken, then the
//! order becomes CONFIRMED together with its event.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::OptionFuture;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{Instrument, error, info_span, warn};
use uuid::Uuid;

use super::{ChangeStatus, ChangeStatusError, OrderService, Versions};
use crate::domain::aggregate::Confirmation;
use crate::domain::order::InvalidTransition;
use crate::domain::stock::{CallOutcome, CallRules, JobState, StockCall, StockJob, Verdict};
use crate::domain::{Actor, Order, OrderAggregate, OrderId, Status, TraceParent, time};
use crate::store::StoreError;
use crate::store::stock_queue::{DueJob, TakeUp};
use crate::telemetry::{chain, span};

/// How stock work is done.
#[derive(Clone, Copy, Debug)]
pub struct ConfirmSettings {
    /// How many orders admins confirm at once; more are refused, not queued.
    pub max_requests: usize,
    /// How long an admin's request waits for the outcome.
    pub wait: Duration,
    /// How many stock calls the worker has under way at once.
    pub concurrency: usize,
    /// How long the worker waits before it looks again when nothing woke it.
    pub poll_interval: Duration,
}

/// The outcomes of a step are tried to be written this often: without them the calls have to be repeated, or,
/// where keys are not honoured, a person has to look.
const SETTLE_ATTEMPTS: u32 = 5;

/// How many calls of one job run at once. An order of more lines takes several steps, so that each ends well
/// within its lease.
const CALLS_OF_A_STEP: usize = 8;

/// A step of a job: its calls, which are written down.
#[derive(Debug)]
pub(super) struct Step {
    order: OrderId,
    attempt: i16,
    holder: Uuid,
    pub(super) calls: Vec<StockCall>,
    trace: TraceParent,
}

/// What a step brought.
#[derive(Debug)]
pub(super) struct Stepped {
    /// Whether any of its calls was answered; nothing where none was made.
    pub(super) answered: Option<bool>,
    /// The order, where the step confirmed it.
    confirmed: Option<Order>,
}

/// Steps that were claimed together.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    pub(super) steps: Vec<Step>,
    /// Whether more jobs may be due.
    pub(super) more: bool,
}

/// What claiming a job came to.
enum Decided {
    Calls(Step),
    /// It has no calls now: it waits, or has come to its end.
    NoCalls,
    /// It waits for a person, for this reason.
    Parked(String),
    Contradiction(InvalidTransition),
}

impl OrderService {
    /// Confirms an order for an admin, and waits a while for the outcome.
    pub(super) async fn confirm(
        &self,
        actor: Actor,
        change: ChangeStatus,
        trace: &TraceParent,
    ) -> Result<Order, ChangeStatusError> {
        let (id, only_if) = (change.id, change.only_if.clone());
        let permit = Arc::clone(&self.confirm_permits).try_acquire_owned();
        let permit = permit.map_err(|_| ChangeStatusError::Busy)?;
        // In a task of its own, so that it comes to its end even when the client hangs up.
        let (service, place) = (self.clone(), trace.clone());
        let begun = async move { service.begin_to_confirm(actor, change, place, permit).await };
        let begun = self.tasks.spawn(span::within(trace, begun).in_current_span());
        let (order, confirmation, first_calls) = begun.await??;
        let attempt = match confirmation {
            Confirmation::Already => return Ok(order),
            Confirmation::Running(attempt) | Confirmation::Started(attempt) => attempt,
        };
        let give_up = Instant::now() + self.confirmation.wait;
        if let Some(calls) = first_calls
            && let Ok(step) = timeout_at(give_up, calls).await
            && let Some(order) = step?.confirmed
        {
            return Ok(order);
        }
        // The intention is durable, so the confirmation goes on whatever this look meets.
        self.await_outcome(id, attempt, &only_if, give_up).await.map_err(|error| match error {
            ChangeStatusError::Store(error) if error.is_transient() => StoreError::unknown(error).into(),
            error => error,
        })
    }

    /// Makes the intention durable, and starts the first calls of a job that is new; they keep the permit.
    async fn begin_to_confirm(
        self,
        actor: Actor,
        change: ChangeStatus,
        trace: TraceParent,
        permit: OwnedSemaphorePermit,
    ) -> Result<(Order, Confirmation, Option<JoinHandle<Stepped>>), ChangeStatusError> {
        let ChangeStatus { id, reason, only_if, .. } = change;
        let (holder, rules) = (Uuid::new_v4(), self.call_rules());
        let asked_in = trace.clone();
        let decide = move |aggregate: &mut OrderAggregate| {
            only_if.check(&aggregate.order)?;
            let confirmation = aggregate.confirm(actor.clone(), reason.clone(), &asked_in)?;
            let started = matches!(confirmation, Confirmation::Started(_));
            let calls = if started { aggregate.first_stock_calls(holder, rules) } else { Vec::new() };
            Ok::<_, ChangeStatusError>((confirmation, calls))
        };
        let intended = self.store.update_order(id, None, decide).await?;
        let (order, (confirmation, calls)) = intended.ok_or(ChangeStatusError::NotFound(id))??;
        let first_calls = match confirmation {
            // A job that waits for an earlier attempt has no calls yet.
            Confirmation::Started(attempt) if !calls.is_empty() => {
                let (service, step) = (self.clone(), Step { order: id, attempt, holder, calls, trace });
                Some(self.tasks.spawn(async move {
                    let stepped = service.take_step(step, ()).await;
                    drop(permit);
                    stepped
                }))
            }
            Confirmation::Started(_) | Confirmation::Running(_) | Confirmation::Already => None,
        };
        Ok((order, confirmation, first_calls))
    }

    /// Waits until an attempt has come to its decision, or the wait is over.
    async fn await_outcome(
        &self,
        id: OrderId,
        attempt: i16,
        only_if: &Versions,
        give_up: Instant,
    ) -> Result<Order, ChangeStatusError> {
        /// For the decisions of other replicas; those of this one wake at once.
        const LOOK_AGAIN: Duration = Duration::from_millis(500);
        loop {
            let next_change = self.outcomes.next_change(id);
            let job = self.store.stock_job(id, attempt).await?.ok_or(ChangeStatusError::NotFound(id))?;
            match job.state {
                JobState::Taking if job.parked.is_none() && Instant::now() < give_up => {
                    let look_again = give_up.min(Instant::now() + LOOK_AGAIN);
                    timeout_at(look_again, OptionFuture::from(next_change)).await.ok();
                }
                JobState::Taking => return Err(ChangeStatusError::StockUnknown),
                JobState::Taken => return self.load(id).await,
                JobState::Returning | JobState::Returned => {
                    return self.without_this_attempt(&job, only_if).await;
                }
            }
        }
    }

    /// Where an order is whose attempt did not confirm it: the stock was refused, or the order was cancelled
    /// meanwhile, or the next attempt was quicker than this look.
    async fn without_this_attempt(
        &self,
        job: &StockJob,
        only_if: &Versions,
    ) -> Result<Order, ChangeStatusError> {
        let order = self.load(job.order).await?;
        match order.status {
            Status::Confirmed => Ok(order),
            Status::Created => Err(job.refused_line().map_or(ChangeStatusError::StockUnknown, |line| {
                ChangeStatusError::StockUnavailable(line.product_id.clone())
            })),
            from @ Status::Cancelled => {
                only_if.check(&order)?;
                Err(InvalidTransition { from, to: Status::Confirmed }.into())
            }
        }
    }

    fn call_rules(&self) -> CallRules {
        let settings = self.products.stock_settings();
        CallRules {
            key_is_honoured: settings.key_is_honoured,
            key_ttl: settings.key_ttl,
            refusal_retries: settings.refusal_retries,
            at_once: CALLS_OF_A_STEP.min(self.confirmation.concurrency),
            now: time::now(),
        }
    }

    async fn load(&self, id: OrderId) -> Result<Order, ChangeStatusError> {
        let order = self.store.find_order(id).await?.ok_or(ChangeStatusError::NotFound(id))?;
        Ok(order.for_service())
    }

    /// Claims stock jobs that are due, whoever started them, as long as there is `room` for their calls: the calls of
    /// the last one may go beyond it. The calls are written down with the claim.
    pub(super) async fn claim_steps(
        &self,
        jobs: usize,
        mut room: usize,
        first: TakeUp,
    ) -> Result<Claimed, StoreError> {
        let (holder, rules) = (Uuid::new_v4(), self.call_rules());
        let decide = move |aggregate: &mut OrderAggregate| {
            if room == 0 {
                return None;
            }
            let decided = decide_step(aggregate, holder, rules);
            if let Decided::Calls(step) = &decided {
                room = room.saturating_sub(step.calls.len());
            }
            Some(decided)
        };
        let limit = i64::try_from(jobs).unwrap_or(i64::MAX);
        let claimed = self.store.claim_stock_jobs(limit, first, decide).await?;
        let steps = claimed.jobs.into_iter().filter_map(|(job, decided)| self.begun(&job, decided));
        Ok(Claimed { steps: steps.collect(), more: claimed.more })
    }

    /// Claims one job by itself. A job that cannot be read is out of the way then for as long as a lease lasts.
    pub(super) async fn claim_one_step(&self) -> Result<Claimed, StoreError> {
        let (holder, rules) = (Uuid::new_v4(), self.call_rules());
        let Some(job) = self.store.claim_stock_job_unread(holder).await? else {
            return Ok(Claimed::default());
        };
        let decide = move |aggregate: &mut OrderAggregate| {
            let is_held = aggregate.job.as_ref().is_some_and(|job| job.holder == Some(holder));
            Ok::<_, Infallible>(is_held.then(|| decide_step(aggregate, holder, rules)))
        };
        let decided = self.store.update_order(job.order_id, Some(job.attempt), decide).await;
        let steps = match decided {
            Ok(Some(Ok((_, Some(decided))))) => self.begun(&job, decided).into_iter().collect(),
            Ok(_) => Vec::new(),
            Err(error) => {
                let (order, attempt) = (job.order_id, job.attempt);
                warn!(%order, attempt, error = chain(&error), "a stock job could not be read; it stays due");
                Vec::new()
            }
        };
        Ok(Claimed { steps, more: true })
    }

    /// The step of a job that was claimed, if it has one; the log has what a person has to know.
    fn begun(&self, job: &DueJob, decided: Decided) -> Option<Step> {
        let DueJob { order_id: id, attempt, overdue, failures } = *job;
        if overdue && let Some(held_back) = self.overdue.held_back() {
            error!(order = %id, attempt, failures, held_back, "stock work is past its deadline; it goes on");
        }
        match decided {
            Decided::Calls(step) => return Some(step),
            // It may have come to its end, or have turned round.
            Decided::NoCalls => self.stock_changed(id),
            Decided::Parked(parked) => {
                self.outcomes.changed(id);
                error!(order = %id, attempt, parked, "stock work waits for a person");
            }
            Decided::Contradiction(error) => {
                error!(order = %id, attempt, %error, "stock work contradicts its order");
            }
        }
        None
    }

    /// Makes the calls that were written down, with nothing held but `slots`, and writes down what they brought.
    pub(super) async fn take_step<S>(&self, step: Step, slots: S) -> Stepped {
        let trace = step.trace.clone();
        let log = info_span!("stock job", trace_id = %trace.trace_id(), span_id = %trace.span_id());
        span::within(&trace, self.make_calls(step, slots)).instrument(log).await
    }

    async fn make_calls<S>(&self, step: Step, slots: S) -> Stepped {
        let Step { order: id, attempt, holder, calls, trace } = step;
        let outcomes: Vec<_> = futures_util::stream::iter(calls)
            .map(async |call| {
                let outcome = self.products.move_stock(&call, &trace).await;
                (call, outcome)
            })
            .buffer_unordered(CALLS_OF_A_STEP)
            .collect()
            .await;
        drop(slots);
        let is_answer = |(_, outcome): &_| matches!(outcome, CallOutcome::Done | CallOutcome::Refused(_));
        let answered = (!outcomes.is_empty()).then(|| outcomes.iter().any(is_answer));
        let confirmed = self.write_outcomes(id, attempt, holder, outcomes.into()).await;
        self.outcomes.changed(id);
        Stepped { answered, confirmed }
    }

    /// Writes down what calls brought. The order, where that confirms it.
    async fn write_outcomes(
        &self,
        id: OrderId,
        attempt: i16,
        holder: Uuid,
        outcomes: Arc<[(StockCall, CallOutcome)]>,
    ) -> Option<Order> {
        for attempts_left in (0..SETTLE_ATTEMPTS).rev() {
            let brought = Arc::clone(&outcomes);
            let settle = move |aggregate: &mut OrderAggregate| aggregate.settle_stock(&brought, holder);
            match self.store.update_order(id, Some(attempt), settle).await {
                Ok(Some(Ok((order, Verdict::AllTaken)))) => return Some(order),
                Ok(Some(Ok(_))) => {
                    // There may be calls left to make, or a later attempt that waited for this one.
                    self.stock_wanted.notify_one();
                    return None;
                }
                Ok(None) => return None,
                Ok(Some(Err(error))) => {
                    error!(order = %id, attempt, %error, "stock work contradicts its order");
                    return None;
                }
                Err(error) => {
                    warn!(order = %id, attempt, attempts_left, error = chain(&error), "outcomes not written");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
        None
    }
}

fn decide_step(aggregate: &mut OrderAggregate, holder: Uuid, rules: CallRules) -> Decided {
    let calls = match aggregate.claim_stock_job(holder, rules) {
        Ok(calls) => calls,
        Err(error) => return Decided::Contradiction(error),
    };
    let Some(job) = &aggregate.job else { return Decided::NoCalls };
    match &job.parked {
        Some(parked) => Decided::Parked(parked.clone()),
        None if calls.is_empty() => Decided::NoCalls,
        None => {
            let (order, attempt, trace) = (job.order, job.attempt, job.trace.clone());
            Decided::Calls(Step { order, attempt, holder, calls, trace })
        }
    }
}
