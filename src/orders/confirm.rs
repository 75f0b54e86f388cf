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
use tracing::{error, warn};
use uuid::Uuid;

use super::{ChangeStatus, ChangeStatusError, OrderService, Versions};
use crate::domain::aggregate::Confirmation;
use crate::domain::order::InvalidTransition;
use crate::domain::stock::{CallOutcome, CallRules, JobState, StockCall, StockJob, Verdict};
use crate::domain::{Actor, Order, OrderAggregate, OrderId, Status, TraceParent, time};
use crate::store::StoreError;
use crate::store::stock_queue::{ClaimedJob, TakeUp};
use crate::telemetry::chain;

/// How stock work is done.
#[derive(Clone, Copy, Debug)]
pub struct ConfirmSettings {
    /// How many orders admins confirm at once; more are refused, not queued.
    pub max_requests: usize,
    /// How long an admin's request waits for the outcome.
    pub wait: Duration,
    /// How many calls of one job, and how many jobs, run at once.
    pub concurrency: usize,
    /// How long the worker waits before it looks again when nothing woke it.
    pub poll_interval: Duration,
}

/// The outcomes of a step are tried to be written this often: without them the calls have to be repeated, or,
/// where keys are not honoured, a person has to look.
const SETTLE_ATTEMPTS: u32 = 5;

/// What a step of a job brought.
#[derive(Debug)]
struct Step {
    /// Whether any of its calls was answered; nothing where none was made.
    answered: Option<bool>,
    /// The order, where the step confirmed it.
    confirmed: Option<Order>,
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
        let (service, trace) = (self.clone(), trace.clone());
        let begun =
            self.tasks.spawn(async move { service.begin_to_confirm(actor, change, trace, permit).await });
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
    ) -> Result<(Order, Confirmation, Option<JoinHandle<Step>>), ChangeStatusError> {
        let ChangeStatus { id, reason, only_if, .. } = change;
        let (holder, rules) = (Uuid::new_v4(), self.call_rules());
        let asked_in = trace.clone();
        let decide = move |aggregate: &mut OrderAggregate| {
            only_if.check(&aggregate.order)?;
            let confirmation = aggregate.confirm(actor.clone(), reason.clone(), &asked_in)?;
            let started = matches!(confirmation, Confirmation::Started(_));
            let calls = if started { aggregate.next_stock_calls(holder, rules) } else { Vec::new() };
            Ok::<_, ChangeStatusError>((confirmation, calls))
        };
        let intended = self.store.update_order(id, None, decide).await?;
        let (order, (confirmation, calls)) = intended.ok_or(ChangeStatusError::NotFound(id))??;
        let first_calls = match confirmation {
            // A job that waits for an earlier attempt has no calls yet.
            Confirmation::Started(attempt) if !calls.is_empty() => {
                let service = self.clone();
                Some(self.tasks.spawn(async move {
                    let step = service.make_calls(id, attempt, holder, calls, &trace).await;
                    drop(permit);
                    step
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
            at_once: self.confirmation.concurrency,
            now: time::now(),
        }
    }

    async fn load(&self, id: OrderId) -> Result<Order, ChangeStatusError> {
        let order = self.store.find_order(id).await?.ok_or(ChangeStatusError::NotFound(id))?;
        Ok(order.for_service())
    }

    /// Takes up at most `limit` stock jobs that are due, whoever started them.
    pub(super) async fn take_up_stock_jobs(
        &self,
        limit: usize,
        first: TakeUp,
    ) -> Result<Vec<ClaimedJob>, StoreError> {
        self.store.claim_stock_jobs(Uuid::new_v4(), i64::try_from(limit).unwrap_or(i64::MAX), first).await
    }

    /// One step of a job: writes down the next calls, makes them, writes down what they brought.
    ///
    /// Says whether any of them was answered; nothing where none was made.
    pub(super) async fn step(self, job: ClaimedJob) -> Option<bool> {
        let ClaimedJob { order_id: id, attempt, holder, overdue, failures } = job;
        if overdue && let Some(held_back) = self.overdue.held_back() {
            error!(order = %id, attempt, failures, held_back, "stock work is past its deadline; it goes on");
        }
        let rules = self.call_rules();
        let decide = move |aggregate: &mut OrderAggregate| {
            let calls = aggregate.next_stock_calls(holder, rules);
            let job = aggregate.job.as_ref();
            // One that waits has been written as such; there is nothing to make and nothing to conclude.
            let trace = job.filter(|job| !job.waits).map(|job| job.trace.clone());
            Ok::<_, Infallible>((calls, trace, job.and_then(|job| job.parked.clone())))
        };
        match self.store.update_order(id, Some(attempt), decide).await {
            Ok(Some(Ok((_, (calls, Some(trace), None))))) => {
                return self.make_calls(id, attempt, holder, calls, &trace).await.answered;
            }
            Ok(Some(Ok((_, (_, _, Some(parked)))))) => {
                error!(order = %id, attempt, parked, "stock work waits for a person");
            }
            Ok(_) => {}
            Err(error) => warn!(error = chain(&error), "stock work could not be taken up; it stays due"),
        }
        None
    }

    /// Makes the calls that were written down, with nothing held, and writes down what they brought.
    async fn make_calls(
        &self,
        id: OrderId,
        attempt: i16,
        holder: Uuid,
        calls: Vec<StockCall>,
        trace: &TraceParent,
    ) -> Step {
        let outcomes: Vec<_> = futures_util::stream::iter(calls)
            .map(async |call| {
                let outcome = self.products.move_stock(&call, trace).await;
                (call, outcome)
            })
            .buffer_unordered(self.confirmation.concurrency)
            .collect()
            .await;
        let is_answer = |(_, outcome): &_| matches!(outcome, CallOutcome::Done | CallOutcome::Refused(_));
        let answered = (!outcomes.is_empty()).then(|| outcomes.iter().any(is_answer));
        let confirmed = self.write_outcomes(id, attempt, holder, outcomes.into()).await;
        self.stock_changed(id);
        Step { answered, confirmed }
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
                Ok(Some(Ok(_)) | None) => return None,
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
