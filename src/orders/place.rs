//! Placing an order: look up the products, then insert everything in one transaction.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio::task::JoinError;
use tracing::Instrument;

use super::OrderService;
use super::fingerprint::fingerprint;
use crate::domain::line::{BadLines, merge_lines};
use crate::domain::{Identity, Line, Order, ProductId, RequestedLine, TraceParent, time};
use crate::metrics::KeyResult;
use crate::products::{Product, Unavailable};
use crate::store::place::PlacedOrder;
use crate::store::{Deduplication, InsertOutcome, StoreError};
use crate::telemetry::span;

#[derive(Clone, Copy, Debug)]
pub struct DuplicateSettings {
    /// How long an order without a key is found by its lines, from its answer on. None: never.
    pub window: Option<Duration>,
    /// The longest time from the timestamp of an order to its answer: the commit, and the check of its outcome.
    pub longest_commit: Duration,
    /// How long an order is found by its key.
    pub key_expiry: Duration,
}

/// An order that this request placed, or an earlier identical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub order: PlacedOrder,
    /// Whether an earlier request placed it.
    pub replayed: bool,
}

/// Why an order was not placed. Nothing was written, except perhaps after [`StoreError::OutcomeUnknown`].
#[derive(Debug, Error)]
pub enum PlaceError {
    #[error("the lines break a rule")]
    BadLines(BadLines),
    #[error("unknown products")]
    UnknownProducts(Vec<UnknownProduct>),
    #[error("not enough stock")]
    InsufficientStock(Vec<ShortLine>),
    #[error(transparent)]
    Products(#[from] Unavailable),
    #[error("the prices add up to more than an order may cost")]
    TotalTooLarge,
    #[error("too many placements are running")]
    Busy,
    #[error("a request with the same key is running")]
    InProgress,
    #[error("the key belongs to a request with other lines")]
    KeyReused,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the placement crashed")]
    Crashed(#[from] JoinError),
}

/// A product that does not exist, or is withdrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownProduct {
    /// Index of the first line that asks for it.
    pub line: usize,
    pub product_id: ProductId,
}

/// A product with too little stock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortLine {
    /// Index of the first line that asks for it.
    pub line: usize,
    pub product_id: ProductId,
    /// The requested quantity of all lines.
    pub requested: u32,
    pub available: u64,
}

/// A request with valid lines.
struct Request {
    caller: Identity,
    lines: Vec<(usize, RequestedLine)>,
    fingerprint: [u8; 32],
    key: Option<String>,
    received_at: DateTime<Utc>,
    trace: TraceParent,
}

impl OrderService {
    /// Places an order for the caller: completely or not at all, and once per request. `key` is the `Idempotency-Key`.
    ///
    /// Runs in its own task, so that it finishes even if the client disconnects (invariant 9). Holds no connection
    /// during the look-ups (invariant 3).
    pub async fn place(
        &self,
        caller: Identity,
        lines: Vec<RequestedLine>,
        key: Option<String>,
        trace: TraceParent,
    ) -> Result<Placed, PlaceError> {
        let lines = merge_lines(lines).map_err(PlaceError::BadLines)?;
        let fingerprint = fingerprint(&lines);
        let request = Request { caller, lines, fingerprint, key, received_at: time::now(), trace };
        let permit = Arc::clone(&self.place_permits).try_acquire_owned().map_err(|_| PlaceError::Busy)?;
        let service = self.clone();
        let trace = request.trace.clone();
        let placement = async move {
            let placed = service.place_once(request).await;
            drop(permit);
            placed
        };
        self.tasks.spawn(span::within(&trace, placement).in_current_span()).await?
    }

    /// Chooses how duplicates of the request are recognised, and places it.
    async fn place_once(&self, mut request: Request) -> Result<Placed, PlaceError> {
        let orders = &self.metrics.orders;
        let placed = match request.key.take() {
            None => {
                let placed = self.place_without_key(request).await;
                if placed.as_ref().is_ok_and(|placed| placed.replayed) {
                    orders.duplicates.inc();
                }
                placed
            }
            Some(key) => {
                let placed = self.place_with_key(key, request).await;
                if let Some(result) = key_result(&placed) {
                    orders.key_used(result);
                }
                placed
            }
        };
        if placed.as_ref().is_ok_and(|placed| !placed.replayed) {
            orders.placed.inc();
        }
        placed
    }

    /// Answers a repeated request before any look-up. Concurrent requests with one key meet at the key in flight on one
    /// replica, and at the row of the key on two replicas.
    async fn place_with_key(&self, key: String, request: Request) -> Result<Placed, PlaceError> {
        let customer = &request.caller.customer;
        let Some(_in_flight) = self.keys.try_insert(customer, &key) else {
            return Err(PlaceError::InProgress);
        };
        let fingerprint = request.fingerprint;
        if let Some(known) = self.store.find_key(customer, &key).await? {
            return match known.order {
                _ if known.fingerprint != fingerprint => Err(PlaceError::KeyReused),
                Some(order) => Ok(Placed { order, replayed: true }),
                None => Err(PlaceError::InProgress),
            };
        }
        let deduplication = Deduplication::Key { key, fingerprint, expiry: self.duplicates.key_expiry };
        self.price_and_insert(request, deduplication).await
    }

    /// Answers a repeated request with the first order, even if the service cannot price it again (no stock left,
    /// Product Service down).
    async fn place_without_key(&self, request: Request) -> Result<Placed, PlaceError> {
        let Some(window) = self.duplicates.window else {
            return self.price_and_insert(request, Deduplication::None).await;
        };
        let (customer, fingerprint) = (request.caller.customer.clone(), request.fingerprint);
        let since = request.received_at - window - self.duplicates.longest_commit;
        let placed = self.price_and_insert(request, Deduplication::Window { fingerprint, since }).await;
        match placed {
            Ok(_) | Err(PlaceError::Store(_)) => placed,
            // Boxed, because it is rare and large, and the task of each placement would have room for it.
            Err(error) => {
                match Box::pin(self.store.find_recent(&customer, &fingerprint, Some(since))).await? {
                    Some(order) => Ok(Placed { order, replayed: true }),
                    None => Err(error),
                }
            }
        }
    }

    async fn price_and_insert(
        &self,
        request: Request,
        deduplication: Deduplication,
    ) -> Result<Placed, PlaceError> {
        let Request { caller, lines, trace, .. } = request;
        let ids: Vec<&ProductId> = lines.iter().map(|(_, line)| &line.product_id).collect();
        let answers = self.products.look_up(&ids, &trace).await?;
        let lines = price(lines, answers)?;
        let order = Order::place(caller.customer, lines).ok_or(PlaceError::TotalTooLarge)?;
        let new = PlacedOrder { id: order.id, total: order.total };
        match self.store.place(order, caller.role, &trace, deduplication).await? {
            InsertOutcome::Inserted => Ok(Placed { order: new, replayed: false }),
            InsertOutcome::Duplicate(order) => Ok(Placed { order, replayed: true }),
            InsertOutcome::KeyReused => Err(PlaceError::KeyReused),
            InsertOutcome::InProgress => Err(PlaceError::InProgress),
        }
    }
}

/// The result of a request with a key. `None` if the request failed for other reasons.
fn key_result(placed: &Result<Placed, PlaceError>) -> Option<KeyResult> {
    match placed {
        Ok(placed) if placed.replayed => Some(KeyResult::Replayed),
        Ok(_) => Some(KeyResult::New),
        Err(PlaceError::KeyReused) => Some(KeyResult::Mismatch),
        Err(PlaceError::InProgress) => Some(KeyResult::InProgress),
        Err(_) => None,
    }
}

/// Adds the present price to every line, if every product exists with enough stock.
fn price(
    requested: Vec<(usize, RequestedLine)>,
    answers: Vec<Option<Product>>,
) -> Result<Vec<Line>, PlaceError> {
    let (mut lines, mut unknown, mut short) = (Vec::with_capacity(requested.len()), Vec::new(), Vec::new());
    for ((line, RequestedLine { product_id, quantity }), answer) in requested.into_iter().zip(answers) {
        match answer {
            None => unknown.push(UnknownProduct { line, product_id }),
            Some(product) if product.stock < u64::from(quantity.get()) => short.push(ShortLine {
                line,
                product_id,
                requested: quantity.get(),
                available: product.stock,
            }),
            Some(product) => lines.push(Line { product_id, quantity, price: product.price }),
        }
    }
    if !unknown.is_empty() {
        return Err(PlaceError::UnknownProducts(unknown));
    }
    if !short.is_empty() {
        return Err(PlaceError::InsufficientStock(short));
    }
    Ok(lines)
}
