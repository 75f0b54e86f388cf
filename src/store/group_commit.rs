//! Group commit: writes that arrive during a commit share the next one.
//!
//! There is no timer: a write that finds a free writer is sent at once. A writer takes all waiting writes up to a
//! limit, commits them together, and answers each caller after the commit, never before. Writes share only the commit:
//!
//! * Refusals: if the database refuses a group, its writes are retried one by one, and only the invalid one gets the error.
//! * Locks: a write that would wait for another transaction is left out of its group and committed alone.
//! * Deadlines: a write that still waits at the deadline of its caller is never sent. The caller of a write that was taken
//!   waits a moment longer; then the outcome is unknown.
//! * Callers: a caller that leaves withdraws a write that was not taken, and affects nothing else.
//!
//! Shared reads (`shared_read.rs`) use the same queue.

use std::collections::{HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{iter, slice};

use futures_util::FutureExt;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::StoreError;
use crate::metrics::Query;
use crate::telemetry::span::{self, Span};

/// A kind of write, and how it is committed.
pub(super) trait Group: Send + Sync + 'static {
    /// The query of the spans of its writes.
    const QUERY: Query;
    /// A write.
    type Item: Send + 'static;
    /// The answer to its caller.
    type Answer: Send + 'static;

    /// Two writes with the same key are never in progress at once, and are committed in the order of their arrival.
    /// Different writes may share a key; the second one waits for the first.
    fn key(item: &Self::Item) -> Option<u64>;

    /// The error of a full queue.
    fn too_many() -> StoreError {
        StoreError::TooManyWrites
    }

    /// The error in an answer, for its span.
    fn error(_answer: &Self::Answer) -> Option<&StoreError> {
        None
    }

    /// Commits these writes in one transaction before `deadline`; returns one answer per write, in the same order.
    /// `None`: left out, because it would have waited for a lock; it must be committed alone.
    ///
    /// It may be called again with the same items. With `alone` there is one item, and it may wait for a lock, because
    /// it blocks no others. An error means that nothing was committed, except [`StoreError::OutcomeUnknown`].
    fn commit(
        &self,
        items: &mut [Self::Item],
        alone: bool,
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<Option<Self::Answer>>, StoreError>> + Send;
}

/// The limits of a kind of write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The maximum number of writes in one commit.
    pub(super) group: usize,
    /// The maximum number of concurrent groups.
    pub(super) writers: usize,
    /// The maximum number of concurrent writes that are committed alone.
    pub(super) alone: usize,
    /// The maximum number of waiting writes; more are refused.
    pub(super) waiting: usize,
    /// The deadline of a write, including its wait.
    pub(super) deadline: Duration,
    /// How long after the deadline a caller waits for the outcome of a write that was sent.
    pub(super) grace: Duration,
}

/// The writes of one kind in this process.
pub(super) struct GroupCommit<G: Group> {
    group: G,
    limits: Limits,
    alone: Semaphore,
    state: Mutex<State<G>>,
}

pub(super) struct State<G: Group> {
    pub(super) queue: VecDeque<(G::Item, Caller<G>)>,
    /// The number of writes so far, which numbers the next one.
    arrived: u64,
    keys_in_progress: HashSet<u64>,
    pub(super) writers: usize,
}

/// The writes of a group, and their callers.
type Taken<G> = (Vec<<G as Group>::Item>, Vec<Caller<G>>);

/// The caller of a write.
pub(super) struct Caller<G: Group> {
    number: u64,
    deadline: Instant,
    answer: oneshot::Sender<Result<G::Answer, StoreError>>,
    /// Lasts from the submission to the answer.
    span: Span,
    /// Set while the write is in progress.
    key: Option<KeyInProgress<G>>,
}

/// The key of a write in progress; its drop frees the key.
struct KeyInProgress<G: Group>(Arc<GroupCommit<G>>, u64);

impl<G: Group> Drop for KeyInProgress<G> {
    fn drop(&mut self) {
        self.0.lock().keys_in_progress.remove(&self.1);
    }
}

impl<G: Group> Caller<G> {
    /// Frees the key of the write, then answers the caller, if it still waits.
    fn answer(mut self, result: Result<G::Answer, StoreError>) {
        if let Some(error) = result.as_ref().map_or_else(Some, G::error) {
            self.span.fail(error.error_type());
        }
        drop((self.key, self.span));
        let _ = self.answer.send(result);
    }
}

impl<G: Group> GroupCommit<G> {
    pub(super) fn new(group: G, limits: Limits) -> Arc<Self> {
        let state =
            State { queue: VecDeque::new(), arrived: 0, keys_in_progress: HashSet::new(), writers: 0 };
        let alone = Semaphore::new(limits.alone);
        Arc::new(Self { group, limits, alone, state: Mutex::new(state) })
    }

    /// Commits a write together with others, and returns its answer after the commit.
    ///
    /// At the deadline it fails with [`StoreError::Deadline`] if the write was not sent; otherwise a moment later with
    /// [`StoreError::OutcomeUnknown`], unless the outcome is known by then.
    pub(super) async fn submit(self: &Arc<Self>, item: G::Item) -> Result<G::Answer, StoreError> {
        let limits = &self.limits;
        let deadline = Instant::now() + limits.deadline;
        let (answer, mut answered) = oneshot::channel();
        let span = Span::of_database(G::QUERY.as_str());
        let number = {
            let mut state = self.lock();
            if state.queue.len() >= limits.waiting {
                return Err(G::too_many());
            }
            let number = state.arrived;
            state.arrived += 1;
            state.queue.push_back((item, Caller { number, deadline, answer, span, key: None }));
            self.start_writer(&mut state);
            number
        };
        let mut result = timeout_at(deadline, &mut answered).await;
        if result.is_err() {
            if self.withdraw(number) {
                return Err(StoreError::Deadline);
            }
            result = timeout_at(deadline + limits.grace, answered).await;
        }
        // No answer: the writer still waits for the database, or the runtime is shutting down.
        result.ok().and_then(Result::ok).unwrap_or_else(|| Err(StoreError::unknown(StoreError::Deadline)))
    }

    /// Withdraws a write if no writer has taken it; returns whether it did.
    fn withdraw(&self, number: u64) -> bool {
        let mut state = self.lock();
        let index = state.queue.iter().position(|(_, caller)| caller.number == number);
        let withdrawn = index.and_then(|index| state.queue.remove(index));
        drop(state);
        withdrawn.map(|(_, mut caller)| caller.span.fail(StoreError::Deadline.error_type())).is_some()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<G>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_writer(self: &Arc<Self>, state: &mut State<G>) {
        if state.writers < self.limits.writers && !state.queue.is_empty() {
            state.writers += 1;
            let this = Arc::clone(self);
            tokio::spawn(async move {
                while let Some((items, callers)) = this.take() {
                    this.commit_group(items, callers).await;
                }
            });
        }
    }

    /// Takes the next group. Without one the writer ends, under the same lock, so that no write is left behind.
    fn take(self: &Arc<Self>) -> Option<Taken<G>> {
        let (now, mut later, mut items, mut callers) =
            (Instant::now(), VecDeque::new(), Vec::new(), Vec::new());
        let mut state = self.lock();
        while items.len() < self.limits.group
            && let Some((item, mut caller)) = state.queue.pop_front()
        {
            if caller.answer.is_closed() {
                continue;
            }
            if caller.deadline <= now {
                caller.answer(Err(StoreError::Deadline));
                continue;
            }
            match G::key(&item) {
                Some(key) if !state.keys_in_progress.insert(key) => later.push_back((item, caller)),
                key => {
                    caller.key = key.map(|key| KeyInProgress(Arc::clone(self), key));
                    items.push(item);
                    callers.push(caller);
                }
            }
        }
        later.append(&mut state.queue);
        state.queue = later;
        if items.is_empty() {
            state.writers -= 1;
            return None;
        }
        Some((items, callers))
    }

    /// Commits a group before the latest deadline of its callers. A caller with an earlier deadline does not wait for
    /// it.
    async fn commit_group(self: &Arc<Self>, mut items: Vec<G::Item>, mut callers: Vec<Caller<G>>) {
        if callers.len() > 1 {
            span::share(callers.len(), callers.iter_mut().map(|caller| &mut caller.span));
        }
        let deadline = callers.iter().map(|caller| caller.deadline).max().unwrap_or_else(Instant::now);
        match self.commit(&mut items, false, deadline).await {
            Ok(committed) => {
                for ((item, caller), committed) in iter::zip(items, callers).zip(committed) {
                    match committed {
                        Some(answer) => caller.answer(Ok(answer)),
                        None => self.spawn_alone(item, caller),
                    }
                }
            }
            Err(error) if callers.len() > 1 && error.may_be_of_one_write() => {
                for (item, caller) in iter::zip(items, callers) {
                    self.spawn_alone(item, caller);
                }
            }
            Err(error) => {
                for caller in callers {
                    caller.answer(Err(error.clone()));
                }
            }
        }
    }

    /// Commits a write alone, in its own task, because it may wait for a lock.
    fn spawn_alone(self: &Arc<Self>, mut item: G::Item, caller: Caller<G>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let committed = match timeout_at(caller.deadline, this.alone.acquire()).await {
                Ok(_permit) => this.commit(slice::from_mut(&mut item), true, caller.deadline).await,
                Err(_) => Err(StoreError::Deadline),
            };
            caller.answer(
                committed.and_then(|mut answers| answers.pop().flatten().ok_or(StoreError::Deadline)),
            );
            // For a write that waits for the key of this one.
            this.start_writer(&mut this.lock());
        });
    }

    /// Commits, with one retry if the connection was lost before the commit was sent. After a restart of the database,
    /// all connections are lost.
    async fn commit(
        &self,
        items: &mut [G::Item],
        alone: bool,
        deadline: Instant,
    ) -> Result<Vec<Option<G::Answer>>, StoreError> {
        let mut is_retry = false;
        loop {
            // A panic is a bug. It must not end the writer, and the commit may have been sent before it.
            let committed = AssertUnwindSafe(self.group.commit(items, alone, deadline)).catch_unwind().await;
            match committed.unwrap_or_else(|_| Err(StoreError::unknown(StoreError::Deadline))) {
                Err(error) if !is_retry && error.is_lost_connection() => is_retry = true,
                committed => return committed,
            }
        }
    }
}

#[cfg(test)]
mod tests;
