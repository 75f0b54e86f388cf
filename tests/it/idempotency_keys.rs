//! Requests of one customer with the same `Idempotency-Key` return the same order.

use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Answer, Shop, customer, eventually, figure, lines, scale};

async fn place(shop: &Shop, url: &str, email: &str, key: &str, body: &Value) -> Answer {
    let call = shop.call_at(url, "POST", "/api/orders").by(customer(email));
    call.header("Idempotency-Key", key).json(body).send().await
}

/// Repeats the request until the answer is final: 409 and 503 ask for a retry.
async fn place_patiently(shop: &Shop, url: &str, email: &str, key: &str, body: &Value) -> Answer {
    loop {
        let answer = place(shop, url, email, key, body).await;
        if ![409, 503].contains(&answer.status) {
            return answer;
        }
        assert!(answer.header("retry-after").is_some(), "{}", answer.text);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_repeat_with_the_same_key_returns_the_same_order() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 50).await;
    let (two, three) = (lines(&[(&phone, 2)]), lines(&[(&phone, 3)]));

    let first = place(&shop, &shop.url, "ada@example.com", "k-1", &two).await.expect(201);
    let again = place(&shop, &shop.url, "ada@example.com", "\"k-1\"", &two).await.expect(201);

    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!((&again.text, again.headers.get("location")), (&first.text, first.headers.get("location")));
    let other = place(&shop, &shop.url, "ada@example.com", "k-1", &three).await;
    other.expect_problem(422, "idempotency-key-reused");
    assert_eq!(shop.count("orders").await, 1);
    let bob = place(&shop, &shop.url, "bob@example.com", "k-1", &three).await.expect(201);
    assert_ne!(bob.order_id(), first.order_id());
    let another = place(&shop, &shop.url, "ada@example.com", "k-2", &two).await.expect(201);
    assert_ne!(another.order_id(), first.order_id());
}

#[tokio::test]
async fn a_replay_has_the_same_bytes_after_a_restart_a_price_change_and_a_status_change() {
    let mut shop = Shop::start().await;
    let phone = shop.product("phone", "2499.10", 50).await;
    let body = lines(&[(&phone, 2)]);
    let first = place(&shop, &shop.url, "ada@example.com", "k-1", &body).await.expect(201);
    shop.set_status(&first.order_id(), "CONFIRMED").await.expect(200);
    shop.set_status(&first.order_id(), "CANCELLED").await.expect(200);
    shop.withdraw(&phone).await;
    shop.stop_service().await;
    shop.start_service().await;

    let again = place(&shop, &shop.url, "ada@example.com", "k-1", &body).await.expect(201);

    assert_eq!((&again.text, again.headers.get("location")), (&first.text, first.headers.get("location")));
    assert!(again.text.contains(r#""totalAmount":4998.20"#), "{}", again.text);
}

#[tokio::test]
async fn a_second_request_during_the_first_gets_409_with_retry_after() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 50).await;
    let body = lines(&[(&phone, 2)]);
    shop.fault(&phone, &json!({"kind": "slow", "millis": 700, "times": 1, "on": "read"})).await;

    let second = async {
        shop.called_again(&phone, 0).await;
        place(&shop, &shop.url, "ada@example.com", "k-1", &body).await
    };
    let (first, second) = tokio::join!(place(&shop, &shop.url, "ada@example.com", "k-1", &body), second);

    let second = second.expect_problem(409, "request-in-progress");
    assert!(second.header("retry-after").is_some());
    let again = place(&shop, &shop.url, "ada@example.com", "k-1", &body).await.expect(201);
    assert_eq!(again.text, first.expect(201).text);
}

#[tokio::test]
async fn a_failed_attempt_leaves_the_key_free() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 1).await;
    let ask = async |quantity| {
        place(&shop, &shop.url, "ada@example.com", "k-1", &lines(&[(&phone, quantity)])).await
    };

    ask(2).await.expect_problem(400, "insufficient-stock");
    shop.fault(&phone, &json!({"kind": "status", "status": 500, "times": 1, "on": "read"})).await;
    ask(1).await.expect_problem(503, "product-service-unavailable");
    assert_eq!((shop.count("idempotency_keys").await, shop.count("orders").await), (0, 0));

    ask(1).await.expect(201);
    assert_eq!(shop.count("orders").await, 1);
}

#[tokio::test]
async fn a_key_of_a_killed_replica_is_free_at_once() {
    let shop = Shop::builder()
        .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "30000")
        .with("PRODUCT_DEADLINE_MS", "30000")
        .with("REQUEST_DEADLINE_MS", "60000")
        .without_service()
        .await;
    let victim = shop.replica(&[]).await;
    let heir = shop.replica(&[]).await;
    let phone = shop.product("phone", "100", 50).await;
    let body = lines(&[(&phone, 2)]);
    shop.fault(&phone, &json!({"kind": "hang", "on": "read"})).await;

    let url = victim.url.clone();
    let call = shop.call_at(&url, "POST", "/api/orders").by(customer("ada@example.com"));
    let call = call.header("Idempotency-Key", "k-1").json(&body);
    let kill = async {
        shop.called_again(&phone, 0).await;
        victim.kill();
    };
    let (lost, ()) = tokio::join!(call.try_send(), kill);
    assert!(lost.is_err(), "{lost:?}");
    shop.heal(&phone).await;

    let started = std::time::Instant::now();
    let placed = place(&shop, &heir.url, "ada@example.com", "k-1", &body).await.expect(201);
    figure(&format!("the key of a killed replica was free after {:?}", started.elapsed()));
    assert_eq!(placed.header("idempotency-replayed"), None);
    assert_eq!(shop.count("orders").await, 1);
}

#[tokio::test]
async fn a_key_expires_and_is_deleted() {
    let shop = Shop::builder().with("IDEMPOTENCY_KEY_TTL_HOURS", "2").start().await;
    let phone = shop.product("phone", "100", 50).await;
    let body = lines(&[(&phone, 2)]);
    let first = place(&shop, &shop.url, "ada@example.com", "k-1", &body).await.expect(201).order_id();
    let age = "update idempotency_keys set expires_at = expires_at - interval '";
    let older = |minutes: u32| sqlx::AssertSqlSafe(format!("{age}{minutes} minutes'"));

    sqlx::query(older(119)).execute(&shop.database).await.unwrap();
    let kept = place(&shop, &shop.url, "ada@example.com", "k-1", &body).await.expect(201).order_id();
    sqlx::query(older(2)).execute(&shop.database).await.unwrap();
    let new = place(&shop, &shop.url, "ada@example.com", "k-1", &lines(&[(&phone, 1)])).await.expect(201);

    assert_eq!(kept, first);
    assert_ne!(new.order_id(), first);
    sqlx::query(older(121)).execute(&shop.database).await.unwrap();
    let _tidy = shop.replica(&[("HOUSEKEEPING_INTERVAL_MS", "20")]).await;
    eventually("the key is deleted", async || shop.count("idempotency_keys").await == 0).await;
    assert_eq!(shop.count("orders").await, 2);
}

#[tokio::test]
async fn an_invalid_key_is_refused_with_the_header_named() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 50).await;
    let body = lines(&[(&phone, 2)]);

    for bad in ["", "\"\"", "a b", "a\"b", &"k".repeat(256)] {
        let refused = place(&shop, &shop.url, "ada@example.com", bad, &body).await;
        refused.expect_problem(400, "invalid-request").naming("Idempotency-Key");
    }
    let call = shop.call("POST", "/api/orders").by(customer("ada@example.com")).json(&body);
    let twice = call.header("Idempotency-Key", "a").header("Idempotency-Key", "b").send().await;
    twice.expect_problem(400, "invalid-request").naming("Idempotency-Key");
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn eight_concurrent_requests_with_one_key_create_one_order() {
    let keys = scale(150, 10_000);
    let shop = Shop::builder().with("DATABASE_MAX_CONNECTIONS", "12").start().await;
    let other = shop.replica(&[]).await;
    let phone = shop.product("phone", "100", 1_000_000).await;
    let body = lines(&[(&phone, 2)]);

    let send_eight = async |number: usize| {
        let (key, email) = (format!("key-{number}"), format!("c{}@example.com", number % 7));
        let sends = (0..8).map(|send| {
            let url = if send % 2 == 0 { &shop.url } else { &other.url };
            place_patiently(&shop, url, &email, &key, &body)
        });
        let answers = join_all(sends).await;
        let first: Vec<_> = answers.iter().filter(|a| a.header("idempotency-replayed").is_none()).collect();
        // The first request may have missed its deadline; then all other answers are replays.
        assert!(first.len() <= 1, "{key} was answered as new {} times", first.len());
        for answer in &answers {
            assert_eq!((answer.status, &answer.text), (201, &answers[0].text), "{key}");
        }
    };
    futures_util::stream::iter(0..keys).map(send_eight).buffer_unordered(8).collect::<Vec<()>>().await;

    let orders = i64::try_from(keys).unwrap();
    assert_eq!((shop.count("orders").await, shop.count("idempotency_keys").await), (orders, orders));
    shop.relayed().await;
    let owners: i64 = sqlx::query_scalar("select count(distinct order_id) from idempotency_keys")
        .fetch_one(&shop.database)
        .await
        .unwrap();
    assert_eq!(owners, orders);
    figure(&format!("{keys} keys, each sent 8 times at once to two replicas: {owners} orders"));
}
