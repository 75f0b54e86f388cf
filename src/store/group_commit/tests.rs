//! Any sequence of arrivals, refusals, deadlines and hang-ups gives each caller its own answer exactly once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use super::*;

const LIMITS: Limits = Limits { group: 4, writers: 2, waiting: 12, deadline: Duration::from_millis(100) };

/// What is special about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Good,
    Refused,
    LeftOut,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    id: usize,
    kind: Kind,
    key: Option<u8>,
    /// When it arrives, after the one before.
    after: u64,
    /// When its caller goes away.
    patience: u64,
}

#[derive(Default)]
struct Book {
    committed: Vec<usize>,
    under_way: HashSet<Uuid>,
    commits: usize,
}

/// Commits nothing but notes in a book; each commit takes a while.
#[derive(Clone)]
struct Fake {
    book: Arc<Mutex<Book>>,
    millis: Arc<Vec<u64>>,
}

impl Fake {
    fn begin(&self, items: &[Write]) -> Duration {
        let mut book = self.book.lock().unwrap();
        for key in items.iter().filter_map(Fake::key) {
            assert!(book.under_way.insert(key), "two writes of one key are under way");
        }
        book.commits += 1;
        Duration::from_millis(self.millis[book.commits % self.millis.len()])
    }

    fn end(&self, items: &[Write], committed: &[usize]) {
        let mut book = self.book.lock().unwrap();
        book.committed.extend(committed);
        for key in items.iter().filter_map(Fake::key) {
            book.under_way.remove(&key);
        }
    }
}

impl Group for Fake {
    type Item = Write;
    type Answer = usize;

    fn key(item: &Write) -> Option<Uuid> {
        item.key.map(|key| Uuid::from_u128(key.into()))
    }

    async fn commit(
        &self,
        items: &mut [Write],
        deadline: Instant,
    ) -> Result<Vec<Committed<usize>>, StoreError> {
        assert!(!items.is_empty() && items.len() <= LIMITS.group);
        let duration = self.begin(items);
        let in_time = timeout_at(deadline, sleep(duration)).await.is_ok();
        let refused = items.iter().any(|item| item.kind == Kind::Refused);
        if !in_time || refused {
            self.end(items, &[]);
            return Err(if in_time {
                StoreError::Refused(sqlx::Error::RowNotFound)
            } else {
                StoreError::Deadline
            });
        }
        let alone = items.len() == 1;
        let is_left_out = |item: &Write| item.kind == Kind::LeftOut && !alone;
        let committed: Vec<usize> =
            items.iter().filter(|item| !is_left_out(item)).map(|item| item.id).collect();
        self.end(items, &committed);
        let answer = |item: &Write| {
            if is_left_out(item) { Committed::LeftOut } else { Committed::Answer(Ok(item.id)) }
        };
        Ok(items.iter().map(answer).collect())
    }
}

/// What each caller was told; nothing where it went away first.
async fn run(writes: Vec<Write>, fake: &Fake) -> Vec<Option<Result<usize, StoreError>>> {
    let commits = GroupCommit::<Fake>::new(LIMITS);
    let mut callers = Vec::new();
    for write in writes {
        sleep(Duration::from_millis(write.after)).await;
        let (commits, fake) = (commits.clone(), fake.clone());
        callers.push(tokio::spawn(async move {
            let began = Instant::now();
            let told =
                timeout(Duration::from_millis(write.patience), commits.submit(&fake, write)).await.ok();
            assert!(began.elapsed() <= LIMITS.deadline + Duration::from_millis(2), "its deadline is its own");
            told
        }));
        // It arrives before the next.
        tokio::task::yield_now().await;
    }
    let mut told = Vec::new();
    for caller in callers {
        told.push(caller.await.unwrap());
    }
    // What nobody waits for any more comes to its end, too.
    sleep(LIMITS.deadline * 4).await;
    let state = commits.lock();
    assert_eq!((state.queue.len(), state.keys_under_way.len(), state.writers), (0, 0, 0));
    told
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let kind = prop_oneof![6 => Just(Kind::Good), 1 => Just(Kind::Refused), 1 => Just(Kind::LeftOut)];
    let patience = prop_oneof![4 => Just(10_000_u64), 1 => 0..60_u64];
    let write =
        (kind, proptest::option::of(0..4_u8), prop_oneof![3 => Just(0_u64), 1 => 0..40_u64], patience);
    proptest::collection::vec(write, 1..40).prop_map(|writes| {
        let numbered = writes.into_iter().enumerate();
        numbered.map(|(id, (kind, key, after, patience))| Write { id, kind, key, after, patience }).collect()
    })
}

proptest! {
    #[test]
    fn each_caller_gets_its_own_answer_exactly_once(
        writes in writes(),
        millis in proptest::collection::vec(prop_oneof![4 => 0..10_u64, 1 => 50..150_u64], 1..20),
    ) {
        let fake = Fake { book: Arc::default(), millis: Arc::new(millis) };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let told = runtime.block_on(run(writes.clone(), &fake));
        let book = fake.book.lock().unwrap();

        let mut times: HashMap<usize, usize> = HashMap::new();
        for id in &book.committed {
            *times.entry(*id).or_default() += 1;
        }
        for (write, told) in writes.iter().zip(&told) {
            let times = times.get(&write.id).copied().unwrap_or_default();
            match told {
                Some(Ok(id)) => prop_assert_eq!((*id, times), (write.id, 1)),
                Some(Err(error)) => {
                    prop_assert_eq!(times, 0);
                    let refused = matches!(error, StoreError::Refused(_));
                    prop_assert!(!refused || write.kind == Kind::Refused, "a neighbour's refusal");
                }
                None => prop_assert!(times <= 1),
            }
        }
        for key in 0..4 {
            let arrived = writes.iter().filter(|write| write.key == Some(key)).map(|write| write.id);
            let arrived: Vec<usize> = arrived.filter(|id| book.committed.contains(id)).collect();
            let of_key = |id: &&usize| writes[**id].key == Some(key);
            let committed: Vec<usize> = book.committed.iter().filter(of_key).copied().collect();
            prop_assert_eq!(arrived, committed, "not in the sequence of arrival");
        }
    }
}
