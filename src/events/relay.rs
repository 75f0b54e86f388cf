//! The relay: takes events from the outbox to Kafka, at least once and in sequence within each order
//! (invariants 4 and 5).
//!
//! Why the sequence holds, whoever dies when: an event is sent only when every earlier event of its order is
//! gone from the outbox or was acknowledged in the same turn, and an event leaves the outbox only after its
//! acknowledgement. So the first time an event reaches Kafka, all earlier ones of its order are there. That
//! needs no clock and no lock; the leases only keep replicas from sending the same events side by side.
//!
//! A read begins at its bucket's floor, below which nothing is pending and nothing will be: the argument is in
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

use super::floor::{Reading, Settling, places};
use super::{PublishError, Publisher};
use crate::metrics::Metrics;
use crate::store::outbox::ServerStart;
use crate::store::{Lease, PendingEvent, Store, StoreError};
use crate::telemetry::chain;

/// How the relay works.
#[derive(Clone, Debug)]
pub struct RelaySettings {
    /// For how long a bucket stays this replica's without renewal. More than twice the delivery timeout.
    pub lease: Duration,
    /// How long the relay waits before it looks again when nothing woke it.
    pub poll_interval: Duration,
    /// The most events in memory at once.
    pub batch: u16,
    /// The longest pause after failures.
    pub max_backoff: Duration,
    /// How long the broker may take to acknowledge (the publisher's setting).
    pub delivery_timeout: Duration,
}

/// How often the relay looks whether it holds its fair share of the buckets.
const LOOK_AT_SHARES: Duration = Duration::from_secs(1);

/// How often the relay looks which positions are settled, while it finds events.
const LOOK_AT_WRITERS: Duration = Duration::from_secs(1);

/// A turn that leaves nothing behind is followed by the next one no earlier than so long after it began. A turn costs the
/// database the same for one event as for a hundred, and those who write orders wait for it; an event that comes alone,
/// after a pause, is sent at once.
const PACE: Duration = Duration::from_millis(20);

/// A turn that found so many events makes the next one use [`LANES`] lanes.
const BEHIND: usize = 256;

/// How many lanes a turn has while there is a backlog, each for a part of the buckets: one is read while another one
/// is acknowledged by Kafka and a third one deleted. All events of an order are in one bucket, so lanes share no
/// order, and a turn ends when all its lanes have ended. Each lane uses a connection of the relay's pool.
const LANES: usize = 3;

/// How many batches a lane passes on in one turn while there is a backlog: it need not wait for the other lanes
/// after each.
const BATCHES: usize = 4;

/// After so many events the relay looks earlier. Each later read visits what was deleted meanwhile.
const EVENTS_PER_LOOK: usize = 2_000;

/// How often the floors are stored, which writes a row for each bucket: beside a snapshot that stays open those rows
/// cannot be cleaned away. The reads in between visit what was deleted meanwhile.
const STORE_FLOORS: Duration = Duration::from_secs(1);

/// After so many events the floors are stored earlier.
const EVENTS_PER_FLOOR: usize = 50_000;

/// One replica's relay.
pub struct Relay {
    replica: Uuid,
    store: Store,
    publisher: Publisher,
    settings: RelaySettings,
    metrics: Arc<Metrics>,
    topic_seen: bool,
    held: Option<HeldLease>,
    settling: Settling,
    /// When the writers are looked at, at the latest.
    look_at_writers: Instant,
    /// Events since the writers were looked at.
    events_since_look: usize,
    /// The last turn found many events.
    is_behind: bool,
}

struct HeldLease {
    lease: Lease,
    look_at_shares: Instant,
    renew_at: Instant,
    /// After this moment nothing is sent any more: it could still be under way when the lease expires.
    send_until: Instant,
    /// Floors that are found out and not stored yet.
    floors: BTreeMap<i16, i64>,
    /// When the floors are stored, at the latest.
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

/// What a turn brought to Kafka.
#[derive(Default)]
struct Published {
    /// By bucket and position.
    done: Vec<(i16, i64)>,
    refused: Vec<(PendingEvent, PublishError)>,
    failure: Option<PublishError>,
}

/// What a lane passed on in a turn.
#[derive(Default)]
struct Passed {
    events: usize,
    /// What its reads showed.
    floors: BTreeMap<i16, i64>,
    failure: Option<TurnError>,
}

/// What a turn found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing.
    Idle,
    /// Events, and perhaps no more.
    Busy,
    /// So much that there may well be more.
    Behind,
}

impl Relay {
    /// A relay that has done nothing yet.
    pub fn new(store: Store, publisher: Publisher, settings: RelaySettings, metrics: &Arc<Metrics>) -> Self {
        Self {
            replica: Uuid::now_v7(),
            store,
            publisher,
            settings,
            metrics: Arc::clone(metrics),
            topic_seen: false,
            held: None,
            settling: Settling::default(),
            look_at_writers: Instant::now(),
            events_since_look: 0,
            is_behind: false,
        }
    }

    /// Relays until `stop`; then finishes its turn, takes one more for what was written last, and gives its
    /// buckets back.
    pub async fn run(mut self, stop: CancellationToken) {
        info!(replica = %self.replica, "the relay starts");
        let mut failures = 0;
        while !stop.is_cancelled() {
            let next = Instant::now() + PACE;
            let turn = self.turn().await;
            self.show_buckets();
            match turn {
                Ok(turn) => {
                    failures = 0;
                    self.rest_after(turn, next, &stop).await;
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
            warn!(error = chain(&error), "the last turn of the relay failed; another replica goes on");
        }
        self.let_go().await;
        self.show_buckets();
        info!(replica = %self.replica, "the relay has stopped");
    }

    fn show_buckets(&self) {
        let held = self.held.as_ref().map_or(0, |held| held.lease.floors.len());
        self.metrics.relay.buckets.set(i64::try_from(held).unwrap_or(i64::MAX));
    }

    async fn last_turn(&mut self) -> Result<(), TurnError> {
        self.turn().await?;
        Ok(self.store_floors().await?)
    }

    /// Takes the oldest events of the held buckets, publishes them, and deletes what was acknowledged. While there is
    /// a backlog, in several lanes.
    async fn turn(&mut self) -> Result<Turn, TurnError> {
        if !self.topic_seen || self.publisher.is_down() {
            self.publisher.ensure_topic().await?;
            self.topic_seen = true;
        }
        let (lease, send_until) = self.hold_lease().await?;
        if lease.floors.is_empty() {
            return Ok(Turn::Idle);
        }
        self.settle(lease.server).await?;
        let limit = (usize::from(self.settings.batch) / lease.floors.len()).max(1);
        let reading = Reading::plan(&lease, self.settling.settled(lease.server), limit);
        let is_bounded = reading.is_bounded();
        let lanes = reading.split(if self.is_behind { LANES } else { 1 });
        let passed = join_all(lanes.iter().map(|lane| self.pass(lease.server, lane, send_until))).await;
        let (mut events, mut failure) = (0, None);
        for (lane, passed) in lanes.iter().zip(passed) {
            events += passed.events;
            self.raise_floors(lane, passed.floors, passed.events).await?;
            failure = failure.or(passed.failure);
        }
        self.is_behind = events >= BEHIND;
        match failure {
            Some(failure) => Err(failure),
            None if self.is_behind || is_bounded => Ok(Turn::Behind),
            None if events == 0 => Ok(Turn::Idle),
            None => Ok(Turn::Busy),
        }
    }

    /// Passes events of one lane's buckets on to Kafka, batch after batch while there are many.
    async fn pass(&self, server: ServerStart, lane: &Reading, send_until: Instant) -> Passed {
        let mut passed = Passed::default();
        for _ in 0..if self.is_behind { BATCHES } else { 1 } {
            match self.pass_batch(server, lane, send_until, &mut passed).await {
                Ok(events) if events < lane.most() / 2 => break,
                Ok(_) => {}
                Err(failure) => {
                    passed.failure = Some(failure);
                    break;
                }
            }
        }
        passed
    }

    /// How many events there were.
    async fn pass_batch(
        &self,
        server: ServerStart,
        lane: &Reading,
        send_until: Instant,
        passed: &mut Passed,
    ) -> Result<usize, TurnError> {
        let most = i64::try_from(lane.limit).unwrap_or(i64::MAX);
        let pending = self.store.pending_events(server, &lane.ranges, most).await?;
        let (read, found) = (Instant::now(), places(&pending));
        let published = self.publish(pending, read, send_until).await;
        if !published.done.is_empty() {
            debug!(events = published.done.len(), "published");
            self.store.delete_events(&published.done).await?;
        }
        for (event, cause) in &published.refused {
            let (order, sequence) = (event.order_id, event.sequence);
            error!(%order, sequence, error = chain(cause), "Kafka refuses an event: its order is parked");
            self.metrics.relay.failures.inc();
            self.store.park_order(event, &chain(cause)).await?;
        }
        passed.events += found.len();
        passed.floors.extend(lane.floors(&found, &published.done));
        published.failure.map_or(Ok(found.len()), |error| Err(error.into()))
    }

    /// Looks which positions are settled, when there may be more of them than before.
    async fn settle(&mut self, server: ServerStart) -> Result<(), StoreError> {
        let unknown = !self.settling.knows(server);
        let some = self.events_since_look > 0 || self.settling.is_open();
        let due = some && Instant::now() >= self.look_at_writers;
        if !unknown && !due && self.events_since_look < EVENTS_PER_LOOK {
            return Ok(());
        }
        // The second look settles what the first one found, where nobody is writing.
        for _ in 0..if unknown { 2 } else { 1 } {
            self.settling.observe(self.store.outbox_writers().await?);
        }
        if let Some(pids) = self.settling.held_back_by() {
            warn!(?pids, "transactions that wrote to the outbox are open: the relay reads past deleted rows");
        }
        self.look_at_writers = Instant::now() + LOOK_AT_WRITERS;
        self.events_since_look = 0;
        Ok(())
    }

    /// Notes the floors that the reads of a lane showed, and stores them when they save the next reads much.
    async fn raise_floors(
        &mut self,
        lane: &Reading,
        shown: BTreeMap<i16, i64>,
        events: usize,
    ) -> Result<(), StoreError> {
        self.events_since_look += events;
        let Some(held) = &mut self.held else { return Ok(()) };
        held.events += events;
        let to_the_end = lane.reaches_an_end(&shown);
        held.floors.extend(shown);
        // Behind the end of a range the next read can begin only when the floor is there.
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

    /// The buckets that this replica holds, renewed in time.
    async fn hold_lease(&mut self) -> Result<(Lease, Instant), StoreError> {
        if self.lease_stands().await?
            && let Some(held) = &self.held
        {
            return Ok((held.lease.clone(), held.send_until));
        }
        self.renew_lease().await
    }

    /// Whether nothing calls for a renewal yet: neither the time nor replicas that come or go.
    async fn lease_stands(&mut self) -> Result<bool, StoreError> {
        let Some(held) = &mut self.held else { return Ok(false) };
        let now = Instant::now();
        if now < held.look_at_shares {
            return Ok(true);
        }
        if now >= held.renew_at {
            return Ok(false);
        }
        held.look_at_shares = now + LOOK_AT_SHARES.min(self.settings.lease / 3);
        let buckets = held.lease.floors.len();
        Ok(!self.store.is_share_unfair(self.replica, self.settings.lease, buckets).await?)
    }

    async fn renew_lease(&mut self) -> Result<(Lease, Instant), StoreError> {
        self.store_floors().await?;
        // Forgotten first: when the renewal fails, nobody knows whether the lease still stands.
        let before = self.held.take();
        let now = Instant::now();
        let lease = self.store.renew_lease(self.replica, self.settings.lease).await?;
        if before.is_none_or(|before| !before.lease.floors.keys().eq(lease.floors.keys())) {
            info!(buckets = lease.floors.len(), "the relay holds other buckets than before");
        }
        let held = HeldLease {
            lease: lease.clone(),
            look_at_shares: now + (self.settings.lease / 3).min(LOOK_AT_SHARES),
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

    /// Publishes events in waves, so that no order ever has two on their way at once: librdkafka gives up on
    /// each event by its own clock, and a later one could outlive an earlier one (librdkafka issue 4134).
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
                    // The later events of a refused one wait with it.
                    rest.retain(|later| later.order_id != order);
                }
            }
            waiting = rest;
        }
        published
    }

    /// Takes note of what Kafka acknowledged. `read` is when the events were read.
    fn acknowledged(&self, events: &[&PendingEvent], read: Instant, published: &mut Published) {
        let since_read = read.elapsed();
        for event in events {
            let before = (event.read_at - event.created_at).to_std().unwrap_or_default();
            self.metrics.relay.published(event.sequence, before + since_read);
            published.done.push((event.bucket, event.position));
        }
    }

    /// Sends an event by itself: a broker refuses a batch as a whole, for one of its records or for their sum.
    /// Whether it got through.
    async fn publish_alone(&self, event: &PendingEvent, read: Instant, published: &mut Published) -> bool {
        let mut sent = self.publisher.send_all(std::slice::from_ref(event)).await;
        published.failure = sent.failure;
        self.acknowledged(&sent.acknowledged, read, published);
        published.refused.extend(sent.refused.pop().map(|(event, error)| (event.clone(), error)));
        !sent.acknowledged.is_empty()
    }

    /// After a failure: says so, and gives the buckets to replicas that may reach Kafka better.
    async fn recover(&mut self, error: &TurnError) {
        warn!(error = chain(error), "the relay failed; it starts again from the outbox");
        self.held = None;
        if let TurnError::Publish(_) = error {
            self.metrics.relay.failures.inc();
            self.topic_seen = false;
            self.let_go().await;
            if let Err(error) = self.publisher.renew_after_fatal_error() {
                warn!(error = chain(&error), "there is no new producer yet");
            }
        }
    }

    async fn let_go(&mut self) {
        self.held = None;
        if let Err(error) = self.store.release_lease(self.replica).await {
            warn!(error = chain(&error), "the leases could not be given back; they expire by themselves");
        }
    }

    /// Rests until `next`; after an idle turn also until this process wrote to the outbox, or the poll is due. Not
    /// beyond the stop.
    async fn rest_after(&self, turn: Turn, next: Instant, stop: &CancellationToken) {
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

    /// 100 ms, doubled with each failure up to the maximum, and up to half of it taken off at random, so that
    /// replicas do not come back in step.
    fn backoff(&self, failures: u32) -> Duration {
        let longest = Duration::from_millis(100)
            .saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)))
            .min(self.settings.max_backoff);
        let random = u32::from(Uuid::new_v4().as_bytes()[0]);
        longest.saturating_sub(longest * random / 512)
    }
}

/// The first event of each order, and all the others, both in their old sequence.
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
        fn waves_keep_the_sequence_of_every_order(orders in prop::collection::vec(0_u8..6, 0..60)) {
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
