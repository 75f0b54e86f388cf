//! Floors: where the relay starts to read, so that a read costs as much as is pending, not as much as was deleted.
//!
//! While any transaction of the database is open, vacuum cannot remove deleted rows of the outbox, and a read from the
//! start visits all of them. So each bucket has a floor, and reads start there.
//!
//! A floor is safe because it stays true forever. Below it, (a) nothing will be committed, and (b) nothing is pending
//! except events of parked orders, which get new positions when their order is freed (`store/parked_orders.rs`). So no
//! event below a floor is missed or overtaken, and any replica can use the stored floor of another one, however late it
//! was stored.
//!
//! (a) does not depend on time. A transaction that inserts into the outbox locks the table before it takes a position,
//! and releases the lock after its rows are visible. So when every transaction that held the lock just after a position
//! was taken has released it, all positions up to that one are settled: a row that is not visible by then never will
//! be. [`Settling`] tracks this.
//!
//! (b) follows from reads that start after the positions were settled. A position that such a read does not return is
//! not pending; an event that it returns is gone after it was acknowledged and deleted. [`Reading`] tracks this.
//!
//! Only committed floors are used. A server that crashes or fails over may forget which positions it assigned, but then
//! it has also forgotten the floor, which was written later.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use crate::store::outbox::{OutboxWriter, OutboxWriters, Range, ServerStart};
use crate::store::{Lease, PendingEvent};

/// The maximum number of positions that a read covers in a bucket: about 0.2 s if all of them are deleted rows.
const RANGE: i64 = 100_000;

/// After this time, the transactions that block settling are logged.
const SLOW: Duration = Duration::from_mins(1);

/// Tracks up to which position every transaction has ended.
#[derive(Debug, Default)]
pub(super) struct Settling {
    server: Option<ServerStart>,
    settled: i64,
    /// The position that is settled when all of `writers` have ended.
    candidate: i64,
    writers: Vec<OutboxWriter>,
    since: Option<Instant>,
    reported: bool,
}

impl Settling {
    pub(super) fn knows(&self, server: ServerStart) -> bool {
        self.server == Some(server)
    }

    /// The last settled position; 0 on a server that was not observed.
    pub(super) fn settled(&self, server: ServerStart) -> i64 {
        if self.knows(server) { self.settled } else { 0 }
    }

    /// Whether another observation could settle more positions.
    pub(super) fn is_open(&self) -> bool {
        self.candidate > self.settled
    }

    pub(super) fn observe(&mut self, seen: OutboxWriters) {
        if self.server != Some(seen.server) {
            *self = Self { server: Some(seen.server), ..Self::default() };
        }
        self.writers.retain(|writer| seen.open.contains(writer));
        // A transaction changes its id when it is prepared, so any prepared one may be among `writers`.
        let prepared = seen.open.iter().any(|writer| writer.pid.is_none());
        if self.writers.is_empty() && !prepared {
            self.settled = self.candidate;
            self.candidate = seen.last_position;
            self.writers = seen.open;
            self.since = Some(Instant::now());
            self.reported = false;
        }
    }

    /// The server processes whose transactions have blocked settling for longer than [`SLOW`]. Reports each wait once.
    pub(super) fn blocked_by(&mut self) -> Option<Vec<i32>> {
        if self.reported || self.since.is_none_or(|since| since.elapsed() < SLOW) {
            return None;
        }
        self.reported = true;
        Some(self.writers.iter().filter_map(|writer| writer.pid).collect())
    }
}

/// One read of the held buckets.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) ranges: Vec<Range>,
    /// The maximum number of events per range.
    pub(super) limit: usize,
    settled: i64,
}

impl Reading {
    /// Starts at the floors. A range that is settled to its end is bounded, so that the next read can start there; any
    /// other range is open.
    pub(super) fn plan(lease: &Lease, settled: i64, limit: usize) -> Self {
        let range = |(&bucket, &from): (&i16, &i64)| {
            let to = from.saturating_add(RANGE);
            Range { bucket, from, to: if to <= settled { to } else { i64::MAX } }
        };
        Self { ranges: lease.floors.iter().map(range).collect(), limit, settled }
    }

    pub(super) fn split(self, lanes: usize) -> Vec<Self> {
        let each = self.ranges.len().div_ceil(lanes).max(1);
        let lane = |ranges: &[Range]| Self { ranges: ranges.to_vec(), ..self };
        self.ranges.chunks(each).map(lane).collect()
    }

    /// The maximum number of events of all ranges.
    pub(super) const fn most(&self) -> usize {
        self.limit * self.ranges.len()
    }

    /// Whether there may be events after the ranges.
    pub(super) fn is_bounded(&self) -> bool {
        self.ranges.iter().any(|range| range.to < i64::MAX)
    }

    /// Whether one of these floors is the end of a bounded range.
    pub(super) fn reaches_an_end(&self, floors: &BTreeMap<i16, i64>) -> bool {
        self.ranges.iter().any(|range| range.to < i64::MAX && floors.get(&range.bucket) == Some(&range.to))
    }

    /// The floors that this read shows. `pending` are the events that it returned, and `done` those deleted since, by
    /// bucket and position.
    pub(super) fn floors(&self, pending: &[(i16, i64)], done: &[(i16, i64)]) -> BTreeMap<i16, i64> {
        let done: HashSet<_> = done.iter().copied().collect();
        let mut found: BTreeMap<i16, Found> = BTreeMap::new();
        for event in pending {
            let found = found.entry(event.0).or_default();
            found.count += 1;
            found.last = event.1;
            if found.left.is_none() && !done.contains(event) {
                found.left = Some(event.1);
            }
        }
        let floor = |range: &Range| {
            let found = found.get(&range.bucket).copied().unwrap_or_default();
            let cleared = if found.count < self.limit { range.to } else { found.last + 1 };
            let floor = found.left.unwrap_or(cleared).min(self.settled + 1);
            (floor > range.from).then_some((range.bucket, floor))
        };
        self.ranges.iter().filter_map(floor).collect()
    }
}

/// The events that a read found in a bucket.
#[derive(Clone, Copy, Default)]
struct Found {
    count: usize,
    last: i64,
    /// The first position that is pending.
    left: Option<i64>,
}

/// The bucket and position of each event.
pub(super) fn positions(events: &[PendingEvent]) -> Vec<(i16, i64)> {
    events.iter().map(|event| (event.bucket, event.position)).collect()
}

#[cfg(test)]
mod tests;
