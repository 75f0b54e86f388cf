//! Taking the stock of an order line by line, and giving it back: a small state machine per line.
//!
//! The Product Service has no transactions, so "all lines or none" is made of durable intentions: a job a
//! confirmation, a row a line. What was written before a call says what to do after a crash:
//!
//! ```text
//! line:  TODO ─► TAKING ─► TAKEN ─► RETURNING ─► RETURNED        job:  TAKING ─► TAKEN
//!                  └─────► REFUSED                                        └─► RETURNING ─► RETURNED
//! ```
//!
//! TAKING and RETURNING mean that the call may have been sent. Such a line is asked again under the same
//! `Idempotency-Key` until the answer is known, or, where the Product Service does not honour the key, parked
//! for a person. An outcome is never guessed.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use strum::{EnumString, IntoStaticStr};
use uuid::Uuid;

use super::{Actor, OrderId, ProductId, Quantity, TraceParent};

/// Which way stock moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Direction {
    /// Out of the stock, for a confirmed order.
    Take,
    /// Back into the stock.
    GiveBack,
}

impl Direction {
    /// The name in the idempotency key of a call.
    fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The state of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "UPPERCASE")]
pub enum LineState {
    /// Nothing was sent for it.
    Todo,
    /// A call to take it may have been sent; its outcome is not known.
    Taking,
    /// Its stock was taken.
    Taken,
    /// The Product Service refused: nothing was taken.
    Refused,
    /// A call to give it back may have been sent; its outcome is not known.
    Returning,
    /// Its stock was given back.
    Returned,
}

impl LineState {
    /// The name in the column.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "UPPERCASE")]
pub enum JobState {
    /// Taking all lines.
    Taking,
    /// All lines are taken and the order is CONFIRMED.
    Taken,
    /// Giving back what was taken.
    Returning,
    /// Nothing of it is taken any more.
    Returned,
}

impl JobState {
    /// The name in the column.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One line of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockLine {
    /// Its number in the order.
    pub number: i16,
    /// Its product.
    pub product_id: ProductId,
    /// How many.
    pub quantity: Quantity,
    /// How far it is.
    pub state: LineState,
    /// What the last call that brought nothing said.
    pub last_error: Option<String>,
    /// When the call whose outcome is not known was first made: the age of its key at the Product Service.
    pub sent_at: Option<DateTime<Utc>>,
}

/// One attempt to confirm an order, until its stock is taken for good or given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockJob {
    /// The order.
    pub order: OrderId,
    /// 1, 2, 3 … for an order whose confirmation was refused and asked for again.
    pub attempt: i16,
    /// How far it is.
    pub state: JobState,
    /// Whether the customer has paid: then a refusal cancels the order and a refund is due.
    pub paid: bool,
    /// Why a person has to look at it, if that is so.
    pub parked: Option<String>,
    /// How often in a row its calls brought nothing.
    pub failures: i32,
    /// How often taking was refused.
    pub refusals: i32,
    /// Who asked for the confirmation.
    pub actor: Actor,
    /// Why, where that was said.
    pub reason: Option<String>,
    /// The trace of the request or the payment that started it.
    pub trace: TraceParent,
    /// Whether it has to wait, because an earlier attempt still gives back what this one is going to take.
    pub waits: bool,
    /// Who is working on it, by the token of the time it was taken up.
    pub holder: Option<Uuid>,
    /// Its lines.
    pub lines: Vec<StockLine>,
}

/// One call to the Product Service that is to be made now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockCall {
    /// The line.
    pub line: i16,
    /// Which way.
    pub direction: Direction,
    /// The product.
    pub product_id: ProductId,
    /// How many.
    pub quantity: Quantity,
    /// The same for every repeat of this call, and for no other call.
    pub idempotency_key: String,
    /// Whether an earlier call of this kind may have been applied already.
    pub sent_before: bool,
}

/// How calls may be made.
#[derive(Clone, Copy, Debug)]
pub struct CallRules {
    /// Whether a repeat under the same `Idempotency-Key` is applied once.
    pub key_is_honoured: bool,
    /// After how long a key may be forgotten by the Product Service: no call is repeated under an older one.
    pub key_ttl: Duration,
    /// How often a call is repeated whose refusal a look-up of the product did not confirm.
    pub refusal_retries: i32,
    /// How many calls a step may have. They run side by side, so that a step ends well within its lease
    /// however many lines an order has.
    pub at_once: usize,
    /// The time of the step.
    pub now: DateTime<Utc>,
}

impl CallRules {
    /// Whether the call of a line that may have been sent before can be repeated without being applied twice.
    fn may_repeat(&self, line: &StockLine, refusals: i32) -> bool {
        let ttl = TimeDelta::from_std(self.key_ttl).unwrap_or(TimeDelta::MAX);
        let is_refused_too_often = line.state == LineState::Taking && refusals > self.refusal_retries;
        self.key_is_honoured
            && !is_refused_too_often
            && line.sent_at.is_some_and(|sent| self.now - sent < ttl)
    }
}

/// What is known after a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// It was applied.
    Done,
    /// It was refused, and nothing was applied.
    Refused(String),
    /// It was refused, but the product could be looked up and has the stock, or could not be looked up.
    RefusalUnconfirmed(String),
    /// It never left, or was turned away before it was looked at.
    NotSent(String),
    /// It may or may not have been applied.
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

/// What the outcomes so far add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There are calls left to make.
    Unfinished,
    /// Every line is taken.
    AllTaken,
    /// A line was refused.
    Refused,
    /// Nothing is taken any more.
    AllReturned,
}

impl StockJob {
    /// The calls to make now; their lines are marked as sent.
    ///
    /// A line that may have been sent before is not sent again where the Product Service does not honour the
    /// key, or may have forgotten it. Beside it nothing more is taken, what is known to be taken is still given
    /// back, and when that is done the job is parked.
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
                idempotency_key: format!("{order}:{}:{}:{attempt}", line.number, direction.as_str()),
                sent_before,
            });
        }
        if let Some((line, sent_at)) = unknown.filter(|_| calls.is_empty()) {
            let too_old = sent_at.filter(|_| rules.key_is_honoured).map_or_else(String::new, |sent_at| {
                format!("; it was sent at {sent_at}, and its key may be forgotten since")
            });
            self.parked = Some(format!("line {line}: nobody knows whether its call was applied{too_old}"));
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

    /// Takes note of one outcome. Of those who do not hold the job any more only the proof that something was
    /// applied counts, for another call may be on its way.
    pub fn record(&mut self, call: &StockCall, outcome: &CallOutcome, holder: Uuid) {
        use LineState::{Refused, Returned, Returning, Taken, Taking, Todo};
        let is_owner = self.holder == Some(holder);
        let Some(line) = self.lines.iter_mut().find(|line| line.number == call.line) else { return };
        line.state = match (call.direction, outcome, line.state) {
            (Direction::Take, CallOutcome::Done, Todo | Taking | Refused) => Taken,
            (Direction::GiveBack, CallOutcome::Done, Taken | Returning) => Returned,
            // An earlier call may have taken the very stock that the look-up misses: the refusal of a repeat counts
            // when it has come twice.
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
            // The proof came after the end: what was taken has to go back all the same.
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

    /// Turns the job round: from now on what was taken, or may have been, is given back.
    pub fn give_back(&mut self) {
        self.state = JobState::Returning;
        self.failures = 0;
        self.refusals = 0;
        self.parked = None;
        if self.verdict() == Verdict::AllReturned {
            self.state = JobState::Returned;
        }
    }

    /// What the lines add up to.
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

    /// How long to wait before the next calls: nothing after progress, then 500 ms, doubled with each failure up
    /// to half a minute. A job that waits for an earlier attempt is woken by it.
    pub fn pause(&self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(30);
        if self.waits {
            return Self::WAIT;
        }
        let Some(doublings) = self.failures.checked_sub(1).and_then(|n| u32::try_from(n).ok()) else {
            return Duration::ZERO;
        };
        Duration::from_millis(500).saturating_mul(2_u32.saturating_pow(doublings.min(16))).min(LONGEST)
    }

    /// How long a job waits at most for an earlier attempt before it is looked at again. The wake-up comes long
    /// before: only a replica of an older release ends an attempt without one.
    pub const WAIT: Duration = Duration::from_mins(10);

    /// Whether later attempts of the order have to wait, because this one still gives back what they take.
    pub fn holds_up_later_attempts(&self) -> bool {
        self.state == JobState::Returning && self.parked.is_none()
    }

    /// The first line that was refused.
    pub fn refused_line(&self) -> Option<&StockLine> {
        self.lines.iter().find(|line| line.state == LineState::Refused)
    }
}

/// The call that a line needs, if any, and whether one like it may have been sent before.
///
/// A job that gives back still has to learn of a line that may have been taken: it asks again, which either
/// was applied before or is applied now, and then gives it back.
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
