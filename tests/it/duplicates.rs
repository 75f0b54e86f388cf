//! Without a key, a repeat of the same lines within the window returns the first order.

use futures_util::future::join_all;

use crate::support::{Shop, customer, eventually, lines};

/// A window that is longer than any test.
async fn shop() -> Shop {
    Shop::builder().with("DUPLICATE_WINDOW_SECONDS", "3600").start().await
}

#[tokio::test]
async fn the_same_lines_within_the_window_return_the_first_order_even_on_two_replicas_at_once() {
    let shop = shop().await;
    let other = shop.replica(&[]).await;
    let phone = shop.product("phone", "100", 50).await;
    let body = lines(&[(&phone, 2)]);

    for round in 0..5 {
        let email = format!("ada{round}@example.com");
        let answers = join_all((0..8).map(|number| {
            let url = if number % 2 == 0 { &shop.url } else { &other.url };
            shop.call_at(url, "POST", "/api/orders").by(customer(&email)).json(&body).send()
        }))
        .await;

        let texts: Vec<_> = answers.iter().map(|answer| (answer.status, answer.text.clone())).collect();
        assert!(texts.iter().all(|text| *text == texts[0] && text.0 == 201), "{texts:?}");
        let replayed =
            answers.iter().filter(|answer| answer.header("idempotency-replayed") == Some("true")).count();
        assert_eq!(replayed, 7);
        assert_eq!(shop.count("orders").await, round + 1);
    }
    shop.relayed().await;
    assert_eq!(shop.topic.everything().await.len(), 5);
}

#[tokio::test]
async fn the_same_lines_reordered_or_split_return_the_first_order() {
    let shop = shop().await;
    let (phone, case) = (shop.product("phone", "100", 50).await, shop.product("case", "10", 50).await);

    let first = shop.placed("ada@example.com", &[(&phone, 2), (&case, 1)]).await;

    assert_eq!(shop.placed("ada@example.com", &[(&case, 1), (&phone, 2)]).await, first);
    assert_eq!(shop.placed("ada@example.com", &[(&phone, 1), (&case, 1), (&phone, 1)]).await, first);
}

#[tokio::test]
async fn other_lines_or_customers_get_new_orders() {
    let shop = shop().await;
    let (phone, case) = (shop.product("phone", "100", 50).await, shop.product("case", "10", 50).await);

    shop.placed("ada@example.com", &[(&phone, 2), (&case, 1)]).await;
    shop.placed("bob@example.com", &[(&phone, 2), (&case, 1)]).await;
    shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.placed("ada@example.com", &[(&phone, 3), (&case, 1)]).await;

    assert_eq!(shop.count("orders").await, 4);
}

#[tokio::test]
async fn a_cancelled_order_does_not_count_as_a_duplicate() {
    let shop = shop().await;
    let phone = shop.product("phone", "100", 50).await;
    let first = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    let path = format!("/api/orders/{first}/cancel");
    shop.call("POST", &path).by(customer("ada@example.com")).send().await.expect(200);

    let second = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    let third = shop.placed("ada@example.com", &[(&phone, 2)]).await;

    assert_ne!(second, first);
    assert_eq!(third, second);
}

#[tokio::test]
async fn deleting_an_expired_basket_does_not_block_a_concurrent_placement() {
    let shop = shop().await;
    let phone = shop.product("phone", "100", 50).await;
    let first = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    let forget = "create function forget() returns trigger language plpgsql as
                      $$ begin delete from recent_orders; return null; end $$;
                  create trigger forget after insert on recent_orders execute function forget()";
    sqlx::raw_sql(forget).execute(&shop.database).await.unwrap();

    assert_ne!(shop.placed("ada@example.com", &[(&phone, 2)]).await, first);
    assert_eq!(shop.count("orders").await, 2);
}

#[tokio::test]
// The window starts at the latest time at which the first order may have been answered.
async fn a_repeat_after_the_window_is_a_new_order() {
    let shop = shop().await;
    let phone = shop.product("phone", "100", 50).await;
    let first = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    let age = "update recent_orders set placed_at = placed_at - interval '3610 seconds'";
    sqlx::query(age).execute(&shop.database).await.unwrap();

    assert_ne!(shop.placed("ada@example.com", &[(&phone, 2)]).await, first);
}

#[tokio::test]
async fn a_window_of_zero_makes_every_request_an_order() {
    let shop = Shop::builder().with("DUPLICATE_WINDOW_SECONDS", "0").start().await;
    let phone = shop.product("phone", "100", 50).await;

    let ids = join_all((0..4).map(async |_| shop.placed("ada@example.com", &[(&phone, 2)]).await)).await;

    assert_eq!(shop.count("orders").await, 4);
    assert_eq!(ids.len(), 4);
}

#[tokio::test]
async fn a_repeat_returns_the_first_order_even_if_its_product_is_gone() {
    let shop = shop().await;
    let phone = shop.product("phone", "100", 2).await;
    let first = shop.place(customer("ada@example.com"), &lines(&[(&phone, 2)])).await.expect(201);

    shop.set_stock(&phone, 0).await;
    let short = shop.place(customer("ada@example.com"), &lines(&[(&phone, 2)])).await.expect(201);
    shop.withdraw(&phone).await;
    let withdrawn = shop.place(customer("ada@example.com"), &lines(&[(&phone, 2)])).await.expect(201);

    assert_eq!((&short.text, &withdrawn.text), (&first.text, &first.text));
    assert_eq!(withdrawn.header("idempotency-replayed"), Some("true"));
    let others = shop.place(customer("bob@example.com"), &lines(&[(&phone, 2)])).await;
    others.expect_problem(400, "product-not-found");
}

#[tokio::test]
async fn expired_baskets_are_deleted_in_one_run() {
    let mut shop = Shop::builder()
        .with("DUPLICATE_WINDOW_SECONDS", "3600")
        .with("HOUSEKEEPING_INTERVAL_MS", "3600000")
        .without_service()
        .await;
    let rows = "insert into recent_orders select 'c' || n || '@example.com', 'x', gen_random_uuid(),
                now() - interval '1 hour' * (1 + n % 2), now() from generate_series(1, 3000) n";
    sqlx::query(rows).execute(&shop.database).await.unwrap();

    shop.start_service().await;

    eventually("the expired baskets are deleted", async || shop.count("recent_orders").await == 1500).await;
}

#[tokio::test]
async fn a_basket_that_is_placed_repeatedly_is_updated_in_place() {
    let shop = shop().await;
    let phone = shop.product("phone", "100", 50).await;
    shop.placed("ada@example.com", &[(&phone, 2)]).await;
    let age = "update recent_orders set placed_at = placed_at - interval '2 hours'";
    for _ in 0..5 {
        sqlx::query(age).execute(&shop.database).await.unwrap();
        shop.placed("ada@example.com", &[(&phone, 2)]).await;
    }

    // A backend reports its statistics when it is idle.
    let updates = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'recent_orders'";
    let count = async || sqlx::query_as::<_, (i64, i64)>(updates).fetch_one(&shop.database).await.unwrap();
    eventually("every update is counted", async || count().await.0 == 10).await;
    assert_eq!(count().await.1, 10, "updates in place");
}

#[tokio::test]
async fn a_repeated_basket_is_kept_after_its_first_order_leaves_the_window() {
    let shop = Shop::builder()
        .with("DUPLICATE_WINDOW_SECONDS", "3600")
        .with("HOUSEKEEPING_INTERVAL_MS", "20")
        .start()
        .await;
    let phone = shop.product("phone", "100", 50).await;
    let first = shop.placed("ada@example.com", &[(&phone, 2)]).await;

    sqlx::query("update recent_orders set check_after = now()").execute(&shop.database).await.unwrap();
    let later = "select check_after > now() + interval '1 hour' from recent_orders";
    eventually("its next check is later", async || {
        sqlx::query_scalar(later).fetch_one(&shop.database).await.unwrap()
    })
    .await;

    assert_eq!(shop.placed("ada@example.com", &[(&phone, 2)]).await, first);
}
