//! Writes that arrive while a commit is under way share the next one.
//!
//! A writer takes every write that waits, up to [`SET`], makes all of them durable in one transaction and answers each
//! caller after the commit, never before. There is no timer: a write that is alone leaves at once. What is shared is one
//! statement and one commit; everything else stays each caller's own:
//!
//! * A refusal: where PostgreSQL refuses a set, each of its writes is tried again alone, and only the guilty one gets
//!   the error.
//! * The deadline: a write that still waits when its caller's time is up is never sent. One that was sent has an unknown
//!   outcome then.
//! * The place: a caller that goes away takes nothing with it.

use std::collections::HashSet;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::error;

use super::StoreError;

/// How many writes wait at most. One more is refused.
const QUEUE: usize = 1024;

/// How many writes share a commit at most.
const SET: usize = 128;

/// How many sets are written side by side: while one waits for the disk, the next is sent.
const WRITERS: usize = 2;

/// How long a caller whose time is up waits for the writer that has its write.
const WRITER_GIVES_UP: Duration = Duration::from_millis(200);

/// How one kind of write is made durable.
pub(super) trait SetWriter: Send + Sync + 'static {
    /// What is to be written.
    type Write: Send + Sync + 'static;
    /// What its caller is told after the commit.
    type Answer: Send + 'static;

    /// Two writes with the same number are never in one set; the second one waits for the next. Unequal writes may have
    /// the same number: that costs the second a moment.
    fn conflict(write: &Self::Write) -> Option<u64>;

    /// Makes the whole set durable in one transaction; one answer for each write, in the same sequence. It gives up at
    /// `until`, and fails with [`StoreError::OutcomeUnknown`] where the set may be durable all the same.
    ///
    /// A wait for a lock that another transaction holds must be short: it holds up the whole set.
    fn write_set(
        &self,
        set: &[&Self::Write],
        until: Instant,
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;

    /// The same for one write whose set was refused, on another connection.
    fn write_alone(
        &self,
        write: &Self::Write,
        until: Instant,
    ) -> impl Future<Output = Result<Self::Answer, StoreError>> + Send;
}

/// The queue of one kind of write, and its writers. They start with the first write and end with this.
pub(super) struct PlacementCommit<W: SetWriter> {
    writer: Arc<W>,
    queue: OnceLock<mpsc::Sender<Waiting<W>>>,
}

impl<W: SetWriter> fmt::Debug for PlacementCommit<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlacementCommit").finish_non_exhaustive()
    }
}

/// A write and who waits for it.
struct Waiting<W: SetWriter> {
    write: Arc<W::Write>,
    claim: Arc<Claim>,
    until: Instant,
    answer: oneshot::Sender<Verdict<W::Answer>>,
}

/// Whoever claims a write first decides: a writer sends it, or its caller gives it up unsent.
#[derive(Default)]
struct Claim(AtomicBool);

impl Claim {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

enum Verdict<A> {
    Written(A),
    Failed(StoreError),
    /// The set was refused.
    TryAlone,
}

impl<W: SetWriter> PlacementCommit<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer: Arc::new(writer), queue: OnceLock::new() }
    }

    /// Makes a write durable together with those that wait with it, and answers after the commit.
    ///
    /// At `until` the caller gets [`StoreError::Deadline`] where nothing was sent, else [`StoreError::OutcomeUnknown`].
    pub(super) async fn write(&self, write: &Arc<W::Write>, until: Instant) -> Result<W::Answer, StoreError> {
        let (answer, mut answered) = oneshot::channel();
        let claim = Arc::new(Claim::default());
        let waiting = Waiting { write: Arc::clone(write), claim: Arc::clone(&claim), until, answer };
        let queue = self.queue.get_or_init(|| start(&self.writer));
        queue.try_send(waiting).map_err(|_| StoreError::TooManyWrites)?;
        let mut told = timeout_at(until, &mut answered).await;
        if told.is_err() {
            if claim.take() {
                return Err(StoreError::Deadline);
            }
            // A writer has it. It gives up at about the same time, and knows whether it sent anything.
            told = timeout_at(until + WRITER_GIVES_UP, answered).await;
        }
        match told {
            Ok(Ok(Verdict::Written(answer))) => Ok(answer),
            Ok(Ok(Verdict::Failed(error))) => Err(error),
            Ok(Ok(Verdict::TryAlone)) => self.writer.write_alone(write, until).await,
            // The writer crashed, or still waits for the database.
            Ok(Err(_)) | Err(_) => Err(StoreError::unknown(StoreError::Deadline)),
        }
    }
}

fn start<W: SetWriter>(writer: &Arc<W>) -> mpsc::Sender<Waiting<W>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..WRITERS {
        tokio::spawn(run(Arc::clone(writer), Arc::clone(&receiver)));
    }
    sender
}

/// Writes set after set until nobody can send any more.
async fn run<W: SetWriter>(writer: Arc<W>, queue: Arc<Mutex<mpsc::Receiver<Waiting<W>>>>) {
    let mut waiting = Vec::with_capacity(SET);
    loop {
        if waiting.is_empty() {
            if queue.lock().await.recv_many(&mut waiting, SET).await == 0 {
                return;
            }
        } else if let Ok(mut queue) = queue.try_lock() {
            while waiting.len() < SET
                && let Ok(next) = queue.try_recv()
            {
                waiting.push(next);
            }
        }
        let (set, rest) = choose(waiting);
        write_set(&*writer, set).await;
        waiting = rest;
    }
}

/// The writes of the next set, and those that cannot be in it. What was given up is in neither.
fn choose<W: SetWriter>(waiting: Vec<Waiting<W>>) -> (Vec<Waiting<W>>, Vec<Waiting<W>>) {
    let mut conflicts = HashSet::with_capacity(waiting.len());
    let (mut set, mut rest) = (Vec::with_capacity(waiting.len()), Vec::new());
    for write in waiting {
        if W::conflict(&write.write).is_some_and(|number| !conflicts.insert(number)) {
            rest.push(write);
        } else if write.claim.take() {
            set.push(write);
        }
    }
    (set, rest)
}

async fn write_set<W: SetWriter>(writer: &W, set: Vec<Waiting<W>>) {
    // The first to come is the first whose time is up; after the last one nobody waits.
    let Some(until) = set.iter().map(|waiting| waiting.until).max() else { return };
    let contents: Vec<&W::Write> = set.iter().map(|waiting| &*waiting.write).collect();
    // A panic is a bug, and it must not end the writer: its callers learn that the outcome is unknown.
    let written = AssertUnwindSafe(writer.write_set(&contents, until)).catch_unwind().await;
    drop(contents);
    match written {
        // A caller that has gone away needs no answer.
        Ok(Ok(answers)) => {
            for (waiting, answer) in set.into_iter().zip(answers) {
                let _ = waiting.answer.send(Verdict::Written(answer));
            }
        }
        Ok(Err(error)) if error.is_lock_timeout() || (error.is_rolled_back() && set.len() > 1) => {
            for waiting in set {
                let _ = waiting.answer.send(Verdict::TryAlone);
            }
        }
        Ok(Err(error)) => {
            let error = Arc::new(error);
            for waiting in set {
                let _ = waiting.answer.send(Verdict::Failed(StoreError::of_set(&error)));
            }
        }
        Err(_) => error!(writes = set.len(), "writing a set of writes panicked"),
    }
}

#[cfg(test)]
mod tests;
