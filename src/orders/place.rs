//! Placing an order: ask the Product Service, then write everything in one transaction.

use std::sync::Arc;

use thiserror::Error;
use tokio::task::JoinError;

use super::OrderService;
use crate::domain::line::{BadLines, merge_lines};
use crate::domain::{Identity, Line, Order, ProductId, RequestedLine, TraceParent};
use crate::products::{Product, ProductClient, Unavailable};
use crate::store::{Store, StoreError};

/// Why an order was not placed. Nothing was written.
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

impl OrderService {
    /// Places an order for the caller: everything or nothing.
    ///
    /// It runs in a task of its own, so that it comes to its end even when the client hangs up (invariant 9),
    /// and it holds no connection while it asks the Product Service (invariant 3).
    pub async fn place(
        &self,
        caller: Identity,
        requested: Vec<RequestedLine>,
        trace: TraceParent,
    ) -> Result<Order, PlaceError> {
        let lines = merge_lines(requested).map_err(PlaceError::BadLines)?;
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| PlaceError::Busy)?;
        let (store, products) = (self.store.clone(), Arc::clone(&self.products));
        let placement = self.placements.spawn(async move {
            let placed = price_and_write(&store, &products, caller, lines, &trace).await;
            drop(permit);
            placed
        });
        placement.await?
    }
}

async fn price_and_write(
    store: &Store,
    products: &ProductClient,
    caller: Identity,
    lines: Vec<(usize, RequestedLine)>,
    trace: &TraceParent,
) -> Result<Order, PlaceError> {
    let ids: Vec<&ProductId> = lines.iter().map(|(_, line)| &line.product_id).collect();
    let answers = products.look_up(&ids, trace).await?;
    let lines = price(lines, answers)?;
    let order = Order::place(caller.customer, lines).ok_or(PlaceError::TotalTooLarge)?;
    store.place(&order, caller.role, trace).await?;
    Ok(order)
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
