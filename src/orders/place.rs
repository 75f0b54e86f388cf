//! Placing an order: ask the Product Service, then write everything in one transaction.

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
use crate::store::place::PlacedBefore;
use crate::store::{Guard, Placement, StoreError};
use crate::telemetry::span;

/// A request to place an order.
#[derive(Clone, Debug)]
pub struct PlaceOrder {
    /// Who asks.
    pub caller: Identity,
    /// What for.
    pub lines: Vec<RequestedLine>,
    /// The caller's `Idempotency-Key`, if there is one.
    pub key: Option<String>,
    /// The trace of the request.
    pub trace: TraceParent,
}

/// What a repeated request finds.
#[derive(Clone, Copy, Debug)]
pub struct DuplicateSettings {
    /// How long after its answer an order is found again by the same lines without a key. None: never.
    pub window: Option<Duration>,
    /// How much later than its row's time a placement may be answered: the longest commit, and finding out what became
    /// of it.
    pub longest_commit: Duration,
    /// How long an order is found by its key.
    pub key_expiry: Duration,
}

/// An order that was placed, now or by an earlier request that was the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What the answer says of it.
    pub order: PlacedBefore,
    /// Whether an earlier request placed it.
    pub replayed: bool,
}

/// Why an order was not placed. Nothing was written, except where the store does not know
/// ([`StoreError::OutcomeUnknown`]).
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The lines break a rule.
    #[error("the lines break a rule")]
    BadLines(BadLines),
    /// The Product Service does not know these products.
    #[error("unknown products")]
    UnknownProducts(Vec<UnknownProduct>),
    /// There is less of these products than was asked for.
    #[error("not enough stock")]
    InsufficientStock(Vec<ShortLine>),
    /// The Product Service did not give a usable answer in time.
    #[error(transparent)]
    Products(#[from] Unavailable),
    /// The prices of the Product Service add up to more than an order may cost.
    #[error("the prices add up to more than an order may cost")]
    TotalTooLarge,
    /// As many placements are running as may run at once.
    #[error("too many placements are running")]
    Busy,
    /// A request with the same key is running.
    #[error("a request with the same key is running")]
    InProgress,
    /// The key belongs to a request with other lines.
    #[error("the key belongs to a request with other lines")]
    KeyReused,
    /// The database could not take the order.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The placement ended in a panic: a bug.
    #[error("the placement crashed")]
    Crashed(#[from] JoinError),
}

/// A product that does not exist, or is withdrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownProduct {
    /// Index of the first line that asks for it.
    pub line: usize,
    /// The product.
    pub product_id: ProductId,
}

/// A product of which there is too little.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortLine {
    /// Index of the first line that asks for it.
    pub line: usize,
    /// The product.
    pub product_id: ProductId,
    /// How many were asked for, all lines together.
    pub requested: u32,
    /// How many there are.
    pub available: u64,
}

/// A request whose lines are in order.
struct Request {
    caller: Identity,
    lines: Vec<(usize, RequestedLine)>,
    fingerprint: [u8; 32],
    key: Option<String>,
    received_at: DateTime<Utc>,
    trace: TraceParent,
}

impl OrderService {
    /// Places an order for the caller: everything or nothing, and the same request only once.
    ///
    /// It runs in a task of its own, so that it comes to its end even when the client hangs up (invariant 9),
    /// and it holds no connection while it asks the Product Service (invariant 3).
    pub async fn place(&self, request: PlaceOrder) -> Result<Placed, PlaceError> {
        let PlaceOrder { caller, lines, key, trace } = request;
        let lines = merge_lines(lines).map_err(PlaceError::BadLines)?;
        let fingerprint = fingerprint(&lines);
        let request = Request { caller, lines, fingerprint, key, received_at: time::now(), trace };
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| PlaceError::Busy)?;
        let service = self.clone();
        let trace = request.trace.clone();
        let placement = async move {
            let placed = service.place_once(request).await;
            drop(permit);
            placed
        };
        self.tasks.spawn(span::within(&trace, placement).in_current_span()).await?
    }

    /// Finds out what keeps the request from becoming a second order, and places it under that guard.
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

    /// A repeat is answered before the Product Service is asked. Two at once at one replica are told apart by the key in
    /// flight, at two replicas by the row that the first one writes with its order.
    async fn place_with_key(&self, key: String, request: Request) -> Result<Placed, PlaceError> {
        let customer = &request.caller.customer;
        let Some(_in_flight) = self.keys.enter(customer, &key) else { return Err(PlaceError::InProgress) };
        let fingerprint = request.fingerprint;
        if let Some(known) = self.store.find_key(customer, &key).await? {
            return match known.order {
                _ if known.fingerprint != fingerprint => Err(PlaceError::KeyReused),
                Some(order) => Ok(Placed { order, replayed: true }),
                None => Err(PlaceError::InProgress),
            };
        }
        let guard = Guard::Key { key, fingerprint, expiry: self.duplicates.key_expiry };
        self.price_and_write(request, guard).await
    }

    /// A repeat that cannot be priced any more (the stock went to others, the Product Service is away) is the
    /// first order all the same.
    async fn place_without_key(&self, request: Request) -> Result<Placed, PlaceError> {
        let Some(window) = self.duplicates.window else {
            return self.price_and_write(request, Guard::None).await;
        };
        let (customer, fingerprint) = (request.caller.customer.clone(), request.fingerprint);
        let since = request.received_at - window - self.duplicates.longest_commit;
        let placed = self.price_and_write(request, Guard::Window { fingerprint, since }).await;
        match placed {
            Ok(_) | Err(PlaceError::Store(_)) => placed,
            Err(error) => match self.store.find_recent(&customer, &fingerprint, Some(since)).await? {
                Some(order) => Ok(Placed { order, replayed: true }),
                None => Err(error),
            },
        }
    }

    async fn price_and_write(&self, request: Request, guard: Guard) -> Result<Placed, PlaceError> {
        let Request { caller, lines, trace, .. } = request;
        let ids: Vec<&ProductId> = lines.iter().map(|(_, line)| &line.product_id).collect();
        let answers = self.products.look_up(&ids, &trace).await?;
        let lines = price(lines, answers)?;
        let order = Order::place(caller.customer, lines).ok_or(PlaceError::TotalTooLarge)?;
        let new = PlacedBefore { id: order.id, total: order.total };
        match self.store.place(order, caller.role, &trace, guard).await? {
            Placement::New => Ok(Placed { order: new, replayed: false }),
            Placement::Duplicate(order) => Ok(Placed { order, replayed: true }),
            Placement::OtherLines => Err(PlaceError::KeyReused),
            Placement::InProgress => Err(PlaceError::InProgress),
        }
    }
}

/// What a request with a key found; nothing where it failed for other reasons.
fn key_result(placed: &Result<Placed, PlaceError>) -> Option<KeyResult> {
    match placed {
        Ok(placed) if placed.replayed => Some(KeyResult::Replayed),
        Ok(_) => Some(KeyResult::New),
        Err(PlaceError::KeyReused) => Some(KeyResult::Mismatch),
        Err(PlaceError::InProgress) => Some(KeyResult::InProgress),
        Err(_) => None,
    }
}

/// Puts the price of the moment on every line, if every product exists and there is enough of each.
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
