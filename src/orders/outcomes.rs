//! Wakes requests that wait for the outcome of a confirmation.

use std::pin::Pin;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::domain::OrderId;

/// Orders share a few notifications, so a request may also wake for another order and check its own without need.
#[derive(Debug)]
pub(super) struct Outcomes([Notify; 64]);

impl Default for Outcomes {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Notify::new()))
    }
}

impl Outcomes {
    /// Wakes the requests that wait for the order.
    pub(super) fn changed(&self, order: OrderId) {
        self.of(order).notify_waiters();
    }

    /// Resolves at the next change of the order in this process. Changes count from this call on, not from the first
    /// poll.
    pub(super) fn next_change(&self, order: OrderId) -> Pin<Box<Notified<'_>>> {
        let mut next = Box::pin(self.of(order).notified());
        next.as_mut().enable();
        next
    }

    fn of(&self, order: OrderId) -> &Notify {
        // The last byte of a UUIDv7 is random (RFC 9562, section 5.7).
        let random = usize::from(order.0.as_bytes()[15]);
        &self.0[random % self.0.len()]
    }
}
