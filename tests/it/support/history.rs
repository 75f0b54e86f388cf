//! Checks all records of a topic for the guarantees that the platform's consumers rely on.

use std::collections::BTreeMap;

use super::Record;

/// Checks that the topic has exactly the events of these orders, each up to its version: first occurrences in order, in
/// one partition, with strictly increasing times; repeats are byte-identical.
#[track_caller]
pub(crate) fn expect_history(records: &[Record], versions: &BTreeMap<String, i64>) {
    let mut seen: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
    for record in records {
        let events = seen.entry(record.key.clone()).or_default();
        let (sequence, expected) = (record.sequence(), i64::try_from(events.len()).unwrap() + 1);
        assert!(sequence <= expected, "{sequence} comes before {expected}: {record:#?}");
        if sequence == expected {
            events.push(record);
            continue;
        }
        let first = events[usize::try_from(sequence).unwrap() - 1];
        assert_eq!((&record.payload, &record.headers), (&first.payload, &first.headers), "a repeat differs");
    }
    for events in seen.values() {
        assert!(events.iter().all(|event| event.partition == events[0].partition), "{events:#?}");
        assert!(events.is_sorted_by(|earlier, later| time(earlier) < time(later)), "{events:#?}");
    }
    let told: BTreeMap<String, i64> =
        seen.iter().map(|(order, events)| (order.clone(), i64::try_from(events.len()).unwrap())).collect();
    assert_eq!(&told, versions, "the events of the topic are not those of the orders");
}

/// All times are in UTC and have the same length, so they sort as text.
fn time(record: &Record) -> String {
    record.value()["timestamp"].as_str().expect("a timestamp").to_owned()
}
