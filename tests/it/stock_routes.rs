//! Method, path and identity of the stock calls are settings.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;

use crate::support::{Payment, Replica, Shop, eventually};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    line: String,
    key: String,
    caller: (String, String),
    body: String,
}

/// A Product Service that has every product and accepts every call.
async fn a_generous_product_service() -> (String, Arc<Mutex<Vec<Seen>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&seen);
    let answer = move |request: Request| async move {
        let (head, body) = request.into_parts();
        let header = |name: &str| head.headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        let line = format!("{} {}", head.method, head.uri.path());
        let (key, caller) = (header("idempotency-key"), (header("x-user-email"), header("x-user-role")));
        let body = to_bytes(body, 1024).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        if !line.starts_with("GET") {
            notes.lock().unwrap().push(Seen { line, key, caller, body });
        }
        ([(CONTENT_TYPE, "application/json")], r#"{"id":"P1","price":100,"stock":5}"#)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/shop", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    (url, seen)
}

#[tokio::test]
async fn stock_calls_use_the_configured_methods_and_paths_the_key_and_the_service_identity() {
    let (url, seen) = a_generous_product_service().await;
    let shop = Shop::builder()
        .with("PRODUCT_SERVICE_URL", url)
        .with("PRODUCT_REDUCE_METHOD", "PUT")
        .with("PRODUCT_REDUCE_PATH", "/internal/{productId}/out")
        .with("PRODUCT_RESTORE_METHOD", "PATCH")
        .with("PRODUCT_RESTORE_PATH", "/internal/{productId}/in")
        .with("PRODUCT_SERVICE_USER_EMAIL", "orders@shop.internal")
        .start()
        .await;
    let id = shop.placed("ada@example.com", &[("P1", 2)]).await;

    shop.set_status(&id, "CONFIRMED").await.expect(200);
    shop.set_status(&id, "CANCELLED").await.expect(200);
    shop.no_stock_work().await;

    eventually("both calls were made", async || seen.lock().unwrap().len() == 2).await;
    let call = |line: &str, direction: &str| Seen {
        line: line.to_owned(),
        key: format!("{id}:1:{direction}:1"),
        caller: ("orders@shop.internal".to_owned(), "ADMIN".to_owned()),
        body: r#"{"quantity":2}"#.to_owned(),
    };
    let expected =
        [call("PUT /shop/internal/P1/out", "take"), call("PATCH /shop/internal/P1/in", "give-back")];
    assert_eq!(*seen.lock().unwrap(), expected);
}

/// A replica with a wrong path in this setting, and a paid order of two phones.
async fn misrouted(setting: &str) -> (Shop, Replica, String) {
    let mut shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").without_service().await;
    let wrong = shop.replica(&[(setting, "/api/products/{productId}/no-such-route")]).await;
    shop.url.clone_from(&wrong.url);
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.pay(&Payment::success(&id, "200")).await;
    (shop, wrong, id)
}

fn expect_error_log(replica: &Replica, setting: &str) {
    let error = tokio::task::block_in_place(|| {
        replica.wait_for_log("a stock call was refused, but a look-up does not confirm it")
    });
    assert_eq!((&error["level"], &error["setting"]), (&"ERROR".into(), &setting.into()), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_path_for_taking_stock_is_logged_as_an_error_and_waits_for_the_right_one() {
    let (mut shop, wrong, id) = misrouted("PRODUCT_REDUCE_PATH").await;

    expect_error_log(&wrong, "PRODUCT_REDUCE_PATH");
    let work = shop.stock_work().await;
    assert_eq!((&work["open"], &work["parked"]), (&1.into(), &0.into()));
    assert_eq!(shop.status(&id).await, "CREATED");

    drop(wrong);
    shop.start_service().await;
    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.refunds(&id).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_back_on_a_wrong_path_waits_for_the_right_one_without_an_operator() {
    let (mut shop, wrong, id) = misrouted("PRODUCT_RESTORE_PATH").await;
    shop.becomes(&id, "CONFIRMED").await;

    shop.set_status(&id, "CANCELLED").await.expect(200);
    expect_error_log(&wrong, "PRODUCT_RESTORE_PATH");
    eventually("its outcome is written", async || {
        let errors = "select count(*) from stock_lines where last_error like '%404%'";
        sqlx::query_scalar::<_, i64>(errors).fetch_one(&shop.database).await.unwrap() == 1
    })
    .await;
    let work = shop.stock_work().await;
    assert_eq!((&work["open"], &work["parked"]), (&1.into(), &0.into()));

    drop(wrong);
    shop.start_service().await;
    shop.no_stock_work().await;
}
