//! Taking and giving back the stock of an order: a state machine per line.
//!
//! The Product Service has no transactions. "All lines or none" is built on recorded intentions: a job per
//! confirmation, a row per line. The state that is recorded before a call decides what happens after a crash:
//!
//! ```text
//! line:  TODO ─► TAKING ─► TAKEN ─► RETURNING ─► RETURNED        job:  TAKING ─► TAKEN
//!                  └─────► REFUSED                                        └─► RETURNING ─► RETURNED
//! ```
//!
//! TAKING and RETURNING mean that the call may have been sent. It is repeated with the same `Idempotency-Key` until its
//! outcome is known. If the Product Service does not honour keys, the job is parked for an operator instead. An outcome
//! is never guessed.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use strum::{EnumString, IntoStaticStr};
use uuid::Uuid;

use super::{Actor, OrderId, ProductId, Quantity, TraceParent, time};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "kebab-case", const_into_str)]
pub enum Direction {
    /// Takes stock, for a confirmation.
    Take,
    /// Gives stock back.
    GiveBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "UPPERCASE", const_into_str)]
pub enum LineState {
    /// No call was sent.
    Todo,
    /// A take may have been sent; its outcome is unknown.
    Taking,
    /// Its stock was taken.
    Taken,
    /// The Product Service refused it; nothing was taken.
    Refused,
    /// A give-back may have been sent; its outcome is unknown.
    Returning,
    /// Its stock was given back.
    Returned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "UPPERCASE", const_into_str)]
pub enum JobState {
    /// Taking all lines.
    Taking,
    /// All lines are taken, and the order is CONFIRMED.
    Taken,
    /// Giving back the taken lines.
    Returning,
    /// No line is taken any more.
    Returned,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockLine {
    /// Its number in the order.
    pub number: i16,
    pub product_id: ProductId,
    pub quantity: Quantity,
    pub state: LineState,
    /// The error of the last call that failed.
    pub last_error: Option<String>,
    /// When the call with the unknown outcome was first sent. It gives the age of its key at the Product Service.
    pub sent_at: Option<DateTime<Utc>>,
}

/// One attempt to confirm an order, until its stock is taken or given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockJob {
    pub order: OrderId,
    /// 1, 2, 3 …; a new attempt follows a refused one.
    pub attempt: i16,
    pub state: JobState,
    /// Whether the customer has paid. Then a refusal cancels the order, and a refund is due.
    pub paid: bool,
    /// Why an operator must look at it. `None` if the job is not parked.
    pub parked: Option<String>,
    /// The number of batches in a row without progress.
    pub failures: i32,
    /// How often a take was refused.
    pub refusals: i32,
    /// Who requested the confirmation.
    pub actor: Actor,
    pub reason: Option<String>,
    /// The trace of the request or the payment that started it.
    pub trace: TraceParent,
    /// Whether it waits for an earlier attempt that still gives back stock.
    pub waits: bool,
    /// The token of the claim that holds it.
    pub holder: Option<Uuid>,
    pub lines: Vec<StockLine>,
}

/// A stock call to send to the Product Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockCall {
    pub line: i16,
    pub direction: Direction,
    pub product_id: ProductId,
    pub quantity: Quantity,
    /// The same for every repeat of this call; different for all other calls.
    pub idempotency_key: String,
    /// Whether the call may have been sent before.
    pub sent_before: bool,
}

/// The rules for sending calls.
#[derive(Clone, Copy, Debug)]
pub struct CallRules {
    /// Whether the Product Service applies repeated calls with one `Idempotency-Key` once.
    pub key_is_honoured: bool,
    /// How long the Product Service remembers a key. No call is repeated with an older key.
    pub key_ttl: Duration,
    /// How often a call is repeated while a look-up does not confirm its refusal.
    pub refusal_retries: i32,
    /// The maximum number of calls in a batch, which run concurrently. It lets a batch end within its lease, however
    /// many lines the order has.
    pub at_once: usize,
    /// The time of the batch.
    pub now: DateTime<Utc>,
}

impl CallRules {
    /// Whether a call that may have been sent before can be repeated without being applied twice.
    fn may_repeat(&self, line: &StockLine, refusals: i32) -> bool {
        let ttl = TimeDelta::from_std(self.key_ttl).unwrap_or(TimeDelta::MAX);
        let is_refused_too_often = line.state == LineState::Taking && refusals > self.refusal_retries;
        self.key_is_honoured
            && !is_refused_too_often
            && line.sent_at.is_some_and(|sent| self.now - sent < ttl)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    Done,
    /// Refused; nothing was applied.
    Refused(String),
    /// Refused, but a look-up of the product showed enough stock, or failed.
    RefusalUnconfirmed(String),
    /// Never sent, or rejected before it was processed.
    NotSent(String),
    /// Perhaps applied.
    Unknown(String),
}

impl CallOutcome {
    fn error(&self) -> Option<&str> {
        match self {
            Self::Done => None,
            Self::Refused(error)
            | Self::RefusalUnconfirmed(error)
            | Self::NotSent(error)
            | Self::Unknown(error) => Some(error),
        }
    }
}

/// The state of all lines together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Some calls are still to be sent.
    Unfinished,
    AllTaken,
    Refused,
    /// No line is taken any more.
    AllReturned,
}

impl StockJob {
    /// Returns the calls to send now, and marks their lines as sent.
    ///
    /// A call that may have been sent is not repeated if the Product Service does not honour keys, or may have
    /// forgotten the key. Then no further line is taken, the lines that are taken are given back, and the job is
    /// parked.
    pub fn next_calls(&mut self, rules: CallRules) -> Vec<StockCall> {
        if self.state == JobState::Taking && self.refusals > rules.refusal_retries {
            self.parked = Some(self.why_refusals_park());
            return Vec::new();
        }
        let (order, attempt, state, refusals) = (self.order, self.attempt, self.state, self.refusals);
        let unknown = self.lines.iter().find(|line| {
            matches!(due(state, line.state), Some((_, true))) && !rules.may_repeat(line, refusals)
        });
        let unknown = unknown.map(|line| (line.number, line.sent_at));
        let most = if unknown.is_some() && state == JobState::Taking { 0 } else { rules.at_once };
        let mut calls = Vec::new();
        for line in &mut self.lines {
            let Some((direction, sent_before)) = due(state, line.state) else { continue };
            if calls.len() == most || (sent_before && !rules.may_repeat(line, refusals)) {
                continue;
            }
            line.state = match direction {
                Direction::Take => LineState::Taking,
                Direction::GiveBack => LineState::Returning,
            };
            if !sent_before {
                line.sent_at = Some(rules.now);
            }
            calls.push(StockCall {
                line: line.number,
                direction,
                product_id: line.product_id.clone(),
                quantity: line.quantity,
                idempotency_key: format!("{order}:{}:{}:{attempt}", line.number, direction.into_str()),
                sent_before,
            });
        }
        if let Some((line, sent_at)) = unknown.filter(|_| calls.is_empty()) {
            let too_old = sent_at.filter(|_| rules.key_is_honoured).map_or_else(String::new, |sent_at| {
                format!("; it was sent at {sent_at}, and its key may be forgotten since")
            });
            self.parked = Some(format!("line {line}: it is unknown whether its call was applied{too_old}"));
        }
        calls
    }

    fn why_refusals_park(&self) -> String {
        let is_refused = |line: &&StockLine| {
            matches!(line.state, LineState::Todo | LineState::Taking) && line.last_error.is_some()
        };
        let refused = self.lines.iter().find(is_refused);
        let (line, error) = refused
            .map_or((0, "refused"), |line| (line.number, line.last_error.as_deref().unwrap_or_default()));
        format!("line {line}: refused {} times, which no look-up confirmed: {error}", self.refusals)
    }

    /// Records the outcome of a call. From a claim that has ended, only [`CallOutcome::Done`] counts, because another
    /// call may be in flight.
    pub fn record(&mut self, call: &StockCall, outcome: &CallOutcome, holder: Uuid) {
        use LineState::{Refused, Returned, Returning, Taken, Taking, Todo};
        let is_owner = self.holder == Some(holder);
        let Some(line) = self.lines.iter_mut().find(|line| line.number == call.line) else { return };
        line.state = match (call.direction, outcome, line.state) {
            (Direction::Take, CallOutcome::Done, Todo | Taking | Refused) => Taken,
            (Direction::GiveBack, CallOutcome::Done, Taken | Returning) => Returned,
            // An earlier call may have taken the very stock that the look-up misses. So the refusal of a repeated call
            // counts only the second time.
            (Direction::Take, CallOutcome::Refused(_), Taking)
                if is_owner && (!call.sent_before || self.refusals > 0) =>
            {
                Refused
            }
            (Direction::Take, CallOutcome::NotSent(_) | CallOutcome::RefusalUnconfirmed(_), Taking)
                if is_owner && !call.sent_before =>
            {
                Todo
            }
            (Direction::GiveBack, CallOutcome::NotSent(_), Returning) if is_owner && !call.sent_before => {
                Taken
            }
            (_, _, unchanged) => unchanged,
        };
        line.last_error = outcome.error().map(str::to_owned);
        let is_refused = matches!(outcome, CallOutcome::Refused(_) | CallOutcome::RefusalUnconfirmed(_));
        if call.direction == Direction::Take && is_refused && is_owner {
            self.refusals = self.refusals.saturating_add(1);
        }
        if self.state == JobState::Returned && line.state == Taken {
            // The outcome came after the job had ended: give the stock back.
            self.state = JobState::Returning;
        }
        if !self.lines.iter().any(|line| matches!(line.state, Taking | Returning)) {
            self.parked = None;
        }
        if let (Direction::GiveBack, CallOutcome::Refused(why), true) = (call.direction, outcome, is_owner) {
            self.parked =
                Some(format!("line {}: the Product Service does not take it back: {why}", call.line));
        }
    }

    /// Turns the job from taking to returning: gives back the lines that were taken or may have been.
    pub fn give_back(&mut self) {
        self.state = JobState::Returning;
        self.failures = 0;
        self.refusals = 0;
        self.parked = None;
        if self.verdict() == Verdict::AllReturned {
            self.state = JobState::Returned;
        }
    }

    pub fn verdict(&self) -> Verdict {
        use LineState::{Refused, Returned, Taken, Todo};
        let all = |states: &[LineState]| self.lines.iter().all(|line| states.contains(&line.state));
        match self.state {
            JobState::Taking if self.lines.iter().any(|line| line.state == Refused) => Verdict::Refused,
            JobState::Taking if all(&[Taken]) => Verdict::AllTaken,
            JobState::Returning if all(&[Todo, Refused, Returned]) => Verdict::AllReturned,
            _ => Verdict::Unfinished,
        }
    }

    /// The backoff before the next batch: none after progress, then 500 ms, doubled by each failure up to 30 s. A job
    /// that waits for an earlier attempt is woken by it.
    pub fn pause(&self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(30);
        if self.waits {
            return Self::WAIT;
        }
        match u32::try_from(self.failures) {
            Ok(failures @ 1..) => time::backoff(Duration::from_millis(500), failures, LONGEST),
            _ => Duration::ZERO,
        }
    }

    /// The maximum wait for an earlier attempt. Only a replica of an older release ends an attempt without waking the
    /// next.
    pub const WAIT: Duration = Duration::from_mins(10);

    /// Whether later attempts must wait, because this one still gives back stock.
    pub fn blocks_later_attempts(&self) -> bool {
        self.state == JobState::Returning && self.parked.is_none()
    }

    pub fn refused_line(&self) -> Option<&StockLine> {
        self.lines.iter().find(|line| line.state == LineState::Refused)
    }
}

/// The call that a line needs, if any, and whether it may have been sent before.
///
/// A returning job repeats the take of a line that may have been taken. Afterwards the line is certainly taken, and is
/// given back.
fn due(job: JobState, line: LineState) -> Option<(Direction, bool)> {
    match (job, line) {
        (JobState::Taking, LineState::Todo) => Some((Direction::Take, false)),
        (JobState::Taking | JobState::Returning, LineState::Taking) => Some((Direction::Take, true)),
        (JobState::Returning, LineState::Taken) => Some((Direction::GiveBack, false)),
        (JobState::Returning, LineState::Returning) => Some((Direction::GiveBack, true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
