//! Injects faults, mostly kills, at moments with work in progress.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;
use tokio::time::sleep;

use super::load::Load;
use super::plan::Plan;
use super::random::Random;
use super::world::{EVERY_REPLICA, World};
use crate::support::Mode;

/// One fault.
#[derive(Clone, Copy, Debug)]
enum Fault {
    KillReplica,
    KillEveryReplica,
    KillWhileStarting,
    KillDatabase,
    KillBroker,
    /// A replica is paused for longer than its leases and then resumes.
    Pause,
    /// The database becomes unreachable while payments are read; before it returns, every replica is killed.
    CutDatabaseAndKill,
    /// Commits wait for an unreachable synchronous standby, often for longer than the deadline.
    StandbyAway,
    /// The database commits, but its answers to commits are lost.
    SwallowAnswers,
}

/// The faults in random order; repeated when all have been used.
const FAULTS: [Fault; 15] = [
    Fault::KillReplica,
    Fault::KillReplica,
    Fault::KillReplica,
    Fault::KillReplica,
    Fault::KillEveryReplica,
    Fault::KillWhileStarting,
    Fault::KillDatabase,
    Fault::KillDatabase,
    Fault::KillBroker,
    Fault::KillBroker,
    Fault::Pause,
    Fault::CutDatabaseAndKill,
    Fault::StandbyAway,
    Fault::StandbyAway,
    Fault::SwallowAnswers,
];

/// The work that must be in progress before a fault.
#[derive(Clone, Copy, Debug)]
enum Moment {
    StockIsMoving,
    EventsArePending,
    PaymentsAreWaiting,
    PaymentsHaveCaughtUp,
}

const MOMENTS: [Moment; 3] = [Moment::StockIsMoving, Moment::EventsArePending, Moment::PaymentsAreWaiting];

impl Moment {
    /// The maximum wait for this moment.
    fn within(self) -> Duration {
        match self {
            Self::StockIsMoving | Self::EventsArePending | Self::PaymentsAreWaiting => Duration::from_secs(1),
            // A group that has lost a member reads nothing until the member's session has expired.
            Self::PaymentsHaveCaughtUp => Duration::from_secs(15),
        }
    }
}

/// The number of faults by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    replicas: usize,
    databases: usize,
    brokers: usize,
    pauses: usize,
    cuts: usize,
    late_answers: usize,
}

impl Tally {
    pub(super) fn kills(&self) -> usize {
        self.replicas + self.databases + self.brokers
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replicas, databases, brokers, pauses, cuts, late_answers } = self;
        write!(
            f,
            "{} kills ({replicas} replicas, {databases} databases, {brokers} brokers), {pauses} pauses, \
             {cuts} database outages, {late_answers} times of late answers to commits",
            self.kills()
        )
    }
}

pub(super) struct Nemesis {
    world: Arc<World>,
    load: Arc<Load>,
    random: Random,
    tally: Tally,
}

impl Nemesis {
    pub(super) fn new(world: Arc<World>, load: Arc<Load>, random: Random) -> Self {
        Self { world, load, random, tally: Tally::default() }
    }

    /// Injects faults, spread over the requests, until there were enough kills and requests. At the end everything runs
    /// again.
    pub(super) async fn run(mut self, plan: &Plan) -> Tally {
        let mut deck = Vec::new();
        while self.tally.kills() < plan.kills {
            if deck.is_empty() {
                deck = FAULTS.to_vec();
                self.random.shuffle(&mut deck);
            }
            let share = plan.requests * self.tally.kills() / plan.kills;
            self.until(|load| load.answered() >= share).await;
            let moment = self.random.pick(&MOMENTS);
            self.wait_for(moment).await;
            if let Some(fault) = deck.pop() {
                self.inject(fault).await;
            }
        }
        self.until(|load| load.answered() >= plan.requests).await;
        self.tally
    }

    async fn until(&self, condition: impl Fn(&Load) -> bool) {
        const SLOWEST: Duration = Duration::from_mins(2);
        let (mut seen, mut since) = (self.load.answered(), Instant::now());
        while !condition(&self.load) {
            sleep(Duration::from_millis(5)).await;
            if self.load.answered() > seen {
                (seen, since) = (self.load.answered(), Instant::now());
            }
            assert!(since.elapsed() < SLOWEST, "no request has been answered for two minutes");
        }
    }

    async fn wait_for(&self, moment: Moment) {
        let deadline = Instant::now() + moment.within();
        while !self.has_come(moment).await && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn has_come(&self, moment: Moment) -> bool {
        const A_FEW: usize = 3;
        let applied = "select count(*) from payment_events";
        let moving = "select count(*) from stock_jobs
                      where leased_until > now() and state in ('TAKING', 'RETURNING')";
        match moment {
            Moment::StockIsMoving => self.count(moving).await > 0,
            Moment::EventsArePending => self.count("select count(*) from outbox").await > 0,
            Moment::PaymentsAreWaiting => self.load.payments() >= self.count(applied).await + A_FEW,
            Moment::PaymentsHaveCaughtUp => self.load.payments() <= self.count(applied).await + A_FEW,
        }
    }

    /// `None` if the database does not answer.
    async fn count(&self, question: &'static str) -> usize {
        let count: Result<i64, _> = sqlx::query_scalar(question).fetch_one(&self.world.database).await;
        usize::try_from(count.unwrap_or_default()).unwrap()
    }

    async fn inject(&mut self, fault: Fault) {
        let victim = self.random.pick(&EVERY_REPLICA);
        match fault {
            Fault::KillReplica => {
                self.kill(&[victim]).await;
                self.revive(&[victim]).await;
            }
            Fault::KillEveryReplica => {
                self.kill(&EVERY_REPLICA).await;
                self.revive(&EVERY_REPLICA).await;
            }
            Fault::KillWhileStarting => {
                self.world.kill_while_starting(victim, &mut self.random).await;
                self.tally.replicas += 2;
                self.world.start_replica(victim).await;
            }
            Fault::KillDatabase => {
                self.world.postgres.lock().await.restart_immediately().await.unwrap();
                self.tally.databases += 1;
            }
            Fault::KillBroker => {
                self.world.broker.kill(&mut self.random).await;
                self.tally.brokers += 1;
            }
            Fault::Pause => {
                self.world.signal_replica(victim, "STOP").await;
                sleep(Duration::from_millis(self.random.between(1_000, 2_500))).await;
                self.world.signal_replica(victim, "CONT").await;
                self.tally.pauses += 1;
            }
            Fault::CutDatabaseAndKill => {
                self.wait_for(Moment::PaymentsHaveCaughtUp).await;
                self.wait_for(Moment::PaymentsAreWaiting).await;
                self.world.way_to_database.set(Mode::Cut);
                sleep(Duration::from_millis(self.random.between(200, 2_000))).await;
                self.tally.cuts += 1;
                self.kill(&EVERY_REPLICA).await;
                self.world.way_to_database.set(Mode::Open);
                self.revive(&EVERY_REPLICA).await;
            }
            Fault::StandbyAway => {
                self.set_standby("set synchronous_standby_names = 'away'").await;
                self.wait_out_a_deadline().await;
                self.set_standby("reset synchronous_standby_names").await;
                self.tally.late_answers += 1;
            }
            Fault::SwallowAnswers => {
                self.world.way_to_database.set(Mode::NoAnswerTo("COMMIT"));
                self.wait_out_a_deadline().await;
                self.world.way_to_database.set(Mode::Open);
                self.tally.late_answers += 1;
            }
        }
    }

    async fn set_standby(&self, setting: &'static str) {
        let change = format!("alter system {setting}");
        sqlx::query(AssertSqlSafe(change)).execute(&self.world.database).await.unwrap();
        sqlx::query("select pg_reload_conf()").execute(&self.world.database).await.unwrap();
    }

    /// A pause shorter or longer than the database deadline plus the time of the look-up after it.
    async fn wait_out_a_deadline(&mut self) {
        sleep(Duration::from_millis(self.random.between(300, 3_000))).await;
    }

    async fn kill(&mut self, victims: &[usize]) {
        for victim in victims {
            self.world.kill_replica(*victim).await;
            self.tally.replicas += 1;
        }
    }

    /// Restarts replicas after a short downtime.
    async fn revive(&mut self, victims: &[usize]) {
        sleep(Duration::from_millis(self.random.below(300))).await;
        for victim in victims {
            self.world.start_replica(*victim).await;
        }
    }
}
