//! The lists: newest first, page by page, filtered, and never a scan or a sort.

use order_service::config::{Environment, read_store};
use order_service::domain::{CustomerId, OrderId, Status};
use order_service::store::{Cursor, ListQuery, Store};
use serde_json::Value;

use crate::support::{Answer, Shop, Who, admin, customer};

/// The path of the next page, from the `Link` header.
fn next(page: &Answer) -> Option<String> {
    let link = page.header("link")?;
    let (path, parameters) = link.strip_prefix('<').and_then(|rest| rest.split_once('>')).expect("a Link");
    assert_eq!(parameters, "; rel=\"next\"");
    Some(path.to_owned())
}

fn ids(page: &Answer) -> Vec<String> {
    let orders = page.body.as_array().expect("a bare array");
    orders.iter().map(|order| order["orderId"].as_str().unwrap().to_owned()).collect()
}

/// All pages from this one on; between two of them, `meanwhile`.
async fn walk(shop: &Shop, who: Who<'_>, path: &str, meanwhile: impl AsyncFn()) -> Vec<Vec<String>> {
    let (mut pages, mut path) = (Vec::new(), Some(path.to_owned()));
    while let Some(at) = path {
        let page = shop.get(who, &at).await.expect(200);
        pages.push(ids(&page));
        assert!(pages.len() < 100, "the pages do not come to an end");
        path = next(&page);
        meanwhile().await;
    }
    pages
}

/// Places orders one after the other; returns their ids, newest first, as lists show them.
async fn place(shop: &Shop, emails: &[&str]) -> Vec<String> {
    let product = shop.product("phone", "1", 1_000).await;
    let mut orders = Vec::new();
    for email in emails {
        orders.insert(0, shop.placed(email, &[(&product, 1)]).await);
    }
    orders
}

#[tokio::test]
async fn pages_neither_skip_nor_repeat_while_orders_are_placed() {
    let shop = Shop::start().await;
    let orders = place(&shop, &["ada@example.com"; 11]).await;
    let product = shop.product("late", "1", 1_000).await;
    for (who, path) in [(customer("ada@example.com"), "/api/orders/my"), (admin(), "/api/orders")] {
        let before = ids(&shop.get(who, &format!("{path}?limit=200")).await);
        assert_eq!(before[before.len() - 11..], orders);
        let late = async || {
            shop.placed("ada@example.com", &[(&product, 1)]).await;
        };
        let pages = walk(&shop, who, &format!("{path}?limit=3"), late).await;
        assert_eq!(pages.concat(), before, "{path}");
        let (last, full) = pages.split_last().unwrap();
        assert!(full.iter().all(|page| page.len() == 3) && (1..=3).contains(&last.len()), "{pages:?}");
    }
}

#[tokio::test]
async fn orders_of_the_same_microsecond_are_paged_like_all_others() {
    let shop = Shop::start().await;
    let mut orders = place(&shop, &["ada@example.com"; 7]).await;
    sqlx::query("update orders set placed_at = '2026-01-21T12:30:00.123456Z'")
        .execute(&shop.database)
        .await
        .unwrap();
    orders.sort_unstable();
    orders.reverse();
    for (who, path) in [(customer("ada@example.com"), "/api/orders/my"), (admin(), "/api/orders")] {
        for limit in [1, 2, 7] {
            let pages = walk(&shop, who, &format!("{path}?limit={limit}"), async || {}).await;
            assert_eq!(pages.concat(), orders, "{path} {limit}");
            assert_eq!(pages.len(), 7_usize.div_ceil(limit), "{path} {limit}");
        }
    }
}

#[tokio::test]
async fn a_page_has_50_orders_unless_1_to_200_are_asked_for() {
    let shop = Shop::start().await;
    insert(&shop, 201).await;
    for (query, length) in [("", 50), ("?limit=1", 1), ("?limit=50", 50), ("?limit=200", 200)] {
        let page = shop.get(admin(), &format!("/api/orders{query}")).await.expect(200);
        assert_eq!(ids(&page).len(), length, "{query}");
        assert!(next(&page).is_some(), "{query}");
    }
    let pages = walk(&shop, admin(), "/api/orders?limit=200", async || {}).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [200, 1]);
}

#[tokio::test]
async fn a_list_without_orders_is_an_empty_array_without_a_next_page() {
    let shop = Shop::start().await;
    for path in ["/api/orders/my", "/api/orders", "/api/orders?status=CONFIRMED&limit=1"] {
        let page = shop.get(admin(), path).await.expect(200);
        assert_eq!((page.text.as_str(), next(&page)), ("[]", None), "{path}");
    }
}

/// What a filter must leave of the whole list, judged by what the list itself says.
fn expected(all: &Value, filter: &[(&str, String)]) -> Vec<String> {
    let passes = |order: &Value, (name, value): &(&str, String)| match *name {
        // Times of one shape compare as text.
        "from" => order["orderDate"].as_str().unwrap() >= value.as_str(),
        "to" => order["orderDate"].as_str().unwrap() < value.as_str(),
        name => order[name] == value.as_str(),
    };
    let orders = all.as_array().unwrap().iter();
    let left = orders.filter(|order| filter.iter().all(|part| passes(order, part)));
    left.map(|order| order["orderId"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_combination_of_filters_leaves_what_passes_all_of_them_on_every_page() {
    let shop = Shop::start().await;
    // The plus sign must survive the Link header.
    let emails = ["ada+x@example.com", "bob@example.com", "ada+x@example.com"];
    let orders = place(&shop, &emails.repeat(6)).await;
    for (index, order) in orders.iter().enumerate() {
        if index % 4 != 0 {
            shop.set_status(order, if index % 4 == 1 { "CANCELLED" } else { "CONFIRMED" }).await.expect(200);
        }
    }
    let all = shop.get(admin(), "/api/orders?limit=200").await.expect(200);
    // From inclusive, to exclusive: both are moments of an order.
    let filters = [
        ("customerId", "ada+x@example.com".to_owned()),
        ("status", "CONFIRMED".to_owned()),
        ("from", all.body[15]["orderDate"].as_str().unwrap().to_owned()),
        ("to", all.body[2]["orderDate"].as_str().unwrap().to_owned()),
    ];
    for combination in 0..1_u32 << filters.len() {
        let chosen = filters.iter().enumerate().filter(|(bit, _)| combination >> bit & 1 == 1);
        let chosen: Vec<(&str, String)> = chosen.map(|(_, filter)| filter.clone()).collect();
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", "2").extend_pairs(&chosen);
        let pages = walk(&shop, admin(), &format!("/api/orders?{}", query.finish()), async || {}).await;
        let left = expected(&all.body, &chosen);
        assert!((4..=18).contains(&left.len()), "{chosen:?} leaves {left:?}");
        assert_eq!(pages.concat(), left, "{chosen:?}");
        assert_eq!(pages.len(), left.len().div_ceil(2), "{chosen:?}");
    }
    let mine = shop.get(customer("bob@example.com"), "/api/orders/my?status=CANCELLED&limit=200").await;
    assert_eq!(ids(&mine), expected(&all.body, &[("customerId", "bob@example.com".into())]));
}

#[tokio::test]
async fn a_moment_may_be_given_in_any_zone() {
    let shop = Shop::start().await;
    let order = place(&shop, &["ada@example.com"]).await;
    sqlx::query("update orders set placed_at = '2026-01-21T12:30:00Z'")
        .execute(&shop.database)
        .await
        .unwrap();
    let list = async |query: &str| ids(&shop.get(admin(), &format!("/api/orders?{query}")).await.expect(200));
    for same in ["2026-01-21T12:30:00Z", "2026-01-21T14:30:00%2B02:00", "2026-01-21T07:00:00.000-05:30"] {
        assert_eq!(list(&format!("from={same}")).await, order, "{same}");
        assert_eq!(list(&format!("to={same}")).await, Vec::<String>::new(), "{same}");
    }
}

/// Orders of 20 customers, a second apart, most of them confirmed; straight into the table.
async fn insert(shop: &Shop, count: i32) {
    sqlx::query(
        "insert into orders (id, customer_id, status, total_amount, placed_at, version, changed_at)
         select gen_random_uuid(), 'c' || n % 20 || '@example.com',
                case when n % 10 = 0 then 'CREATED' when n % 10 = 1 then 'CANCELLED' else 'CONFIRMED' end,
                n, moment, 1, moment
         from generate_series(1, $1) n, lateral (select timestamptz '2026-01-01Z' + n * interval '1 second') t (moment)",
    )
    .bind(count)
    .execute(&shop.database)
    .await
    .unwrap();
    sqlx::query("analyze orders").execute(&shop.database).await.unwrap();
}

/// Every combination of filters, with and without a cursor; of the statuses, a rare one and a common one.
fn queries() -> Vec<ListQuery> {
    let at = |time: &str| Some(time.parse().unwrap());
    let cursor = Cursor { placed_at: "2026-01-01T03:00:00Z".parse().unwrap(), id: OrderId::new() };
    let combinations = (0_u8..32).flat_map(|bits| [(bits, Status::Created), (bits, Status::Confirmed)]);
    let query = |(bits, status): (u8, Status)| {
        let has = |bit: u8| bits >> bit & 1 == 1;
        ListQuery {
            customer: has(0).then(|| CustomerId::parse("c7@example.com").unwrap()),
            status: has(1).then_some(status),
            from: at("2026-01-01T01:00:00Z").filter(|_| has(2)),
            to: at("2026-01-01T05:00:00Z").filter(|_| has(3)),
            after: has(4).then_some(cursor),
            limit: 50,
        }
    };
    combinations.map(query).collect()
}

/// One combination has no index of its own: customer and status. It reads the orders of that one customer and
/// leaves out those of another status, and where that leaves few, PostgreSQL may prefer to sort those few. A
/// status that most orders have is read from the index by time, for the same reason.
#[tokio::test]
async fn no_page_of_any_list_scans_or_sorts_the_table() {
    let shop = Shop::start().await;
    insert(&shop, 20_000).await;
    let url = shop.environment.variables()["DATABASE_URL"].clone();
    let (database, stock) = read_store(&Environment::default().with("DATABASE_URL", url)).unwrap();
    let store = Store::new(database, stock);
    for query in queries() {
        let plan = store.explain_list(&query).await.unwrap().join("\n");
        assert!(plan.contains("Index") && !plan.contains("Seq Scan"), "{query:?}\n{plan}");
        let one_customers = plan.lines().any(|step| {
            let condition = step.trim_start().strip_prefix("Index Cond: ");
            condition.is_some_and(|condition| condition.contains("customer_id = "))
        });
        let may_sort = one_customers && query.customer.is_some() && query.status.is_some();
        assert!(!plan.contains("Sort") || may_sort, "{query:?}\n{plan}");
    }
}
