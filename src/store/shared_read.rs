//! Shared reads: reads of one kind that arrive during a statement share the next one.
//!
//! There is no timer: a read that finds a free reader is sent at once. A reader takes all waiting reads up to a limit,
//! and answers each caller from one statement. Callers share only a statement that is sent after they arrived, so no
//! answer is older than its request. Each caller has its own deadline. A caller that leaves before the statement is not
//! part of it.

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

/// A kind of read.
pub(super) trait ReadSet: Send + Sync + 'static {
    /// The query of the spans of its reads.
    const QUERY: Query;
    /// The request of a caller.
    type Question: Send + Sync + 'static;
    /// The answer to a caller.
    type Answer: Send + 'static;

    /// Reads for all callers by one statement; returns one answer per question, in the same order. An error is that of
    /// each caller.
    fn read(
        &self,
        questions: &[Self::Question],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;
}

/// The limits of a kind of read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The maximum number of reads in one statement.
    pub(super) set: usize,
    /// The maximum number of concurrent statements.
    pub(super) readers: usize,
    /// The maximum number of waiting reads; more are refused.
    pub(super) waiting: usize,
    /// The deadline of a read, including its wait.
    pub(super) deadline: Duration,
}

/// The reads of one kind in this process. Cheap to clone.
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

/// A waiting caller.
struct Caller<R: ReadSet> {
    answer: oneshot::Sender<Result<R::Answer, StoreError>>,
    /// Lasts from the question to the answer.
    span: Span,
}

/// The questions of a statement, and their callers.
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

    /// Reads together with other callers.
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
        // No answer: the reader has panicked, or the runtime is shutting down.
        timeout(limits.deadline, answered)
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or(Err(StoreError::Deadline))
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads set after set until no caller waits.
    async fn run(self) {
        while let Some((questions, mut callers)) = self.take() {
            if callers.len() > 1 {
                span::share(callers.len(), callers.iter_mut().map(|caller| &mut caller.span));
            }
            // Catches a panic, which is a bug and must not end the reader.
            match AssertUnwindSafe(self.0.read.read(&questions)).catch_unwind().await {
                Ok(Ok(answers)) => answer(callers, answers.into_iter().map(Ok)),
                Ok(Err(error)) => answer(callers, std::iter::repeat_with(|| Err(error.clone()))),
                Err(_) => error!(reads = callers.len(), "reading a set panicked"),
            }
        }
    }

    /// Takes the next set. Without one the reader ends, under the same lock, so that no read is left behind.
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

/// Answers each caller that still waits.
fn answer<R: ReadSet>(callers: Vec<Caller<R>>, answers: impl Iterator<Item = Result<R::Answer, StoreError>>) {
    for (Caller { answer, mut span }, result) in callers.into_iter().zip(answers) {
        if let Err(error) = &result {
            span.fail(error.error_type());
        }
        drop(span);
        let _ = answer.send(result);
    }
}

#[cfg(test)]
mod tests;
