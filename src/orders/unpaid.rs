//! Cancelling orders that were not paid in time.

use std::time::Duration;

use chrono::{DateTime, Utc};
use opentelemetry::trace::SpanKind;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::OrderService;
use crate::domain::aggregate::reason::PAYMENT_TIMEOUT;
use crate::domain::order::Change;
use crate::domain::stock::JobState;
use crate::domain::{Actor, OrderAggregate, OrderId, Status};
use crate::store::{StoreError, UnpaidCursor};
use crate::telemetry::error_chain;
use crate::telemetry::span::{self, Span};

/// The maximum number of orders per query.
const PAGE: i64 = 500;

impl OrderService {
    /// The time of the database, if an order after the cursor has been CREATED for longer than `ttl`.
    pub async fn unpaid_order_is_due(
        &self,
        ttl: Duration,
        after: UnpaidCursor,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.store.unpaid_order_is_due(ttl, after).await
    }

    /// Cancels the unpaid orders after the cursor that were placed by `until`, and moves the cursor. The caller must
    /// ensure that every payment that came in time for them is applied. An order that cannot be cancelled stays.
    pub async fn cancel_unpaid(
        &self,
        until: DateTime<Utc>,
        after: &mut UnpaidCursor,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let mut cancelled = 0;
        while !stop.is_cancelled() {
            let (unpaid, next) = self.store.unpaid_orders(until, *after, PAGE).await?;
            for id in unpaid {
                match self.cancel_if_unpaid(id).await {
                    Ok(is_cancelled) => cancelled += usize::from(is_cancelled),
                    Err(error) if error.is_transient() => return Err(error),
                    Err(error) => {
                        error!(order = %id, error = error_chain(&error), "an unpaid order could not be cancelled");
                    }
                }
            }
            let Some(next) = next else { break };
            *after = next;
        }
        if cancelled > 0 {
            info!(cancelled, "cancelled unpaid orders");
        }
        Ok(())
    }

    /// Checks again under the lock: a payment or another replica may have changed the order since.
    async fn cancel_if_unpaid(&self, id: OrderId) -> Result<bool, StoreError> {
        let (_span, trace) = Span::entry(SpanKind::Internal, || "cancel unpaid order", None);
        let place = trace.clone();
        let decide = move |aggregate: &mut OrderAggregate| {
            let confirming = aggregate.job.as_ref().is_some_and(|job| job.state == JobState::Taking);
            if aggregate.order.status != Status::Created || aggregate.paid.is_some() || confirming {
                return Ok(Change::None);
            }
            aggregate.cancel(Actor::system(), Some(PAYMENT_TIMEOUT.to_owned()), &place)
        };
        let changed = span::within(&trace, self.store.update_order(id, None, decide)).await?;
        Ok(matches!(changed, Some(Ok((_, Change::Real)))))
    }
}
