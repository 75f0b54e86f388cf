//! Request coalescing ("singleflight"): placements that need the same product share its next look-up.
//!
//! A caller joins a look-up only before it is sent, so no answer is older than the caller's request. While one
//! look-up of a product is in flight, the next one waits, and new callers join the one that waits. There is no
//! timer: when none is in flight, a look-up is sent at once.
//!
//! The callers poll the shared look-up themselves. When a caller leaves (client disconnected, deadline passed), the
//! others keep polling; when the last one leaves, the look-up is dropped and so cancelled. The map never has more
//! entries than there are callers.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::{ProductId, TraceParent};

/// The look-ups that wait or are in flight, by product.
pub(super) struct Singleflight<T: Clone>(Mutex<HashMap<ProductId, LookUps<T>>>);

/// The look-ups of one product.
struct LookUps<T: Clone> {
    /// The look-up that is not sent yet.
    waiting: Option<Waiting<T>>,
    /// The latest look-up that was sent; its token is cancelled when the next one may be sent.
    in_flight: Option<CancellationToken>,
}

struct Waiting<T: Clone> {
    /// Weak, so that the look-up is dropped with its last caller.
    answer: WeakShared<BoxFuture<'static, T>>,
    /// The latest deadline of its callers.
    deadline: Instant,
    sent: Arc<OnceLock<Instant>>,
    trace: TraceParent,
}

/// A caller's share of a look-up.
pub(super) struct Joined<T: Clone> {
    pub(super) answer: Shared<BoxFuture<'static, T>>,
    /// The trace of the caller that started it, if that is another one.
    pub(super) shared_trace: Option<TraceParent>,
    sent: Arc<OnceLock<Instant>>,
}

/// Registers one look-up until it ends: its drop removes the entry and starts the next look-up.
pub(super) struct InFlight<T: Clone> {
    all: Arc<Singleflight<T>>,
    product: ProductId,
    next_allowed: CancellationToken,
    sent: Arc<OnceLock<Instant>>,
}

impl<T: Clone + Send + Sync + 'static> Singleflight<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Joins the look-up of the product that is not sent yet; `look_up` starts one if there is none.
    ///
    /// `look_up` must call [`InFlight::mark_sent`] right before it sends its request.
    pub(super) fn join<F>(
        self: &Arc<Self>,
        product: &ProductId,
        deadline: Instant,
        trace: TraceParent,
        look_up: impl FnOnce(InFlight<T>) -> F + Send + 'static,
    ) -> Joined<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut all = self.lock();
        if let Some(waiting) = all.get_mut(product).and_then(|look_ups| look_ups.waiting.as_mut())
            && let Some(answer) = waiting.answer.upgrade()
        {
            waiting.deadline = waiting.deadline.max(deadline);
            let (shared_trace, sent) = (Some(waiting.trace.clone()), Arc::clone(&waiting.sent));
            return Joined { answer, shared_trace, sent };
        }
        let look_ups =
            all.entry(product.clone()).or_insert_with(|| LookUps { waiting: None, in_flight: None });
        let sent = Arc::new(OnceLock::new());
        let flight = InFlight {
            all: Arc::clone(self),
            product: product.clone(),
            next_allowed: CancellationToken::new(),
            sent: Arc::clone(&sent),
        };
        let before = look_ups.in_flight.clone();
        let answer = async move {
            if let Some(before) = before {
                before.cancelled().await;
            }
            look_up(flight).await
        };
        let answer = answer.boxed().shared();
        look_ups.waiting =
            answer.downgrade().map(|answer| Waiting { answer, deadline, sent: Arc::clone(&sent), trace });
        Joined { answer, shared_trace: None, sent }
    }
}

impl<T: Clone> Singleflight<T> {
    /// Ignores poisoning: the map is consistent after every statement.
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

impl<T: Clone> InFlight<T> {
    /// Closes the look-up to new callers, and returns the latest deadline of those that joined.
    pub(super) fn mark_sent(&self) -> Option<Instant> {
        let mut all = self.all.lock();
        // Under the lock, so that callers that arrive later see a later time.
        let _ = self.sent.set(Instant::now());
        let look_ups = all.get_mut(&self.product)?;
        look_ups.in_flight = Some(self.next_allowed.clone());
        let waiting = look_ups.waiting.take_if(|waiting| Arc::ptr_eq(&waiting.sent, &self.sent));
        waiting.map(|waiting| waiting.deadline)
    }

    /// Lets the next look-up of the product be sent while this one is still in flight.
    pub(super) fn allow_next(&self) {
        self.next_allowed.cancel();
    }
}

impl<T: Clone> Drop for InFlight<T> {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        self.next_allowed.cancel();
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
