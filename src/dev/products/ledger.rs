//! The data of the demo Product Service: products, stock changes, faults and calls.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write as _};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value, json};

use super::ProductState;
use super::fault_injection::{Call, Fault, FaultPlan};
use crate::dev::DevError;
use crate::dev::data::DataFolder;

/// The file of the ledger in a data folder.
const FILE: &str = "products.jsonl";

/// The demo catalogue, as the lines of a new file. PROD404 is no longer sold: its answer is 404, as for an unknown
/// product.
const CATALOGUE: &str = include_str!("catalogue.jsonl");

#[derive(Debug, Clone, Serialize)]
pub(super) struct Product {
    id: String,
    name: String,
    description: String,
    price: Number,
    stock: u64,
    sku: String,
    brand: String,
    category: String,
    #[serde(skip)]
    withdrawn: bool,
}

/// A product as a test describes it.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct NewProduct {
    price: Number,
    stock: u64,
    name: Option<String>,
    description: Option<String>,
    sku: Option<String>,
    brand: Option<String>,
    category: Option<String>,
}

/// A requested stock change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Change {
    pub(super) product: String,
    pub(super) call: Call,
    pub(super) quantity: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    product_id: String,
    change: i128,
    stock: u64,
    idempotency_key: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Calls {
    total: u64,
    at_once: u64,
    #[serde(skip)]
    now: u64,
}

/// A change of the ledger, as a line of its file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Put(String, NewProduct),
    Withdraw(String),
    Change(Change, Option<String>),
}

pub(super) type Answer = (StatusCode, Value);

#[derive(Debug, Default)]
pub(super) struct Ledger {
    products: BTreeMap<String, Product>,
    /// Every first answer by its `Idempotency-Key`.
    answers: HashMap<String, (Change, Answer)>,
    /// The keys of the stock changes in progress.
    under_way: HashSet<String>,
    entries: Vec<Entry>,
    faults: HashMap<String, FaultPlan>,
    /// A fault of every call. It overrides the fault of a product.
    pub(super) state: ProductState,
    calls: HashMap<String, Calls>,
    /// The file that every change is appended to, with `dev --data`.
    file: Option<File>,
}

impl Ledger {
    pub(super) fn demo() -> Self {
        let mut ledger = Self::default();
        // A test reads every line.
        for line in CATALOGUE.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            ledger.replay(line);
        }
        ledger
    }

    /// The ledger of a data folder; a new folder gets the demo catalogue.
    pub(super) fn open(folder: &DataFolder) -> Result<Self, DevError> {
        let path = folder.path().join(FILE);
        if !path.exists() {
            // Renamed once it is complete.
            let new = path.with_extension("new");
            let written = fs::write(&new, CATALOGUE).and_then(|()| fs::rename(&new, &path));
            written.map_err(DevError::io("write products.jsonl of --data"))?;
        }
        let (file, lines) = folder.read_lines(FILE)?;
        let mut ledger = Self::default();
        for line in lines {
            ledger.replay(line);
        }
        ledger.file = Some(file);
        Ok(ledger)
    }

    fn replay(&mut self, line: Line) {
        match line {
            Line::Put(id, product) => self.put(&id, product),
            Line::Withdraw(id) => self.withdraw(&id),
            Line::Change(change, key) => self.change(change, key),
        };
    }

    /// Appends a change to the file, before the change is applied. If that fails, nothing changes and the answer is a
    /// 500.
    fn append(&mut self, line: &Line) -> Result<(), Answer> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = serde_json::to_string(line)
            .map_err(io::Error::from)
            .and_then(|text| file.write_all(format!("{text}\n").as_bytes()));
        written.map_err(|error| {
            let why = json!({"error": format!("products.jsonl cannot be written: {error}")});
            (StatusCode::INTERNAL_SERVER_ERROR, why)
        })
    }

    pub(super) fn put(&mut self, id: &str, new: NewProduct) -> Answer {
        if let Err(failure) = self.append(&Line::Put(id.to_owned(), new.clone())) {
            return failure;
        }
        let or = |given: Option<String>, default: &str| given.unwrap_or_else(|| default.to_owned());
        let product = Product {
            id: id.to_owned(),
            name: or(new.name, id),
            description: or(new.description, ""),
            price: new.price,
            stock: new.stock,
            sku: new.sku.unwrap_or_else(|| format!("SKU-{id}")),
            brand: or(new.brand, "ShopVerse"),
            category: or(new.category, "demo"),
            withdrawn: false,
        };
        self.products.insert(product.id.clone(), product);
        self.read(id)
    }

    pub(super) fn withdraw(&mut self, id: &str) -> Answer {
        if !self.products.contains_key(id) {
            return unknown(id);
        }
        if let Err(failure) = self.append(&Line::Withdraw(id.to_owned())) {
            return failure;
        }
        self.products.entry(id.to_owned()).and_modify(|product| product.withdrawn = true);
        (StatusCode::OK, json!({}))
    }

    pub(super) fn read(&self, id: &str) -> Answer {
        match self.products.get(id) {
            Some(product) if !product.withdrawn => (StatusCode::OK, json!(product)),
            _ => unknown(id),
        }
    }

    pub(super) fn change(&mut self, change: Change, key: Option<String>) -> Answer {
        let Some(key) = key else {
            return self.apply(&change, None);
        };
        if let Some((first, answer)) = self.answers.get(&key) {
            let reused = json!({"error": "this Idempotency-Key belongs to another request"});
            return if *first == change {
                answer.clone()
            } else {
                (StatusCode::UNPROCESSABLE_ENTITY, reused)
            };
        }
        let answer = self.apply(&change, Some(key.clone()));
        // A refusal changed nothing, so its key stays free: the same change may succeed after restocking.
        if answer.0.is_success() {
            self.answers.insert(key, (change, answer.clone()));
        }
        answer
    }

    fn apply(&mut self, change: &Change, key: Option<String>) -> Answer {
        let Some(product) = self.products.get(&change.product).filter(|product| !product.withdrawn) else {
            return unknown(&change.product);
        };
        let (after, signed) = match change.call {
            Call::ReduceStock => (product.stock.checked_sub(change.quantity), -i128::from(change.quantity)),
            Call::RestoreStock => (product.stock.checked_add(change.quantity), i128::from(change.quantity)),
            Call::Read => (Some(product.stock), 0),
        };
        let Some(after) = after else {
            let refusal =
                json!({"error": "not enough", "requested": change.quantity, "available": product.stock});
            return (StatusCode::CONFLICT, refusal);
        };
        if let Err(failure) = self.append(&Line::Change(change.clone(), key.clone())) {
            return failure;
        }
        self.products.entry(change.product.clone()).and_modify(|product| product.stock = after);
        self.entries.push(Entry {
            product_id: change.product.clone(),
            change: signed,
            stock: after,
            idempotency_key: key,
        });
        self.read(&change.product)
    }

    pub(super) fn entries(&self, product: Option<&str>) -> Vec<&Entry> {
        let wanted = |entry: &&Entry| product.is_none_or(|id| id == entry.product_id);
        self.entries.iter().filter(wanted).collect()
    }

    pub(super) fn set_fault(&mut self, id: &str, plan: Option<FaultPlan>) {
        match plan {
            Some(plan) => self.faults.insert(id.to_owned(), plan),
            None => self.faults.remove(id),
        };
    }

    pub(super) fn catalogue(&self) -> Vec<Value> {
        self.products.values().filter(|product| !product.withdrawn).map(|product| json!(product)).collect()
    }

    /// Counts a call, and returns its fault.
    pub(super) fn begin(&mut self, id: &str, call: Call) -> Option<Fault> {
        self.count(id);
        if let Some(fault) = Fault::of(self.state) {
            return Some(fault);
        }
        let plan = self.faults.get_mut(id)?;
        let fault = plan.next(call);
        if plan.is_over() {
            self.faults.remove(id);
        }
        fault
    }

    /// Counts a call that has no faults.
    pub(super) fn count(&mut self, id: &str) {
        for name in counted_as(id) {
            let calls = self.calls.entry(name.to_owned()).or_default();
            calls.total += 1;
            calls.now += 1;
            calls.at_once = calls.at_once.max(calls.now);
        }
    }

    /// Claims a key for a change, unless another change holds it.
    pub(super) fn hold(&mut self, key: &str) -> bool {
        self.under_way.insert(key.to_owned())
    }

    pub(super) fn let_go(&mut self, key: &str) {
        self.under_way.remove(key);
    }

    pub(super) fn end(&mut self, id: &str) {
        for name in counted_as(id) {
            if let Some(calls) = self.calls.get_mut(name) {
                calls.now -= 1;
            }
        }
    }

    pub(super) fn calls(&self, name: &str) -> Calls {
        self.calls.get(name).copied().unwrap_or_default()
    }
}

/// The product, and its group: the part before the first hyphen.
fn counted_as(id: &str) -> impl Iterator<Item = &str> {
    std::iter::once(id).chain(id.split_once('-').map(|(group, _)| group))
}

fn unknown(id: &str) -> Answer {
    (StatusCode::NOT_FOUND, json!({"error": format!("product {id} is unknown")}))
}

#[cfg(test)]
mod tests {
    use super::{CATALOGUE, Call, Change, Ledger, Line, StatusCode};

    fn reduce(quantity: u64) -> Change {
        let product = "PROD456".to_owned();
        Change { product, call: Call::ReduceStock, quantity }
    }

    #[test]
    fn prices_stay_as_written() {
        let ledger = Ledger::demo();
        for line in CATALOGUE.lines() {
            let parsed = serde_json::from_str(line);
            let Ok(Line::Put(id, _)) = parsed else {
                assert!(matches!(parsed, Ok(Line::Withdraw(_))), "{line}: {parsed:?}");
                continue;
            };
            let (status, body) = ledger.read(&id);
            if id == "PROD404" {
                assert_eq!(status, StatusCode::NOT_FOUND);
            } else {
                assert_eq!(status, StatusCode::OK);
                assert!(line.contains(&format!("\"price\":{},", body["price"])), "{line}: {body}");
            }
        }
    }

    #[test]
    fn one_key_changes_the_stock_once() {
        let mut ledger = Ledger::demo();
        let key = || Some("key".to_owned());
        let first = ledger.change(reduce(2), key());
        assert_eq!(first.1["stock"], 18);
        assert_eq!(ledger.change(reduce(2), key()), first);
        assert_eq!(ledger.change(reduce(3), key()).0, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(ledger.entries(Some("PROD456")).len(), 1);
    }

    #[test]
    fn stock_never_becomes_negative() {
        let mut ledger = Ledger::demo();
        assert_eq!(ledger.change(reduce(21), None).0, StatusCode::CONFLICT);
        assert_eq!(ledger.change(reduce(20), None).0, StatusCode::OK);
        assert_eq!(ledger.change(reduce(1), None).0, StatusCode::CONFLICT);
        assert_eq!(ledger.entries(None).len(), 1);
    }
}
