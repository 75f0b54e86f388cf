//! A commit without an answer in time: the service answers "nothing was written" only if that is certain.

use std::time::Duration;

use serde_json::json;

use crate::support::{Answer, Mode, Proxy, Shop, admin, customer, eventually, lines};

const ADA: &str = "ada@example.com";

/// Short deadlines: a write times out after one second, and the service looks for it for another half second.
async fn shop_at(url: &str, database: &str) -> Shop {
    shop_with(url, database, "1000", "3").await
}

async fn shop_with(url: &str, database: &str, deadline_ms: &str, window_seconds: &str) -> Shop {
    Shop::builder()
        .database(database)
        .with("DATABASE_URL", url)
        .with("DATABASE_DEADLINE_MS", deadline_ms)
        .with("DATABASE_ACQUIRE_TIMEOUT_MS", "500")
        .with("DUPLICATE_WINDOW_SECONDS", window_seconds)
        .start()
        .await
}

async fn shop() -> Shop {
    let database = Shop::new_database().await;
    shop_at(&database, &database).await
}

/// Makes every commit that writes an order's history wait until [`release`], as it does for an unreachable standby.
async fn hold_commits(shop: &Shop) {
    let hold = "create table hold as select true;
                create function hold() returns trigger language plpgsql as $$ begin
                    while exists (select from hold) loop perform pg_sleep(0.01); end loop;
                    return null;
                end $$;
                create constraint trigger hold after insert on order_history
                    deferrable initially deferred for each row execute function hold()";
    sqlx::raw_sql(hold).execute(&shop.database).await.unwrap();
}

async fn release(shop: &Shop) {
    sqlx::raw_sql("delete from hold").execute(&shop.database).await.unwrap();
}

/// Makes every commit that writes an order's history fail.
async fn refuse_commits(shop: &Shop, code: &str) {
    let refuse = format!(
        "create function refuse() returns trigger language plpgsql as
             $$ begin raise exception 'refused' using errcode = '{code}'; end $$;
         create constraint trigger refuse after insert on order_history
             deferrable initially deferred for each row execute function refuse()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(refuse)).execute(&shop.database).await.unwrap();
}

async fn place_with_key(shop: &Shop, product: &str) -> Answer {
    let call = shop.call("POST", "/api/orders").by(customer(ADA)).header("Idempotency-Key", "k-1");
    call.json(&lines(&[(product, 1)])).send().await
}

#[tokio::test]
async fn a_late_commit_is_unknown_and_the_key_returns_the_order_afterwards() {
    let shop = shop().await;
    let phone = shop.product("phone", "10", 50).await;
    hold_commits(&shop).await;

    let unknown = place_with_key(&shop, &phone).await.expect_unavailable("outcome-unknown");
    let detail = unknown.body["detail"].as_str().unwrap();
    assert!(detail.contains("Idempotency-Key") && detail.contains("GET /api/orders/my"), "{detail}");
    release(&shop).await;

    eventually("the order is stored", async || shop.count("orders").await == 1).await;
    let again = place_with_key(&shop, &phone).await.expect(201);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(shop.count("orders").await, 1);
    shop.expect_every_event().await;
}

#[tokio::test]
async fn without_a_key_a_repeat_after_retry_after_returns_the_first_order() {
    let shop = shop().await;
    let phone = shop.product("phone", "10", 50).await;
    hold_commits(&shop).await;

    let unknown = shop.place(customer(ADA), &lines(&[(&phone, 1)])).await;
    let unknown = unknown.expect_unavailable("outcome-unknown");
    release(&shop).await;
    let pause = unknown.header("retry-after").unwrap().parse().unwrap();
    tokio::time::sleep(Duration::from_secs(pause)).await;

    let again = shop.place(customer(ADA), &lines(&[(&phone, 1)])).await.expect(201);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(shop.count("orders").await, 1);
}

#[tokio::test]
async fn a_repeat_that_waits_for_the_first_commit_returns_the_first_order_of_any_age() {
    let database = Shop::new_database().await;
    // The repeat waits for at most the deadline, which must be long enough for a slow machine to observe the wait.
    let shop = shop_with(&database, &database, "5000", "7").await;
    let phone = shop.product("phone", "10", 50).await;
    hold_commits(&shop).await;
    let first = shop.place(customer(ADA), &lines(&[(&phone, 1)])).await;
    first.expect_unavailable("outcome-unknown");

    // Older than the sum of window, deadlines and pause.
    tokio::time::sleep(Duration::from_secs(9)).await;
    let release_soon = async {
        let waits = "select count(*) from pg_stat_activity
                     where datname = current_database() and wait_event_type = 'Lock'";
        eventually("the repeat waits for the first commit", async || {
            sqlx::query_scalar::<_, i64>(waits).fetch_one(&shop.database).await.unwrap() > 0
        })
        .await;
        release(&shop).await;
    };
    let body = lines(&[(&phone, 1)]);
    let (again, ()) = tokio::join!(shop.place(customer(ADA), &body), release_soon);

    assert_eq!(again.expect(201).header("idempotency-replayed"), Some("true"));
    assert_eq!(shop.count("orders").await, 1);
}

#[tokio::test]
async fn an_order_with_an_unanswered_commit_is_found_by_its_id() {
    let database = Shop::new_database().await;
    let (proxy, url) = Proxy::before_database(&database).await;
    let shop = shop_at(&url, &database).await;
    let phone = shop.product("phone", "10", 50).await;

    proxy.set(Mode::NoAnswerTo("COMMIT"));
    let placed = shop.place(customer(ADA), &lines(&[(&phone, 1)])).await.expect(201);
    let path = format!("/api/orders/{}/status", placed.order_id());
    let cancel = shop.call("PUT", &path).by(admin()).json(&json!({"status": "CANCELLED"}));
    let cancelled = cancel.send().await.expect(200);

    assert_eq!(cancelled.body["status"], "CANCELLED");
    assert_eq!(
        (shop.count("orders").await, shop.status(&placed.order_id()).await.as_str()),
        (1, "CANCELLED")
    );
    proxy.set(Mode::Open);
    shop.expect_every_event().await;
}

#[tokio::test]
async fn a_placement_with_a_lost_answer_returns_the_order_that_it_wrote() {
    // This text is in the event, which only the placement's statement writes to the database.
    const EVENT: &str = "ORDER_SERVICE";
    for mode in [Mode::NoAnswerTo(EVENT), Mode::CutOnceAfter(EVENT)] {
        for (window, key) in [("0", None), ("60", None), ("0", Some("k-1"))] {
            let database = Shop::new_database().await;
            let (proxy, url) = Proxy::before_database(&database).await;
            let builder = Shop::builder().database(&database).with("DATABASE_URL", url);
            let builder =
                builder.with("DATABASE_DEADLINE_MS", "2000").with("DUPLICATE_WINDOW_SECONDS", window);
            let shop = builder.start().await;
            let phone = shop.product("phone", "10", 50).await;

            proxy.set(mode);
            let call = shop.call("POST", "/api/orders").by(customer(ADA)).json(&lines(&[(&phone, 1)]));
            let call = if let Some(key) = key { call.header("Idempotency-Key", key) } else { call };
            let placed = call.send().await.expect(201);

            assert_eq!(placed.header("idempotency-replayed"), None, "{mode:?} {window} {key:?}");
            proxy.set(Mode::Open);
            assert_eq!(shop.versions().await.into_keys().collect::<Vec<_>>(), [placed.order_id()]);
            shop.expect_every_event().await;
        }
    }
}

#[tokio::test]
async fn a_status_change_with_a_late_commit_is_unknown_and_can_be_repeated() {
    let shop = shop().await;
    let phone = shop.product("phone", "10", 50).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    hold_commits(&shop).await;

    shop.set_status(&order, "CANCELLED").await.expect_unavailable("outcome-unknown");
    release(&shop).await;

    eventually("the order is CANCELLED", async || shop.status(&order).await == "CANCELLED").await;
    shop.set_status(&order, "CANCELLED").await.expect(200);
    assert_eq!(shop.count("order_history").await, 2);
    shop.expect_every_event().await;
}

#[tokio::test]
async fn a_refused_commit_is_answered_as_not_written() {
    let shop = shop().await;
    let phone = shop.product("phone", "10", 50).await;
    // Appendix A of PostgreSQL's manual: disk_full.
    refuse_commits(&shop, "53100").await;

    shop.place(customer(ADA), &lines(&[(&phone, 1)])).await.expect_unavailable("unavailable");
    place_with_key(&shop, &phone).await.expect_unavailable("unavailable");

    shop.expect_nothing_happened().await;
    assert_eq!((shop.count("idempotency_keys").await, shop.count("recent_orders").await), (0, 0));
}
