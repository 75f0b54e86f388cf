//! Replays the events of orders to a topic that an operator chooses, for a consumer that lost its data.
//!
//! An event is rendered from the order and its history, with the id and the trace of its first publication. The next
//! event of an order is sent after the acknowledgement of the previous one, so the events of an order stay in order. An
//! event that is sent twice has the same id and the same bytes.

use std::collections::HashSet;
use std::time::Duration;

use chrono::DateTime;
use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::{KafkaHealth, KafkaSettings, PublishError, Publisher};
use crate::domain::event::{RecordedChange, bucket_of};
use crate::domain::{Order, OrderEvent, OrderId};
use crate::store::replay::{ReplayPage, ReplayRange};
use crate::store::{PendingEvent, Store, StoreError};

const PAGE: i64 = 500;
const MAX_IN_FLIGHT: usize = 500;
/// The replay gives up after this many consecutive failures of Kafka or the database.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
pub enum ReplayError {
    #[error("the orders cannot be read")]
    Store(#[from] StoreError),
    #[error("the events cannot be sent")]
    Publish(#[from] PublishError),
    #[error("an event cannot be rendered")]
    Render(#[from] serde_json::Error),
    #[error("Kafka refuses the event of order {0} with sequence {1}")]
    Refused(OrderId, i32, #[source] PublishError),
}

/// The progress of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayProgress {
    /// Orders that were read.
    pub looked_at: usize,
    /// Orders whose events were sent.
    pub orders: usize,
    /// Events that Kafka has acknowledged.
    pub events: usize,
    /// All events up to this order were sent.
    pub after: Option<OrderId>,
}

/// A replay.
pub struct Replay {
    store: Store,
    publisher: Publisher,
    range: ReplayRange,
    /// Events per second.
    rate: u32,
    started: Instant,
}

impl Replay {
    /// Prepares a replay to `settings.topic`, which must exist.
    pub async fn prepare(
        store: Store,
        settings: KafkaSettings,
        range: ReplayRange,
        rate: u32,
    ) -> Result<Self, PublishError> {
        let publisher =
            Publisher::new(KafkaSettings { create_topic: false, ..settings }, KafkaHealth::default())?;
        publisher.ensure_topic().await?;
        Ok(Self { store, publisher, range, rate, started: Instant::now() })
    }

    /// Sends the events of the next page of orders, and updates `progress`. Returns true after the last page.
    pub async fn send_page(&mut self, progress: &mut ReplayProgress) -> Result<bool, ReplayError> {
        let after = progress.after.unwrap_or(OrderId(Uuid::nil()));
        let page = self.read(after).await?;
        let mut events: Vec<std::vec::IntoIter<PendingEvent>> = Vec::with_capacity(page.orders.len());
        for (order, changes) in &page.orders {
            let of_order: Vec<PendingEvent> =
                changes.iter().map(|change| pending(order, change)).collect::<Result<_, _>>()?;
            events.push(of_order.into_iter());
        }
        let orders = events.iter().filter(|of_order| of_order.len() > 0).count();
        loop {
            // The next event of each order, so that two events of an order are never in flight together.
            let batch: Vec<PendingEvent> = events.iter_mut().filter_map(Iterator::next).collect();
            if batch.is_empty() {
                break;
            }
            for part in batch.chunks(self.batch_size()) {
                self.send(part).await?;
                progress.events += part.len();
                self.limit_rate(progress.events).await;
            }
        }
        progress.orders += orders;
        progress.looked_at += page.looked_at;
        progress.after = page.next.or(progress.after);
        Ok(page.next.is_none())
    }

    async fn read(&self, after: OrderId) -> Result<ReplayPage, StoreError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.store.replay_page(&self.range, after, PAGE).await {
                Err(error) if error.is_transient() && attempts < ATTEMPTS => sleep(PAUSE).await,
                page => return page,
            }
        }
    }

    /// The events of a tenth of a second at the rate limit.
    fn batch_size(&self) -> usize {
        usize::try_from(self.rate / 10).unwrap_or(MAX_IN_FLIGHT).clamp(1, MAX_IN_FLIGHT)
    }

    async fn limit_rate(&self, sent: usize) {
        let sent = u32::try_from(sent).unwrap_or(u32::MAX);
        sleep_until(self.started + Duration::from_secs(1) * sent / self.rate).await;
    }

    /// Sends events of different orders, and retries until all are acknowledged.
    async fn send(&mut self, events: &[PendingEvent]) -> Result<(), ReplayError> {
        let (mut remaining, mut attempts) = (events.to_vec(), 0);
        loop {
            let sent = self.publisher.send_all(&remaining).await;
            if let Some((event, error)) = sent.refused.into_iter().next() {
                return Err(ReplayError::Refused(event.order_id, event.sequence, error));
            }
            let Some(failure) = sent.failure else { return Ok(()) };
            attempts = if sent.acknowledged.is_empty() { attempts + 1 } else { 0 };
            if attempts == ATTEMPTS {
                return Err(failure.into());
            }
            let done: HashSet<OrderId> = sent.acknowledged.iter().map(|event| event.order_id).collect();
            remaining.retain(|event| !done.contains(&event.order_id));
            self.publisher.renew_after_fatal_error()?;
            sleep(PAUSE).await;
        }
    }
}

/// The event as a row of the outbox.
fn pending(order: &Order, change: &RecordedChange) -> Result<PendingEvent, serde_json::Error> {
    let event = OrderEvent::recorded(order, change)?;
    Ok(PendingEvent {
        bucket: bucket_of(order.id),
        position: 0,
        order_id: event.order,
        sequence: event.sequence,
        payload: event.payload,
        headers: event.headers,
        // The times are only used by the metrics of the relay.
        created_at: DateTime::UNIX_EPOCH,
        read_at: DateTime::UNIX_EPOCH,
    })
}
