//! Property: for any arrivals, failures, deadlines and disconnects, each caller gets its own answer exactly once.

use std::collections::HashMap;
use std::panic::resume_unwind;

use futures_util::future::join_all;
use proptest::prelude::*;
use tokio::runtime::Builder;
use tokio::time::{sleep, sleep_until, timeout};
use uuid::Uuid;

use super::*;

const LIMITS: Limits = Limits {
    group: 4,
    writers: 2,
    alone: 2,
    waiting: 12,
    deadline: Duration::from_millis(100),
    grace: Duration::from_millis(30),
};

/// The behaviour of the database for a group with such a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Takes,
    Refuses,
    /// Another transaction holds a lock that the write needs.
    Locked,
    /// The connection is lost this number of times before anything is sent.
    Disconnects(u32),
    /// The database commits and the answer is lost; the look-up of the outcome takes longer than the caller waits.
    LosesTheAnswer,
    /// The database commits, but only after the deadline.
    Hangs,
    /// The code panics before the commit.
    PanicsBefore,
    /// The code panics after the commit.
    PanicsAfter,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    id: usize,
    mood: Mood,
    key: Option<u64>,
    /// The time from the previous arrival to this one, in milliseconds.
    after: u64,
    /// The time until its caller disconnects, in milliseconds.
    patience: u64,
}

fn good(id: usize) -> Write {
    Write { id, mood: Mood::Takes, key: None, after: 0, patience: 10_000 }
}

/// A database that records its commits.
#[derive(Default)]
struct Book {
    committed: Vec<usize>,
    under_way: HashSet<u64>,
    groups: Vec<usize>,
}

impl Book {
    fn times(&self) -> HashMap<usize, usize> {
        let mut times = HashMap::new();
        for id in &self.committed {
            *times.entry(*id).or_default() += 1;
        }
        times
    }
}

#[derive(Clone)]
struct Fake {
    book: Arc<Mutex<Book>>,
    /// The durations of the commits, used in turn.
    millis: Arc<Vec<u64>>,
}

/// The keys of a group, which no other group holds at the same time.
struct Held<'a>(&'a Fake, Vec<u64>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut book = self.0.book.lock().unwrap();
        self.1.iter().for_each(|key| assert!(book.under_way.remove(key)));
    }
}

impl Fake {
    fn new(millis: Vec<u64>) -> Self {
        Self { book: Arc::default(), millis: Arc::new(millis) }
    }

    fn begin(&self, items: &[Write]) -> (Held<'_>, Duration) {
        let mut book = self.book.lock().unwrap();
        let keys: Vec<u64> = items.iter().filter_map(Self::key).collect();
        for key in &keys {
            assert!(book.under_way.insert(*key), "two writes of one key are in progress");
        }
        book.groups.push(items.len());
        (Held(self, keys), Duration::from_millis(self.millis[book.groups.len() % self.millis.len()]))
    }
}

fn refusal(id: usize) -> StoreError {
    StoreError::Inconsistent { table: "orders", column: "id", id: Uuid::from_u128(id as u128) }
}

impl Group for Fake {
    const QUERY: Query = Query::Place;

    type Item = Write;
    type Answer = usize;

    fn key(item: &Write) -> Option<u64> {
        item.key
    }

    async fn commit(
        &self,
        items: &mut [Write],
        alone: bool,
        deadline: Instant,
    ) -> Result<Vec<Option<usize>>, StoreError> {
        assert!(!items.is_empty() && items.len() <= if alone { 1 } else { LIMITS.group });
        let (_held, millis) = self.begin(items);
        let is = |mood| items.iter().any(|item| item.mood == mood);
        if is(Mood::Hangs) {
            sleep_until(deadline).await;
        } else if timeout_at(deadline, sleep(millis)).await.is_err() {
            return Err(StoreError::Deadline);
        }
        for item in &mut *items {
            if let Mood::Disconnects(times) = &mut item.mood
                && *times > 0
            {
                *times -= 1;
                return Err(sqlx::Error::from(std::io::Error::other("closed")).into());
            }
        }
        let is = |mood| items.iter().any(|item| item.mood == mood);
        if is(Mood::PanicsBefore) {
            resume_unwind(Box::new("planned"));
        }
        if let Some(guilty) = items.iter().find(|item| item.mood == Mood::Refuses) {
            return Err(refusal(guilty.id));
        }
        let is_left_out = |item: &Write| item.mood == Mood::Locked && !alone;
        let committed = items.iter().filter(|item| !is_left_out(item)).map(|item| item.id);
        self.book.lock().unwrap().committed.extend(committed);
        if is(Mood::PanicsAfter) {
            resume_unwind(Box::new("planned"));
        }
        if is(Mood::LosesTheAnswer) || is(Mood::Hangs) {
            sleep(LIMITS.grace * 2).await;
            return Err(StoreError::unknown(StoreError::Deadline));
        }
        Ok(items.iter().map(|item| (!is_left_out(item)).then_some(item.id)).collect())
    }
}

/// The answer to a caller; `None` if it disconnected first.
type Told = Option<Result<usize, StoreError>>;

async fn call(commits: Arc<GroupCommit<Fake>>, write: Write) -> Told {
    let (began, fake) = (Instant::now(), commits.group.clone());
    let told = timeout(Duration::from_millis(write.patience), commits.submit(write)).await.ok();
    let longest = commits.limits.deadline + commits.limits.grace + Duration::from_millis(2);
    assert!(began.elapsed() <= longest, "the call exceeds its deadline");
    if let Some(Ok(_)) = told {
        assert_eq!(fake.book.lock().unwrap().times().get(&write.id), Some(&1), "answered before the commit");
    }
    told
}

async fn run(writes: Vec<Write>, fake: Fake, limits: Limits) -> Vec<Told> {
    let commits = GroupCommit::new(fake, limits);
    let mut callers = Vec::new();
    for write in writes {
        sleep(Duration::from_millis(write.after)).await;
        callers.push(tokio::spawn(call(Arc::clone(&commits), write)));
        // Each write arrives before the next.
        tokio::task::yield_now().await;
    }
    let told = join_all(callers).await.into_iter().map(Result::unwrap).collect();
    // Writes without a waiting caller end, too.
    sleep(limits.deadline * 8).await;
    let state = commits.lock();
    assert_eq!((state.queue.len(), state.keys_in_progress.len(), state.writers), (0, 0, 0));
    told
}

fn run_all(writes: &[Write], fake: &Fake, limits: Limits) -> Vec<Told> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run(writes.to_vec(), fake.clone(), limits))
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let mood = prop_oneof![
        24 => Just(Mood::Takes),
        3 => Just(Mood::Refuses),
        3 => Just(Mood::Locked),
        1 => (1..4_u32).prop_map(Mood::Disconnects),
        1 => Just(Mood::LosesTheAnswer),
        1 => Just(Mood::Hangs),
        1 => Just(Mood::PanicsBefore),
        1 => Just(Mood::PanicsAfter),
    ];
    let patience = prop_oneof![4 => Just(10_000_u64), 1 => 0..60_u64];
    let write =
        (mood, proptest::option::of(0..4_u64), prop_oneof![3 => Just(0_u64), 1 => 0..40_u64], patience);
    proptest::collection::vec(write, 1..40).prop_map(|writes| {
        let numbered = writes.into_iter().enumerate();
        numbered.map(|(id, (mood, key, after, patience))| Write { id, mood, key, after, patience }).collect()
    })
}

proptest! {
    #[test]
    fn each_caller_gets_its_own_answer_exactly_once(
        writes in writes(),
        millis in proptest::collection::vec(prop_oneof![4 => 0..10_u64, 1 => 50..150_u64], 1..20),
    ) {
        let fake = Fake::new(millis);
        let told = run_all(&writes, &fake, LIMITS);
        let book = fake.book.lock().unwrap();
        let times = book.times();
        for (write, told) in writes.iter().zip(&told) {
            let times = times.get(&write.id).copied().unwrap_or_default();
            match told {
                Some(Ok(id)) => prop_assert_eq!((*id, times), (write.id, 1)),
                Some(Err(StoreError::OutcomeUnknown(_))) => prop_assert!(times <= 1),
                // Every other error means that nothing was written.
                Some(Err(error)) => {
                    prop_assert_eq!(times, 0, "{}", error);
                    prop_assert!(!error.is_about_the_data() || write.mood == Mood::Refuses, "the refusal of another write");
                }
                None => {
                    prop_assert!(write.patience < 10_000, "no answer");
                    prop_assert!(times <= 1);
                }
            }
        }
        for key in 0..4 {
            let arrived = writes.iter().filter(|write| write.key == Some(key)).map(|write| write.id);
            let arrived: Vec<usize> = arrived.filter(|id| book.committed.contains(id)).collect();
            let of_key = |id: &&usize| writes[**id].key == Some(key);
            let committed: Vec<usize> = book.committed.iter().filter(of_key).copied().collect();
            prop_assert_eq!(arrived, committed, "not in the order of arrival");
        }
    }
}

#[test]
fn one_refused_write_neither_fails_nor_drops_its_neighbours() {
    let mut writes: Vec<Write> = (0..12).map(good).collect();
    writes[2].mood = Mood::Refuses;
    let told = run_all(&writes, &Fake::new(vec![1]), LIMITS);
    for (write, told) in writes.iter().zip(told) {
        match told.unwrap() {
            Ok(id) => assert_eq!((id, write.mood), (write.id, Mood::Takes)),
            Err(error) => assert!(error.is_about_the_data() && write.mood == Mood::Refuses, "{error}"),
        }
    }
}

#[test]
fn writes_that_arrive_during_a_commit_share_the_next_one_and_a_single_write_is_sent_at_once() {
    let mut writes: Vec<Write> = (0..8).map(good).collect();
    (1..4).for_each(|id| writes[id].after = 1);
    let fake = Fake::new(vec![50]);
    let told = run_all(&writes, &fake, LIMITS);
    assert!(told.into_iter().all(|told| told.unwrap().is_ok()));
    // One write for each writer, then the waiting writes, up to the limit of a group.
    assert_eq!(fake.book.lock().unwrap().groups, [1, 1, 4, 2]);
}

#[test]
fn a_write_beyond_the_queue_limit_is_refused_at_once() {
    let writes: Vec<Write> = (0..20).map(|id| Write { mood: Mood::Hangs, ..good(id) }).collect();
    let told = run_all(&writes, &Fake::new(vec![1]), LIMITS);
    let refused = told.iter().filter(|told| matches!(told, Some(Err(StoreError::TooManyWrites)))).count();
    assert_eq!(refused, 20 - LIMITS.waiting - LIMITS.writers);
}

#[test]
fn a_write_that_is_not_sent_before_its_deadline_is_not_written() {
    let mut writes: Vec<Write> = (0..3).map(|id| Write { mood: Mood::Hangs, ..good(id) }).collect();
    writes[2].mood = Mood::Takes;
    let fake = Fake::new(vec![1]);
    let told = run_all(&writes, &fake, LIMITS);
    assert!(matches!(told[2], Some(Err(StoreError::Deadline))), "{:?}", told[2]);
    assert!(!fake.book.lock().unwrap().committed.contains(&2));
}

#[test]
fn a_group_whose_connection_is_lost_before_it_is_sent_is_sent_once_more() {
    let writes = [1, 2].map(|times| Write { mood: Mood::Disconnects(times), ..good(times as usize) });
    let told = run_all(&writes, &Fake::new(vec![1]), LIMITS);
    assert!(matches!(told[0], Some(Ok(1))), "{:?}", told[0]);
    assert!(matches!(told[1], Some(Err(StoreError::Unavailable(_)))), "{:?}", told[1]);
}

#[test]
fn a_panic_in_the_commit_leaves_the_outcome_unknown_and_the_writer_running() {
    for mood in [Mood::PanicsBefore, Mood::PanicsAfter] {
        let mut writes: Vec<Write> = (0..6).map(good).collect();
        writes[0].mood = mood;
        writes[1].mood = mood;
        let told = run_all(&writes, &Fake::new(vec![1]), LIMITS);
        for (write, told) in writes.iter().zip(told) {
            match told.unwrap() {
                Ok(_) => assert_eq!(write.mood, Mood::Takes),
                Err(error) => assert!(matches!(error, StoreError::OutcomeUnknown(_)), "{error}"),
            }
        }
    }
}
