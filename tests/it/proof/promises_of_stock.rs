//! Stock is taken only for confirmed orders, once per line.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::evidence::Evidence;
use super::promise::Promise;
use super::shelf::Shelf;

pub(super) fn check(evidence: &Evidence) -> Vec<Promise> {
    [products(evidence), lines(evidence)].into_iter().flatten().collect()
}

/// The number of lines that an attempt took before an earlier attempt of the same order had given them back. This is
/// temporary; until then, the order holds more stock than it needs.
pub(super) fn held_twice(evidence: &Evidence) -> usize {
    let mut held: HashMap<(&str, &str), i64> = HashMap::new();
    let mut twice = HashSet::new();
    for movement in &evidence.movements {
        let line = movement.key.split_once(':').unwrap_or_default();
        let line = (line.0, line.1.split(':').next().unwrap_or_default());
        let held = held.entry(line).or_default();
        *held -= movement.change.signum();
        if *held > 1 {
            twice.insert(line);
        }
    }
    twice.len()
}

/// Checks the ledger of the Product Service by product.
fn products(evidence: &Evidence) -> Vec<Promise> {
    let mut taken = Promise::no("products whose stock taken differs from the lines confirmed");
    let mut oversold = Promise::no("products confirmed beyond their stock");
    let mut negative = Promise::no("stock movements with a negative or wrong result");
    let mut confirmed: BTreeMap<&str, i64> = BTreeMap::new();
    for order in evidence.orders.values() {
        for (_, product, quantity) in &order.lines {
            let counted = if order.status == "CONFIRMED" { *quantity } else { 0 };
            *confirmed.entry(product).or_default() += counted;
        }
    }
    let mut net: HashMap<&str, i64> = HashMap::new();
    for movement in &evidence.movements {
        let sum = net.entry(&movement.product).or_default();
        *sum -= movement.change;
        let left = Shelf::stocked(&movement.product) - *sum;
        negative.try_out(left >= 0 && movement.stock == left, || format!("{movement:?}"));
        confirmed.entry(&movement.product).or_default();
    }
    for (product, confirmed) in confirmed {
        let net = net.get(product).copied().unwrap_or_default();
        taken.try_out(net == confirmed, || format!("{product}: {net} taken, {confirmed} confirmed"));
        oversold.try_out(confirmed <= Shelf::stocked(product), || format!("{product}: {confirmed}"));
    }
    vec![taken, oversold, negative]
}

/// Checks the ledger of the Product Service by line. Its keys contain order, line, direction and attempt: an attempt to
/// confirm an order takes each line at most once, and gives it back at most once.
fn lines(evidence: &Evidence) -> Vec<Promise> {
    let mut foreign = Promise::no("stock movements that belong to no line");
    let mut twice = Promise::no("lines taken or given back twice");
    let mut wrong = Promise::no("lines whose stock contradicts the status of their order");
    let mut repeated = Promise::no("keys that moved stock twice");
    let mut by_line: HashMap<(&str, i16), i64> = HashMap::new();
    let mut by_attempt: HashMap<(&str, i16, &str), Vec<i64>> = HashMap::new();
    let mut keys = HashSet::new();
    for movement in &evidence.movements {
        let mut parts = movement.key.split(':');
        let mut part = || parts.next().unwrap_or_default();
        let (order, number, _, attempt) = (part(), part(), part(), part());
        let number: i16 = number.parse().unwrap_or_default();
        let order_lines = evidence.orders.get(order).map_or(&[][..], |order| order.lines.as_slice());
        let fits = order_lines.iter().any(|(known, product, quantity)| {
            *known == number && *product == movement.product && *quantity == movement.change.abs()
        });
        foreign.try_out(fits, || format!("{movement:?}"));
        repeated.try_out(keys.insert(&movement.key), || movement.key.clone());
        *by_line.entry((order, number)).or_default() -= movement.change;
        by_attempt.entry((order, number, attempt)).or_default().push(movement.change);
    }
    for (attempt, changes) in &by_attempt {
        let fits = matches!(changes[..], [taken] if taken < 0)
            || matches!(changes[..], [taken, given_back] if taken < 0 && given_back > 0);
        twice.try_out(fits, || format!("{attempt:?}: {changes:?}"));
    }
    for (id, order) in &evidence.orders {
        for (number, _, quantity) in &order.lines {
            let net = by_line.get(&(id.as_str(), *number)).copied().unwrap_or_default();
            let due = if order.status == "CONFIRMED" { *quantity } else { 0 };
            wrong.try_out(net == due, || format!("{id} {} line {number}: {net} taken", order.status));
        }
    }
    vec![foreign, repeated, twice, wrong]
}
