//! Where the relay begins to read, so that a read costs what is pending and not what was deleted.
//!
//! As long as any transaction of the database is open, deleted rows of the outbox cannot be cleaned away, and a
//! read that begins at the first of them visits all. So each bucket has a floor, and reads begin there.
//!
//! What makes it safe: a floor is true for ever. Below it (a) nothing will ever be committed, and (b) nothing is
//! pending but events of parked orders, which get new positions when their order is freed (`store/parked_orders.rs`).
//! So no event below a floor can be overlooked or overtaken, and any replica may go on from a floor that another
//! one stored, however late it was stored.
//!
//! (a) is no matter of time. A transaction that inserts into the outbox locks the table before it gets a position,
//! and lets go of the lock after it has become visible. So when every transaction that held the lock after a
//! position was given out has let go of it, all positions up to that one are settled: what is not visible by then
//! never will be. [`Settling`] follows that.
//!
//! (b) follows from reads that began after the positions were settled: what such a read does not return is not
//! pending, and what it returns is gone once it was acknowledged and deleted. [`Reading`] follows that.
//!
//! Only floors that are committed to the database are used: a server that crashes or fails over may forget which
//! positions it gave out, but then it has forgotten the floor, too, because that was written later.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use crate::store::outbox::{OutboxWriter, OutboxWriters, Range, ServerStart};
use crate::store::{Lease, PendingEvent};

/// How many positions a read covers at most, over all buckets: about 0.2 s when all of them are deleted rows.
const RANGE: i64 = 100_000;

/// The transactions that hold the positions back are named after this time.
const SLOW: Duration = Duration::from_mins(1);

/// Up to which position every transaction has ended.
#[derive(Debug, Default)]
pub(super) struct Settling {
    server: Option<ServerStart>,
    settled: i64,
    /// Settled when all of `writers` have ended.
    candidate: i64,
    writers: Vec<OutboxWriter>,
    since: Option<Instant>,
    named: bool,
}

impl Settling {
    /// Whether anything was observed on this server.
    pub(super) fn knows(&self, server: ServerStart) -> bool {
        self.server == Some(server)
    }

    /// Every position up to this one is settled. None on a server that was not observed.
    pub(super) fn settled(&self, server: ServerStart) -> i64 {
        if self.knows(server) { self.settled } else { 0 }
    }

    /// Whether another observation could settle more than the last one did.
    pub(super) fn is_open(&self) -> bool {
        self.candidate > self.settled
    }

    /// Takes in who is writing now.
    pub(super) fn observe(&mut self, seen: OutboxWriters) {
        if self.server != Some(seen.server) {
            *self = Self { server: Some(seen.server), ..Self::default() };
        }
        self.writers.retain(|writer| seen.open.contains(writer));
        // Preparing gives a transaction another id: any prepared one may be one that was waited for.
        let prepared = seen.open.iter().any(|writer| writer.pid.is_none());
        if self.writers.is_empty() && !prepared {
            self.settled = self.candidate;
            self.candidate = seen.last_position;
            self.writers = seen.open;
            self.since = Some(Instant::now());
            self.named = false;
        }
    }

    /// The server processes whose transactions have held the positions back for long, once.
    pub(super) fn held_back_by(&mut self) -> Option<Vec<i32>> {
        if self.named || self.since.is_none_or(|since| since.elapsed() < SLOW) {
            return None;
        }
        self.named = true;
        Some(self.writers.iter().filter_map(|writer| writer.pid).collect())
    }
}

/// One read of the held buckets.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) ranges: Vec<Range>,
    /// The most events of each range.
    pub(super) limit: usize,
    settled: i64,
}

impl Reading {
    /// Begins at the floors. A range that is settled to its end is bounded, so that the next read can begin
    /// there; in one that is not, all is looked at.
    pub(super) fn plan(lease: &Lease, settled: i64, limit: usize) -> Self {
        let range = |(&bucket, &from): (&i16, &i64)| {
            let to = from.saturating_add(RANGE);
            Range { bucket, from, to: if to <= settled { to } else { i64::MAX } }
        };
        Self { ranges: lease.floors.iter().map(range).collect(), limit, settled }
    }

    /// The same read as one for each lane, each of other buckets.
    pub(super) fn split(self, lanes: usize) -> Vec<Self> {
        let each = self.ranges.len().div_ceil(lanes).max(1);
        let lane = |ranges: &[Range]| Self { ranges: ranges.to_vec(), ..self };
        self.ranges.chunks(each).map(lane).collect()
    }

    /// The most events of all its ranges.
    pub(super) const fn most(&self) -> usize {
        self.limit * self.ranges.len()
    }

    /// Whether there is more to read behind the ranges.
    pub(super) fn is_bounded(&self) -> bool {
        self.ranges.iter().any(|range| range.to < i64::MAX)
    }

    /// Whether one of these floors is the end of a bounded range.
    pub(super) fn reaches_an_end(&self, floors: &BTreeMap<i16, i64>) -> bool {
        self.ranges.iter().any(|range| range.to < i64::MAX && floors.get(&range.bucket) == Some(&range.to))
    }

    /// The floors that this read shows, where `pending` is what it returned, and `done` (by bucket and position)
    /// what of it was deleted since.
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

/// What a read found in a bucket.
#[derive(Clone, Copy, Default)]
struct Found {
    count: usize,
    last: i64,
    /// The first position that is still pending.
    left: Option<i64>,
}

/// By bucket and position.
pub(super) fn places(events: &[PendingEvent]) -> Vec<(i16, i64)> {
    events.iter().map(|event| (event.bucket, event.position)).collect()
}

#[cfg(test)]
mod tests;
