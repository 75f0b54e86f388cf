//! Reading and writing stock jobs, together with their orders. Claiming them is in `stock_claims`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres};
use uuid::Uuid;

use super::connection::column;
use super::{Store, StoreError};
use crate::domain::aggregate::JobWrite;
use crate::domain::stock::{JobState, StockJob, StockLine};
use crate::domain::{Actor, Money, OrderAggregate, OrderId, ProductId, Quantity, TraceParent};
use crate::metrics;

/// The time limits of stock jobs.
#[derive(Clone, Copy, Debug)]
pub struct StockTimes {
    /// The duration of a lease; after a crash, others claim the job then.
    pub lease: Duration,
    /// The age at which an unfinished job is reported.
    pub deadline: Duration,
}

/// Loads the requested jobs in the order of their numbers: the given attempt, else the latest of the order. Each part
/// is a look-up by the id of the order, independent of statistics; the lines come in order from their index.
pub(super) const LOAD: &str = "
select wanted.order_id, job.attempt, job.state, job.paid, job.actor_role, job.actor_id, job.reason, job.traceparent,
       job.parked, job.failures, job.refusals, job.lease_token, lines.numbers, lines.products, lines.quantities,
       lines.states, lines.errors, lines.sent,
       (select amount from payments where order_id = wanted.order_id) as amount,
       exists (
           select from stock_jobs earlier
           where earlier.order_id = wanted.order_id and earlier.attempt < job.attempt
             and earlier.state = 'RETURNING' and earlier.parked is null
       ) as waits
from unnest($1::uuid[], $2::smallint[]) with ordinality as wanted (order_id, attempt, number)
left join lateral (
    select * from stock_jobs
    where order_id = wanted.order_id and attempt = coalesce(wanted.attempt, attempt)
    order by attempt desc limit 1
) job on true
left join lateral (
    select array_agg(line_number) as numbers, array_agg(product_id) as products, array_agg(quantity) as quantities,
           array_agg(state) as states, array_agg(last_error) as errors,
           array_agg(coalesce(sent_at, case when state in ('TAKING', 'RETURNING') then job.created_at end)) as sent
    from (
        select * from stock_lines
        where order_id = wanted.order_id and attempt = job.attempt
        order by line_number
    ) line
) lines on true
order by wanted.number
";

/// Only `next_attempt_at` decides when a job may be claimed. A held job is due at the end of its lease. A job that
/// waits for an earlier attempt is due after `pause`, long after that attempt has woken it.
pub(super) const INSERT: &str = "
with jobs as (
    insert into stock_jobs
        (order_id, attempt, state, paid, actor_role, actor_id, reason, traceparent, parked, failures, refusals,
         deadline, next_attempt_at, lease_token, leased_until)
    select order_id, attempt, state, paid, role, actor, reason, trace, parked, failures, refusals, now() + $14,
           now() + case when holder is null then pause else $15 end, holder,
           case when holder is null then '-infinity' else now() + $15 end
    from unnest($1::uuid[], $2::smallint[], $3::text[], $4::boolean[], $5::text[], $6::integer[], $7::integer[],
                $8::interval[], $9::uuid[], $10::text[], $11::text[], $12::text[], $13::text[])
         as new (order_id, attempt, state, paid, parked, failures, refusals, pause, holder, role, actor, reason, trace)
)
insert into stock_lines (order_id, attempt, line_number, product_id, quantity, state, last_error, sent_at)
select * from unnest($16::uuid[], $17::smallint[], $18::smallint[], $19::text[], $20::integer[], $21::text[],
                     $22::text[], $23::timestamptz[])
";

/// A job that turns to RETURNING gets a new deadline. Only its holder ends a lease, because another replica may have
/// claimed the job since it was read. Unchanged rows are not written. `any` limits the reads to the jobs of these
/// orders in every plan.
pub(super) const UPDATE: &str = "
with jobs as (
    update stock_jobs as job
    set state = new.state, paid = new.paid, parked = new.parked, failures = new.failures, refusals = new.refusals,
        deadline = case when new.state = 'RETURNING' and job.state <> 'RETURNING' then now() + $12
                   else job.deadline end,
        lease_token = case when new.claim then new.holder else job.lease_token end,
        next_attempt_at = case when new.claim then now() + $13
                          when new.release and job.lease_token is not distinct from new.holder then now() + new.pause
                          else job.next_attempt_at end,
        leased_until = case when new.claim then now() + $13
                       when new.release and job.lease_token is not distinct from new.holder then '-infinity'
                       else job.leased_until end
    from unnest($1::uuid[], $2::smallint[], $3::text[], $4::boolean[], $5::text[], $6::integer[], $7::integer[],
                $8::interval[], $9::uuid[], $10::boolean[], $11::boolean[])
         as new (order_id, attempt, state, paid, parked, failures, refusals, pause, holder, claim, release)
    where job.order_id = any ($1) and job.order_id = new.order_id and job.attempt = new.attempt
      and (new.claim or new.release or (job.state, job.paid, job.parked, job.failures, job.refusals)
           is distinct from (new.state, new.paid, new.parked, new.failures, new.refusals))
)
update stock_lines as line
set state = new.state, last_error = new.error, sent_at = new.sent_at
from unnest($14::uuid[], $15::smallint[], $16::smallint[], $17::text[], $18::text[], $19::timestamptz[])
     as new (order_id, attempt, number, state, error, sent_at)
where line.order_id = any ($1)
  and line.order_id = new.order_id and line.attempt = new.attempt and line.line_number = new.number
  and (line.state, line.last_error, line.sent_at) is distinct from (new.state, new.error, new.sent_at)
";

/// Wakes the later attempts that waited for these: makes them due now. It skips attempts with a holder, which are already
/// running, and those that a concurrent claim has locked. These are already due, and the claim must lock their order,
/// which is locked here, so waiting for them could deadlock.
pub(super) const WAKE_LATER_ATTEMPTS: &str = "
update stock_jobs set next_attempt_at = now()
where ctid = any (array(
    select later.ctid
    from unnest($1::uuid[], $2::smallint[]) as ended (order_id, attempt)
    join stock_jobs later on later.order_id = ended.order_id and later.attempt > ended.attempt
    where later.order_id = any ($1)
      and later.state in ('TAKING', 'RETURNING') and later.parked is null
      and later.leased_until < now() and later.next_attempt_at > now()
    for update of later skip locked
))
";

impl Store {
    /// Reads a job. `None` if it does not exist.
    pub async fn stock_job(&self, order: OrderId, attempt: i16) -> Result<Option<StockJob>, StoreError> {
        self.query(metrics::Query::ReadStockJob, async |connection| {
            let loaded = load_jobs(connection, &[(order, Some(attempt))]).await?;
            Ok(loaded.into_iter().next().and_then(|(job, _)| job))
        })
        .await
    }
}

/// A job, if there is one, and the paid amount of its order.
pub(super) type Loaded = (Option<StockJob>, Option<Money>);

/// Loads the jobs of many orders (the given attempt, else the latest), in their order, by one statement.
pub(super) async fn load_jobs(
    connection: &mut PgConnection,
    wanted: &[(OrderId, Option<i16>)],
) -> Result<Vec<Loaded>, StoreError> {
    let (orders, attempts): (Vec<Uuid>, Vec<Option<i16>>) =
        wanted.iter().map(|(order, attempt)| (order.0, *attempt)).unzip();
    let rows: Vec<JobRow> = sqlx::query_as(LOAD).bind(orders).bind(attempts).fetch_all(connection).await?;
    rows.into_iter().map(JobRow::into_loaded).collect()
}

/// Writes the stock jobs of these orders, which are locked and distinct.
pub(super) async fn write_jobs(
    connection: &mut PgConnection,
    aggregates: &[&OrderAggregate],
    times: StockTimes,
) -> Result<(), StoreError> {
    let jobs = || aggregates.iter().filter_map(|one| Some((one.job.as_ref()?, one.changes.job?)));
    let inserted: Vec<_> =
        jobs().filter(|(_, write)| *write == JobWrite::Insert).map(|(job, _)| job).collect();
    let updated: Vec<_> = jobs().filter(|(_, write)| *write != JobWrite::Insert).collect();
    if !inserted.is_empty() {
        insert(&mut *connection, &inserted, times).await?;
    }
    if !updated.is_empty() {
        update(&mut *connection, &updated, times).await?;
    }
    // A taking job has never blocked another.
    let may_have_blocked = |job: &StockJob| matches!(job.state, JobState::Returning | JobState::Returned);
    let (orders, attempts): (Vec<Uuid>, Vec<i16>) = updated
        .iter()
        .filter(|(job, _)| may_have_blocked(job) && !job.blocks_later_attempts())
        .map(|(job, _)| (job.order.0, job.attempt))
        .unzip();
    if !orders.is_empty() {
        sqlx::query(WAKE_LATER_ATTEMPTS).bind(orders).bind(attempts).execute(connection).await?;
    }
    Ok(())
}

async fn insert(
    connection: &mut PgConnection,
    jobs: &[&StockJob],
    times: StockTimes,
) -> Result<(), StoreError> {
    let lines = lines_of(jobs);
    bind_jobs(sqlx::query(INSERT), jobs)
        .bind(column(jobs, |job| job.actor.role.into_str()))
        .bind(column(jobs, |job| job.actor.id.as_str()))
        .bind(column(jobs, |job| job.reason.as_deref()))
        .bind(column(jobs, |job| job.trace.to_string()))
        .bind(times.deadline)
        .bind(times.lease)
        .bind(column(&lines, |(job, _)| job.order.0))
        .bind(column(&lines, |(job, _)| job.attempt))
        .bind(column(&lines, |(_, line)| line.number))
        .bind(column(&lines, |(_, line)| line.product_id.as_str()))
        .bind(column(&lines, |(_, line)| line.quantity.get().cast_signed()))
        .bind(column(&lines, |(_, line)| line.state.into_str()))
        .bind(column(&lines, |(_, line)| line.last_error.as_deref()))
        .bind(column(&lines, |(_, line)| line.sent_at))
        .execute(connection)
        .await?;
    Ok(())
}

async fn update(
    connection: &mut PgConnection,
    updated: &[(&StockJob, JobWrite)],
    times: StockTimes,
) -> Result<(), StoreError> {
    let jobs = column(updated, |(job, _)| *job);
    let lines = lines_of(&jobs);
    bind_jobs(sqlx::query(UPDATE), &jobs)
        .bind(column(updated, |(_, write)| *write == JobWrite::Claim))
        .bind(column(updated, |(_, write)| *write == JobWrite::Release))
        .bind(times.deadline)
        .bind(times.lease)
        .bind(column(&lines, |(job, _)| job.order.0))
        .bind(column(&lines, |(job, _)| job.attempt))
        .bind(column(&lines, |(_, line)| line.number))
        .bind(column(&lines, |(_, line)| line.state.into_str()))
        .bind(column(&lines, |(_, line)| line.last_error.as_deref()))
        .bind(column(&lines, |(_, line)| line.sent_at))
        .execute(connection)
        .await?;
    Ok(())
}

/// Binds the columns that both statements write.
fn bind_jobs<'q>(
    query: Query<'q, Postgres, PgArguments>,
    jobs: &[&'q StockJob],
) -> Query<'q, Postgres, PgArguments> {
    query
        .bind(column(jobs, |job| job.order.0))
        .bind(column(jobs, |job| job.attempt))
        .bind(column(jobs, |job| job.state.into_str()))
        .bind(column(jobs, |job| job.paid))
        .bind(column(jobs, |job| job.parked.as_deref()))
        .bind(column(jobs, |job| job.failures))
        .bind(column(jobs, |job| job.refusals))
        .bind(column(jobs, |job| job.pause()))
        .bind(column(jobs, |job| job.holder))
}

fn lines_of<'a>(jobs: &[&'a StockJob]) -> Vec<(&'a StockJob, &'a StockLine)> {
    jobs.iter().flat_map(|job| job.lines.iter().map(|line| (*job, line))).collect()
}

#[derive(sqlx::FromRow)]
pub(super) struct JobRow {
    order_id: Uuid,
    attempt: Option<i16>,
    state: Option<String>,
    paid: Option<bool>,
    actor_role: Option<String>,
    actor_id: Option<String>,
    reason: Option<String>,
    traceparent: Option<String>,
    parked: Option<String>,
    failures: Option<i32>,
    refusals: Option<i32>,
    lease_token: Option<Uuid>,
    numbers: Option<Vec<i16>>,
    products: Option<Vec<String>>,
    quantities: Option<Vec<i32>>,
    states: Option<Vec<String>>,
    errors: Option<Vec<Option<String>>>,
    sent: Option<Vec<Option<DateTime<Utc>>>>,
    amount: Option<Decimal>,
    waits: bool,
}

impl JobRow {
    fn into_loaded(self) -> Result<Loaded, StoreError> {
        let wrong = |_| StoreError::Inconsistent { table: "payments", column: "amount", id: self.order_id };
        let paid = self.amount.map(Money::new).transpose().map_err(wrong)?;
        Ok((self.into_job()?, paid))
    }

    /// The job. `None` if the order does not have it.
    fn into_job(self) -> Result<Option<StockJob>, StoreError> {
        let Some(attempt) = self.attempt else { return Ok(None) };
        let order = OrderId(self.order_id);
        let wrong = |column| StoreError::Inconsistent { table: "stock_jobs", column, id: order.0 };
        let lines = self.lines().ok_or(StoreError::Inconsistent {
            table: "stock_lines",
            column: "state",
            id: order.0,
        })?;
        let actor_role = self.actor_role.as_deref().unwrap_or_default();
        let role = actor_role.parse().map_err(|_| wrong("actor_role"))?;
        Ok(Some(StockJob {
            order,
            attempt,
            state: self.state.as_deref().unwrap_or_default().parse().map_err(|_| wrong("state"))?,
            paid: self.paid.unwrap_or_default(),
            parked: self.parked,
            failures: self.failures.unwrap_or_default(),
            refusals: self.refusals.unwrap_or_default(),
            actor: Actor { role, id: self.actor_id.unwrap_or_default() },
            reason: self.reason,
            trace: TraceParent::continue_or_start(self.traceparent.as_deref()),
            waits: self.waits,
            holder: self.lease_token,
            lines,
        }))
    }

    fn lines(&self) -> Option<Vec<StockLine>> {
        let (numbers, products) = (self.numbers.as_ref()?, self.products.as_ref()?);
        let (quantities, states) = (self.quantities.as_ref()?, self.states.as_ref()?);
        let (errors, sent) = (self.errors.as_ref()?, self.sent.as_ref()?);
        let line = |index: usize| {
            Some(StockLine {
                number: *numbers.get(index)?,
                product_id: ProductId::parse(products.get(index)?).ok()?,
                quantity: Quantity::new(u64::from(quantities.get(index)?.unsigned_abs())).ok()?,
                state: states.get(index)?.parse().ok()?,
                last_error: errors.get(index)?.clone(),
                sent_at: *sent.get(index)?,
            })
        };
        (0..numbers.len()).map(line).collect()
    }
}
