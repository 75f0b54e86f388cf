//! Shared reads: reads of one kind that arrive while one is under way travel together in the next.
//!
//! There is no timer: a read that finds a reader free leaves at once. A reader takes every read that waits, up to a
//! bound, and answers each caller from one statement. A statement is shared only by callers that arrived before it was
//! sent, so no caller gets an answer that is older than its request. Nothing else is shared: each caller has its own
//! deadline, and one that goes away is not read for, unless the statement was sent already.

use std::collections::VecDeque;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::error;

use super::StoreError;
use crate::metrics::Query;
use crate::telemetry::span::{self, Span};

/// One kind of read.
pub(super) trait ReadSet: Send + Sync + 'static {
    /// What the span of a read is called.
    const QUERY: Query;
    /// What one caller asks for.
    type Question: Send + Sync + 'static;
    /// What this caller learns.
    type Answer: Send + 'static;

    /// Reads for all of them by one statement; one answer for each, in the same sequence. The error of a set is the
    /// error of each of its callers.
    fn read(
        &self,
        questions: &[Self::Question],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;
}

/// How much is under way at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Reads in one statement.
    pub(super) set: usize,
    /// Statements under way at once.
    pub(super) readers: usize,
    /// Reads that wait; more are refused.
    pub(super) waiting: usize,
    /// How long one read may take, waiting included.
    pub(super) deadline: Duration,
}

/// The reads of one kind of one process. Cheap to clone.
pub(super) struct SharedRead<R: ReadSet>(Arc<Inner<R>>);

struct Inner<R: ReadSet> {
    read: R,
    limits: Limits,
    state: Mutex<State<R>>,
}

struct State<R: ReadSet> {
    queue: VecDeque<(R::Question, Caller<R>)>,
    readers: usize,
}

/// Who waits for a read.
struct Caller<R: ReadSet> {
    answer: oneshot::Sender<Result<R::Answer, StoreError>>,
    /// From the moment of asking to the answer.
    span: Span,
}

/// What is read together, and who waits for each.
type Set<R> = (Vec<<R as ReadSet>::Question>, Vec<Caller<R>>);

impl<R: ReadSet> Clone for SharedRead<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: ReadSet> fmt::Debug for SharedRead<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRead").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

impl<R: ReadSet> SharedRead<R> {
    pub(super) fn new(read: R, limits: Limits) -> Self {
        let state = State { queue: VecDeque::new(), readers: 0 };
        Self(Arc::new(Inner { read, limits, state: Mutex::new(state) }))
    }

    /// Reads together with those that wait.
    pub(super) async fn ask(&self, question: R::Question) -> Result<R::Answer, StoreError> {
        let limits = &self.0.limits;
        let (answer, answered) = oneshot::channel();
        let span = Span::of_database(R::QUERY.as_str());
        {
            let mut state = self.lock();
            if state.queue.len() >= limits.waiting {
                return Err(StoreError::TooManyReads);
            }
            state.queue.push_back((question, Caller { answer, span }));
            if state.readers < limits.readers {
                state.readers += 1;
                tokio::spawn(self.clone().run());
            }
        }
        // Without an answer the reader has panicked, or the runtime ends.
        timeout(limits.deadline, answered)
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or(Err(StoreError::Deadline))
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads set after set until nobody waits.
    async fn run(self) {
        while let Some((questions, mut callers)) = self.take() {
            if callers.len() > 1 {
                span::share(callers.len(), callers.iter_mut().map(|caller| &mut caller.span));
            }
            // A panic is a bug, and it must not end the reader.
            match AssertUnwindSafe(self.0.read.read(&questions)).catch_unwind().await {
                Ok(Ok(answers)) => answer(callers, answers.into_iter().map(Ok)),
                Ok(Err(error)) => {
                    let error = Arc::new(error);
                    answer(callers, std::iter::repeat_with(|| Err(StoreError::of_set(&error))));
                }
                Err(_) => error!(reads = callers.len(), "reading a set panicked"),
            }
        }
    }

    /// The next set. Where there is none the reader ends, under the same lock, so that no read is left behind.
    fn take(&self) -> Option<Set<R>> {
        let mut state = self.lock();
        let most = state.queue.len().min(self.0.limits.set);
        let (mut questions, mut callers) = (Vec::with_capacity(most), Vec::with_capacity(most));
        while questions.len() < self.0.limits.set
            && let Some((question, caller)) = state.queue.pop_front()
        {
            if !caller.answer.is_closed() {
                questions.push(question);
                callers.push(caller);
            }
        }
        if questions.is_empty() {
            state.readers -= 1;
            return None;
        }
        Some((questions, callers))
    }
}

/// Tells each caller its own answer. One that has gone away is told nothing.
fn answer<R: ReadSet>(callers: Vec<Caller<R>>, answers: impl Iterator<Item = Result<R::Answer, StoreError>>) {
    for (Caller { answer, mut span }, result) in callers.into_iter().zip(answers) {
        if let Err(error) = &result {
            span.fail(error.as_str());
        }
        drop(span);
        let _ = answer.send(result);
    }
}

#[cfg(test)]
mod tests;
