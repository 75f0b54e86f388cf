//! The laws of sharing, on a database of this process whose moods are part of the case.

use std::collections::HashSet;
use std::sync::Mutex;

use futures_util::future::join_all;
use proptest::prelude::*;
use tokio::runtime::Builder;
use tokio::time::{sleep, sleep_until};
use uuid::Uuid;

use super::*;

/// How long a commit takes in most cases.
const COMMIT: Duration = Duration::from_millis(1);

/// What the database does with a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Takes,
    Refuses,
    /// It commits the set and loses the answer.
    LosesTheAnswer,
    /// It loses the connection before the statement is sent.
    Unreachable,
    /// It does not answer before the set gives up, and commits then.
    Hangs,
    Panics,
}

/// One caller.
#[derive(Clone, Debug)]
struct Case {
    id: u128,
    arrives: Duration,
    patience: Duration,
    /// When it goes away without an answer.
    hangs_up: Option<Duration>,
    mood: Mood,
    conflict: Option<u64>,
}

#[derive(Default)]
struct Table {
    rows: Mutex<Vec<u128>>,
    sets: Mutex<Vec<usize>>,
}

impl Table {
    fn holds(&self, id: u128) -> usize {
        self.rows.lock().unwrap().iter().filter(|row| **row == id).count()
    }
}

struct Fake {
    table: Arc<Table>,
    commit: Duration,
}

fn refusal(id: u128) -> StoreError {
    StoreError::Inconsistent { table: "orders", column: "id", id: Uuid::from_u128(id) }
}

impl SetWriter for Fake {
    type Write = Case;
    type Answer = u128;

    fn conflict(case: &Case) -> Option<u64> {
        case.conflict
    }

    async fn write_set(&self, set: &[&Case], until: Instant) -> Result<Vec<u128>, StoreError> {
        let is = |mood| set.iter().any(|case| case.mood == mood);
        let conflicts: Vec<u64> = set.iter().filter_map(|case| case.conflict).collect();
        assert_eq!(conflicts.iter().collect::<HashSet<_>>().len(), conflicts.len(), "{set:?}");
        self.table.sets.lock().unwrap().push(set.len());
        if is(Mood::Unreachable) {
            return Err(StoreError::Deadline);
        }
        if is(Mood::Hangs) {
            sleep_until(until).await;
        } else {
            sleep(self.commit).await;
        }
        assert!(!is(Mood::Panics), "a planned panic");
        if let Some(guilty) = set.iter().find(|case| case.mood == Mood::Refuses) {
            return Err(refusal(guilty.id));
        }
        self.table.rows.lock().unwrap().extend(set.iter().map(|case| case.id));
        if is(Mood::LosesTheAnswer) || is(Mood::Hangs) {
            return Err(StoreError::unknown(StoreError::Deadline));
        }
        Ok(set.iter().map(|case| case.id).collect())
    }

    async fn write_alone(&self, case: &Case, until: Instant) -> Result<u128, StoreError> {
        let answers = self.write_set(&[case], until).await?;
        Ok(answers[0])
    }
}

fn case() -> impl Strategy<Value = Case> {
    let mood = prop_oneof![
        20 => Just(Mood::Takes),
        3 => Just(Mood::Refuses),
        1 => Just(Mood::LosesTheAnswer),
        1 => Just(Mood::Unreachable),
        1 => Just(Mood::Hangs),
        1 => Just(Mood::Panics),
    ];
    let hangs_up = proptest::option::weighted(0.1, 0_u64..6);
    (0_u64..8, 1_u64..30, hangs_up, mood, proptest::option::of(0_u64..4)).prop_map(
        |(arrives, patience, hangs_up, mood, conflict)| Case {
            id: 0,
            arrives: Duration::from_millis(arrives),
            patience: Duration::from_millis(patience),
            hangs_up: hangs_up.map(Duration::from_millis),
            mood,
            conflict,
        },
    )
}

/// What one caller was told; nothing where it hung up.
async fn call(case: Case, writes: &PlacementCommit<Fake>, table: &Table) -> Option<Result<u128, StoreError>> {
    sleep(case.arrives).await;
    let write = Arc::new(case.clone());
    let writing = writes.write(&write, Instant::now() + case.patience);
    let told = match case.hangs_up {
        Some(after) => tokio::time::timeout(after, writing).await.ok(),
        None => Some(writing.await),
    };
    if let Some(Ok(_)) = &told {
        assert_eq!(table.holds(case.id), 1, "answered before the commit: {case:?}");
    }
    told
}

/// What each caller was told, in sequence, and what is in the table when all is over.
fn run_all(cases: &[Case], commit: Duration) -> (Vec<Option<Result<u128, StoreError>>>, Arc<Table>) {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let table = Arc::new(Table::default());
        let writes = PlacementCommit::new(Fake { table: Arc::clone(&table), commit });
        let told = join_all(cases.iter().map(|case| call(case.clone(), &writes, &table))).await;
        // What was sent without a caller comes to its end.
        sleep(commit * 20).await;
        (told, table)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_caller_gets_its_own_answer_once_and_what_was_acknowledged_is_written(
        cases in proptest::collection::vec(case(), 1..60)
    ) {
        let cases: Vec<Case> = (0..).zip(cases).map(|(id, case)| Case { id, ..case }).collect();
        // A planned panic is no news.
        std::panic::set_hook(Box::new(|_| ()));
        let (told, table) = run_all(&cases, COMMIT);
        let _ = std::panic::take_hook();
        for (case, told) in cases.iter().zip(told) {
            let written = table.holds(case.id);
            prop_assert!(written <= 1, "written {written} times: {case:?}");
            match told {
                None => prop_assert!(case.hangs_up.is_some(), "no answer: {case:?}"),
                Some(Ok(answer)) => prop_assert_eq!(answer, case.id),
                Some(Err(StoreError::Inconsistent { id, .. })) => {
                    prop_assert_eq!(id, Uuid::from_u128(case.id), "another one's refusal");
                    prop_assert_eq!((case.mood, written), (Mood::Refuses, 0));
                }
                // Both say that nothing was written.
                Some(Err(StoreError::Deadline | StoreError::OfSet(_))) => prop_assert_eq!(written, 0, "{:?}", case),
                Some(Err(StoreError::OutcomeUnknown(_))) => {}
                Some(Err(error)) => prop_assert!(false, "{error}: {case:?}"),
            }
        }
    }
}

fn patient(id: u128, mood: Mood) -> Case {
    let patience = Duration::from_secs(5);
    Case { id, arrives: Duration::ZERO, patience, hangs_up: None, mood, conflict: None }
}

#[test]
fn one_refused_write_neither_fails_nor_drops_its_neighbours() {
    let mut cases: Vec<Case> = (0..20).map(|id| patient(id, Mood::Takes)).collect();
    cases[7].mood = Mood::Refuses;
    let (told, table) = run_all(&cases, COMMIT);
    for (case, told) in cases.iter().zip(told) {
        match case.mood {
            Mood::Refuses => assert!(matches!(told, Some(Err(StoreError::Inconsistent { .. })))),
            _ => assert_eq!((told.unwrap().unwrap(), table.holds(case.id)), (case.id, 1)),
        }
    }
}

#[test]
fn what_arrives_during_a_commit_shares_the_next_one() {
    let mut cases: Vec<Case> = (0..101).map(|id| patient(id, Mood::Takes)).collect();
    cases.iter_mut().skip(1).for_each(|case| case.arrives = Duration::from_millis(20));
    let (told, table) = run_all(&cases, Duration::from_millis(400));
    assert!(told.into_iter().all(|told| told.unwrap().is_ok()));
    assert!(table.sets.lock().unwrap().len() <= 2 * WRITERS, "{:?}", table.sets);
}

#[test]
fn one_more_than_the_queue_holds_is_refused_at_once() {
    let mut cases: Vec<Case> = (0..1500).map(|id| patient(id, Mood::Hangs)).collect();
    for case in &mut cases {
        case.patience = Duration::from_secs(3);
    }
    let (told, _) = run_all(&cases, COMMIT);
    let refused = told.iter().filter(|told| matches!(told, Some(Err(StoreError::TooManyWrites)))).count();
    assert!((1500 - QUEUE - WRITERS * SET..=1500 - QUEUE).contains(&refused), "{refused}");
}

#[test]
fn a_panic_while_a_set_is_written_ends_neither_the_writer_nor_the_wait_of_its_callers() {
    let mut cases: Vec<Case> = (0..10).map(|id| patient(id, Mood::Panics)).collect();
    let late = Duration::from_millis(500);
    cases.extend((10..20).map(|id| Case { arrives: late, ..patient(id, Mood::Takes) }));
    let (told, _) = run_all(&cases, COMMIT);
    for (case, told) in cases.iter().zip(told) {
        let as_planned = match told.unwrap() {
            Ok(_) => case.mood == Mood::Takes,
            Err(error) => case.mood == Mood::Panics && matches!(error, StoreError::OutcomeUnknown(_)),
        };
        assert!(as_planned, "{case:?}");
    }
}
