//! A parked record of the payment topic, applied again by an operator.

use std::sync::Arc;

use super::decode::{Decoded, decode};
use crate::domain::{OrderId, TraceParent};
use crate::store::payments::{IncomingPayment, Received, RecordPlace};
use crate::store::{Store, StoreError};

/// The result of a retry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retried {
    /// The record is not parked.
    NotParked,
    /// The record is still not a payment event, with the reason.
    NoPayment(String),
    /// The record is a payment of this order.
    Received(OrderId, Received),
}

/// Applies a parked record like the consumer. If that settles the record, the mark, the intervention and the effect of
/// the payment commit together.
pub async fn retry_parked(store: &Store, place: &RecordPlace, actor: &str) -> Result<Retried, StoreError> {
    let Some(parked) = store.parked_payment(place).await? else { return Ok(Retried::NotParked) };
    let payload = parked.payload.unwrap_or_default();
    let (key, order, event, event_type) = match decode(&payload, place) {
        Some(Decoded::Payment { key, order, event, event_type }) => (key, order, event, event_type),
        None => return Ok(Retried::NoPayment("it does not concern an order".to_owned())),
        Some(Decoded::Undecodable { error, .. }) => return Ok(Retried::NoPayment(error)),
    };
    let payment = IncomingPayment {
        key,
        order,
        event,
        event_type,
        place: place.clone(),
        trace: TraceParent::continue_or_start(None),
        payload,
        retried_by: Some(actor.to_owned()),
    };
    match store.receive_payment(Arc::new(payment)).await? {
        Received::NotParked => Ok(Retried::NotParked),
        received => Ok(Retried::Received(order, received)),
    }
}
