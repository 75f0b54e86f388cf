//! Every change has an event and every event a change; events are in order, and repeats are byte-identical.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::evidence::Evidence;
use super::promise::Promise;
use crate::support::Record;

/// The published events of one order, in the order of the topic.
struct Published<'a> {
    /// The first record of each sequence number, in the order of arrival.
    first: Vec<(i64, Value, &'a Record)>,
    repeats: Vec<(&'a Record, &'a Record)>,
    partitions: Vec<i32>,
}

pub(super) fn check(evidence: &Evidence) -> Vec<Promise> {
    let published = published(&evidence.records);
    let mut promises = existence(evidence, &published);
    promises.extend(sequence(&published));
    let mut kept = Promise::no("topic partitions that have forgotten records");
    let mut lowest: BTreeMap<i32, i64> = BTreeMap::new();
    for record in &evidence.records {
        let low = lowest.entry(record.partition).or_insert(record.offset);
        *low = record.offset.min(*low);
    }
    for (partition, offset) in lowest {
        kept.try_out(offset == 0, || format!("partition {partition} begins at {offset}"));
    }
    promises.push(kept);
    promises
}

fn published(records: &[Record]) -> HashMap<&str, Published<'_>> {
    let mut sorted: Vec<&Record> = records.iter().collect();
    sorted.sort_by_key(|record| (record.partition, record.offset));
    let mut published: HashMap<&str, Published<'_>> = HashMap::new();
    for record in sorted {
        let of_order = published.entry(&record.key).or_insert_with(|| Published {
            first: Vec::new(),
            repeats: Vec::new(),
            partitions: Vec::new(),
        });
        let value = record.value();
        let sequence = value["metadata"]["sequence"].as_i64().unwrap();
        match of_order.first.iter().find(|(known, ..)| *known == sequence) {
            Some((.., first)) => of_order.repeats.push((*first, record)),
            None => of_order.first.push((sequence, value, record)),
        }
        if !of_order.partitions.contains(&record.partition) {
            of_order.partitions.push(record.partition);
        }
    }
    published
}

/// The history in the database matches the events on the topic.
fn existence(evidence: &Evidence, published: &HashMap<&str, Published<'_>>) -> Vec<Promise> {
    let mut placed = Promise::no("committed orders without ORDER_PLACED");
    let mut changed = Promise::no("changes of status without event");
    let mut events = Promise::no("events without order or change");
    let mut versions = Promise::no("orders whose history has gaps");
    for (id, order) in &evidence.orders {
        let first = published.get(id.as_str()).map_or(&[][..], |published| &published.first);
        for version in order.history.keys() {
            let is_there = first.iter().any(|(sequence, ..)| sequence == version);
            let promise = if *version == 1 { &mut placed } else { &mut changed };
            promise.try_out(is_there, || format!("{id} version {version}"));
        }
        let whole = order.history.keys().copied().eq(1..=i64::from(order.version));
        let last = order.history.last_key_value().is_some_and(|(_, (_, to))| *to == order.status);
        versions.try_out(whole && last, || id.clone());
    }
    for (id, published) in published {
        let order = evidence.orders.get(*id);
        for (sequence, value, _) in &published.first {
            let change = order.and_then(|order| order.history.get(sequence));
            let metadata = &value["metadata"];
            let told = change.is_some_and(|(from, to)| {
                metadata["status"] == **to && metadata["previousStatus"].as_str() == from.as_deref()
            });
            events.try_out(told, || value.to_string());
        }
    }
    let mut outbox = Promise::no("events left in the outbox");
    outbox.try_out(evidence.outbox == 0, || evidence.outbox.to_string());
    vec![placed, changed, events, versions, outbox]
}

fn sequence(published: &HashMap<&str, Published<'_>>) -> Vec<Promise> {
    let mut sequence = Promise::no("first occurrences out of order, or with a gap");
    let mut times = Promise::no("timestamps that do not increase within an order");
    let mut repeats = Promise::no("repeats that are not byte-identical");
    let mut partitions = Promise::no("orders on more than one partition");
    for (id, published) in published {
        let sequences: Vec<i64> = published.first.iter().map(|(sequence, ..)| *sequence).collect();
        for (expected, found) in (1..).zip(&sequences) {
            sequence.try_out(expected == *found, || format!("{id} {sequences:?}"));
        }
        let mut by_sequence: Vec<(i64, &str)> = published
            .first
            .iter()
            .map(|(sequence, value, _)| (*sequence, value["timestamp"].as_str().unwrap()))
            .collect();
        by_sequence.sort_unstable();
        for pair in by_sequence.windows(2) {
            // RFC 3339 in UTC with microseconds: the text sorts by time.
            times.try_out(pair[0].1 < pair[1].1, || format!("{id} {pair:?}"));
        }
        for (first, again) in &published.repeats {
            let same = first.payload == again.payload && first.headers == again.headers;
            repeats.try_out(same, || format!("{id} {:?} {:?}", first.headers, again.headers));
        }
        partitions.try_out(published.partitions.len() == 1, || format!("{id} {:?}", published.partitions));
    }
    vec![sequence, times, repeats, partitions]
}
