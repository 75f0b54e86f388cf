//! Shared reads: reads of one kind that arrive during a statement share the next one.
//!
//! They use the queue of group commit. There is no timer: a read that finds a free reader is sent at once. A reader takes
//! all waiting reads up to a limit, and answers each caller from one statement. Callers share only a statement that is
//! sent after they arrived, so no answer is older than its request. Each caller has its own deadline. A caller that
//! leaves before the statement is not part of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::StoreError;
use super::group_commit::{Group, GroupCommit, Limits};
use crate::metrics::Query;

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

/// Reads as a group. An error of the statement is the answer to each caller, so no read is repeated alone.
pub(super) struct Reads<R>(R);

impl<R: ReadSet> Group for Reads<R> {
    const QUERY: Query = R::QUERY;

    type Item = R::Question;
    type Answer = Result<R::Answer, StoreError>;

    fn key(_: &R::Question) -> Option<u64> {
        None
    }

    fn too_many() -> StoreError {
        StoreError::TooManyReads
    }

    fn error(answer: &Self::Answer) -> Option<&StoreError> {
        answer.as_ref().err()
    }

    async fn commit(
        &self,
        questions: &mut [R::Question],
        _alone: bool,
        _deadline: Instant,
    ) -> Result<Vec<Option<Self::Answer>>, StoreError> {
        Ok(match self.0.read(questions).await {
            Ok(answers) => answers.into_iter().map(|answer| Some(Ok(answer))).collect(),
            Err(error) => questions.iter().map(|_| Some(Err(error.clone()))).collect(),
        })
    }
}

/// The reads of one kind in this process.
pub(super) type SharedRead<R> = GroupCommit<Reads<R>>;

impl<R: ReadSet> SharedRead<R> {
    /// Starts reads with up to `set` of them in one statement.
    pub(super) fn start(read: R, set: usize, deadline: Duration) -> Arc<Self> {
        let limits =
            Limits { group: set, writers: 2, alone: 0, waiting: 1024, deadline, grace: Duration::ZERO };
        Self::new(Reads(read), limits)
    }

    /// Reads together with other callers.
    pub(super) async fn ask(self: &Arc<Self>, question: R::Question) -> Result<R::Answer, StoreError> {
        match self.submit(question).await {
            // The statement did not answer in time, or panicked. A read writes nothing, so no outcome is unknown.
            Err(StoreError::OutcomeUnknown(_)) => Err(StoreError::Deadline),
            answer => answer?,
        }
    }
}

#[cfg(test)]
mod tests;
