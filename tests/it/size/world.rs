//! A database with a requested number of rows, which SQL creates in chunks.
//!
//! Order `n` (1, 2, 3 …) has the id `size_id(n)` and was placed at `size_time(n)`, one order every
//! [`World::GAP_MS`], the last one just before the world was created. Both are SQL functions of the database, so every
//! statement can refer to order `n`.

use std::io::IsTerminal;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures_util::{StreamExt, stream};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, PgPool};
use tokio::sync::{Mutex, MutexGuard};

use super::cost::Cost;
use super::scale::is_large;
use crate::support::Shop;

pub(super) struct World {
    pub(super) url: String,
    pub(super) database: PgPool,
    /// Large worlds are measured one at a time.
    _alone: Alone,
}

type Alone = Option<MutexGuard<'static, ()>>;

/// A guard for measuring a large world alone: waits for other guards, and blocks them until it is dropped.
pub(super) async fn alone() -> Alone {
    static ALONE: Mutex<()> = Mutex::const_new(());
    if is_large() { Some(ALONE.lock().await) } else { None }
}

/// The statistics for the planner. Rows were added after stale statistics were computed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Statistics {
    None,
    Fresh,
}

impl World {
    /// Time between two orders.
    const GAP_MS: u64 = 1_000;
    const CHUNK: u64 = 20_000;
    /// The customer of every fifth order.
    pub(super) const BIG_CUSTOMER: &str = "big@example.com";

    /// A new database with the schema, for `orders` orders that are created later. Autovacuum is off, so that only the
    /// test changes the statistics; [`autovacuum`](Self::autovacuum) switches it on.
    pub(super) async fn new(orders: u64) -> Self {
        let alone = alone().await;
        Self { _alone: alone, ..Self::on(Shop::new_database().await, orders).await }
    }

    /// Like [`new`](Self::new), but on a database with an existing schema, and concurrently with other worlds.
    pub(super) async fn on(url: String, orders: u64) -> Self {
        let world = Self { database: PgPool::connect(&url).await.unwrap(), url, _alone: None };
        let gap = Self::GAP_MS;
        world
            .run(&format!(
                "create function size_time(n bigint) returns timestamptz immutable return
                     (timestamptz 'now' - {orders} * interval '{gap} ms') + n * interval '{gap} ms';
                 create function size_id(n bigint) returns uuid immutable return (
                     lpad(to_hex((extract(epoch from size_time(n)) * 1000)::bigint), 12, '0')
                     || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid"
            ))
            .await;
        world.autovacuum(false).await;
        world
    }

    /// Runs SQL text of any number of statements.
    pub(super) async fn run(&self, sql: &str) {
        self.database.execute(AssertSqlSafe(sql)).await.unwrap_or_else(|error| panic!("{error}: {sql}"));
    }

    /// A single number from a query, such as a count.
    pub(super) async fn number(&self, sql: &str) -> i64 {
        let answer = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.database).await;
        answer.unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    /// Runs `insert into … select … from generate_series($1::bigint, $2::bigint) n` in chunks of `numbers`, two at a
    /// time, with a progress bar. Foreign keys are not checked: the generated rows are consistent by construction.
    pub(super) async fn fill(&self, what: &str, numbers: RangeInclusive<u64>, insert: &str) {
        let (first, last) = numbers.into_inner();
        let chunks = (first..=last).step_by(usize::try_from(Self::CHUNK).unwrap());
        let made = AtomicU64::new(0);
        stream::iter(chunks)
            .for_each_concurrent(2, async |from| {
                let to = last.min(from + Self::CHUNK - 1);
                self.fill_chunk(from, to, insert).await.unwrap_or_else(|error| panic!("{error}: {insert}"));
                let chunk = to + 1 - from;
                progress(what, made.fetch_add(chunk, Relaxed) + chunk, last + 1 - first);
            })
            .await;
    }

    async fn fill_chunk(&self, from: u64, to: u64, insert: &str) -> Result<(), sqlx::Error> {
        let mut transaction = self.database.begin().await?;
        transaction.execute("set local session_replication_role = replica").await?;
        let insert = sqlx::query(AssertSqlSafe(insert)).bind(from.cast_signed()).bind(to.cast_signed());
        insert.execute(&mut *transaction).await?;
        transaction.commit().await
    }

    /// Orders with one item and their history. `status` is SQL over `n`, for example `'CREATED'` or
    /// [`mostly_confirmed`]. Every fifth order belongs to [`BIG_CUSTOMER`](Self::BIG_CUSTOMER), the others to 100,000
    /// customers.
    pub(super) async fn orders(&self, numbers: RangeInclusive<u64>, status: &str) {
        let insert = format!(
            "with made as (
                 select n, size_id(n) as id, size_time(n) as at, {status} as status,
                        case when n % 5 = 0 then '{}' else 'c' || (n * 7919) % 100000 || '@example.com' end as customer
                 from generate_series($1::bigint, $2::bigint) n
             ),
             placed as (
                 insert into orders (id, customer_id, status, total_amount, placed_at, version, changed_at)
                 select id, customer, status, 10.00, at, case status when 'CREATED' then 1 else 2 end, at from made
             ),
             items as (
                 insert into order_items (order_id, line_number, product_id, quantity, unit_price)
                 select id, 1, 'PROD' || n % 1000, 1, 10.00 from made
             ),
             changed as (
                 insert into order_history
                     (order_id, version, from_status, to_status, actor_role, actor_id, changed_at)
                 select id, 2, 'CREATED', status, 'PAYMENT', 'payment-service', at from made where status <> 'CREATED'
             )
             insert into order_history (order_id, version, to_status, actor_role, actor_id, changed_at)
             select id, 1, 'CREATED', 'CUSTOMER', customer, at from made",
            Self::BIG_CUSTOMER
        );
        self.fill("orders", numbers, &insert).await;
    }

    /// One paid stock job per order, with one line. `state` and `due` are SQL over `n`, such as `'TAKEN'` and `now()`.
    pub(super) async fn stock_jobs(&self, numbers: RangeInclusive<u64>, state: &str, due: &str) {
        let insert = format!(
            "with jobs as (
                 insert into stock_jobs (order_id, attempt, state, paid, actor_role, actor_id, traceparent, deadline,
                                         next_attempt_at, created_at)
                 select size_id(n), 1, {state}, true, 'PAYMENT', 'payment-service',
                        '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', {due}, {due}, size_time(n)
                 from generate_series($1::bigint, $2::bigint) n
             )
             insert into stock_lines (order_id, attempt, line_number, product_id, quantity, state)
             select size_id(n), 1, 1, 'PROD' || n % 1000, 1,
                    case {state} when 'TAKING' then 'TODO' when 'RETURNING' then 'TAKEN' else {state} end
             from generate_series($1::bigint, $2::bigint) n"
        );
        self.fill("stock jobs", numbers, &insert).await;
    }

    /// The `ORDER_PLACED` of each order, not relayed yet, with a payload of typical length.
    pub(super) async fn outbox(&self, numbers: RangeInclusive<u64>) {
        let insert = "
            insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
            select ('x' || right(size_id(n)::text, 2))::bit(8)::integer % 64, gen_random_uuid(), size_id(n), 1,
                   'ORDER_PLACED',
                   json_build_object('eventType', 'ORDER_PLACED', 'entityId', size_id(n), 'filler', repeat('x', 300)),
                   '[]'
            from generate_series($1::bigint, $2::bigint) n";
        self.fill("outbox", numbers, insert).await;
    }

    /// Sets the statistics of all tables.
    pub(super) async fn statistics(&self, statistics: Statistics) {
        match statistics {
            Statistics::Fresh => self.run("vacuum analyze").await,
            Statistics::None => {
                self.run(
                    "delete from pg_statistic where starelid in
                         (select oid from pg_class where relnamespace = 'public'::regnamespace);
                     update pg_class set reltuples = -1, relpages = 0, relallvisible = 0
                     where relnamespace = 'public'::regnamespace and relkind in ('r', 'i')",
                )
                .await;
            }
        }
    }

    /// Switches autovacuum on or off for every table.
    pub(super) async fn autovacuum(&self, is_on: bool) {
        self.run(&format!(
            "do $$ declare name text; begin
                 for name in select relname from pg_class
                     where relnamespace = 'public'::regnamespace and relkind = 'r'
                 loop execute format('alter table %I set (autovacuum_enabled = {is_on})', name); end loop;
             end $$"
        ))
        .await;
    }

    /// Runs a statement with inlined values in a transaction that is rolled back, and counts the rows that it reads.
    pub(super) async fn explain(&self, sql: &str) -> Cost {
        let mut transaction = self.database.begin().await.unwrap();
        let explained = AssertSqlSafe(format!("explain (analyze, buffers, format json) {sql}"));
        let explained: Value = sqlx::query_scalar::<_, sqlx::types::Json<Value>>(explained)
            .fetch_one(&mut *transaction)
            .await
            .unwrap_or_else(|error| panic!("{error}: {sql}"))
            .0;
        transaction.rollback().await.unwrap();
        Cost::read(&explained)
    }

    /// Drops the database, which may be several GB. The service must be stopped.
    pub(super) async fn end(self) {
        let name: String =
            sqlx::query_scalar("select current_database()").fetch_one(&self.database).await.unwrap();
        self.database.close().await;
        let mut url: reqwest::Url = self.url.parse().unwrap();
        url.set_path("postgres");
        let server = PgPool::connect(url.as_str()).await.unwrap();
        server.execute(AssertSqlSafe(format!("drop database {name} with (force)"))).await.unwrap();
        server.close().await;
    }
}

/// The status of order `n`: one in a thousand is CANCELLED, one in a thousand CREATED, all others CONFIRMED.
pub(super) const MOSTLY_CONFIRMED: &str =
    "case n % 1000 when 1 then 'CANCELLED' when 2 then 'CREATED' else 'CONFIRMED' end";

/// A progress bar in a terminal; elsewhere one line per tenth.
#[expect(clippy::print_stderr, reason = "a large world shows its progress")]
fn progress(what: &str, done: u64, all: u64) {
    const WIDTH: u64 = 40;
    let filled = usize::try_from(done * WIDTH / all).unwrap();
    let end = if done == all { "\n" } else { "" };
    if std::io::stderr().is_terminal() {
        eprint!("\rsize: {what} [{:<40}] {done} of {all}{end}", "#".repeat(filled));
    } else if done * 10 / all != done.saturating_sub(World::CHUNK) * 10 / all {
        eprintln!("size: {what} {done} of {all}");
    }
}

#[tokio::test]
async fn a_world_has_the_requested_rows_and_counts_the_rows_that_a_statement_reads() {
    let world = World::new(3_000).await;
    world.orders(1..=3_000, MOSTLY_CONFIRMED).await;
    world.stock_jobs(1..=200, "'TAKEN'", "now()").await;
    world.outbox(1..=100).await;
    let count = async |table: &str| world.number(&format!("select count(*) from {table}")).await;
    assert_eq!(
        [count("orders").await, count("order_items").await, count("order_history").await],
        [3_000, 3_000, 5_997]
    );
    assert_eq!(
        [count("stock_jobs").await, count("stock_lines").await, count("outbox").await],
        [200, 200, 100]
    );
    assert_eq!(count("orders where customer_id = 'big@example.com'").await, 600);

    world.statistics(Statistics::None).await;
    assert_eq!(world.number("select count(*) from pg_stats where schemaname = 'public'").await, 0);
    world.statistics(Statistics::Fresh).await;
    let all = world.explain("select * from orders").await;
    assert_eq!((all.rows, all.scans_or_sorts()), (3_000, true), "{all:?}");
    let one = world.explain("select * from orders where id = size_id(7)").await;
    assert!(one.rows == 1 && one.buffers <= 4 && !one.scans_or_sorts() && one.millis > 0.0, "{one:?}");
    world.end().await;
}
