//! Group commit: writes that arrive while a commit is under way share the next one.
//!
//! There is no timer: a write that finds a writer free leaves at once. A writer takes everything that waits, up to
//! a bound, commits it together and answers each caller after that commit, never before. Only the commit is shared:
//!
//! * Refusals: a group that the database refuses is tried again write by write, and only the guilty one gets the error.
//! * Locks: a write that would wait for another transaction is left out of its group and committed alone.
//! * Deadlines: a write that still waits at its caller's deadline is never sent. One that a writer has taken is looked
//!   for a moment longer; then its outcome is unknown.
//! * Callers: one that goes away withdraws a write that no writer has taken, and changes nothing after that.

use std::collections::{HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, iter, slice};

use futures_util::FutureExt;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::StoreError;
use crate::metrics::Query;
use crate::telemetry::span::{self, Span};

/// One kind of write, and how it is committed.
pub(super) trait Group: Send + Sync + 'static {
    /// What the span of a write is called.
    const QUERY: Query;
    /// A write.
    type Item: Send + 'static;
    /// What its caller learns.
    type Answer: Send + 'static;

    /// Two writes of one key are never under way at once, and are committed in the sequence of their arrival.
    /// Different writes may share a key; the second waits for the first.
    fn key(item: &Self::Item) -> Option<u64>;

    /// Commits these writes in one transaction before `deadline`; one answer for each, in the same sequence.
    ///
    /// It may be called again with the same items. `alone`: there is one item, and it may wait for a lock, because it
    /// holds up nobody. An error says that nothing was committed, except [`StoreError::OutcomeUnknown`].
    fn commit(
        &self,
        items: &mut [Self::Item],
        alone: bool,
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<Committed<Self::Answer>>, StoreError>> + Send;
}

/// What became of a write whose group was committed.
#[derive(Debug)]
pub(super) enum Committed<A> {
    /// It was committed, or decided without a write.
    Answer(A),
    /// It would have waited for a lock, and is to be committed alone.
    LeftOut,
}

/// How much is under way at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Writes in one commit.
    pub(super) group: usize,
    /// Groups under way at once.
    pub(super) writers: usize,
    /// Writes that are committed alone at once.
    pub(super) alone: usize,
    /// Writes that wait; more are refused.
    pub(super) waiting: usize,
    /// How long one write may take, waiting included.
    pub(super) deadline: Duration,
    /// How long after that a caller waits to learn what became of a write that was sent.
    pub(super) settle: Duration,
}

/// The writes of one kind of one process. Cheap to clone.
pub(super) struct GroupCommit<G: Group>(Arc<Inner<G>>);

struct Inner<G: Group> {
    group: G,
    limits: Limits,
    alone: Semaphore,
    state: Mutex<State<G>>,
}

struct State<G: Group> {
    queue: VecDeque<(G::Item, Caller<G>)>,
    /// How many writes have come so far: the next one's number.
    arrived: u64,
    keys_under_way: HashSet<u64>,
    writers: usize,
}

/// Writes of one group, and who waits for each.
type Taken<G> = (Vec<<G as Group>::Item>, Vec<Caller<G>>);

/// Who waits for a write.
struct Caller<G: Group> {
    number: u64,
    deadline: Instant,
    answer: oneshot::Sender<Result<G::Answer, StoreError>>,
    /// From the moment of asking to the answer.
    span: Span,
    /// Set while the write is under way.
    key: Option<KeyUnderWay<G>>,
}

/// The key of a write that is under way, until this is dropped.
struct KeyUnderWay<G: Group>(GroupCommit<G>, u64);

impl<G: Group> Drop for KeyUnderWay<G> {
    fn drop(&mut self) {
        self.0.lock().keys_under_way.remove(&self.1);
    }
}

impl<G: Group> Clone for GroupCommit<G> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<G: Group> fmt::Debug for GroupCommit<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCommit").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

impl<G: Group> Caller<G> {
    /// Answers, after the write's key is free again. A caller that has gone away is told nothing.
    fn tell(mut self, result: Result<G::Answer, StoreError>) {
        if let Err(error) = &result {
            self.span.fail(error.as_str());
        }
        drop((self.key, self.span));
        let _ = self.answer.send(result);
    }
}

impl<G: Group> GroupCommit<G> {
    pub(super) fn new(group: G, limits: Limits) -> Self {
        let state = State { queue: VecDeque::new(), arrived: 0, keys_under_way: HashSet::new(), writers: 0 };
        let alone = Semaphore::new(limits.alone);
        Self(Arc::new(Inner { group, limits, alone, state: Mutex::new(state) }))
    }

    /// Commits a write together with those that wait with it, and answers after the commit.
    ///
    /// At the deadline it fails with [`StoreError::Deadline`] where nothing was sent, else a moment later with
    /// [`StoreError::OutcomeUnknown`], unless the writer learns by then what became of the write.
    pub(super) async fn submit(&self, item: G::Item) -> Result<G::Answer, StoreError> {
        let limits = &self.0.limits;
        let deadline = Instant::now() + limits.deadline;
        let (answer, mut answered) = oneshot::channel();
        let span = Span::of_database(G::QUERY.as_str());
        let number = {
            let mut state = self.lock();
            if state.queue.len() >= limits.waiting {
                return Err(StoreError::TooManyWrites);
            }
            let number = state.arrived;
            state.arrived += 1;
            state.queue.push_back((item, Caller { number, deadline, answer, span, key: None }));
            self.start_writer(&mut state);
            number
        };
        let mut told = timeout_at(deadline, &mut answered).await;
        if told.is_err() {
            if self.withdraw(number) {
                return Err(StoreError::Deadline);
            }
            told = timeout_at(deadline + limits.settle, answered).await;
        }
        // Without an answer the writer still waits for the database, or the runtime ends.
        told.ok().and_then(Result::ok).unwrap_or_else(|| Err(StoreError::unknown(StoreError::Deadline)))
    }

    /// Takes a write back that no writer has taken. Whether it could be.
    fn withdraw(&self, number: u64) -> bool {
        let mut state = self.lock();
        let place = state.queue.iter().position(|(_, caller)| caller.number == number);
        let withdrawn = place.and_then(|place| state.queue.remove(place));
        drop(state);
        withdrawn.map(|(_, mut caller)| caller.span.fail(StoreError::Deadline.as_str())).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State<G>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_writer(&self, state: &mut State<G>) {
        if state.writers < self.0.limits.writers && !state.queue.is_empty() {
            state.writers += 1;
            let this = self.clone();
            tokio::spawn(async move {
                while let Some((items, callers)) = this.take() {
                    this.commit_group(items, callers).await;
                }
            });
        }
    }

    /// The next group. Where there is none the writer ends, under the same lock, so that no write is left behind.
    fn take(&self) -> Option<Taken<G>> {
        let (now, mut later, mut items, mut callers) =
            (Instant::now(), VecDeque::new(), Vec::new(), Vec::new());
        let mut state = self.lock();
        while items.len() < self.0.limits.group
            && let Some((item, mut caller)) = state.queue.pop_front()
        {
            if caller.answer.is_closed() {
                continue;
            }
            if caller.deadline <= now {
                caller.tell(Err(StoreError::Deadline));
                continue;
            }
            match G::key(&item) {
                Some(key) if !state.keys_under_way.insert(key) => later.push_back((item, caller)),
                key => {
                    caller.key = key.map(|key| KeyUnderWay(self.clone(), key));
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

    /// Commits a group before the last of its deadlines; a caller whose own is earlier does not wait for it.
    async fn commit_group(&self, mut items: Vec<G::Item>, mut callers: Vec<Caller<G>>) {
        if callers.len() > 1 {
            span::share(callers.len(), callers.iter_mut().map(|caller| &mut caller.span));
        }
        let deadline = callers.iter().map(|caller| caller.deadline).max().unwrap_or_else(Instant::now);
        match self.commit(&mut items, false, deadline).await {
            Ok(committed) => {
                for ((item, caller), committed) in iter::zip(items, callers).zip(committed) {
                    match committed {
                        Committed::Answer(answer) => caller.tell(Ok(answer)),
                        Committed::LeftOut => self.spawn_alone(item, caller),
                    }
                }
            }
            Err(error) if callers.len() > 1 && error.may_be_of_one_write() => {
                for (item, caller) in iter::zip(items, callers) {
                    self.spawn_alone(item, caller);
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for caller in callers {
                    caller.tell(Err(StoreError::of_set(&error)));
                }
            }
        }
    }

    /// Commits a write in a transaction of its own, in a task of its own: it may wait for a lock.
    fn spawn_alone(&self, mut item: G::Item, caller: Caller<G>) {
        let this = self.clone();
        tokio::spawn(async move {
            let committed = match timeout_at(caller.deadline, this.0.alone.acquire()).await {
                Ok(_permit) => this.commit(slice::from_mut(&mut item), true, caller.deadline).await,
                Err(_) => Err(StoreError::Deadline),
            };
            caller.tell(committed.and_then(|mut committed| match committed.pop() {
                Some(Committed::Answer(answer)) => Ok(answer),
                Some(Committed::LeftOut) | None => Err(StoreError::Deadline),
            }));
            // For a write that waits for this one's key.
            this.start_writer(&mut this.lock());
        });
    }

    /// Where the connection was lost before anything could be committed, as all are after a restart of the database,
    /// it is tried once more.
    async fn commit(
        &self,
        items: &mut [G::Item],
        alone: bool,
        deadline: Instant,
    ) -> Result<Vec<Committed<G::Answer>>, StoreError> {
        let committed = self.try_commit(items, alone, deadline).await;
        match committed {
            Err(error) if error.is_lost_connection() => self.try_commit(items, alone, deadline).await,
            committed => committed,
        }
    }

    /// A panic is a bug. It must not end the writer, and the commit may have been sent before.
    async fn try_commit(
        &self,
        items: &mut [G::Item],
        alone: bool,
        deadline: Instant,
    ) -> Result<Vec<Committed<G::Answer>>, StoreError> {
        let committed = AssertUnwindSafe(self.0.group.commit(items, alone, deadline)).catch_unwind().await;
        committed.unwrap_or_else(|_| Err(StoreError::unknown(StoreError::Deadline)))
    }
}

#[cfg(test)]
mod tests;
