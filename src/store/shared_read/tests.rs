//! Property: for any arrivals, failures, deadlines and disconnects, each caller gets its own answer exactly once, from
//! a statement that was sent after its arrival.

use std::sync::Mutex;

use proptest::prelude::*;
use tokio::time::{sleep, timeout};

use super::*;

const LIMITS: Limits = Limits {
    group: 4,
    writers: 2,
    alone: 0,
    waiting: 12,
    deadline: Duration::from_millis(100),
    grace: Duration::ZERO,
};

#[derive(Clone, Copy, Debug)]
struct Read {
    id: usize,
    /// The time from the previous arrival to this one, in milliseconds.
    after: u64,
    /// The time until its caller disconnects, in milliseconds.
    patience: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Well,
    Failure,
    Panic,
}

/// An answer: the caller, and the time at which the statement was sent.
#[derive(Clone, Copy, Debug)]
struct Answered {
    id: usize,
    sent: u64,
    at: Instant,
}

#[derive(Default)]
struct Book {
    clock: u64,
    under_way: usize,
    sets: Vec<Vec<usize>>,
}

impl Book {
    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// A fake read that records its sets; each set takes some time.
#[derive(Clone)]
struct Fake {
    book: Arc<Mutex<Book>>,
    sets: Arc<Vec<(u64, Ending)>>,
}

/// A set in progress; dropped when it ends for any reason.
struct UnderWay(Arc<Mutex<Book>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().unwrap().under_way -= 1;
    }
}

impl ReadSet for Fake {
    const QUERY: Query = Query::ReadOrder;

    type Question = usize;
    type Answer = Answered;

    async fn read(&self, ids: &[usize]) -> Result<Vec<Answered>, StoreError> {
        assert!(!ids.is_empty() && ids.len() <= LIMITS.group);
        let (sent, at, (millis, ending)) = {
            let mut book = self.book.lock().unwrap();
            book.under_way += 1;
            assert!(book.under_way <= LIMITS.writers);
            book.sets.push(ids.to_vec());
            (book.now(), Instant::now(), self.sets[book.sets.len() % self.sets.len()])
        };
        let _under_way = UnderWay(Arc::clone(&self.book));
        sleep(Duration::from_millis(millis)).await;
        match ending {
            Ending::Well => Ok(ids.iter().map(|id| Answered { id: *id, sent, at }).collect()),
            Ending::Failure => Err(sqlx::Error::RowNotFound.into()),
            Ending::Panic => std::panic::resume_unwind(Box::new("a bug")),
        }
    }
}

/// Returns the answer to each caller; `None` if it disconnected first.
async fn run(reads: Vec<Read>, fake: &Fake) -> Vec<Option<Result<Answered, StoreError>>> {
    let shared = SharedRead::new(Reads(fake.clone()), LIMITS);
    let mut callers = Vec::new();
    for read in reads {
        sleep(Duration::from_millis(read.after)).await;
        let (shared, book) = (Arc::clone(&shared), Arc::clone(&fake.book));
        callers.push(tokio::spawn(async move {
            let (began, arrived, is_alone) = {
                let mut book = book.lock().unwrap();
                (Instant::now(), book.now(), book.under_way == 0 && shared.lock().writers == 0)
            };
            let told = timeout(Duration::from_millis(read.patience), shared.ask(read.id)).await.ok();
            assert!(
                began.elapsed() <= LIMITS.deadline + Duration::from_millis(2),
                "the call exceeds its deadline"
            );
            if let Some(Ok(answered)) = &told {
                assert!(answered.sent > arrived, "the statement was sent before the caller arrived");
                assert!(!is_alone || answered.at == began, "a single read is sent at once");
            }
            told
        }));
        // Each read arrives before the next.
        tokio::task::yield_now().await;
    }
    let mut told = Vec::new();
    for caller in callers {
        told.push(caller.await.unwrap());
    }
    // Reads without a waiting caller end, too.
    sleep(LIMITS.deadline * 20).await;
    let state = shared.lock();
    assert_eq!((state.queue.len(), state.writers), (0, 0));
    told
}

fn reads() -> impl Strategy<Value = Vec<Read>> {
    let patience = prop_oneof![4 => Just(10_000_u64), 1 => 0..60_u64];
    let read = (prop_oneof![3 => Just(0_u64), 1 => 0..40_u64], patience);
    proptest::collection::vec(read, 1..40).prop_map(|reads| {
        let numbered = reads.into_iter().enumerate();
        numbered.map(|(id, (after, patience))| Read { id, after, patience }).collect()
    })
}

fn sets() -> impl Strategy<Value = Vec<(u64, Ending)>> {
    let ending = prop_oneof![6 => Just(Ending::Well), 1 => Just(Ending::Failure), 1 => Just(Ending::Panic)];
    proptest::collection::vec((prop_oneof![4 => 0..10_u64, 1 => 50..150_u64], ending), 1..20)
}

proptest! {
    #[test]
    fn each_caller_gets_its_own_answer_exactly_once(reads in reads(), sets in sets()) {
        let fake = Fake { book: Arc::default(), sets: Arc::new(sets.clone()) };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let told = runtime.block_on(run(reads.clone(), &fake));
        let book = fake.book.lock().unwrap();
        for (read, told) in reads.iter().zip(told) {
            let of: Vec<usize> = (0..book.sets.len()).filter(|set| book.sets[*set].contains(&read.id)).collect();
            prop_assert!(of.len() <= 1, "it was read {} times", of.len());
            let ending = of.first().map(|set| sets[(set + 1) % sets.len()]);
            match told {
                Some(Ok(answered)) => {
                    prop_assert_eq!(answered.id, read.id);
                    prop_assert_eq!(ending.map(|(_, ending)| ending), Some(Ending::Well));
                }
                Some(Err(StoreError::Refused(_))) => {
                    prop_assert_eq!(ending.map(|(_, ending)| ending), Some(Ending::Failure), "of another set");
                }
                // Its deadline passed, or its set panicked.
                Some(Err(StoreError::Deadline)) => {}
                // The queue was full.
                Some(Err(StoreError::TooManyReads)) => prop_assert!(of.is_empty()),
                Some(Err(error)) => prop_assert!(false, "{:?}", error),
                None => prop_assert!(read.patience < 10_000),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reads_that_arrive_while_all_readers_are_busy_share_the_next_statement() {
    let fake = Fake { book: Arc::default(), sets: Arc::new(vec![(10, Ending::Well)]) };
    let reads = (0..6).map(|id| Read { id, after: 0, patience: 10_000 }).collect();
    for (id, told) in run(reads, &fake).await.into_iter().enumerate() {
        assert_eq!(told.unwrap().unwrap().id, id);
    }
    assert_eq!(fake.book.lock().unwrap().sets, [vec![0], vec![1], vec![2, 3, 4, 5]]);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once() {
    let fake = Fake { book: Arc::default(), sets: Arc::new(vec![(1, Ending::Well)]) };
    let shared = SharedRead::new(Reads(fake), Limits { waiting: 1, ..LIMITS });
    let began = Instant::now();
    let (first, second) = tokio::join!(shared.ask(1), shared.ask(2));
    assert!(first.is_ok() && matches!(second, Err(StoreError::TooManyReads)));
    assert!(began.elapsed() <= Duration::from_millis(2));
}
