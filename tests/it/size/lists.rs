//! Pages of the lists in a table of many orders (issue 8, point 9).

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use order_service::config::{Environment, read_store};
use order_service::domain::{CustomerId, OrderId, Status};
use order_service::store::{Cursor, ListQuery, Store};

use super::cost::Cost;
use super::report::Report;
use super::scale::size;
use super::world::{Statistics, World};
use crate::support::eventually;

/// Orders, a second apart. One customer has a fifth of them, none CANCELLED; one in 5,000 of the others is CANCELLED.
async fn orders(world: &World, first: u64, last: u64) {
    let insert = "
        insert into orders (id, customer_id, status, total_amount, placed_at, version, changed_at)
        select gen_random_uuid(), case when n % 5 = 0 then 'big' else 'c' || n % 4999 end || '@example.com',
               case when n % 100 = 0 then 'CREATED' when n % 5000 = 1 then 'CANCELLED' else 'CONFIRMED' end,
               1, size_time(n), 1, size_time(n)
        from generate_series($1::bigint, $2::bigint) n";
    world.fill("orders of the lists", first..=last, insert).await;
}

/// Every combination of filters, with common and rare values, and with times of many orders and of none.
fn queries(first: DateTime<Utc>, last: DateTime<Utc>) -> Vec<ListQuery> {
    let at = |percent: i32| Some(first + (last - first) * percent / 100);
    let customers = [None, Some("big@example.com"), Some("c7@example.com"), Some("nobody@example.com")];
    let statuses = [None, Some(Status::Created), Some(Status::Confirmed), Some(Status::Cancelled)];
    let times = [
        (None, None),
        (at(20), None),
        (None, at(80)),
        (at(20), at(80)),
        (at(80), at(20)),
        (at(200), None),
        (None, at(-100)),
        (None, at(200)),
    ];
    let cursors = [None, at(50), at(90), at(10), at(-100)];
    let mut queries = Vec::new();
    for (customer, status) in customers.iter().flat_map(|customer| statuses.map(|status| (customer, status)))
    {
        for ((from, to), after) in times.iter().flat_map(|times| cursors.map(|cursor| (times, cursor))) {
            for limit in [1, 50, 200] {
                let customer = customer.map(|customer| CustomerId::parse(customer).unwrap());
                let after = after.map(|placed_at| Cursor { placed_at, id: OrderId::generate() });
                queries.push(ListQuery { customer, status, from: *from, to: *to, after, limit });
            }
        }
    }
    queries
}

#[tokio::test]
async fn every_page_reads_at_most_four_rows_per_row_of_its_limit() {
    let rows = size("SIZE_LIST_ORDERS", 20_000, 5_000_000);
    let world = World::new(rows).await;
    let mut report = Report::new();
    let first = sqlx::query_scalar("select size_time(1)").fetch_one(&world.database).await.unwrap();
    let queries = queries(first, first + TimeDelta::seconds(i64::try_from(rows).unwrap()));
    // Statistics of a table with one customer and one status.
    orders(&world, 1, 1_000).await;
    world
        .run("update orders set status = 'CONFIRMED', customer_id = 'big@example.com'; analyze orders")
        .await;
    orders(&world, 1_001, rows).await;
    let mut used = expect_few_rows(&world, "stale", &queries, &mut report).await;
    for statistics in [Statistics::None, Statistics::Fresh] {
        world.statistics(statistics).await;
        used.extend(expect_few_rows(&world, &format!("{statistics:?}"), &queries, &mut report).await);
    }
    let indexes =
        "select indexname from pg_indexes where tablename = 'orders' and indexname <> 'orders_pkey'";
    let indexes: Vec<String> = sqlx::query_scalar(indexes).fetch_all(&world.database).await.unwrap();
    assert_eq!(used, indexes.into_iter().collect(), "each index has a list that reads it");
    report.finish();
    world.end().await;
}

/// Runs all pages; returns the indexes that they read.
async fn expect_few_rows(
    world: &World,
    statistics: &str,
    queries: &[ListQuery],
    report: &mut Report,
) -> BTreeSet<String> {
    let (database, stock) = read_store(&Environment::default().with("DATABASE_URL", &world.url)).unwrap();
    let store = Store::new(&database, stock, &Arc::default());
    let mut used = BTreeSet::new();
    let (mut rows, mut pages) = (0.0_f64, 0);
    for query in queries {
        let cost = Cost::read(&store.explain_list(query).await.unwrap());
        assert!(!cost.scans_or_sorts(), "{statistics}: {query:?} {cost:?}");
        assert!(cost.rows <= 4 * u64::from(query.limit), "{statistics}: {query:?} {cost:?}");
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let each = cost.rows as f64 / f64::from(query.limit);
        rows = rows.max(each);
        pages = pages.max(cost.buffers);
        used.extend(
            cost.nodes
                .iter()
                .filter_map(|node| node.split_once(" using "))
                .map(|(_, index)| index.to_owned()),
        );
    }
    report.at_most(&format!("{statistics} statistics: rows read for each that a page may show"), rows, 4.0);
    Report::note(&format!("{statistics} statistics: most buffers of a page"), pages);
    expect_few_rows_counted(world, store, queries).await;
    used
}

/// Reads all pages like requests (prepared statements with generic plans), and checks PostgreSQL's counters: they
/// would show the rows of a sequential scan.
async fn expect_few_rows_counted(world: &World, store: Store, queries: &[ListQuery]) {
    let counted =
        async || world.number("select idx_tup_fetch from pg_stat_user_tables where relname = 'orders'").await;
    let (mut shown, mut most) = (0, 0);
    let before = counted().await;
    for query in queries {
        shown += i64::try_from(store.list_orders(query).await.unwrap().0.len()).unwrap();
        most += 4 * i64::from(query.limit);
    }
    // A session reports its statistics when it is closed.
    store.close().await;
    eventually("the statistics are complete", async || counted().await - before >= shown).await;
    let after = counted().await;
    assert!(after - before <= most, "{} rows read for {shown}", after - before);
}
