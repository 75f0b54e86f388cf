//! The relay: publishes events from the outbox to Kafka, at least once and in order within each order (invariants 4
//! and 5).
//!
//! Why the order holds even if a replica dies: an event is sent only when every earlier event of its order has left the
//! outbox or was acknowledged in the same turn, and an event leaves the outbox only after its acknowledgement. So when
//! an event first reaches Kafka, all earlier events of its order are there. This needs no clock and no lock. The leases
//! only prevent replicas from sending the same events concurrently.
//!
//! A read starts at the floor of its bucket. Below it, nothing is pending and nothing will be: the argument is in
//! `events/floor.rs`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use thiserror::Error;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::floor::{Reading, Settling, positions};
use super::{PublishError, Publisher};
use crate::domain::time;
use crate::metrics::Metrics;
use crate::store::outbox::ServerStart;
use crate::store::{Lease, PendingEvent, Store, StoreError};
use crate::telemetry::error_chain;

#[derive(Clone, Debug)]
pub struct RelaySettings {
    /// The duration of a lease without renewal. More than twice the delivery timeout.
    pub lease: Duration,
    /// How often the relay reads the outbox when nothing wakes it.
    pub poll_interval: Duration,
    /// The maximum number of events in memory.
    pub batch: u16,
    pub max_backoff: Duration,
    pub delivery_timeout: Duration,
}

/// How often the relay checks whether it holds its fair share of the buckets.
const CHECK_SHARES: Duration = Duration::from_secs(1);

/// How often the relay checks which positions are settled, while it finds events.
const CHECK_WRITERS: Duration = Duration::from_secs(1);

/// The minimum time between the starts of two turns while there is no backlog. A turn costs the database as much for
/// one event as for a hundred, and delays the writes of orders. An event that comes alone, after a pause, is sent at
/// once.
const PACE: Duration = Duration::from_millis(20);

/// After a turn with this many events, the next turn uses [`LANES`] lanes.
const BEHIND: usize = 256;

/// The number of lanes of a turn while there is a backlog, each for a part of the buckets. Some lanes read and delete
/// while the others wait for Kafka. All events of an order are in one bucket, so lanes share no order. A turn ends when
/// all its lanes have ended. Lanes share the connections of the relay's pool, and hold none while they wait for Kafka.
const LANES: usize = 5;

/// The maximum number of batches per lane and turn while there is a backlog, so that a lane need not wait for the
/// others after each batch. Floors rise only between turns, so each further batch visits the deleted rows of the turn.
const BATCHES: usize = 12;

/// No lane starts another batch after this time of its turn. A slow Kafka must not delay the renewal of the lease, nor
/// a stop.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// After this many events the relay checks earlier, because each read visits the rows deleted since the last check.
const EVENTS_PER_CHECK: usize = 2_000;

/// How often the floors are stored. Storing writes a row per bucket, and an open snapshot keeps vacuum from removing
/// the old rows. The reads in between visit the rows deleted since.
const STORE_FLOORS: Duration = Duration::from_secs(1);

/// After this many events the floors are stored earlier.
const EVENTS_PER_FLOOR: usize = 50_000;

pub(crate) struct Relay {
    replica: Uuid,
    store: Store,
    publisher: Publisher,
    settings: RelaySettings,
    metrics: Arc<Metrics>,
    topic_seen: bool,
    held: Option<HeldLease>,
    settling: Settling,
    /// When the writers are checked next, at the latest.
    check_writers_at: Instant,
    events_since_check: usize,
    is_behind: bool,
}

struct HeldLease {
    lease: Lease,
    check_shares_at: Instant,
    renew_at: Instant,
    /// Nothing is sent after this time, because it could still be in flight when the lease expires.
    send_until: Instant,
    /// Floors that are known and not stored yet.
    floors: BTreeMap<i16, i64>,
    /// When the floors are stored next, at the latest.
    store_floors: Instant,
    /// Events since the floors were stored.
    events: usize,
}

#[derive(Debug, Error)]
enum TurnError {
    #[error("the outbox cannot be read")]
    Store(#[from] StoreError),
    #[error("events cannot be published")]
    Publish(#[from] PublishError),
}

#[derive(Default)]
struct Published {
    /// The acknowledged events, by bucket and position.
    done: Vec<(i16, i64)>,
    refused: Vec<(PendingEvent, PublishError)>,
    failure: Option<PublishError>,
}

#[derive(Default)]
struct LaneResult {
    events: usize,
    /// The floors that its reads showed.
    floors: BTreeMap<i16, i64>,
    failure: Option<TurnError>,
}

/// Whether a turn found events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing.
    Idle,
    /// Events, and perhaps no more.
    Busy,
    /// So many events that more are likely.
    Behind,
}

impl Relay {
    /// A relay that has not started.
    pub(crate) fn new(
        store: Store,
        publisher: Publisher,
        settings: RelaySettings,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            replica: Uuid::now_v7(),
            store,
            publisher,
            settings,
            metrics: Arc::clone(metrics),
            topic_seen: false,
            held: None,
            settling: Settling::default(),
            check_writers_at: Instant::now(),
            events_since_check: 0,
            is_behind: false,
        }
    }

    /// Relays until `stop`. Then finishes its turn, runs one more for the latest events, and releases its buckets.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        info!(replica = %self.replica, "relay started");
        let mut failures = 0;
        while !stop.is_cancelled() {
            let next = Instant::now() + PACE;
            let turn = self.turn().await;
            self.show_buckets();
            match turn {
                Ok(turn) => {
                    failures = 0;
                    self.wait_after(turn, next, &stop).await;
                }
                Err(error) => {
                    failures += 1;
                    self.recover(&error).await;
                    self.show_buckets();
                    let _ = timeout(self.backoff(failures), stop.cancelled()).await;
                }
            }
        }
        if failures == 0
            && let Err(error) = self.last_turn().await
        {
            warn!(
                error = error_chain(&error),
                "the last turn of the relay failed; another replica continues"
            );
        }
        self.release_leases().await;
        self.show_buckets();
        info!(replica = %self.replica, "relay stopped");
    }

    fn show_buckets(&self) {
        let held = self.held.as_ref().map_or(0, |held| held.lease.floors.len());
        self.metrics.relay.buckets.set(i64::try_from(held).unwrap_or(i64::MAX));
    }

    async fn last_turn(&mut self) -> Result<(), TurnError> {
        self.turn().await?;
        Ok(self.store_floors().await?)
    }

    /// Publishes the oldest events of the held buckets, and deletes the acknowledged ones. Uses several lanes while
    /// there is a backlog.
    async fn turn(&mut self) -> Result<Turn, TurnError> {
        if !self.topic_seen || self.publisher.is_down() {
            self.publisher.ensure_topic().await?;
            self.topic_seen = true;
        }
        let (lease, send_until) = self.hold_lease().await?;
        if lease.floors.is_empty() {
            return Ok(Turn::Idle);
        }
        self.check_writers(lease.server).await?;
        let limit = (usize::from(self.settings.batch) / lease.floors.len()).max(1);
        let reading = Reading::plan(&lease, self.settling.settled(lease.server), limit);
        let is_bounded = reading.is_bounded();
        let lanes = reading.split(if self.is_behind { LANES } else { 1 });
        let results =
            join_all(lanes.iter().map(|lane| self.relay_lane(lease.server, lane, send_until))).await;
        let (mut events, mut failure) = (0, None);
        for (lane, result) in lanes.iter().zip(results) {
            events += result.events;
            self.raise_floors(lane, result.floors, result.events).await?;
            failure = failure.or(result.failure);
        }
        self.is_behind = events >= BEHIND;
        match failure {
            Some(failure) => Err(failure),
            None if self.is_behind || is_bounded => Ok(Turn::Behind),
            None if events == 0 => Ok(Turn::Idle),
            None => Ok(Turn::Busy),
        }
    }

    /// Relays events of the buckets of a lane, batch after batch while there are many.
    async fn relay_lane(&self, server: ServerStart, lane: &Reading, send_until: Instant) -> LaneResult {
        let mut result = LaneResult::default();
        let started = Instant::now();
        for _ in 0..if self.is_behind { BATCHES } else { 1 } {
            match self.relay_batch(server, lane, send_until, &mut result).await {
                Ok(events) if events < lane.most() / 2 || started.elapsed() > LONGEST_TURN => break,
                Ok(_) => {}
                Err(failure) => {
                    result.failure = Some(failure);
                    break;
                }
            }
        }
        result
    }

    /// Reads, publishes and deletes a batch; returns how many events it read.
    async fn relay_batch(
        &self,
        server: ServerStart,
        lane: &Reading,
        send_until: Instant,
        result: &mut LaneResult,
    ) -> Result<usize, TurnError> {
        let most = i64::try_from(lane.limit).unwrap_or(i64::MAX);
        let pending = self.store.pending_events(server, &lane.ranges, most).await?;
        let (read, found) = (Instant::now(), positions(&pending));
        let published = self.publish(pending, read, send_until).await;
        if !published.done.is_empty() {
            debug!(events = published.done.len(), "published");
            self.store.delete_events(&published.done).await?;
        }
        for (event, cause) in &published.refused {
            let (order, sequence) = (event.order_id, event.sequence);
            error!(%order, sequence, error = error_chain(cause), "Kafka refused an event; its order is parked");
            self.metrics.relay.failures.inc();
            self.store.park_order(event, &error_chain(cause)).await?;
        }
        result.events += found.len();
        result.floors.extend(lane.floors(&found, &published.done));
        published.failure.map_or(Ok(found.len()), |error| Err(error.into()))
    }

    /// Checks which positions are settled, if there may be more than before.
    async fn check_writers(&mut self, server: ServerStart) -> Result<(), StoreError> {
        let unknown = !self.settling.knows(server);
        let some = self.events_since_check > 0 || self.settling.is_open();
        let due = some && Instant::now() >= self.check_writers_at;
        if !unknown && !due && self.events_since_check < EVENTS_PER_CHECK {
            return Ok(());
        }
        // If no transaction is writing, the second check settles the positions of the first.
        for _ in 0..if unknown { 2 } else { 1 } {
            self.settling.observe(self.store.outbox_writers().await?);
        }
        if let Some(pids) = self.settling.blocked_by() {
            warn!(
                ?pids,
                "long transactions that wrote to the outbox are open: the relay must read past deleted rows"
            );
        }
        self.check_writers_at = Instant::now() + CHECK_WRITERS;
        self.events_since_check = 0;
        Ok(())
    }

    /// Remembers the floors that the reads of a lane showed, and stores them if that makes later reads cheaper.
    async fn raise_floors(
        &mut self,
        lane: &Reading,
        shown: BTreeMap<i16, i64>,
        events: usize,
    ) -> Result<(), StoreError> {
        self.events_since_check += events;
        let Some(held) = &mut self.held else { return Ok(()) };
        held.events += events;
        let to_the_end = lane.reaches_an_end(&shown);
        held.floors.extend(shown);
        // The next read can start behind the end of a range only after the floor is stored.
        let due = held.events > 0 && Instant::now() >= held.store_floors;
        if due || held.events >= EVENTS_PER_FLOOR || to_the_end {
            self.store_floors().await?;
        }
        Ok(())
    }

    async fn store_floors(&mut self) -> Result<(), StoreError> {
        let Some(held) = &mut self.held else { return Ok(()) };
        if !held.floors.is_empty() {
            let stored = self.store.raise_floors(held.lease.server, &held.floors).await?;
            held.lease.floors.extend(stored);
            held.floors.clear();
        }
        held.store_floors = Instant::now() + STORE_FLOORS;
        held.events = 0;
        Ok(())
    }

    /// The lease of this replica, renewed if needed.
    async fn hold_lease(&mut self) -> Result<(Lease, Instant), StoreError> {
        if self.is_lease_valid().await?
            && let Some(held) = &self.held
        {
            return Ok((held.lease.clone(), held.send_until));
        }
        self.renew_lease().await
    }

    /// Whether the lease needs no renewal: neither by its time, nor because replicas came or went.
    async fn is_lease_valid(&mut self) -> Result<bool, StoreError> {
        let Some(held) = &mut self.held else { return Ok(false) };
        let now = Instant::now();
        if now < held.check_shares_at {
            return Ok(true);
        }
        if now >= held.renew_at {
            return Ok(false);
        }
        held.check_shares_at = now + CHECK_SHARES.min(self.settings.lease / 3);
        let buckets = held.lease.floors.len();
        Ok(!self.store.is_share_unfair(self.replica, self.settings.lease, buckets).await?)
    }

    async fn renew_lease(&mut self) -> Result<(Lease, Instant), StoreError> {
        self.store_floors().await?;
        // Forgotten first: if the renewal fails, it is unknown whether the lease still holds.
        let before = self.held.take();
        let now = Instant::now();
        let lease = self.store.renew_lease(self.replica, self.settings.lease).await?;
        if before.is_none_or(|before| !before.lease.floors.keys().eq(lease.floors.keys())) {
            info!(buckets = lease.floors.len(), "the buckets of the relay changed");
        }
        let held = HeldLease {
            lease: lease.clone(),
            check_shares_at: now + (self.settings.lease / 3).min(CHECK_SHARES),
            renew_at: now + self.settings.lease / 3,
            send_until: now + self.settings.lease.saturating_sub(self.settings.delivery_timeout),
            floors: BTreeMap::new(),
            store_floors: now + STORE_FLOORS,
            events: 0,
        };
        let send_until = held.send_until;
        self.held = Some(held);
        Ok((lease, send_until))
    }

    /// Publishes events in waves with one event per order. librdkafka times out each event separately, so with two in
    /// flight the later one could succeed after the earlier one failed (librdkafka issue 4134).
    async fn publish(&self, mut waiting: Vec<PendingEvent>, read: Instant, send_until: Instant) -> Published {
        let mut published = Published::default();
        while !waiting.is_empty() && published.failure.is_none() && Instant::now() < send_until {
            let (wave, mut rest) = first_of_each_order(waiting);
            let sent = self.publisher.send_all(&wave).await;
            published.failure = sent.failure;
            self.acknowledged(&sent.acknowledged, read, &mut published);
            for (event, _) in sent.refused {
                let order = event.order_id;
                if published.failure.is_some() || !self.publish_alone(event, read, &mut published).await {
                    // The later events of the order wait with the refused one.
                    rest.retain(|later| later.order_id != order);
                }
            }
            waiting = rest;
        }
        published
    }

    /// Measures the delay of acknowledged events. `read` is when they were read.
    fn acknowledged(&self, events: &[&PendingEvent], read: Instant, published: &mut Published) {
        let since_read = read.elapsed();
        for event in events {
            let before = (event.read_at - event.created_at).to_std().unwrap_or_default();
            self.metrics.relay.published(event.sequence, before + since_read);
            published.done.push((event.bucket, event.position));
        }
    }

    /// Sends an event alone, because a broker refuses a batch as a whole, for one record or for its total size. Returns
    /// whether the event was acknowledged.
    async fn publish_alone(&self, event: &PendingEvent, read: Instant, published: &mut Published) -> bool {
        let mut sent = self.publisher.send_all(std::slice::from_ref(event)).await;
        published.failure = sent.failure;
        self.acknowledged(&sent.acknowledged, read, published);
        published.refused.extend(sent.refused.pop().map(|(event, error)| (event.clone(), error)));
        !sent.acknowledged.is_empty()
    }

    /// Logs a failure, and releases the buckets for replicas that may reach Kafka.
    async fn recover(&mut self, error: &TurnError) {
        warn!(error = error_chain(error), "the relay failed; it reads the outbox again");
        self.held = None;
        if let TurnError::Publish(_) = error {
            self.metrics.relay.failures.inc();
            self.topic_seen = false;
            self.release_leases().await;
            if let Err(error) = self.publisher.renew_after_fatal_error() {
                warn!(error = error_chain(&error), "a new producer could not be created");
            }
        }
    }

    async fn release_leases(&mut self) {
        self.held = None;
        if let Err(error) = self.store.release_lease(self.replica).await {
            warn!(error = error_chain(&error), "the leases could not be released; they will expire");
        }
    }

    /// Waits until `next`, and after an idle turn until this process writes to the outbox or the poll is due. A stop
    /// ends the wait.
    async fn wait_after(&self, turn: Turn, next: Instant, stop: &CancellationToken) {
        if turn == Turn::Behind {
            return;
        }
        let rest = async {
            if turn == Turn::Idle {
                let _ = timeout(self.settings.poll_interval, self.store.outbox_written()).await;
            }
            sleep_until(next.into()).await;
        };
        stop.run_until_cancelled(rest).await;
    }

    /// Exponential backoff from 100 ms up to the maximum, with up to half of it as random jitter, so that replicas do
    /// not retry together.
    fn backoff(&self, failures: u32) -> Duration {
        let longest = time::backoff(Duration::from_millis(100), failures, self.settings.max_backoff);
        let random = u32::from(Uuid::new_v4().as_bytes()[0]);
        longest.saturating_sub(longest * random / 512)
    }
}

/// Splits off the first event of each order. Both parts keep their order.
fn first_of_each_order(events: Vec<PendingEvent>) -> (Vec<PendingEvent>, Vec<PendingEvent>) {
    let mut seen = HashSet::with_capacity(events.len());
    events.into_iter().partition(|event| seen.insert(event.order_id))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::OrderId;

    fn event(position: i64, order: u8) -> PendingEvent {
        PendingEvent {
            bucket: 0,
            position,
            order_id: OrderId(Uuid::from_u128(order.into())),
            sequence: 0,
            payload: String::new(),
            headers: String::new(),
            created_at: DateTime::UNIX_EPOCH,
            read_at: DateTime::UNIX_EPOCH,
        }
    }

    proptest! {
        #[test]
        fn waves_keep_the_events_of_every_order_in_order(orders in prop::collection::vec(0_u8..6, 0..60)) {
            let events: Vec<_> = (0..).zip(&orders).map(|(position, order)| event(position, *order)).collect();
            let (mut waiting, mut sent) = (events.clone(), Vec::new());
            while !waiting.is_empty() {
                let (wave, rest) = first_of_each_order(waiting);
                let distinct: HashSet<_> = wave.iter().map(|event| event.order_id).collect();
                prop_assert_eq!(distinct.len(), wave.len());
                sent.extend(wave);
                waiting = rest;
            }
            let of = |events: &[PendingEvent], order: OrderId| -> Vec<i64> {
                events.iter().filter(|event| event.order_id == order).map(|event| event.position).collect()
            };
            for order in 0_u8..6 {
                let id = OrderId(Uuid::from_u128(order.into()));
                prop_assert_eq!(of(&sent, id), of(&events, id));
            }
        }
    }
}
