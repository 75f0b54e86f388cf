//! The order with everything that changes together with it, while it is locked: its stock, its payment, its
//! refund. Every change is remembered, and the store writes all of them or none.

use uuid::Uuid;

use super::order::{Change, InvalidTransition};
use super::stock::{CallOutcome, CallRules, JobState, LineState, StockCall, StockJob, StockLine, Verdict};
use super::{Actor, Money, Order, Status, StatusChange, TraceParent};

/// Reasons that the service itself gives.
pub mod reason {
    /// A line could not be taken from the stock after the customer had paid.
    pub const OUT_OF_STOCK: &str = "OUT_OF_STOCK";
    /// The payment failed.
    pub const PAYMENT_FAILED: &str = "PAYMENT_FAILED";
    /// Nobody paid in time.
    pub const PAYMENT_TIMEOUT: &str = "PAYMENT_TIMEOUT";
    /// The owner cancelled.
    pub const CUSTOMER_REQUEST: &str = "CUSTOMER_REQUEST";
}

/// A locked order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderAggregate {
    /// The order.
    pub order: Order,
    /// Its latest stock job, or the one that was asked for.
    pub job: Option<StockJob>,
    /// What was paid for it.
    pub paid: Option<Money>,
    /// What is to be written.
    pub changes: Changes,
}

/// What is to be written, in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The order moved.
    pub status: Option<StatusChange>,
    /// The job is new, or changed.
    pub job: Option<JobWrite>,
    /// The order was paid.
    pub payment: Option<Money>,
    /// Money has to go back.
    pub refund: Option<Refund>,
}

/// How the job is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobWrite {
    /// It is new.
    Insert,
    /// It was claimed: it is its holder's until the lease ends.
    Claim,
    /// It changed; who holds it goes on holding it.
    Keep,
    /// It changed, and its holder is done with it for now.
    Release,
}

/// Money that has to go back to the customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// How much.
    pub amount: Money,
    /// Why.
    pub reason: String,
}

/// What asking for a confirmation leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// The order is CONFIRMED already.
    Already,
    /// An attempt is running; this is its number.
    Running(i16),
    /// A new attempt starts; this is its number.
    Started(i16),
}

impl OrderAggregate {
    /// Asks for the confirmation: the intention is written first, the stock is taken afterwards.
    pub fn confirm(
        &mut self,
        actor: Actor,
        reason: Option<String>,
        trace: &TraceParent,
    ) -> Result<Confirmation, InvalidTransition> {
        match self.order.status.change_to(Status::Confirmed)? {
            Change::None => Ok(Confirmation::Already),
            Change::Real => Ok(self.take_stock(actor, reason, trace)),
        }
    }

    fn take_stock(&mut self, actor: Actor, reason: Option<String>, trace: &TraceParent) -> Confirmation {
        let paid = self.paid.is_some();
        if let Some(job) = self.job.as_mut().filter(|job| job.state == JobState::Taking) {
            // The admin was first and the payment joins: from now on a refusal cancels.
            job.paid = paid;
            self.changes.job = Some(JobWrite::Keep);
            return Confirmation::Running(job.attempt);
        }
        let attempt = self.job.as_ref().map_or(1, |job| job.attempt.saturating_add(1));
        let lines = (1..).zip(&self.order.lines).map(|(number, line)| StockLine {
            number,
            product_id: line.product_id.clone(),
            quantity: line.quantity,
            state: LineState::Todo,
            last_error: None,
            sent_at: None,
        });
        let waits = self.job.as_ref().is_some_and(StockJob::holds_up_later_attempts);
        self.changes.job = Some(JobWrite::Insert);
        self.job = Some(StockJob {
            order: self.order.id,
            attempt,
            state: JobState::Taking,
            paid,
            parked: None,
            failures: 0,
            refusals: 0,
            actor,
            reason,
            trace: trace.clone(),
            waits,
            holder: None,
            lines: lines.collect(),
        });
        Confirmation::Started(attempt)
    }

    /// The first calls of a job that is new, for its holder; they are written down with it. None where it waits.
    pub fn first_stock_calls(&mut self, holder: Uuid, rules: CallRules) -> Vec<StockCall> {
        let Some(job) = self.job.as_mut().filter(|job| !job.waits) else { return Vec::new() };
        job.holder = Some(holder);
        job.next_calls(rules)
    }

    /// Claims the job for `holder`, with the calls that it needs now; they are written down before they are made.
    /// Where it needs none, nobody holds it: it waits, or is parked, or comes to its conclusion here. A job that
    /// contradicts its order is held, so that it is out of the way for as long as a lease lasts.
    pub fn claim_stock_job(
        &mut self,
        holder: Uuid,
        rules: CallRules,
    ) -> Result<Vec<StockCall>, InvalidTransition> {
        let Some(job) = &mut self.job else { return Ok(Vec::new()) };
        self.changes.job = Some(JobWrite::Release);
        if job.waits || job.parked.is_some() {
            return Ok(Vec::new());
        }
        let calls = job.next_calls(rules);
        if !calls.is_empty() {
            job.holder = Some(holder);
            self.changes.job = Some(JobWrite::Claim);
        } else if job.parked.is_none() {
            let before = self.clone();
            if let Err(error) = self.conclude_stock(JobWrite::Release, false) {
                *self = before;
                self.job.iter_mut().for_each(|job| job.holder = Some(holder));
                self.changes.job = Some(JobWrite::Claim);
                return Err(error);
            }
        }
        Ok(calls)
    }

    /// Cancels the order; what was taken of its stock, or may have been, is going to be given back.
    pub fn cancel(
        &mut self,
        actor: Actor,
        reason: Option<String>,
        trace: &TraceParent,
    ) -> Result<Change, InvalidTransition> {
        let Some(mut change) = self.order.change_status(Status::Cancelled, actor, reason, trace)? else {
            return Ok(Change::None);
        };
        if let Some(job) = &mut self.job
            && matches!(job.state, JobState::Taking | JobState::Taken)
        {
            job.give_back();
            self.changes.job = Some(JobWrite::Keep);
        }
        if let Some(amount) = self.paid {
            change.refund_due = Some(amount);
            let reason = change.reason.clone().unwrap_or_else(|| Status::Cancelled.to_string());
            self.changes.refund = Some(Refund { amount, reason });
        }
        self.changes.status = Some(change);
        Ok(Change::Real)
    }

    /// Takes note of what the calls of a step brought, and draws the conclusion: the order is CONFIRMED when
    /// every line is taken; when one is refused, all are given back, and a paid order is CANCELLED.
    pub fn apply_outcomes(
        &mut self,
        outcomes: &[(StockCall, CallOutcome)],
        holder: Uuid,
    ) -> Result<Verdict, InvalidTransition> {
        let Some(job) = &mut self.job else { return Ok(Verdict::Unfinished) };
        for (call, outcome) in outcomes {
            job.record(call, outcome, holder);
        }
        let is_owner = job.holder == Some(holder);
        let write = if is_owner { JobWrite::Release } else { JobWrite::Keep };
        let progress = outcomes.iter().any(|(_, outcome)| *outcome == CallOutcome::Done);
        self.conclude_stock(write, progress)
    }

    fn conclude_stock(&mut self, write: JobWrite, progress: bool) -> Result<Verdict, InvalidTransition> {
        let Some(job) = &mut self.job else { return Ok(Verdict::Unfinished) };
        job.failures = if progress { 0 } else { job.failures.saturating_add(1) };
        let (verdict, trace) = (job.verdict(), job.trace.clone());
        match verdict {
            Verdict::Unfinished => {}
            Verdict::AllReturned => job.state = JobState::Returned,
            Verdict::AllTaken => {
                job.state = JobState::Taken;
                let (actor, reason) = (job.actor.clone(), job.reason.clone());
                self.changes.status = self.order.change_status(Status::Confirmed, actor, reason, &trace)?;
            }
            Verdict::Refused if job.paid => {
                self.cancel(Actor::payment(), Some(reason::OUT_OF_STOCK.to_owned()), &trace)?;
            }
            Verdict::Refused => job.give_back(),
        }
        self.changes.job = Some(write);
        Ok(verdict)
    }
}
