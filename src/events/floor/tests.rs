//! Property: any interleaving of transactions, reads, acknowledgements and takeovers relays every event in order.

use std::collections::{BTreeMap, BTreeSet};

use chrono::DateTime;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::OrderId;

const ORDERS: u8 = 4;
const BUCKETS: i16 = 2;
const LIMIT: usize = 2;
/// One for each bucket.
const LANES: usize = 2;

/// Positions are far apart, so that a bounded range contains few of them.
const STRIDE: i64 = RANGE / 3;

/// An event in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Event {
    order: u8,
    sequence: i32,
}

/// An open transaction, which holds the locks of its orders.
#[derive(Debug, Default)]
struct Transaction {
    number: u32,
    rows: Vec<(i64, Event)>,
}

/// PostgreSQL and Kafka from the relay's point of view.
#[derive(Debug, Default)]
struct World {
    last_position: i64,
    transactions: u32,
    open: Vec<Transaction>,
    /// By bucket and position.
    outbox: BTreeMap<(i16, i64), Event>,
    /// The number of committed events by order.
    committed: BTreeMap<u8, i32>,
    parked: BTreeSet<u8>,
    floors: BTreeMap<i16, i64>,
    kafka: Vec<Event>,
}

fn bucket(order: u8) -> i16 {
    i16::from(order) % BUCKETS
}

impl World {
    fn position(&mut self) -> i64 {
        self.last_position += STRIDE;
        self.last_position
    }

    /// Writes an event in a transaction, unless another transaction holds the lock of the order.
    fn write(&mut self, order: u8, transaction: usize) {
        if self.open.iter().flat_map(|open| &open.rows).any(|(_, event)| event.order == order) {
            return;
        }
        let sequence = self.committed.get(&order).copied().unwrap_or_default() + 1;
        let position = self.position();
        let at = transaction % (self.open.len() + 1);
        if at == self.open.len() {
            self.transactions += 1;
            self.open.push(Transaction { number: self.transactions, rows: Vec::new() });
        }
        self.open[at].rows.push((position, Event { order, sequence }));
    }

    fn end(&mut self, transaction: usize, commit: bool) {
        if self.open.is_empty() {
            return;
        }
        let ended = self.open.remove(transaction % self.open.len());
        for (position, event) in ended.rows.into_iter().filter(|_| commit) {
            self.outbox.insert((bucket(event.order), position), event);
            self.committed.insert(event.order, event.sequence);
        }
    }

    /// Like `store/parked_orders.rs`: runs after the transaction that holds the lock of the order.
    fn replay(&mut self, order: u8) {
        let locked = self.open.iter().flat_map(|open| &open.rows).any(|(_, event)| event.order == order);
        if locked || !self.parked.remove(&order) {
            return;
        }
        let places: Vec<_> =
            self.outbox.iter().filter(|(_, event)| event.order == order).map(|(place, _)| *place).collect();
        for place in places {
            let event = self.outbox.remove(&place).unwrap();
            let position = self.position();
            self.outbox.insert((place.0, position), event);
        }
    }

    fn writers(&self) -> Vec<OutboxWriter> {
        let writer =
            |open: &Transaction| OutboxWriter { transaction: format!("3/{}", open.number), pid: Some(1) };
        self.open.iter().map(writer).collect()
    }

    /// Checks the invariant of floors from the documentation of the module.
    fn floors_are_true(&self) -> Result<(), TestCaseError> {
        for (&of, &floor) in &self.floors {
            let pending = self.outbox.iter().find(|((bucket, position), event)| {
                *bucket == of && *position < floor && !self.parked.contains(&event.order)
            });
            prop_assert_eq!(pending, None, "pending below the floor {} of {}", floor, of);
            let late = self.open.iter().flat_map(|open| &open.rows);
            let late = late.clone().find(|(at, event)| bucket(event.order) == of && *at < floor);
            prop_assert_eq!(late, None, "can be committed below the floor {} of {}", floor, of);
        }
        Ok(())
    }
}

/// The relay of a replica, step by step, so that other steps can run in between.
#[derive(Default)]
struct Relay {
    settling: Settling,
    lease: Option<Lease>,
    /// The last position, read before the open writers are.
    last_position: Option<i64>,
    lanes: [Lane; LANES],
}

/// The state of a lane between a read and the delete.
#[derive(Default)]
struct Lane {
    batch: Option<(Reading, Vec<PendingEvent>)>,
    /// The latest read; further batches of the same turn use the same plan.
    plan: Option<Reading>,
    done: Vec<(i16, i64)>,
    sent: usize,
    stuck: BTreeSet<OrderId>,
}

fn server() -> ServerStart {
    DateTime::UNIX_EPOCH
}

fn order_of(event: &PendingEvent) -> u8 {
    event.order_id.0.as_bytes()[15]
}

impl Relay {
    fn observe(&mut self, world: &World) {
        match self.last_position.take() {
            None => self.last_position = Some(world.last_position),
            Some(last_position) => self.settling.observe(OutboxWriters {
                server: server(),
                last_position,
                open: world.writers(),
            }),
        }
    }

    /// Takes over the lease, even while another replica still believes that it holds it.
    fn renew(&mut self, world: &World) {
        let floors =
            (0..BUCKETS).map(|bucket| (bucket, world.floors.get(&bucket).copied().unwrap_or_default()));
        self.lease = Some(Lease { floors: floors.collect(), server: server() });
    }

    /// Reads a lane's next batch with the plan of the latest one or with a new plan.
    fn read(&mut self, world: &World, lane: u8, again: bool) {
        let Some(lease) = &self.lease else { return };
        let lane = usize::from(lane) % self.lanes.len();
        let reading = self.lanes[lane].plan.take().filter(|_| again).unwrap_or_else(|| {
            let reading = Reading::plan(lease, self.settling.settled(server()), LIMIT);
            reading.split(self.lanes.len()).swap_remove(lane)
        });
        let pending = reading.ranges.iter().flat_map(|range| {
            let rows = world.outbox.range((range.bucket, range.from)..(range.bucket, range.to));
            let rows = rows.filter(|(_, event)| !world.parked.contains(&event.order));
            rows.take(LIMIT).map(|((bucket, position), event)| PendingEvent {
                bucket: *bucket,
                position: *position,
                order_id: OrderId(Uuid::from_u128(event.order.into())),
                sequence: event.sequence,
                payload: String::new(),
                headers: String::new(),
                created_at: DateTime::UNIX_EPOCH,
                read_at: DateTime::UNIX_EPOCH,
            })
        });
        let pending = pending.collect();
        self.lanes[lane] = Lane { batch: Some((reading, pending)), ..Lane::default() };
    }

    fn finish(&mut self, world: &mut World, lane: u8) {
        let lane = &mut self.lanes[usize::from(lane) % LANES];
        let Some((reading, pending)) = lane.batch.take() else { return };
        for place in &lane.done {
            world.outbox.remove(place);
        }
        let Some(lease) = &mut self.lease else { return };
        for (bucket, floor) in reading.floors(&positions(&pending), &lane.done) {
            let stored = world.floors.entry(bucket).or_default();
            *stored = floor.max(*stored);
            lease.floors.insert(bucket, *stored);
        }
        lane.plan = Some(reading);
    }
}

impl Lane {
    /// Sends the next event, if all earlier events of its order are acknowledged.
    fn send(&mut self, world: &mut World, fate: u8) {
        let Some((_, pending)) = &self.batch else { return };
        let Some(event) = pending.get(self.sent) else { return };
        self.sent += 1;
        if self.stuck.contains(&event.order_id) {
            return;
        }
        let arrives = Event { order: order_of(event), sequence: event.sequence };
        match fate % 8 {
            // The event is refused, and its order parked if the event is still in the outbox.
            0 => {
                self.stuck.insert(event.order_id);
                if world.outbox.contains_key(&(event.bucket, event.position)) {
                    world.parked.insert(arrives.order);
                }
            }
            // The event is lost (1), or only its acknowledgement (2).
            1 => drop(self.stuck.insert(event.order_id)),
            2 => {
                world.kafka.push(arrives);
                self.stuck.insert(event.order_id);
            }
            _ => {
                world.kafka.push(arrives);
                self.done.push((event.bucket, event.position));
            }
        }
    }
}

fn step(world: &mut World, relays: &mut [Relay; 2], (what, a, b): (u8, u8, u8)) {
    let relay = &mut relays[usize::from(a) % 2];
    match what % 16 {
        0..=2 => world.write(a % ORDERS, b.into()),
        3 | 4 => world.end(a.into(), true),
        5 => world.end(a.into(), b % 2 == 0),
        6 | 7 => relay.observe(world),
        8 => relay.renew(world),
        9 | 10 => relay.read(world, b, b / 2 % 2 == 1),
        11..=13 => relay.lanes[usize::from(a / 2) % LANES].send(world, b),
        14 if b % 4 == 0 => *relay = Relay::default(),
        14 => relay.finish(world, a / 2),
        _ => world.replay(a % ORDERS),
    }
}

/// Ends all transactions, replays all parked orders, and runs one relay without disturbance.
fn settle(world: &mut World, relay: &mut Relay) -> Result<(), TestCaseError> {
    while !world.open.is_empty() {
        world.end(0, true);
    }
    (0..ORDERS).for_each(|order| world.replay(order));
    relay.lanes = Default::default();
    relay.last_position = None;
    relay.renew(world);
    for _ in 0..1_000 {
        relay.observe(world);
        for (number, lane) in (0..).zip(0..relay.lanes.len()) {
            relay.read(world, number, false);
            (0..LIMIT).for_each(|_| relay.lanes[lane].send(world, 7));
            relay.finish(world, number);
        }
        world.floors_are_true()?;
        if world.outbox.is_empty() && world.floors.values().all(|floor| *floor > world.last_position) {
            return Ok(());
        }
    }
    Err(TestCaseError::fail(format!("never ends: {world:?}")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_interleaving_relays_every_event_in_order(
        steps in prop::collection::vec(any::<(u8, u8, u8)>(), 0..300),
    ) {
        let (mut world, mut relays) = (World::default(), <[Relay; 2]>::default());
        for at in steps {
            step(&mut world, &mut relays, at);
            world.floors_are_true()?;
        }
        settle(&mut world, &mut relays[0])?;
        let mut first: BTreeMap<u8, i32> = BTreeMap::new();
        for event in &world.kafka {
            let so_far = first.entry(event.order).or_default();
            prop_assert!(event.sequence <= *so_far + 1, "{event:?} after {so_far}");
            *so_far = event.sequence.max(*so_far);
        }
        prop_assert_eq!(first, world.committed);
    }
}
