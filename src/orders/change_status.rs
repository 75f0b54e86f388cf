//! Changing the status of an order for an admin. To confirm it: record the intention, take the stock of every line, then
//! write CONFIRMED with its event.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;
use uuid::Uuid;

use super::OrderService;
use super::stock::{BatchResult, CallBatch};
use crate::domain::access::Admin;
use crate::domain::aggregate::Confirmation;
use crate::domain::order::InvalidTransition;
use crate::domain::stock::{JobState, StockJob};
use crate::domain::{Actor, Forbidden, Order, OrderAggregate, OrderId, ProductId, Status, TraceParent};
use crate::store::StoreError;
use crate::telemetry::span;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeStatus {
    pub id: OrderId,
    pub to: Status,
    /// The reason, for the history and the event.
    pub reason: Option<String>,
    /// The versions that the change applies to (`If-Match`).
    pub only_if: Versions,
}

/// The order versions of a precondition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    Any,
    OneOf(Vec<i32>),
}

impl Versions {
    pub fn contain(&self, version: i32) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(versions) => versions.contains(&version),
        }
    }

    /// Refuses an order with another version.
    pub(super) fn check(&self, order: &Order) -> Result<(), OrderError> {
        let version = order.version;
        if self.contain(version) { Ok(()) } else { Err(OrderError::PreconditionFailed(version)) }
    }
}

/// Why an order was not shown or not changed. It is unchanged, except perhaps after [`StoreError::OutcomeUnknown`].
#[derive(Debug, Error)]
pub enum OrderError {
    #[error("there is no order {0}")]
    NotFound(OrderId),
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    #[error("the order is at version {0}")]
    PreconditionFailed(i32),
    #[error(transparent)]
    InvalidTransition(#[from] InvalidTransition),
    /// The order is paid: only an admin can cancel it.
    #[error("the order is already CONFIRMED")]
    AlreadyConfirmed,
    #[error("the stock of {0} is gone")]
    StockUnavailable(ProductId),
    #[error("too many orders are being confirmed")]
    Busy,
    /// The outcome of the stock calls is still unknown; the worker continues.
    #[error("the stock is still being taken")]
    StockUnknown,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the change crashed")]
    Crashed(#[from] JoinError),
}

#[derive(Clone, Copy, Debug)]
pub struct ConfirmSettings {
    /// The maximum number of concurrent confirmations by admins; more are refused, not queued.
    pub max_requests: usize,
    /// How long the request of an admin waits for the outcome.
    pub wait: Duration,
    /// The maximum number of stock calls of the worker in flight.
    pub concurrency: usize,
    /// How often the worker looks for due jobs when nothing wakes it.
    pub poll_interval: Duration,
}

impl OrderService {
    /// Changes the status of an order for an admin. A request for the present status changes and publishes nothing.
    pub async fn change_status(
        &self,
        admin: Admin<'_>,
        change: ChangeStatus,
        trace: &TraceParent,
    ) -> Result<Order, OrderError> {
        if change.to == Status::Confirmed {
            return self.confirm(admin.actor(), change, trace).await;
        }
        let ChangeStatus { id, to, reason, only_if } = change;
        let (actor, trace) = (admin.actor(), trace.clone());
        let decide = move |aggregate: &mut OrderAggregate| {
            only_if.check(&aggregate.order)?;
            if to == Status::Cancelled {
                aggregate.cancel(actor.clone(), reason.clone(), &trace)?;
            } else {
                // No transition leads to CREATED: this is a no-op or a refusal.
                aggregate.order.status.change_to(to)?;
            }
            Ok::<_, OrderError>(())
        };
        let changed = self.store.update_order(id, None, decide).await?;
        let (order, ()) = changed.ok_or(OrderError::NotFound(id))??;
        self.stock_changed(id);
        Ok(order)
    }

    /// Confirms an order for an admin, and waits for the outcome up to [`ConfirmSettings::wait`].
    async fn confirm(
        &self,
        actor: Actor,
        change: ChangeStatus,
        trace: &TraceParent,
    ) -> Result<Order, OrderError> {
        let (id, only_if) = (change.id, change.only_if.clone());
        let permit = Arc::clone(&self.confirm_permits).try_acquire_owned();
        let permit = permit.map_err(|_| OrderError::Busy)?;
        // In its own task, so that it finishes even if the client disconnects (invariant 9).
        let (service, of_task) = (self.clone(), trace.clone());
        let started = async move { service.start_confirmation(actor, change, of_task, permit).await };
        let started = self.tasks.spawn(span::within(trace, started).in_current_span());
        let (order, confirmation, first_calls) = started.await??;
        let attempt = match confirmation {
            Confirmation::Already => return Ok(order),
            Confirmation::Running(attempt) | Confirmation::Started(attempt) => attempt,
        };
        let give_up = Instant::now() + self.confirmation.wait;
        if let Some(calls) = first_calls
            && let Ok(batch) = timeout_at(give_up, calls).await
            && let Some(order) = batch?.confirmed
        {
            return Ok(order);
        }
        // The intention is durable, so the confirmation continues even if this read fails.
        self.wait_for_outcome(id, attempt, &only_if, give_up).await.map_err(|error| match error {
            OrderError::Store(error) if error.is_transient() => StoreError::unknown(error).into(),
            error => error,
        })
    }

    /// Records the intention, and starts sending the first calls of a new job. They keep the permit.
    async fn start_confirmation(
        self,
        actor: Actor,
        change: ChangeStatus,
        trace: TraceParent,
        permit: OwnedSemaphorePermit,
    ) -> Result<(Order, Confirmation, Option<JoinHandle<BatchResult>>), OrderError> {
        let ChangeStatus { id, reason, only_if, .. } = change;
        let (holder, rules) = (Uuid::new_v4(), self.call_rules());
        let request_trace = trace.clone();
        let decide = move |aggregate: &mut OrderAggregate| {
            only_if.check(&aggregate.order)?;
            let confirmation = aggregate.confirm(actor.clone(), reason.clone(), &request_trace)?;
            let started = matches!(confirmation, Confirmation::Started(_));
            let calls = if started { aggregate.first_stock_calls(holder, rules) } else { Vec::new() };
            Ok::<_, OrderError>((confirmation, calls))
        };
        let updated = self.store.update_order(id, None, decide).await?;
        let (order, (confirmation, calls)) = updated.ok_or(OrderError::NotFound(id))??;
        let first_calls = match confirmation {
            // A job that waits for an earlier attempt has no calls.
            Confirmation::Started(attempt) if !calls.is_empty() => {
                let (service, batch) = (self.clone(), CallBatch { order: id, attempt, holder, calls, trace });
                Some(self.tasks.spawn(async move {
                    let result = service.send_batch(batch, ()).await;
                    drop(permit);
                    result
                }))
            }
            Confirmation::Started(_) | Confirmation::Running(_) | Confirmation::Already => None,
        };
        Ok((order, confirmation, first_calls))
    }

    /// Waits until the attempt is decided, or until `give_up`.
    async fn wait_for_outcome(
        &self,
        id: OrderId,
        attempt: i16,
        only_if: &Versions,
        give_up: Instant,
    ) -> Result<Order, OrderError> {
        /// For decisions by other replicas; those of this replica wake the wait at once.
        const POLL_INTERVAL: Duration = Duration::from_millis(500);
        loop {
            let next_change = self.outcomes.next_change(id);
            let job = self.store.stock_job(id, attempt).await?.ok_or(OrderError::NotFound(id))?;
            match job.state {
                JobState::Taking if job.parked.is_none() && Instant::now() < give_up => {
                    let next_poll = give_up.min(Instant::now() + POLL_INTERVAL);
                    timeout_at(next_poll, next_change).await.ok();
                }
                JobState::Taking => return Err(OrderError::StockUnknown),
                JobState::Taken => return self.load(id).await,
                JobState::Returning | JobState::Returned => {
                    return self.after_failed_attempt(&job, only_if).await;
                }
            }
        }
    }

    /// The answer after an attempt that did not confirm the order: its stock was refused, the order was cancelled, or a
    /// later attempt has confirmed it.
    async fn after_failed_attempt(&self, job: &StockJob, only_if: &Versions) -> Result<Order, OrderError> {
        let order = self.load(job.order).await?;
        match order.status {
            Status::Confirmed => Ok(order),
            Status::Created => Err(job.refused_line().map_or(OrderError::StockUnknown, |line| {
                OrderError::StockUnavailable(line.product_id.clone())
            })),
            from @ Status::Cancelled => {
                only_if.check(&order)?;
                Err(InvalidTransition { from, to: Status::Confirmed }.into())
            }
        }
    }

    async fn load(&self, id: OrderId) -> Result<Order, OrderError> {
        let order = self.store.find_order(id).await?.ok_or(OrderError::NotFound(id))?;
        Ok(order.for_service())
    }
}
