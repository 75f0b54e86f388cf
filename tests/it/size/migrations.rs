//! Migrations during reads and writes (issue 8, point 8).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use order_service::config::{self, Environment};
use order_service::store::migrate::migrate;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::report::Report;
use super::scale::size;
use super::world::{MOSTLY_CONFIRMED, World, alone};
use crate::support::Shop;

/// The first release of the schema: `orders` and its related tables.
const ORDERS_ONLY: i64 = 20_261_122_000_001;
/// All tables of the first release.
const ALL_TABLES: i64 = 20_261_122_000_006;

/// PostgreSQL itself ends longer waits, so a slow machine does not change the result.
const LONGEST_WAIT: &str = "set lock_timeout = '1s'";
/// The duration of the long transactions.
const HELD: Duration = Duration::from_secs(2);

#[tokio::test]
async fn no_migration_blocks_readers_or_writers_for_more_than_a_second() {
    let orders = size("SIZE_MIGRATED_ORDERS", 5_000, 1_000_000);
    let _alone = alone().await;
    let mut report = Report::new();
    for from in [ORDERS_ONLY, ALL_TABLES] {
        let world = world_at(from, orders).await;
        let stop = CancellationToken::new();
        let waits = Arc::<Waits>::default();
        let holder = tokio::spawn(hold(world.url.clone(), stop.clone()));
        let loops = [(); 2]
            .map(|()| tokio::spawn(read_and_write(world.url.clone(), Arc::clone(&waits), stop.clone())));

        let env = Environment::default().with("DATABASE_URL", &world.url);
        migrate(&config::read_database(&env).unwrap()).await.unwrap();

        stop.cancel();
        holder.await.unwrap();
        for ended in loops {
            ended.await.unwrap();
        }
        let statements = waits.statements.load(Ordering::Relaxed);
        report.at_least(&format!("statements during the migrations after {from}"), statements, 10);
        let too_long = waits.too_long.load(Ordering::Relaxed);
        report.at_most(
            &format!("of them, those that waited 1 s or longer (at {orders} orders)"),
            too_long,
            0,
        );
        let invalid = world.number("select count(*) from pg_index where not indisvalid").await;
        report.at_most("invalid indexes that are left", invalid, 0);
        world.end().await;
    }
    report.finish();
}

#[derive(Default)]
struct Waits {
    statements: AtomicU64,
    too_long: AtomicU64,
}

/// A database with the schema of this migration and rows in its tables.
async fn world_at(version: i64, orders: u64) -> World {
    let url = Shop::empty_database().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::migrate!().run_to(version, &mut connection).await.unwrap();
    connection.close().await.unwrap();
    let world = World::on(url, orders).await;
    world.orders(1..=orders, MOSTLY_CONFIRMED).await;
    if version >= ALL_TABLES {
        world.stock_jobs(1..=orders, "'TAKEN'", "now()").await;
        world.outbox(1..=orders / 10).await;
        let others = [
            "payments (order_id, amount) select size_id(n), 10",
            "refunds_due (order_id, amount, reason) select size_id(n), 10, 'OUT_OF_STOCK'",
            "payment_events (event_key, order_id, event_type, outcome, topic, partition, \"offset\")
             select n, size_id(n), 'PAYMENT_SUCCESS', 'ACCEPTED', 'payment-events', 0, n",
            "parked_payments (topic, partition, \"offset\", payload, error) select 'payment-events', 0, n, '{}', 'why'",
            "idempotency_keys (customer_id, key, fingerprint, token, locked_until, expires_at)
             select 'ada@example.com', n, '', gen_random_uuid(), now(), now()",
            "recent_orders (customer_id, fingerprint, order_id, placed_at)
             select 'ada@example.com', decode(md5(n::text), 'hex'), size_id(n), now()",
        ];
        for insert in others {
            let insert = format!("insert into {insert} from generate_series($1::bigint, $2::bigint) n");
            world.fill("other tables", 1..=orders, &insert).await;
        }
    }
    world
}

/// The current tables of the service.
async fn tables(connection: &mut PgConnection) -> Vec<String> {
    let tables = "select relname::text from pg_class
                  where relnamespace = 'public'::regnamespace and relkind = 'r' and relname not like '\\_%'";
    sqlx::query_scalar(tables).fetch_all(connection).await.unwrap()
}

/// Reads and writes every table in repeated long transactions.
async fn hold(url: String, stop: CancellationToken) {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    while !stop.is_cancelled() {
        let mut transaction = connection.begin().await.unwrap();
        for table in tables(&mut transaction).await {
            // If the lock is not free at once, a migration is waiting for it.
            let held = touch(&mut transaction, &table).await;
            if held.is_err() {
                break;
            }
        }
        let _ = timeout(HELD, stop.cancelled()).await;
        transaction.rollback().await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
}

/// Reads and writes every table in short transactions, and counts waits that exceed the limit.
async fn read_and_write(url: String, waits: Arc<Waits>, stop: CancellationToken) {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute(LONGEST_WAIT).await.unwrap();
    while !stop.is_cancelled() {
        for table in tables(&mut connection).await {
            let mut transaction = connection.begin().await.unwrap();
            let touched = touch(&mut transaction, &table).await;
            transaction.rollback().await.unwrap();
            waits.statements.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = touched {
                let code = error.as_database_error().and_then(|error| error.code().map(String::from));
                match code.as_deref() {
                    Some("55P03") => _ = waits.too_long.fetch_add(1, Ordering::Relaxed),
                    // A migration has dropped the table.
                    Some("42P01") => {}
                    _ => panic!("{table}: {error}"),
                }
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Takes the locks of reads and writes.
async fn touch(transaction: &mut PgConnection, table: &str) -> sqlx::Result<()> {
    transaction.execute(AssertSqlSafe(format!("select from {table} limit 1"))).await?;
    transaction.execute(AssertSqlSafe(format!("lock table {table} in row exclusive mode"))).await?;
    Ok(())
}

#[tokio::test]
async fn an_invalid_index_of_a_failed_migration_is_rebuilt() {
    let world = world_at(ALL_TABLES, 10).await;
    // All rows have the same error: the attempt fails and leaves an invalid index.
    let failed = "create unique index concurrently parked_payments_by_order on parked_payments (error)";
    let failed = world.database.execute(failed).await;
    assert!(failed.is_err());
    let invalid = "select count(*) from pg_index where not indisvalid";
    assert_eq!(world.number(invalid).await, 1);

    let env = Environment::default().with("DATABASE_URL", &world.url);
    migrate(&config::read_database(&env).unwrap()).await.unwrap();

    assert_eq!(world.number(invalid).await, 0);
    let built: String = sqlx::query_scalar("select pg_get_indexdef('parked_payments_by_order'::regclass)")
        .fetch_one(&world.database)
        .await
        .unwrap();
    assert!(built.contains("(order_id)"), "{built}");
    world.end().await;
}
