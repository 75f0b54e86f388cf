//! Concurrent reads share only their statement.

use futures_util::future::join_all;
use serde_json::Value;

use crate::support::{Shop, admin, customer};

fn email(number: usize) -> String {
    format!("customer-{number}@example.com")
}

#[tokio::test]
async fn concurrent_reads_return_each_caller_only_its_own_orders() {
    const CUSTOMERS: usize = 12;
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 100_000).await;
    let place = async |number: usize| {
        let quantity = u32::try_from(number + 1).unwrap();
        shop.placed(&email(number), &[(&phone, quantity)]).await
    };
    let orders = join_all((0..CUSTOMERS).map(place)).await;

    let see = async |(viewer, order): (usize, usize)| {
        let path = format!("/api/orders/{}", orders[order]);
        let answer = shop.get(customer(&email(viewer)), &path).await;
        if viewer == order {
            let body = answer.expect(200).body;
            assert_eq!(
                (&body["orderId"], &body["customerId"]),
                (&orders[order].clone().into(), &email(order).into())
            );
            assert_eq!(body["items"][0]["quantity"], order + 1);
        } else {
            answer.expect_problem(403, "forbidden");
        }
    };
    let pairs = (0..CUSTOMERS).flat_map(|viewer| (0..CUSTOMERS).map(move |order| (viewer, order)));
    let list = async |viewer: usize| {
        let body = shop.get(customer(&email(viewer)), "/api/orders/my").await.expect(200).body;
        let ids: Vec<&Value> = body.as_array().unwrap().iter().map(|order| &order["orderId"]).collect();
        assert_eq!(ids, [&Value::from(orders[viewer].clone())]);
    };
    let by_admin = async |order: &String| {
        let body = shop.get(admin(), &format!("/api/orders/{order}")).await.expect(200).body;
        assert_eq!(body["orderId"], **order);
    };
    let unknown = async |_| {
        let path = format!("/api/orders/{}", uuid::Uuid::now_v7());
        shop.get(customer(&email(0)), &path).await.expect_problem(404, "order-not-found");
    };
    tokio::join!(
        join_all(pairs.map(see)),
        join_all((0..CUSTOMERS).map(list)),
        join_all(orders.iter().map(by_admin)),
        join_all((0..CUSTOMERS).map(unknown)),
    );
}

#[tokio::test]
async fn pages_of_a_customer_are_complete_during_concurrent_reads_of_others() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 100_000).await;
    for round in 1..=5 {
        let place = async |number: usize| shop.placed(&email(number), &[(&phone, round)]).await;
        join_all((0..4).map(place)).await;
    }
    let walk = async |number: usize, limit: usize| {
        let (mut path, mut seen) = (format!("/api/orders/my?limit={limit}"), Vec::new());
        loop {
            let answer = shop.get(customer(&email(number)), &path).await.expect(200);
            let page = answer.body.as_array().unwrap().clone();
            assert!(page.len() <= limit);
            seen.extend(page.iter().map(|order| order["totalAmount"].to_string()));
            match answer.header("link") {
                Some(link) => path = link.trim_start_matches('<').split('>').next().unwrap().to_owned(),
                None => break,
            }
        }
        assert_eq!(seen, ["50", "40", "30", "20", "10"], "newest first, without repeats and gaps");
    };
    join_all((0..4).flat_map(|number| [1, 2, 3, 5].map(|limit| walk(number, limit)))).await;
}

#[tokio::test]
async fn a_read_succeeds_after_the_database_has_closed_its_connections() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 50).await;
    let order = shop.placed(&email(0), &[(&phone, 1)]).await;
    let paths = [
        format!("/api/orders/{order}"),
        format!("/api/orders/{order}/history"),
        "/api/orders/my".to_owned(),
        "/api/orders".to_owned(),
    ];
    let read_all =
        async || join_all((0..12).flat_map(|_| paths.iter().map(|path| shop.get(admin(), path)))).await;
    read_all().await;
    for _ in 0..5 {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                   where application_name = 'order-service' and datname = current_database()";
        let ended: i64 = sqlx::query_scalar(end).fetch_one(&shop.database).await.unwrap();
        assert!(ended > 0);
        for answer in read_all().await {
            answer.expect(200);
        }
    }
}
