//! Placements that wait for the same product share its next look-up ("singleflight", request coalescing).
//!
//! A look-up can be joined until it is sent and no longer, so nobody gets an answer that is older than its
//! request. While one is in flight the next one waits, and whoever arrives joins that one. Nothing waits for a
//! timer: where none is in flight, a look-up is sent at once.
//!
//! The callers themselves poll the look-up that they share. A caller that goes away (its client hung up, its
//! deadline passed) leaves it to the others; when the last one goes, the look-up is dropped and so cancelled.
//! There are never more entries here than callers.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::{ProductId, TraceParent};

/// The look-ups that are waiting or in flight, by product.
pub(super) struct Singleflight<T: Clone>(Mutex<HashMap<ProductId, LookUps<T>>>);

/// The look-ups of one product.
struct LookUps<T: Clone> {
    /// The one that is not sent yet.
    waiting: Option<Waiting<T>>,
    /// The latest one that was sent; the token is cancelled when the next may be sent.
    in_flight: Option<CancellationToken>,
}

struct Waiting<T: Clone> {
    /// Weak, so that it ends with its last caller.
    answer: WeakShared<BoxFuture<'static, T>>,
    /// The latest deadline of those who joined.
    deadline: Instant,
    sent: Arc<OnceLock<Instant>>,
    trace: TraceParent,
}

/// A caller's part in a look-up.
pub(super) struct Joined<T: Clone> {
    pub(super) answer: Shared<BoxFuture<'static, T>>,
    /// The trace of the caller who began it, where that is another one.
    pub(super) begun_in: Option<TraceParent>,
    sent: Arc<OnceLock<Instant>>,
}

/// What the look-up itself holds, until it is over.
pub(super) struct Ticket<T: Clone> {
    all: Arc<Singleflight<T>>,
    product: ProductId,
    next_may_go: CancellationToken,
    sent: Arc<OnceLock<Instant>>,
}

impl<T: Clone + Send + Sync + 'static> Singleflight<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Joins the look-up of the product that is not sent yet; `look_up` makes one where there is none.
    ///
    /// It has to call [`Ticket::send`] right before it asks, and may decide nothing about its answer before.
    pub(super) fn join<F>(
        self: &Arc<Self>,
        product: &ProductId,
        deadline: Instant,
        trace: TraceParent,
        look_up: impl FnOnce(Ticket<T>) -> F + Send + 'static,
    ) -> Joined<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut all = self.lock();
        if let Some(waiting) = all.get_mut(product).and_then(|look_ups| look_ups.waiting.as_mut())
            && let Some(answer) = waiting.answer.upgrade()
        {
            waiting.deadline = waiting.deadline.max(deadline);
            let (begun_in, sent) = (Some(waiting.trace.clone()), Arc::clone(&waiting.sent));
            return Joined { answer, begun_in, sent };
        }
        let look_ups =
            all.entry(product.clone()).or_insert_with(|| LookUps { waiting: None, in_flight: None });
        let sent = Arc::new(OnceLock::new());
        let ticket = Ticket {
            all: Arc::clone(self),
            product: product.clone(),
            next_may_go: CancellationToken::new(),
            sent: Arc::clone(&sent),
        };
        let before = look_ups.in_flight.clone();
        let answer = async move {
            if let Some(before) = before {
                before.cancelled().await;
            }
            look_up(ticket).await
        };
        let answer = answer.boxed().shared();
        look_ups.waiting =
            answer.downgrade().map(|answer| Waiting { answer, deadline, sent: Arc::clone(&sent), trace });
        Joined { answer, begun_in: None, sent }
    }
}

impl<T: Clone> Singleflight<T> {
    /// Every entry is whole after every statement, so a panic elsewhere spoils nothing.
    fn lock(&self) -> MutexGuard<'_, HashMap<ProductId, LookUps<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Joined<T> {
    /// When the look-up was sent, if it was.
    pub(super) fn sent(&self) -> Option<Instant> {
        self.sent.get().copied()
    }
}

impl<T: Clone> Ticket<T> {
    /// Nobody joins the look-up any more. Returns the latest deadline of those who did.
    pub(super) fn send(&self) -> Option<Instant> {
        let mut all = self.all.lock();
        // Within the lock: whoever arrives later finds a later time.
        let _ = self.sent.set(Instant::now());
        let look_ups = all.get_mut(&self.product)?;
        look_ups.in_flight = Some(self.next_may_go.clone());
        let waiting = look_ups.waiting.take_if(|waiting| Arc::ptr_eq(&waiting.sent, &self.sent));
        waiting.map(|waiting| waiting.deadline)
    }

    /// Lets the next look-up of the product go, although this one is still in flight.
    pub(super) fn let_next_go(&self) {
        self.next_may_go.cancel();
    }
}

impl<T: Clone> Drop for Ticket<T> {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        self.next_may_go.cancel();
        let Some(look_ups) = all.get_mut(&self.product) else { return };
        look_ups.waiting.take_if(|waiting| Arc::ptr_eq(&waiting.sent, &self.sent));
        look_ups.in_flight.take_if(|latest| latest.is_cancelled());
        if look_ups.waiting.is_none() && look_ups.in_flight.is_none() {
            all.remove(&self.product);
        }
    }
}

#[cfg(test)]
mod tests;
