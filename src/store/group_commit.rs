//! Group commit: writes that arrive while a commit is under way travel together in the next.
//!
//! There is no timer: a write that finds a writer free leaves at once. A writer takes everything that waits, up to
//! a bound, commits it together and answers each write after that commit. A write that the database refuses is
//! found by trying each of its group alone, so that only it gets the error.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::StoreError;

/// What a group does.
pub(super) trait Group: Clone + Send + Sync + 'static {
    /// A write.
    type Item: Send + 'static;
    /// What its caller learns.
    type Answer: Send + 'static;

    /// Two writes of one key are never under way at once, and are committed in the sequence of their arrival.
    fn key(item: &Self::Item) -> Option<Uuid>;

    /// Commits these writes in one transaction, before `deadline`. An error says that none of them was committed.
    /// It may be called again with the same items.
    fn commit(
        &self,
        items: &mut [Self::Item],
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<Committed<Self::Answer>>, StoreError>> + Send;
}

/// What became of a write whose group was committed.
#[derive(Debug)]
pub(super) enum Committed<A> {
    /// This.
    Answer(Result<A, StoreError>),
    /// It would have held up the others, and was left out: it is to be committed alone.
    LeftOut,
}

/// How much is under way at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Writes in one commit.
    pub(super) group: usize,
    /// Groups under way at once; as many more writes are committed alone at once.
    pub(super) writers: usize,
    /// Writes that wait; more are refused.
    pub(super) waiting: usize,
    /// How long one write may take, waiting included.
    pub(super) deadline: Duration,
}

struct Waiting<G: Group> {
    number: u64,
    item: G::Item,
    deadline: Instant,
    answer: oneshot::Sender<Result<G::Answer, StoreError>>,
}

struct State<G: Group> {
    queue: VecDeque<Waiting<G>>,
    /// How many writes have come so far: the next one's number.
    arrived: u64,
    keys_under_way: HashSet<Uuid>,
    writers: usize,
}

/// The writes of one kind of one process. Cheap to clone.
pub(super) struct GroupCommit<G: Group> {
    state: Arc<Mutex<State<G>>>,
    alone: Arc<Semaphore>,
    limits: Limits,
}

impl<G: Group> Clone for GroupCommit<G> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), alone: Arc::clone(&self.alone), limits: self.limits }
    }
}

impl<G: Group> std::fmt::Debug for GroupCommit<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupCommit").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl<G: Group> GroupCommit<G> {
    pub(super) fn new(limits: Limits) -> Self {
        let state = State { queue: VecDeque::new(), arrived: 0, keys_under_way: HashSet::new(), writers: 0 };
        let alone = Arc::new(Semaphore::new(limits.writers));
        Self { state: Arc::new(Mutex::new(state)), alone, limits }
    }

    /// Commits a write and says what became of it. A caller that goes away before a writer has taken the write
    /// withdraws it; after that, it changes nothing.
    pub(super) async fn submit(&self, group: &G, item: G::Item) -> Result<G::Answer, StoreError> {
        let (answer, mut answered) = oneshot::channel();
        let deadline = Instant::now() + self.limits.deadline;
        let number = {
            let mut state = self.lock();
            if state.queue.len() >= self.limits.waiting {
                return Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut));
            }
            let number = state.arrived;
            state.arrived += 1;
            state.queue.push_back(Waiting { number, item, deadline, answer });
            self.start_writer(&mut state, group);
            number
        };
        let answered = match timeout_at(deadline, &mut answered).await {
            Ok(answered) => answered,
            Err(_) if self.withdraw(number) => return Err(StoreError::Deadline),
            // A writer has it, which ends by the same deadline.
            Err(_) => answered.await,
        };
        // Without an answer the writer has panicked.
        answered.unwrap_or(Err(StoreError::Deadline))
    }

    /// Takes a write back that no writer has taken. Whether it could be.
    fn withdraw(&self, number: u64) -> bool {
        let mut state = self.lock();
        let before = state.queue.len();
        state.queue.retain(|waiting| waiting.number != number);
        state.queue.len() < before
    }

    fn lock(&self) -> MutexGuard<'_, State<G>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_writer(&self, state: &mut State<G>, group: &G) {
        if state.writers < self.limits.writers && !state.queue.is_empty() {
            state.writers += 1;
            let writer = Writer { of: self.clone(), has_ended: false };
            tokio::spawn(writer.run(group.clone()));
        }
    }

    async fn write_alone(self, group: G, write: Waiting<G>, keys: Keys<G>) {
        match timeout_at(write.deadline, self.alone.acquire()).await {
            Ok(_permit) => commit_alone(&group, write).await,
            Err(_) => write.tell(Err(StoreError::Deadline)),
        }
        drop(keys);
        self.start_writer(&mut self.lock(), &group);
    }
}

impl<G: Group> Waiting<G> {
    fn tell(self, result: Result<G::Answer, StoreError>) {
        // A caller that has gone away is told nothing.
        let _ = self.answer.send(result);
    }
}

/// One of the writers that a [`GroupCommit`] counts.
struct Writer<G: Group> {
    of: GroupCommit<G>,
    has_ended: bool,
}

impl<G: Group> Drop for Writer<G> {
    /// After a panic, too.
    fn drop(&mut self) {
        if !self.has_ended {
            self.of.lock().writers -= 1;
        }
    }
}

/// The keys of writes that are under way.
struct Keys<G: Group> {
    of: GroupCommit<G>,
    keys: Vec<Uuid>,
}

impl<G: Group> Drop for Keys<G> {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        for key in &self.keys {
            state.keys_under_way.remove(key);
        }
    }
}

impl<G: Group> Writer<G> {
    /// Commits group after group until nothing waits that can be committed now.
    async fn run(mut self, group: G) {
        while let Some((writes, keys)) = self.take() {
            self.commit(&group, writes, keys).await;
        }
    }

    /// The next group. Where there is none the writer ends, under the same lock, so that no write is left behind.
    fn take(&mut self) -> Option<(Vec<Waiting<G>>, Keys<G>)> {
        let limits = self.of.limits;
        let (now, mut later, mut writes, mut keys) =
            (Instant::now(), VecDeque::new(), Vec::new(), Vec::new());
        let mut state = self.of.lock();
        while writes.len() < limits.group
            && let Some(write) = state.queue.pop_front()
        {
            if write.answer.is_closed() {
                continue;
            }
            // What is left of its time is hardly enough, and would bound its whole group.
            if write.deadline.saturating_duration_since(now) < limits.deadline / 10 {
                write.tell(Err(StoreError::Deadline));
                continue;
            }
            match G::key(&write.item) {
                Some(key) if !state.keys_under_way.insert(key) => later.push_back(write),
                key => {
                    keys.extend(key);
                    writes.push(write);
                }
            }
        }
        later.append(&mut state.queue);
        state.queue = later;
        if writes.is_empty() {
            state.writers -= 1;
            drop(state);
            self.has_ended = true;
            return None;
        }
        drop(state);
        Some((writes, Keys { of: self.of.clone(), keys }))
    }

    async fn commit(&self, group: &G, writes: Vec<Waiting<G>>, mut keys: Keys<G>) {
        let deadline = writes.iter().map(|write| write.deadline).min().unwrap_or_else(Instant::now);
        let (mut items, callers): (Vec<_>, Vec<_>) = writes
            .into_iter()
            .map(|write| (write.item, (write.number, write.deadline, write.answer)))
            .unzip();
        let committed = group.commit(&mut items, deadline).await;
        let writes = items.into_iter().zip(callers).map(|(item, (number, deadline, answer))| Waiting {
            number,
            item,
            deadline,
            answer,
        });
        match committed {
            Ok(answers) => {
                for (write, committed) in writes.zip(answers) {
                    match committed {
                        Committed::Answer(result) => write.tell(result),
                        Committed::LeftOut => {
                            let keys = keys.take(G::key(&write.item));
                            tokio::spawn(self.of.clone().write_alone(group.clone(), write, keys));
                        }
                    }
                }
            }
            Err(error) if writes.len() > 1 && error.may_be_of_one_write() => {
                for write in writes {
                    commit_alone(group, write).await;
                }
            }
            Err(error) => writes.for_each(|write| write.tell(Err(error.again()))),
        }
    }
}

impl<G: Group> Keys<G> {
    /// Moves one of the keys, which stays under way.
    fn take(&mut self, key: Option<Uuid>) -> Self {
        self.keys.retain(|known| Some(*known) != key);
        Self { of: self.of.clone(), keys: key.into_iter().collect() }
    }
}

/// Commits a write in a transaction of its own.
async fn commit_alone<G: Group>(group: &G, write: Waiting<G>) {
    let Waiting { item, deadline, answer, .. } = write;
    if Instant::now() >= deadline {
        let _ = answer.send(Err(StoreError::Deadline));
        return;
    }
    let committed = group.commit(&mut [item], deadline).await;
    let result = match committed.map(|mut answers| answers.pop()) {
        Ok(Some(Committed::Answer(result))) => result,
        // A write that is alone holds up nobody.
        Ok(Some(Committed::LeftOut) | None) => Err(StoreError::Deadline),
        Err(error) => Err(error),
    };
    let _ = answer.send(result);
}

#[cfg(test)]
mod tests;
