//! Cancels the orders that nobody paid in time: only those for which every payment that stood in the topic
//! before their time was up has been applied.
//!
//! A moment T of the database's clock is noted, then the end of each partition. Once the group has read up to
//! these ends, every payment that stood in the topic at T has been applied; so an order that was still CREATED
//! then, and whose time was up at T, was not paid in time. Where Kafka cannot be asked, nothing is cancelled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::progress::{Ends, Progress, ProgressError};
use crate::events::KafkaSettings;
use crate::orders::OrderService;
use crate::store::{StoreError, UnpaidCursor};
use crate::telemetry::{RateLimitedLog, error_chain};

/// When an order counts as unpaid, and how often to look.
#[derive(Clone, Copy, Debug)]
pub struct UnpaidSettings {
    /// How long an order may be CREATED.
    pub ttl: Duration,
    /// How long to wait between two rounds.
    pub interval: Duration,
}

/// Orders that were passed over (their stock was being taken, a payment of theirs is parked) are looked at again
/// after so long.
const LOOK_AGAIN_AFTER: Duration = Duration::from_mins(5);

/// The worker that cancels unpaid orders.
pub struct UnpaidOrders {
    progress: Progress,
    orders: OrderService,
    settings: UnpaidSettings,
    after: UnpaidCursor,
    /// When the first order was looked at last.
    started_over: Instant,
    /// A moment, and the ends of the partitions that must be read before it counts.
    pending: Option<(DateTime<Utc>, Arc<Ends>)>,
    not_asked: RateLimitedLog,
}

#[derive(Debug, Error)]
enum RoundError {
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("how far the payments have been read is not known")]
    Progress(#[from] ProgressError),
    #[error("a helper thread failed")]
    Thread(#[from] JoinError),
}

impl UnpaidOrders {
    /// A worker that has asked nothing yet.
    pub fn new(kafka: &KafkaSettings, orders: OrderService, settings: UnpaidSettings) -> Self {
        Self {
            progress: Progress::new(kafka),
            orders,
            settings,
            after: UnpaidCursor::START,
            started_over: Instant::now(),
            pending: None,
            not_asked: RateLimitedLog::new(Duration::from_mins(1)),
        }
    }

    /// Cancels unpaid orders until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let round = tokio::select! {
                round = self.round(&stop) => round,
                () = stop.cancelled() => return,
            };
            if let Err(error) = round {
                // An answer that did not come says nothing: the next round starts with a new moment.
                self.pending = None;
                if let Some(suppressed) = self.not_asked.allow() {
                    warn!(error = error_chain(&error), suppressed, "no unpaid order is cancelled right now");
                }
            }
            tokio::select! {
                () = sleep(self.settings.interval) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn round(&mut self, stop: &CancellationToken) -> Result<(), RoundError> {
        if self.started_over.elapsed() > LOOK_AGAIN_AFTER {
            (self.after, self.started_over) = (UnpaidCursor::START, Instant::now());
        }
        // Twice: what was pending from an earlier round, and a moment of this one.
        for _ in 0..2 {
            let Some(now) = self.orders.unpaid_order_is_due(self.settings.ttl, self.after).await? else {
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
            self.orders.cancel_unpaid(at - self.settings.ttl, &mut self.after, stop).await?;
        }
        Ok(())
    }

    /// Asks Kafka on a thread of its own, with no connection to the database held.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Progress) -> Result<T, ProgressError> + Send + 'static,
    ) -> Result<T, RoundError> {
        let progress = self.progress.clone();
        Ok(spawn_blocking(move || question(&progress)).await??)
    }
}
