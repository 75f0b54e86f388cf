//! The load generator: closed loops, and open loops at a fixed rate.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hdrhistogram::Histogram;
use tokio::sync::Semaphore;

use crate::http::Connection;
use crate::work::Work;
use crate::{Result, cpu};

/// The maximum wait for the last answers.
const LONGEST_ANSWER: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// The timing of requests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Each connection sends the next request when it has its answer.
    Closed,
    /// A fixed rate per second, independent of the answers; latency counts from the intended start.
    Open(f64),
}

/// One load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    pub(crate) work: Work,
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
    /// Whether to record the id and the time of each acknowledged order.
    pub(crate) keep_ids: bool,
}

/// The result of a load, without the warm-up.
pub(crate) struct Outcome {
    /// Latency in microseconds.
    pub(crate) latency: Histogram<u64>,
    pub(crate) completed: u64,
    pub(crate) seconds: f64,
    /// Answers with an unexpected status, and broken connections, including the warm-up.
    pub(crate) failures: u64,
    pub(crate) first_failure: Option<String>,
    /// Requests of an open loop that got no free connection before the end. Their wait is in `latency`.
    pub(crate) unsent: u64,
    pub(crate) acknowledged: Vec<(String, Instant)>,
    pub(crate) cpu: cpu::Usage,
}

impl Outcome {
    pub(crate) fn rate(&self) -> f64 {
        as_f64(self.completed) / self.seconds
    }

    /// A quantile of the latency in milliseconds.
    pub(crate) fn millis(&self, quantile: f64) -> f64 {
        as_f64(self.latency.value_at_quantile(quantile)) / 1000.0
    }
}

#[expect(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]
pub(crate) fn as_f64(number: u64) -> f64 {
    number as f64
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("these bounds are in order")
}

struct Clock {
    /// Distinguishes the customers and keys of this load from those of all others.
    run: u64,
    start: Instant,
    window: Instant,
    end: Instant,
    next: AtomicU64,
    tickets: Semaphore,
}

/// The results of one connection.
struct Seen {
    latency: Histogram<u64>,
    completed: u64,
    last: Instant,
    failures: u64,
    first_failure: Option<String>,
    acknowledged: Vec<(String, Instant)>,
}

impl Load {
    /// Runs the load on its own thread and calls `tick` at intervals.
    pub(crate) fn run(&self, parts: &cpu::Watched, mut tick: impl FnMut()) -> Result<Outcome> {
        let start = Instant::now() + Duration::from_millis(50);
        let window = start + self.warm_up;
        let clock = Clock {
            run: cpu::unix_micros(),
            start,
            window,
            end: window + self.duration,
            next: AtomicU64::new(0),
            tickets: Semaphore::new(0),
        };
        std::thread::scope(|scope| {
            let generator = scope.spawn(|| self.generate(&clock));
            if let Pace::Open(rate) = self.pace {
                let clock = &clock;
                scope.spawn(move || clock.dispatch(rate));
            }
            let mut wait_until = |moment: Instant| {
                while Instant::now() < moment && !generator.is_finished() {
                    std::thread::sleep(POLL.min(moment.saturating_duration_since(Instant::now())));
                    tick();
                }
            };
            wait_until(clock.window);
            let before = parts.usage();
            wait_until(clock.end);
            let cpu = parts.usage().since(&before);
            let seen = generator.join().map_err(|_| "the load generator crashed")??;
            Ok(self.outcome(&clock, seen, cpu))
        })
    }

    fn generate(&self, clock: &Clock) -> Result<Vec<Seen>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut connections = Vec::with_capacity(self.connections);
            for _ in 0..self.connections {
                connections.push(Connection::open(self.address).await?);
            }
            tokio::time::sleep_until(clock.start.into()).await;
            let workers = connections.into_iter().map(|connection| self.work(connection, clock));
            let limit = clock.end.saturating_duration_since(Instant::now()) + LONGEST_ANSWER;
            Ok(tokio::time::timeout(limit, join_all(workers)).await?)
        })
    }

    /// One connection, until the load ends.
    async fn work(&self, mut connection: Connection, clock: &Clock) -> Seen {
        let mut seen = Seen::new(clock.window);
        let mut request = Vec::with_capacity(1024);
        while let Some((number, intended)) = clock.next(self.pace).await {
            if !self.work.render(clock.run, number, &mut request) {
                break;
            }
            let sent = Instant::now();
            let answer = connection.exchange(&request).await;
            let done = Instant::now();
            match answer {
                Ok(answer) if answer.status == self.work.expected() => {
                    if self.keep_ids
                        && let Some(id) = id_in(answer.body)
                    {
                        seen.acknowledged.push((id.to_owned(), done));
                    }
                    seen.note(clock, self.pace, intended.unwrap_or(sent), done);
                }
                Ok(answer) => {
                    seen.fail(format!("{} {}", answer.status, String::from_utf8_lossy(answer.body)));
                }
                Err(error) => {
                    seen.fail(error.to_string());
                    let Ok(again) = Connection::open(self.address).await else { break };
                    connection = again;
                }
            }
        }
        seen
    }

    fn outcome(&self, clock: &Clock, seen: Vec<Seen>, cpu: cpu::Usage) -> Outcome {
        let mut all = Outcome {
            latency: histogram(),
            completed: 0,
            seconds: 0.0,
            failures: 0,
            first_failure: None,
            unsent: 0,
            acknowledged: Vec::new(),
            cpu,
        };
        let mut last = clock.window;
        for seen in seen {
            all.latency += seen.latency;
            all.completed += seen.completed;
            all.failures += seen.failures;
            all.first_failure = all.first_failure.or(seen.first_failure);
            all.acknowledged.extend(seen.acknowledged);
            last = last.max(seen.last);
        }
        // Work that ran out before the end has a shorter duration.
        let end = if clock.next.load(Relaxed) > 0 && last < clock.end { last } else { clock.end };
        all.seconds = end.saturating_duration_since(clock.window).as_secs_f64().max(0.001);
        if let Pace::Open(rate) = self.pace {
            for number in clock.next.load(Relaxed)..clock.due(rate, clock.end) {
                let wait = clock.end.saturating_duration_since(clock.intended(rate, number));
                all.latency.saturating_record(micros(wait));
                all.unsent += 1;
            }
        }
        all
    }
}

impl Clock {
    /// The number of the next request and, in an open loop, its intended start; `None` at the end.
    async fn next(&self, pace: Pace) -> Option<(u64, Option<Instant>)> {
        match pace {
            Pace::Closed if Instant::now() >= self.end => None,
            Pace::Closed => Some((self.next.fetch_add(1, Relaxed), None)),
            Pace::Open(rate) => {
                self.tickets.acquire().await.ok()?.forget();
                let number = self.next.fetch_add(1, Relaxed);
                Some((number, Some(self.intended(rate, number))))
            }
        }
    }

    fn intended(&self, rate: f64, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(as_f64(number) / rate)
    }

    /// The number of requests that should have been sent by this time.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of requests")]
    fn due(&self, rate: f64, moment: Instant) -> u64 {
        (moment.saturating_duration_since(self.start).as_secs_f64() * rate) as u64
    }

    /// Issues a ticket for each request when it is due. It runs on a thread, whose sleep is finer than tokio's.
    fn dispatch(&self, rate: f64) {
        let mut given = 0;
        while Instant::now() < self.end {
            let due = self.due(rate, Instant::now()) + 1;
            if due > given {
                self.tickets.add_permits(usize::try_from(due - given).unwrap_or(usize::MAX));
                given = due;
            }
            std::thread::sleep(self.intended(rate, given).saturating_duration_since(Instant::now()));
        }
        self.tickets.close();
    }
}

impl Seen {
    fn new(window: Instant) -> Self {
        Self {
            latency: histogram(),
            completed: 0,
            last: window,
            failures: 0,
            first_failure: None,
            acknowledged: Vec::new(),
        }
    }

    fn note(&mut self, clock: &Clock, pace: Pace, from: Instant, done: Instant) {
        self.last = self.last.max(done);
        let done_in_window = done >= clock.window && done <= clock.end;
        let counts = match pace {
            Pace::Closed => done_in_window,
            Pace::Open(_) => from >= clock.window,
        };
        if counts {
            self.latency.saturating_record(micros(done - from));
        }
        self.completed += u64::from(done_in_window);
    }

    fn fail(&mut self, what: String) {
        self.failures += 1;
        self.first_failure.get_or_insert(what);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// The `orderId` of an answer.
fn id_in(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    text.split_once(r#""orderId":""#)?.1.get(..36)
}
