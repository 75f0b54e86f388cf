//! Every change of an existing order. Concurrent changes are committed together (`group_commit`): one statement locks
//! and loads their orders, each change is decided on its aggregate in memory, and a few statements and one commit write
//! all.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::histogram::Histogram;
use sqlx::{Connection, PgConnection};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::connection::{CommitSent, Database};
use super::group_commit::{Group, GroupCommit, Limits};
use super::payments::{IncomingPayment, KnownEvents, PaymentRows, Received};
use super::stock::StockTimes;
use super::{Store, StoreError, orders, payments, stock};
use crate::domain::{Order, OrderAggregate, OrderId};
use crate::metrics::Query;

/// Commits updates in groups.
pub(super) struct Updates {
    database: Database,
    stock: StockTimes,
    outbox_written: Arc<Notify>,
    /// The number of changes in each commit.
    sizes: Histogram,
}

/// A change of an order.
pub(super) struct Update {
    order: OrderId,
    /// The stock job to load: this attempt, else the latest.
    job: Option<i16>,
    work: Work,
}

enum Work {
    /// Changes the order, or refuses and leaves it unchanged; returns whether to write it.
    Decide(Box<dyn FnMut(&mut OrderAggregate) -> bool + Send>),
    Payment(Arc<IncomingPayment>),
}

/// The result of an update.
pub(super) enum Updated {
    NoOrder,
    Decided(Box<Order>),
    Payment(Received),
}

/// The writes and the answers of a group.
#[derive(Default)]
struct Writes {
    /// The answers in the order of the updates. `None` for an update that is left out.
    answers: Vec<Option<Updated>>,
    aggregates: Vec<OrderAggregate>,
    payments: PaymentRows,
    /// An order that gets a new version in this transaction. It shows afterwards whether the group was committed.
    witness: Option<Order>,
}

impl Store {
    /// Locks the order, lets `decide` change its aggregate, and writes all changes with the history and the event of a
    /// new status (invariant 1). `None` if the order does not exist.
    ///
    /// `job` selects the stock job: this attempt, else the latest. If `decide` refuses, nothing changes. `decide` may
    /// be called repeatedly, each time with the present order; only the last call counts.
    pub async fn update_order<T: Send + 'static, E: Send + 'static>(
        &self,
        id: OrderId,
        job: Option<i16>,
        mut decide: impl FnMut(&mut OrderAggregate) -> Result<T, E> + Send + 'static,
    ) -> Result<Option<Result<(Order, T), E>>, StoreError> {
        let decision = Arc::new(Mutex::new(None));
        let latest = Arc::clone(&decision);
        let work = Work::Decide(Box::new(move |aggregate| {
            let decided = decide(aggregate);
            let is_accepted = decided.is_ok();
            *latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(decided);
            is_accepted
        }));
        let updated = self.updates.submit(Update { order: id, job, work }).await?;
        let decision = decision.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (updated, decision) {
            (Updated::Decided(order), Some(decision)) => Ok(Some(decision.map(|value| (*order, value)))),
            _ => Ok(None),
        }
    }

    /// Applies a payment event to its order, stores its key, and parks it if an operator must look at it, in one
    /// transaction.
    pub async fn receive_payment(&self, payment: Arc<IncomingPayment>) -> Result<Received, StoreError> {
        let update = Update { order: payment.order, job: None, work: Work::Payment(payment) };
        match self.updates.submit(update).await? {
            Updated::Payment(received) => Ok(received),
            Updated::NoOrder | Updated::Decided(_) => Ok(Received::UnknownOrder),
        }
    }
}

impl Updates {
    pub(super) fn start(
        database: &Database,
        stock: StockTimes,
        outbox_written: &Arc<Notify>,
    ) -> Arc<GroupCommit<Self>> {
        let settings = &database.settings;
        // Few writers: each uses a connection, and the updates that wait share the next commit.
        let limits = Limits {
            group: 128,
            writers: 2,
            alone: 2,
            waiting: 4096,
            deadline: settings.deadline,
            grace: settings.acquire_timeout,
        };
        let sizes = database.metrics.database.group_writes("update");
        let (database, outbox_written) = (database.clone(), Arc::clone(outbox_written));
        GroupCommit::new(Self { database, stock, outbox_written, sizes }, limits)
    }

    /// Whether a group with an unknown outcome was committed. Only a change of a status leaves a version to look for.
    async fn is_durable(&self, writes: &Writes) -> bool {
        match &writes.witness {
            Some(order) => !self.database.find_written(&[order]).await.is_empty(),
            None => writes.aggregates.is_empty() && writes.payments.is_empty(),
        }
    }

    async fn write(
        &self,
        updates: &mut [Update],
        is_alone: bool,
        sent: &CommitSent,
        writes: &mut Writes,
    ) -> Result<(), StoreError> {
        let wanted: Vec<_> = updates.iter().map(|update| (update.order, update.job)).collect();
        let incoming: Vec<_> = updates.iter().filter_map(Update::payment).map(Arc::clone).collect();
        let mut connection = self.database.connection().await?;
        let mut transaction = connection.begin().await?;
        let mut locked = orders::lock(&mut transaction, &wanted, is_alone).await?;
        // Read under the locks, so that the second of two repeats finds the first.
        let mut known = payments::known_events(&mut transaction, &incoming).await?;
        for update in updates {
            let aggregate = locked.remove(&update.order);
            let is_left_out = aggregate.is_none() && !is_alone;
            let answer = (!is_left_out).then(|| update.apply(aggregate, &mut known, writes));
            writes.answers.push(answer);
        }
        let aggregates: Vec<&OrderAggregate> = writes.aggregates.iter().collect();
        write_aggregates(&mut transaction, &aggregates, self.stock).await?;
        payments::write_events(&mut transaction, &writes.payments).await?;
        sent.mark();
        transaction.commit().await?;
        connection.release();
        Ok(())
    }
}

/// Writes the changes of these orders, which are locked and distinct.
pub(super) async fn write_aggregates(
    connection: &mut PgConnection,
    aggregates: &[&OrderAggregate],
    times: StockTimes,
) -> Result<(), StoreError> {
    orders::write_statuses(&mut *connection, aggregates).await?;
    stock::write_jobs(&mut *connection, aggregates, times).await?;
    payments::write(connection, aggregates).await
}

impl Update {
    const fn payment(&self) -> Option<&Arc<IncomingPayment>> {
        match &self.work {
            Work::Payment(payment) => Some(payment),
            Work::Decide(_) => None,
        }
    }

    /// Applies the update in memory, and adds its changes to `writes`.
    fn apply(
        &mut self,
        aggregate: Option<OrderAggregate>,
        known: &mut KnownEvents,
        writes: &mut Writes,
    ) -> Updated {
        match &mut self.work {
            Work::Payment(payment) => {
                let (received, aggregate) = known.apply(payment, aggregate, &mut writes.payments);
                writes.add(aggregate);
                Updated::Payment(received)
            }
            Work::Decide(decide) => {
                let Some(mut aggregate) = aggregate else { return Updated::NoOrder };
                let is_accepted = decide(&mut aggregate);
                let order = Box::new(aggregate.order.clone());
                writes.add(is_accepted.then_some(aggregate));
                Updated::Decided(order)
            }
        }
    }
}

impl Writes {
    fn add(&mut self, aggregate: Option<OrderAggregate>) {
        let Some(aggregate) = aggregate else { return };
        if aggregate.changes.status.is_some() && self.witness.is_none() {
            self.witness = Some(aggregate.order.clone());
        }
        self.aggregates.push(aggregate);
    }
}

impl Group for Updates {
    const QUERY: Query = Query::Update;

    type Item = Update;
    type Answer = Updated;

    fn key(update: &Update) -> Option<u64> {
        let (high, low) = update.order.0.as_u64_pair();
        Some(high ^ low)
    }

    async fn commit(
        &self,
        updates: &mut [Update],
        alone: bool,
        deadline: Instant,
    ) -> Result<Vec<Option<Updated>>, StoreError> {
        let (sent, mut writes) = (CommitSent::default(), Writes::default());
        let started = Instant::now();
        self.sizes.observe(f64::from(u32::try_from(updates.len()).unwrap_or(u32::MAX)));
        let written = timeout_at(deadline, self.write(updates, alone, &sent, &mut writes)).await;
        let metrics = &self.database.metrics;
        metrics.database.used(Query::Update, started.elapsed());
        let written = written.unwrap_or(Err(StoreError::Deadline)).map_err(|error| sent.classify(error));
        if let Err(error) = written
            && !(matches!(error, StoreError::OutcomeUnknown(_)) && self.is_durable(&writes).await)
        {
            return Err(error);
        }
        for aggregate in &writes.aggregates {
            metrics.orders.changed(aggregate);
        }
        self.outbox_written.notify_one();
        Ok(writes.answers)
    }
}
