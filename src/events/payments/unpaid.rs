//! Cancels orders that were not paid in time, after every payment that was in the topic before their deadline is
//! applied.
//!
//! The worker notes a time T of the database clock, then the end of each partition. When the consumer group has read up
//! to these ends, every payment that was in the topic at T is applied. So an order that is still CREATED then, and
//! whose deadline was before T, was not paid in time. While Kafka cannot be reached, nothing is cancelled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::progress::{Ends, Failure, Progress};
use crate::events::KafkaSettings;
use crate::orders::OrderService;
use crate::store::UnpaidCursor;
use crate::telemetry::{RateLimitedLog, error_chain};

/// After this time the worker starts again with the oldest order, because it may have skipped some (stock being taken,
/// payment parked).
const START_OVER_AFTER: Duration = Duration::from_mins(5);

pub(crate) struct UnpaidOrders {
    progress: Progress,
    orders: OrderService,
    /// How long an order may be CREATED.
    ttl: Duration,
    /// The pause between two rounds.
    interval: Duration,
    after: UnpaidCursor,
    /// When the worker last started with the oldest order.
    started_over: Instant,
    /// A time T, and the ends of the partitions that must be read first.
    pending: Option<(DateTime<Utc>, Arc<Ends>)>,
    failures: RateLimitedLog,
}

impl UnpaidOrders {
    /// A worker that has not started.
    pub(crate) fn new(
        kafka: &KafkaSettings,
        orders: OrderService,
        ttl: Duration,
        interval: Duration,
    ) -> Self {
        Self {
            progress: Progress::new(kafka),
            orders,
            ttl,
            interval,
            after: UnpaidCursor::START,
            started_over: Instant::now(),
            pending: None,
            failures: RateLimitedLog::new(Duration::from_mins(1)),
        }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while let Some(round) = stop.run_until_cancelled(self.round(&stop)).await {
            if let Err(error) = round {
                // The next round starts with a new time T.
                self.pending = None;
                if let Some(suppressed) = self.failures.allow() {
                    warn!(error = error_chain(&*error), suppressed, "no unpaid order is cancelled right now");
                }
            }
            stop.run_until_cancelled(sleep(self.interval)).await;
        }
    }

    async fn round(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        if self.started_over.elapsed() > START_OVER_AFTER {
            (self.after, self.started_over) = (UnpaidCursor::START, Instant::now());
        }
        // Two passes: for the pending time of an earlier round, and for a time of this round.
        for _ in 0..2 {
            let Some(now) = self.orders.unpaid_order_is_due(self.ttl, self.after).await? else {
                return Ok(());
            };
            let (at, ends) = match self.pending.take() {
                Some(pending) => pending,
                None => (now, Arc::new(self.ask(Progress::ends).await?)),
            };
            let asked = Arc::clone(&ends);
            if !self.ask(move |progress| progress.is_read(&asked)).await? {
                info!("unpaid orders stay until the payments before them have been read");
                self.pending = Some((at, ends));
                return Ok(());
            }
            self.orders.cancel_unpaid(at - self.ttl, &mut self.after, stop).await?;
        }
        Ok(())
    }

    /// Asks Kafka on a blocking thread; holds no database connection.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Progress) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let progress = self.progress.clone();
        spawn_blocking(move || question(&progress)).await?
    }
}
