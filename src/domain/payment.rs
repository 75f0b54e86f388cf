//! What a payment event means for an order. Events may be repeated, late and shuffled; every sequence of them
//! ends in a state that the contract allows.

use super::aggregate::{Confirmation, OrderAggregate, Refund, reason};
use super::order::Change;
use super::words::words;
use super::{Actor, Money, Status, TraceParent};

/// What happened at the Payment Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentEvent {
    /// The customer has paid this much.
    Succeeded(Money),
    /// The payment failed.
    Failed,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentOutcome {
    /// The order is being confirmed: its stock is taken next.
    Confirming,
    /// The order is cancelled.
    Cancelled,
    /// The order was cancelled before: it stays so, and the money has to go back.
    RefundDue,
    /// It changes nothing any more.
    Ignored,
    /// The order was paid before, by another payment: a person has to look at it.
    PaidAgain,
    /// Not the amount of the order: a person has to look at it.
    AmountMismatch,
}

words! {
    /// Why a record of the payment topic is parked.
    ParkReason {
        /// Not the amount of the order.
        AmountMismatch = "AMOUNT_MISMATCH",
        /// The order was paid before, by another payment.
        PaidAgain = "PAID_AGAIN",
        /// It has the key of another event, and other bytes.
        KeyReused = "KEY_REUSED",
        /// There is no such order.
        UnknownOrder = "UNKNOWN_ORDER",
        /// It is no payment event.
        Undecodable = "UNDECODABLE",
        /// The database refuses what it says.
        Unwritable = "UNWRITABLE",
        /// A release that gave no reason parked it.
        Other = "OTHER",
    }
}

impl PaymentOutcome {
    /// Whether its record is parked as well.
    pub const fn is_parked(&self) -> bool {
        matches!(self, Self::PaidAgain | Self::AmountMismatch)
    }

    /// Whether money came that the order does not account for.
    pub const fn needs_a_person(&self) -> bool {
        matches!(self, Self::RefundDue | Self::PaidAgain | Self::AmountMismatch)
    }

    /// The word in the column.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Confirming => "CONFIRMING",
            Self::Cancelled => "CANCELLED",
            Self::RefundDue => "REFUND_DUE",
            Self::Ignored => "IGNORED",
            Self::PaidAgain => "PAID_AGAIN",
            Self::AmountMismatch => "AMOUNT_MISMATCH",
        }
    }
}

impl OrderAggregate {
    /// Applies a payment event.
    pub fn apply_payment(&mut self, event: PaymentEvent, trace: &TraceParent) -> PaymentOutcome {
        match event {
            PaymentEvent::Succeeded(amount) => self.payment_succeeded(amount, trace),
            PaymentEvent::Failed => self.payment_failed(trace),
        }
    }

    fn payment_succeeded(&mut self, amount: Money, trace: &TraceParent) -> PaymentOutcome {
        let cancelled = self.order.status == Status::Cancelled;
        if self.paid.is_some() {
            return PaymentOutcome::PaidAgain;
        }
        if amount != self.order.total && !cancelled {
            return PaymentOutcome::AmountMismatch;
        }
        self.paid = Some(amount);
        self.changes.payment = Some(amount);
        if cancelled {
            let reason = "PAID_AFTER_CANCELLED".to_owned();
            self.changes.refund = Some(Refund { amount, reason });
            return PaymentOutcome::RefundDue;
        }
        // The calls are the worker's: a consumer that waited for them would hold up every other payment.
        match self.confirm(Actor::payment(), None, trace) {
            Ok(Confirmation::Started(_) | Confirmation::Running(_)) => PaymentOutcome::Confirming,
            Ok(Confirmation::Already) | Err(_) => PaymentOutcome::Ignored,
        }
    }

    /// A payment that fails after another one succeeded, or after an admin confirmed by hand, is late news.
    fn payment_failed(&mut self, trace: &TraceParent) -> PaymentOutcome {
        if self.order.status != Status::Created || self.paid.is_some() {
            return PaymentOutcome::Ignored;
        }
        match self.cancel(Actor::payment(), Some(reason::PAYMENT_FAILED.to_owned()), trace) {
            Ok(Change::Real) => PaymentOutcome::Cancelled,
            Ok(Change::None) | Err(_) => PaymentOutcome::Ignored,
        }
    }
}

#[cfg(test)]
mod tests;
