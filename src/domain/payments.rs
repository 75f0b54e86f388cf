//! How payment events change an order. Events may be repeated, late or reordered; every order of events ends in a state
//! that the contract allows.

use strum::{IntoStaticStr, VariantNames};

use super::aggregate::{Confirmation, OrderAggregate, Refund, reason};
use super::order::Change;
use super::{Actor, Money, Status, TraceParent};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentEvent {
    /// The customer paid this amount.
    Succeeded(Money),
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE", const_into_str)]
pub enum PaymentOutcome {
    /// The order is being confirmed; its stock is taken next.
    Confirming,
    /// The order is cancelled.
    Cancelled,
    /// The order was cancelled before; it stays CANCELLED and a refund is due.
    RefundDue,
    /// The event changes nothing.
    Ignored,
    /// Another payment paid the order before; an operator must look at it.
    PaidAgain,
    /// The amount is not that of the order; an operator must look at it.
    AmountMismatch,
}

/// Why a record of the payment topic is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE", const_into_str)]
pub enum ParkReason {
    /// The amount is not that of the order.
    AmountMismatch,
    /// Another payment paid the order before.
    PaidAgain,
    /// Another event has the same key.
    KeyReused,
    UnknownOrder,
    /// The record is not a payment event.
    Undecodable,
    /// The database refuses its values.
    Unwritable,
    /// An older release parked the record, without a reason.
    Other,
}

impl PaymentOutcome {
    /// Whether the record is parked as well.
    pub const fn is_parked(self) -> bool {
        matches!(self, Self::PaidAgain | Self::AmountMismatch)
    }

    /// Whether an operator must look at it, because the payment does not fit the order.
    pub const fn needs_an_operator(self) -> bool {
        matches!(self, Self::RefundDue | Self::PaidAgain | Self::AmountMismatch)
    }
}

impl OrderAggregate {
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
            let reason = reason::PAID_AFTER_CANCELLED.to_owned();
            self.changes.refund = Some(Refund { amount, reason });
            return PaymentOutcome::RefundDue;
        }
        // The stock worker sends the calls: in the consumer, they would delay all other payments.
        match self.confirm(Actor::payment(), None, trace) {
            Ok(Confirmation::Started(_) | Confirmation::Running(_)) => PaymentOutcome::Confirming,
            Ok(Confirmation::Already) | Err(_) => PaymentOutcome::Ignored,
        }
    }

    /// A failed payment is ignored after another payment succeeded, or after an admin confirmed the order.
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
