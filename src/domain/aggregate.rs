//! The aggregate of an order: the order with its stock job, payment and refund, while it is locked. It collects its
//! changes, and the store writes all of them or none.

use uuid::Uuid;

use super::order::{Change, InvalidTransition};
use super::stock::{CallOutcome, CallRules, JobState, LineState, StockCall, StockJob, StockLine, Verdict};
use super::{Actor, Money, Order, Status, StatusChange, TraceParent};

/// The reasons that the service itself gives for a change or a refund.
pub(crate) mod reason {
    /// The stock of a paid order could not be taken.
    pub(crate) const OUT_OF_STOCK: &str = "OUT_OF_STOCK";
    pub(crate) const PAYMENT_FAILED: &str = "PAYMENT_FAILED";
    /// The order was not paid in time.
    pub(crate) const PAYMENT_TIMEOUT: &str = "PAYMENT_TIMEOUT";
    /// The owner cancelled.
    pub(crate) const CUSTOMER_REQUEST: &str = "CUSTOMER_REQUEST";
    /// The payment of a refund came after the order was cancelled.
    pub(crate) const PAID_AFTER_CANCELLED: &str = "PAID_AFTER_CANCELLED";
    /// The order of a refund was cancelled without a reason.
    pub(crate) const CANCELLED: &str = "CANCELLED";

    pub(crate) const ALL: [&str; 6] =
        [OUT_OF_STOCK, PAYMENT_FAILED, PAYMENT_TIMEOUT, CUSTOMER_REQUEST, PAID_AFTER_CANCELLED, CANCELLED];
}

/// A locked order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderAggregate {
    pub order: Order,
    /// Its latest stock job, or the one that was asked for.
    pub job: Option<StockJob>,
    pub paid: Option<Money>,
    pub changes: Changes,
}

/// The changes to write in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub status: Option<StatusChange>,
    /// How to write the job, if it is new or changed.
    pub job: Option<JobWrite>,
    pub payment: Option<Money>,
    pub refund: Option<Refund>,
}

/// How to write the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobWrite {
    Insert,
    /// Update it and lease it to its holder.
    Claim,
    /// Update it and keep its lease.
    Keep,
    /// Update it and end its lease.
    Release,
}

/// Money that the customer must get back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    pub amount: Money,
    pub reason: String,
}

/// The result of a request to confirm an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// The order is CONFIRMED already.
    Already,
    /// The attempt with this number is running.
    Running(i16),
    /// A new attempt with this number starts.
    Started(i16),
}

impl OrderAggregate {
    /// Records the intention to confirm the order; its stock is taken afterwards.
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
            // A payment joins the attempt of an admin. The order is paid now, so a refusal cancels it.
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
        let waits = self.job.as_ref().is_some_and(StockJob::blocks_later_attempts);
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

    /// The first calls of a new job, recorded with it for its holder. Empty if the job waits for an earlier attempt.
    pub fn first_stock_calls(&mut self, holder: Uuid, rules: CallRules) -> Vec<StockCall> {
        let Some(job) = self.job.as_mut().filter(|job| !job.waits) else { return Vec::new() };
        job.holder = Some(holder);
        job.next_calls(rules)
    }

    /// Claims the job for `holder` and returns the calls to record and send.
    ///
    /// A job without calls gets no holder: it waits, is parked, or is concluded here. A job that contradicts its order
    /// gets a holder, so that its lease keeps it out of the way.
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

    /// Cancels the order. Stock that was taken, or may have been taken, will be given back.
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
            let reason = change.reason.clone().unwrap_or_else(|| reason::CANCELLED.to_owned());
            self.changes.refund = Some(Refund { amount, reason });
        }
        self.changes.status = Some(change);
        Ok(Change::Real)
    }

    /// Applies the outcomes of stock calls. When all lines are taken, the order becomes CONFIRMED. When a line is
    /// refused, all stock is given back, and a paid order becomes CANCELLED.
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
