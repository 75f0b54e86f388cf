//! Sending the events of orders again, to a topic of an operator's choice, for a consumer that has lost its data.
//!
//! An event is rendered from the order and its history, under the id and the trace of its first publication. Of one
//! order the next event is sent after the acknowledgement of the one before, so each order is in sequence. Whatever is
//! sent twice has the same id and the same bytes.

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

/// Orders of one page.
const PAGE: i64 = 500;
/// Events under way at once.
const LARGEST_WAVE: usize = 500;
/// How often in a row Kafka or the database may fail before the replay gives up.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// Why a replay ended early.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The orders cannot be read.
    #[error("the orders cannot be read")]
    Store(#[from] StoreError),
    /// The events cannot be sent.
    #[error("the events cannot be sent")]
    Publish(#[from] PublishError),
    /// An event cannot be rendered.
    #[error("an event cannot be rendered")]
    Render(#[from] serde_json::Error),
    /// The broker refuses an event for itself.
    #[error("Kafka refuses the event of order {0} with sequence {1}")]
    Refused(OrderId, i32, #[source] PublishError),
}

/// How far a replay has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayProgress {
    /// Orders that were looked at.
    pub looked_at: usize,
    /// Orders of which events were sent.
    pub orders: usize,
    /// Events that Kafka has acknowledged.
    pub events: usize,
    /// Everything up to this order has been sent.
    pub after: Option<OrderId>,
}

/// A replay that has sent nothing yet.
pub struct Replay {
    store: Store,
    publisher: Publisher,
    range: ReplayRange,
    /// Events a second.
    rate: u32,
    started: Instant,
}

impl Replay {
    /// `settings.topic` is the topic to send to; it must exist.
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

    /// Sends the events of the next orders. `progress` says where to begin, and afterwards how far it came; nothing is
    /// left where it returns true.
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
            // The next event of each order: no two of one order are under way at once.
            let wave: Vec<PendingEvent> = events.iter_mut().filter_map(Iterator::next).collect();
            if wave.is_empty() {
                break;
            }
            for part in wave.chunks(self.largest_part()) {
                self.send(part).await?;
                progress.events += part.len();
                self.keep_the_rate(progress.events).await;
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

    /// A tenth of a second's events.
    fn largest_part(&self) -> usize {
        usize::try_from(self.rate / 10).unwrap_or(LARGEST_WAVE).clamp(1, LARGEST_WAVE)
    }

    async fn keep_the_rate(&self, sent: usize) {
        let sent = u32::try_from(sent).unwrap_or(u32::MAX);
        sleep_until(self.started + Duration::from_secs(1) * sent / self.rate).await;
    }

    /// Sends events, no two of one order, until all of them are acknowledged.
    async fn send(&mut self, events: &[PendingEvent]) -> Result<(), ReplayError> {
        let (mut left, mut attempts) = (events.to_vec(), 0);
        loop {
            let sent = self.publisher.send_all(&left).await;
            if let Some((event, error)) = sent.refused.into_iter().next() {
                return Err(ReplayError::Refused(event.order_id, event.sequence, error));
            }
            let Some(failure) = sent.failure else { return Ok(()) };
            attempts = if sent.acknowledged.is_empty() { attempts + 1 } else { 0 };
            if attempts == ATTEMPTS {
                return Err(failure.into());
            }
            let done: HashSet<OrderId> = sent.acknowledged.iter().map(|event| event.order_id).collect();
            left.retain(|event| !done.contains(&event.order_id));
            self.publisher.renew_after_fatal_error()?;
            sleep(PAUSE).await;
        }
    }
}

/// As the relay would have found it in the outbox.
fn pending(order: &Order, change: &RecordedChange) -> Result<PendingEvent, serde_json::Error> {
    let event = OrderEvent::recorded(order, change)?;
    Ok(PendingEvent {
        bucket: bucket_of(order.id),
        position: 0,
        order_id: event.order,
        sequence: event.sequence,
        payload: event.payload,
        headers: event.headers,
        // Only the relay measures how long an event waited.
        created_at: DateTime::UNIX_EPOCH,
        read_at: DateTime::UNIX_EPOCH,
    })
}
