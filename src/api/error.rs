//! Maps the errors of the use cases to the problems of the contract.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::problem::{FieldError, Problem, kinds};
use crate::domain::line::BadLines;
use crate::domain::order::InvalidTransition;
use crate::domain::{Forbidden, Status};
use crate::orders::{OrderError, PlaceError, ShortLine, UnknownProduct};
use crate::products::Unavailable;
use crate::store::StoreError;

/// The `Retry-After` when the database is down or the service is overloaded.
pub(crate) const RETRY_SOON: Duration = Duration::from_secs(1);

impl From<Forbidden> for Problem {
    fn from(error: Forbidden) -> Self {
        Self::new(&kinds::FORBIDDEN, error.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::OutcomeUnknown(_)) {
            Self::outcome_unknown(RETRY_SOON).with_cause(error)
        } else if matches!(error, StoreError::TooManyWrites | StoreError::TooManyReads) {
            Self::unavailable("The service is overloaded.", RETRY_SOON).with_cause(error)
        } else if matches!(error, StoreError::Slow(_)) {
            Self::unavailable("The database took too long.", RETRY_SOON).with_cause(error)
        } else if error.is_transient() {
            Self::unavailable("The database is not available.", RETRY_SOON).with_cause(error)
        } else {
            Self::internal(error)
        }
    }
}

impl From<Unavailable> for Problem {
    fn from(error: Unavailable) -> Self {
        products_unavailable(error.retry_after).with_cause(error)
    }
}

impl From<PlaceError> for Problem {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::BadLines(BadLines { line, rule }) => {
                let pointer = line.map_or("/items".to_owned(), |line| format!("/items/{line}/quantity"));
                Self::invalid(pointer, rule)
            }
            PlaceError::UnknownProducts(unknown) => unknown_products(&unknown),
            PlaceError::InsufficientStock(short) => insufficient_stock(&short),
            PlaceError::Products(error) => error.into(),
            error @ PlaceError::TotalTooLarge => products_unavailable(RETRY_SOON).with_cause(error),
            PlaceError::Busy => Self::unavailable("Too many orders are being placed.", RETRY_SOON),
            PlaceError::InProgress => Self::new(
                &kinds::REQUEST_IN_PROGRESS,
                "A request with the same Idempotency-Key, or with the same lines, is still running.",
            )
            .with_retry_after(RETRY_SOON),
            PlaceError::KeyReused => Self::new(
                &kinds::IDEMPOTENCY_KEY_REUSED,
                "An earlier request used this Idempotency-Key with other lines.",
            ),
            PlaceError::Store(error) => error.into(),
            PlaceError::Crashed(error) => Self::internal(error),
        }
    }
}

impl From<OrderError> for Problem {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::NotFound(id) => {
                Self::new(&kinds::ORDER_NOT_FOUND, format!("There is no order {id}."))
            }
            OrderError::Forbidden(error) => error.into(),
            OrderError::PreconditionFailed(version) => Self::new(
                &kinds::PRECONDITION_FAILED,
                format!("If-Match does not match: the order's ETag is \"{version}\"."),
            ),
            OrderError::InvalidTransition(InvalidTransition { from, to }) => {
                invalid_transition(format!("An order that is {from} cannot become {to}."), from.reachable())
            }
            OrderError::AlreadyConfirmed => invalid_transition(
                "Only an admin can cancel a CONFIRMED order, by PUT …/status.".to_owned(),
                &[],
            ),
            OrderError::StockUnavailable(product) => Self::new(
                &kinds::STOCK_UNAVAILABLE,
                format!("The Product Service refused the stock of {product}. The order stays CREATED."),
            )
            .with_member("productId", json!(product)),
            OrderError::Busy => Self::unavailable("Too many orders are being confirmed.", RETRY_SOON),
            error @ OrderError::StockUnknown => Self::new(
                &kinds::PRODUCT_SERVICE_UNAVAILABLE,
                "The service does not know yet whether the stock was taken. The confirmation continues; repeat the \
                 request to wait for its outcome.",
            )
            .with_retry_after(RETRY_SOON)
            .with_cause(error),
            OrderError::Store(error) => error.into(),
            OrderError::Crashed(error) => Self::internal(error),
        }
    }
}

fn products_unavailable(retry_after: Duration) -> Problem {
    Problem::new(
        &kinds::PRODUCT_SERVICE_UNAVAILABLE,
        "The Product Service did not give a usable answer. No order was placed.",
    )
    .with_retry_after(retry_after)
}

fn invalid_transition(detail: String, allowed: &[Status]) -> Problem {
    let allowed: Vec<&str> = allowed.iter().copied().map(Status::as_str).collect();
    Problem::new(&kinds::INVALID_TRANSITION, detail).with_member("allowed", json!(allowed))
}

fn unknown_products(unknown: &[UnknownProduct]) -> Problem {
    let names: Vec<&str> = unknown.iter().map(|product| product.product_id.as_str()).collect();
    let errors = unknown
        .iter()
        .map(|product| FieldError {
            pointer: format!("/items/{}/productId", product.line),
            detail: format!("There is no product {}.", product.product_id),
            more: members([("productId", json!(product.product_id))]),
        })
        .collect();
    Problem::new(&kinds::PRODUCT_NOT_FOUND, format!("There is no product {}.", names.join(", ")))
        .with_errors(errors)
}

fn insufficient_stock(short: &[ShortLine]) -> Problem {
    let sentence = |line: &ShortLine| {
        format!("{}: {} requested, {} available", line.product_id, line.requested, line.available)
    };
    let errors = short
        .iter()
        .map(|line| FieldError {
            pointer: format!("/items/{}/quantity", line.line),
            detail: sentence(line),
            more: members([
                ("productId", json!(line.product_id)),
                ("requested", json!(line.requested)),
                ("available", json!(line.available)),
            ]),
        })
        .collect();
    let sentences: Vec<String> = short.iter().map(sentence).collect();
    Problem::new(&kinds::INSUFFICIENT_STOCK, format!("{}.", sentences.join("; "))).with_errors(errors)
}

fn members<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
