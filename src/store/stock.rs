//! Stock jobs: written with the order they belong to. Who takes them up is in `stock_queue`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::aggregate::JobWrite;
use crate::domain::stock::{JobState, LineState, StockJob, StockLine};
use crate::domain::{Actor, ActorRole, Money, OrderAggregate, OrderId, ProductId, Quantity, TraceParent};

/// How long stock work may take.
#[derive(Clone, Copy, Debug)]
pub struct StockTimes {
    /// For how long a job is its holder's; after a crash others take it up then.
    pub lease: Duration,
    /// After how long a job that has not come to its end is reported.
    pub deadline: Duration,
}

const LOAD: &str = "
select job.attempt, job.state, job.paid, job.actor_role, job.actor_id, job.reason, job.traceparent, job.parked,
       job.failures, job.refusals, job.lease_token, lines.numbers, lines.products, lines.quantities, lines.states,
       lines.errors, lines.sent, payment.amount,
       exists (
           select from stock_jobs earlier
           where earlier.order_id = $1 and earlier.attempt < job.attempt
             and earlier.state = 'RETURNING' and earlier.parked is null
       ) as waits
from (select) as always
left join lateral (
    select * from stock_jobs
    where order_id = $1 and attempt = coalesce($2, attempt)
    order by attempt desc limit 1
) job on true
left join lateral (
    select array_agg(line_number order by line_number) as numbers,
           array_agg(product_id order by line_number) as products,
           array_agg(quantity order by line_number) as quantities,
           array_agg(state order by line_number) as states,
           array_agg(last_error order by line_number) as errors,
           array_agg(coalesce(sent_at, case when state in ('TAKING', 'RETURNING') then job.created_at end)
                     order by line_number) as sent
    from stock_lines
    where order_id = $1 and attempt = job.attempt
) lines on true
left join payments payment on payment.order_id = $1
";

/// `next_attempt_at` alone decides when a job may be claimed: a job that somebody holds is due at the end of the
/// lease, one that waits for an earlier attempt ($14) long after that attempt has woken it.
const INSERT: &str = "
with job as (
    insert into stock_jobs
        (order_id, attempt, state, paid, actor_role, actor_id, reason, traceparent, parked, failures, deadline,
         next_attempt_at, lease_token, leased_until)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now() + $11,
            now() + case when $12 is null then $14 else $13 end, $12,
            case when $12 is null then '-infinity' else now() + $13 end)
)
insert into stock_lines (order_id, attempt, line_number, product_id, quantity, state, sent_at)
select $1, $2, line.*
from unnest($15::smallint[], $16::text[], $17::integer[], $18::text[], $19::timestamptz[]) as line
";

/// A job that turns round gets a deadline of its own. The lease is given up by its holder alone: between reading
/// the job and this, another replica may have claimed it.
const UPDATE: &str = "
with job as (
    update stock_jobs
    set state = $3, paid = $4, parked = $5, failures = $6, refusals = $7,
        deadline = case when $3 = 'RETURNING' and state <> $3 then now() + $10 else deadline end,
        next_attempt_at = case when $8 and lease_token is not distinct from $11 then now() + $9 else next_attempt_at end,
        leased_until = case when $8 and lease_token is not distinct from $11 then '-infinity' else leased_until end
    where order_id = $1 and attempt = $2
)
update stock_lines
set state = line.state, last_error = line.error, sent_at = line.sent_at
from unnest($12::smallint[], $13::text[], $14::text[], $15::timestamptz[]) as line (number, state, error, sent_at)
where order_id = $1 and attempt = $2 and line_number = line.number
";

/// Makes the attempts due that waited for this one. Those that somebody holds are at work already.
const WAKE_LATER_ATTEMPTS: &str = "
update stock_jobs
set next_attempt_at = now()
where order_id = $1 and attempt > $2 and state in ('TAKING', 'RETURNING') and parked is null
  and leased_until < now() and next_attempt_at > now()
";

impl Store {
    /// How far a job is. Nothing where there is no such job.
    pub async fn stock_job(&self, order: OrderId, attempt: i16) -> Result<Option<StockJob>, StoreError> {
        self.bounded(async {
            let mut connection = self.connection().await?;
            let (job, _) = load_job(&mut connection, order, Some(attempt)).await?;
            connection.give_back();
            Ok(job)
        })
        .await
    }
}

/// One job of an order (that attempt, else the latest), and what was paid for the order.
pub(super) async fn load_job(
    connection: &mut PgConnection,
    order: OrderId,
    attempt: Option<i16>,
) -> Result<(Option<StockJob>, Option<Money>), StoreError> {
    let row: JobRow = sqlx::query_as(LOAD).bind(order.0).bind(attempt).fetch_one(connection).await?;
    let wrong = |_| StoreError::Inconsistent { table: "payments", column: "amount", id: order.0 };
    let paid = row.amount.map(Money::new).transpose().map_err(wrong)?;
    Ok((row.into_job(order)?, paid))
}

pub(super) async fn write_job(
    connection: &mut PgConnection,
    aggregate: &OrderAggregate,
    times: StockTimes,
) -> Result<(), StoreError> {
    let (Some(job), Some(write)) = (&aggregate.job, aggregate.changes.job) else { return Ok(()) };
    match write {
        JobWrite::Insert => insert(&mut *connection, job, times).await,
        JobWrite::Keep => update(&mut *connection, job, times, false).await,
        JobWrite::Release => update(&mut *connection, job, times, true).await,
    }?;
    // A job that takes has never held up another.
    let may_have_held_up = matches!(job.state, JobState::Returning | JobState::Returned);
    if may_have_held_up && !job.holds_up_later_attempts() {
        sqlx::query(WAKE_LATER_ATTEMPTS).bind(job.order.0).bind(job.attempt).execute(connection).await?;
    }
    Ok(())
}

async fn insert(connection: &mut PgConnection, job: &StockJob, times: StockTimes) -> Result<(), StoreError> {
    let numbers: Vec<i16> = job.lines.iter().map(|line| line.number).collect();
    let products: Vec<&str> = job.lines.iter().map(|line| line.product_id.as_str()).collect();
    let quantities: Vec<i32> = job.lines.iter().map(|line| line.quantity.get().cast_signed()).collect();
    let states: Vec<&str> = job.lines.iter().map(|line| line.state.as_str()).collect();
    let sent: Vec<_> = job.lines.iter().map(|line| line.sent_at).collect();
    sqlx::query(INSERT)
        .bind(job.order.0)
        .bind(job.attempt)
        .bind(job.state.as_str())
        .bind(job.paid)
        .bind(job.actor.role.as_str())
        .bind(&job.actor.id)
        .bind(job.reason.as_deref())
        .bind(job.trace.as_str())
        .bind(job.parked.as_deref())
        .bind(job.failures)
        .bind(times.deadline)
        .bind(job.holder)
        .bind(times.lease)
        .bind(job.pause())
        .bind(numbers)
        .bind(products)
        .bind(quantities)
        .bind(states)
        .bind(sent)
        .execute(connection)
        .await?;
    Ok(())
}

async fn update(
    connection: &mut PgConnection,
    job: &StockJob,
    times: StockTimes,
    release: bool,
) -> Result<(), StoreError> {
    let numbers: Vec<i16> = job.lines.iter().map(|line| line.number).collect();
    let states: Vec<&str> = job.lines.iter().map(|line| line.state.as_str()).collect();
    let errors: Vec<Option<&str>> = job.lines.iter().map(|line| line.last_error.as_deref()).collect();
    let sent: Vec<_> = job.lines.iter().map(|line| line.sent_at).collect();
    sqlx::query(UPDATE)
        .bind(job.order.0)
        .bind(job.attempt)
        .bind(job.state.as_str())
        .bind(job.paid)
        .bind(job.parked.as_deref())
        .bind(job.failures)
        .bind(job.refusals)
        .bind(release)
        .bind(job.pause())
        .bind(times.deadline)
        .bind(job.holder)
        .bind(numbers)
        .bind(states)
        .bind(errors)
        .bind(sent)
        .execute(connection)
        .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct JobRow {
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
    /// Nothing where the order has no such job.
    fn into_job(self, order: OrderId) -> Result<Option<StockJob>, StoreError> {
        let Some(attempt) = self.attempt else { return Ok(None) };
        let wrong = |column| StoreError::Inconsistent { table: "stock_jobs", column, id: order.0 };
        let lines = self.lines().ok_or(StoreError::Inconsistent {
            table: "stock_lines",
            column: "state",
            id: order.0,
        })?;
        let role = self.actor_role.as_deref().and_then(ActorRole::parse).ok_or(wrong("actor_role"))?;
        Ok(Some(StockJob {
            order,
            attempt,
            state: self.state.as_deref().and_then(JobState::parse).ok_or(wrong("state"))?,
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
                state: LineState::parse(states.get(index)?)?,
                last_error: errors.get(index)?.clone(),
                sent_at: *sent.get(index)?,
            })
        };
        (0..numbers.len()).map(line).collect()
    }
}
