//! Property: in any interleaving of arrivals, permits, answers, failures, deadlines and disconnects, each caller gets
//! exactly one answer, from a look-up that was sent after the caller arrived.
//!
//! Time is a counter that every event advances, so no test waits for a clock.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use super::*;

const PRODUCTS: [&str; 2] = ["P1", "P2"];

/// The number of the look-up, its send time, and whether it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answered {
    look_up: usize,
    sent: u64,
    result: Result<(), ()>,
}

#[derive(Clone, Debug)]
enum Step {
    Arrive(usize),
    /// A caller leaves: its client disconnects or its deadline passes.
    Leave(usize),
    /// One more look-up may be in flight.
    Permit,
    /// A look-up in flight is answered, or fails.
    Answer(usize, bool),
    /// A look-up in flight becomes slow.
    Slow(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..PRODUCTS.len()).prop_map(Step::Arrive),
        2 => any::<usize>().prop_map(Step::Leave),
        2 => Just(Step::Permit),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, well)| Step::Answer(which, well)),
        1 => any::<usize>().prop_map(Step::Slow),
    ]
}

/// What happens to a look-up in flight.
enum Event {
    Answer(bool),
    Slow,
}

/// A Product Service that answers on command and counts look-ups.
struct World {
    singleflight: Arc<Singleflight<Answered>>,
    permits: Semaphore,
    clock: AtomicU64,
    started: AtomicUsize,
    /// Look-ups in flight.
    alive: AtomicUsize,
    /// Product, number and event channel of each look-up in flight.
    in_flight: Mutex<Vec<(usize, usize, oneshot::Sender<Event>)>>,
}

struct Caller {
    product: usize,
    arrived: u64,
    waiting: JoinHandle<Answered>,
}

/// Counts a look-up as ended, even if it is cancelled.
struct Alive(Arc<World>, usize);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, SeqCst);
        self.0.in_flight.lock().unwrap().retain(|(_, look_up, _)| *look_up != self.1);
    }
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            singleflight: Arc::new(Singleflight::new()),
            permits: Semaphore::new(0),
            clock: AtomicU64::new(0),
            started: AtomicUsize::new(0),
            alive: AtomicUsize::new(0),
            in_flight: Mutex::new(Vec::new()),
        })
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    fn arrive(self: &Arc<Self>, product: usize) -> Caller {
        let arrived = self.now();
        let world = Arc::clone(self);
        let id = ProductId::parse(PRODUCTS[product]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(arrived);
        let joined = self.singleflight.join(&id, deadline, TraceParent::start(), move |flight| {
            world.look_up(product, deadline, flight)
        });
        Caller { product, arrived, waiting: tokio::spawn(joined.answer) }
    }

    async fn look_up(
        self: Arc<Self>,
        product: usize,
        first: Instant,
        flight: InFlight<Answered>,
    ) -> Answered {
        let look_up = self.started.fetch_add(1, SeqCst);
        self.alive.fetch_add(1, SeqCst);
        let _alive = Alive(Arc::clone(&self), look_up);
        let _permit = self.permits.acquire().await.unwrap();
        let latest = flight.mark_sent().expect("a look-up is sent once");
        assert!(latest >= first, "the deadline of the first caller counts");
        let sent = self.now();
        loop {
            let (tell, told) = oneshot::channel();
            self.in_flight.lock().unwrap().push((product, look_up, tell));
            match told.await.unwrap() {
                Event::Answer(true) => return Answered { look_up, sent, result: Ok(()) },
                Event::Answer(false) => return Answered { look_up, sent, result: Err(()) },
                Event::Slow => flight.allow_next(),
            }
        }
    }

    /// Sends an event to one of the look-ups in flight; returns false if there are none.
    fn tell(&self, which: usize, event: Event) -> bool {
        let mut in_flight = self.in_flight.lock().unwrap();
        if in_flight.is_empty() {
            return false;
        }
        let which = which % in_flight.len();
        let (_, _, tell) = in_flight.swap_remove(which);
        drop(in_flight);
        tell.send(event).is_ok()
    }

    fn in_flight_of(&self, product: usize) -> usize {
        self.in_flight.lock().unwrap().iter().filter(|(of, ..)| *of == product).count()
    }
}

/// Runs every task until it waits.
async fn run_tasks() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

async fn run(steps: Vec<Step>) {
    let world = World::new();
    let (mut callers, mut left, mut slow) = (Vec::<Caller>::new(), 0, false);
    for step in steps {
        match step {
            Step::Arrive(product) => {
                let free = world.permits.available_permits() > 0;
                let without_callers =
                    callers.iter().all(|caller| caller.product != product || caller.waiting.is_finished());
                callers.push(world.arrive(product));
                run_tasks().await;
                assert!(!(free && without_callers) || world.in_flight_of(product) == 1, "it is sent at once");
            }
            Step::Leave(which) if !callers.is_empty() => {
                let caller = callers.swap_remove(which % callers.len());
                caller.waiting.abort();
                match caller.waiting.await {
                    Ok(answered) => assert!(answered.sent > caller.arrived, "{answered:?}"),
                    Err(_) => left += 1,
                }
            }
            Step::Leave(_) => {}
            Step::Permit => world.permits.add_permits(1),
            Step::Answer(which, well) => {
                world.tell(which, Event::Answer(well));
            }
            Step::Slow(which) => slow |= world.tell(which, Event::Slow),
        }
        run_tasks().await;
        for product in 0..PRODUCTS.len() {
            assert!(slow || world.in_flight_of(product) <= 1, "one look-up of a product at a time");
        }
    }
    finish(&world, callers).await;
    assert_eq!(world.alive.load(SeqCst), 0, "a look-up without callers is cancelled ({left} left)");
    assert!(world.singleflight.lock().is_empty(), "the map is empty");
}

/// Every caller that still waits gets an answer that was sent after its arrival.
async fn finish(world: &Arc<World>, callers: Vec<Caller>) {
    world.permits.add_permits(1000);
    run_tasks().await;
    while world.tell(0, Event::Answer(true)) {
        run_tasks().await;
    }
    for caller in callers {
        assert!(caller.waiting.is_finished(), "a caller still waits");
        let answered = caller.waiting.await.unwrap();
        assert!(answered.sent > caller.arrived, "sent before its caller arrived: {answered:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn each_caller_gets_one_answer_to_a_look_up_sent_after_it_arrived(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(steps));
    }
}

#[tokio::test]
async fn callers_that_arrive_during_a_look_up_share_the_next_one() {
    let world = World::new();
    world.permits.add_permits(10);
    let first = world.arrive(0);
    run_tasks().await;
    let others: Vec<_> = (0..20).map(|_| world.arrive(0)).collect();
    run_tasks().await;
    assert_eq!((world.started.load(SeqCst), world.in_flight_of(0)), (1, 1));
    assert!(world.tell(0, Event::Answer(true)));
    assert_eq!(first.waiting.await.unwrap().look_up, 0);
    run_tasks().await;
    assert!(world.tell(0, Event::Answer(false)));
    for other in others {
        assert_eq!(other.waiting.await.unwrap().look_up, 1);
    }
}

#[tokio::test]
async fn a_slow_look_up_does_not_delay_the_next() {
    let world = World::new();
    world.permits.add_permits(10);
    let first = world.arrive(0);
    run_tasks().await;
    let second = world.arrive(0);
    run_tasks().await;
    assert!(world.tell(0, Event::Slow));
    run_tasks().await;
    assert_eq!(world.in_flight_of(0), 2);
    while world.tell(0, Event::Answer(true)) {
        run_tasks().await;
    }
    assert_eq!((first.waiting.await.unwrap().look_up, second.waiting.await.unwrap().look_up), (0, 1));
    assert!(world.singleflight.lock().is_empty());
}

/// The same on real threads, where the order of events varies.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_thread_gets_an_answer_older_than_its_request() {
    let singleflight = Arc::new(Singleflight::<Instant>::new());
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let singleflight = Arc::clone(&singleflight);
            tokio::spawn(async move {
                let id = ProductId::parse("P1").unwrap();
                for _ in 0..500 {
                    let arrived = Instant::now();
                    let look_up = |flight: InFlight<Instant>| async move {
                        tokio::task::yield_now().await;
                        flight.mark_sent();
                        let sent = Instant::now();
                        tokio::task::yield_now().await;
                        sent
                    };
                    let joined = singleflight.join(&id, arrived, TraceParent::start(), look_up);
                    assert!(joined.answer.await >= arrived);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(singleflight.lock().is_empty());
}
