//! Every row of the contract's error table, and the framework's own errors in the same shape.

use serde_json::{Value, json};

use crate::support::{Answer, Mode, Proxy, Shop, admin, customer, eventually, lines};

const UNKNOWN_ORDER: &str = "/api/orders/0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10";

/// Checks the common shape: these members, `more`, and no others, for this path.
#[track_caller]
fn expect_shape(answer: &Answer, path: &str, more: &[&str]) {
    let members: Vec<&str> = answer.body.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [&["type", "title", "status", "detail", "instance"], more].concat();
    expected.sort_unstable();
    assert_eq!(members, expected, "{}", answer.text);
    assert_eq!(answer.body["instance"], path, "{}", answer.text);
    for member in ["title", "detail"] {
        assert_ne!(answer.body[member], "", "{}", answer.text);
    }
    assert!(answer.header("x-request-id").is_some());
}

#[track_caller]
fn expect_retry_after(answer: &Answer) {
    let seconds: u32 = answer.header("retry-after").expect("Retry-After").parse().expect("whole seconds");
    assert!(seconds >= 1);
}

#[tokio::test]
async fn invalid_request_names_the_field() {
    let shop = Shop::start().await;
    let ada = customer("ada@example.com");
    let order = |body: &str| shop.call("POST", "/api/orders").by(ada).body(body.to_owned());
    let get = |path: &str| shop.call("GET", path).by(admin());
    let status = format!("{UNKNOWN_ORDER}/status");
    let rows = [
        (order("{"), "/api/orders", ""),
        (order(r#"{"items":7}"#), "/api/orders", "/items"),
        (order(r#"{"items":[]}"#), "/api/orders", "/items"),
        (get("/api/orders/7"), "/api/orders/7", "orderId"),
        (get("/api/orders?cursor=7"), "/api/orders", "cursor"),
        (get("/api/orders/my?limit=201"), "/api/orders/my", "limit"),
        (get("/api/orders?status=PAID"), "/api/orders", "status"),
        (shop.call("PUT", &status).by(admin()).json(&json!({"status": "PAID"})), &status, "/status"),
    ];
    for (call, path, pointer) in rows {
        let refused = call.send().await.expect_problem(400, "invalid-request").naming(pointer);
        expect_shape(&refused, path, &["errors"]);
    }
}

#[tokio::test]
async fn product_not_found_names_every_unknown_product() {
    let shop = Shop::start().await;
    let known = shop.product("known", "1", 5).await;
    let gone = shop.product("gone", "1", 5).await;
    shop.withdraw(&gone).await;
    let never = format!("{gone}-never");

    let order = lines(&[(&known, 1), (&gone, 1), (&never, 1), (&gone, 1)]);
    let refused = shop.place(customer("ada@example.com"), &order).await;

    let refused = refused.expect_problem(400, "product-not-found");
    expect_shape(&refused, "/api/orders", &["errors"]);
    let named: Vec<(&Value, &Value)> = errors(&refused, "productId");
    assert_eq!(
        named,
        [(&json!("/items/1/productId"), &json!(gone)), (&json!("/items/2/productId"), &json!(never))]
    );
    for product in [&gone, &never] {
        assert!(refused.body["detail"].as_str().unwrap().contains(product.as_str()), "{}", refused.text);
    }
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn insufficient_stock_names_product_requested_and_available_of_every_short_line() {
    let shop = Shop::start().await;
    let (enough, few, none) = (
        shop.product("enough", "1", 5).await,
        shop.product("few", "1", 2).await,
        shop.product("none", "1", 0).await,
    );

    let refused =
        shop.place(customer("ada@example.com"), &lines(&[(&few, 3), (&enough, 5), (&none, 1)])).await;

    let refused = refused.expect_problem(400, "insufficient-stock");
    expect_shape(&refused, "/api/orders", &["errors"]);
    let short = [("/items/0/quantity", &few, 3, 2), ("/items/2/quantity", &none, 1, 0)];
    let expected: Vec<Value> = short
        .iter()
        .map(|(pointer, product, requested, available)| {
            let detail = format!("{product}: {requested} requested, {available} available");
            json!({
                "pointer": pointer, "detail": detail, "productId": product,
                "requested": requested, "available": available,
            })
        })
        .collect();
    assert_eq!(refused.body["errors"], json!(expected));
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn unauthenticated_forbidden_and_not_found_match_the_contract() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "1", 5).await;
    let order = format!("/api/orders/{}", shop.placed("ada@example.com", &[(&phone, 1)]).await);
    let eve = customer("eve@example.com");

    let unknown = shop.call("GET", &order).send().await.expect_problem(401, "unauthenticated");
    assert_eq!(unknown.header("www-authenticate"), Some("Bearer realm=\"ShopVerse\""));
    expect_shape(&unknown.naming("X-User-Email"), &order, &["errors"]);
    let role = shop.get(eve, "/api/orders").await.expect_problem(403, "forbidden");
    expect_shape(&role, "/api/orders", &[]);
    let owner = shop.get(eve, &order).await.expect_problem(403, "forbidden");
    expect_shape(&owner, &order, &[]);
    let missing = shop.get(eve, UNKNOWN_ORDER).await.expect_problem(404, "order-not-found");
    expect_shape(&missing, UNKNOWN_ORDER, &[]);
    let missing = shop.set_status(&UNKNOWN_ORDER["/api/orders/".len()..], "CONFIRMED").await;
    let missing = missing.expect_problem(404, "order-not-found");
    expect_shape(&missing, &format!("{UNKNOWN_ORDER}/status"), &[]);
}

#[tokio::test]
async fn invalid_transition_and_precondition_failed_match_the_contract() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "1", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    let path = format!("/api/orders/{id}/status");

    let stale = shop.call("PUT", &path).by(admin()).header("If-Match", "\"2\"");
    let stale = stale.json(&json!({"status": "CONFIRMED"})).send().await;
    expect_shape(&stale.expect_problem(412, "precondition-failed"), &path, &[]);

    shop.set_status(&id, "CONFIRMED").await.expect(200);
    let back = shop.set_status(&id, "CREATED").await.expect_problem(409, "invalid-transition");
    expect_shape(&back, &path, &["allowed"]);
    assert_eq!(back.body["allowed"], json!(["CANCELLED"]));
    shop.set_status(&id, "CANCELLED").await.expect(200);
    let back = shop.set_status(&id, "CONFIRMED").await.expect_problem(409, "invalid-transition");
    assert_eq!(back.body["allowed"], json!([]));
}

#[tokio::test]
async fn product_service_unavailable_has_a_retry_after_and_writes_nothing() {
    let shop = Shop::builder().with("PRODUCT_RETRIES", "0").start().await;
    let phone = shop.product("phone", "1", 5).await;
    shop.fault(&phone, &json!({"kind": "status", "status": 500})).await;

    let refused = shop.place(customer("ada@example.com"), &lines(&[(&phone, 1)])).await;

    let refused = refused.expect_problem(503, "product-service-unavailable");
    expect_shape(&refused, "/api/orders", &[]);
    expect_retry_after(&refused);
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn a_database_outage_is_answered_with_unavailable() {
    let (proxy, url) = Proxy::before_database(&Shop::empty_database().await).await;
    let shop = Shop::builder().database(&url).start().await;
    proxy.set(Mode::Cut);

    let refused = shop.get(customer("ada@example.com"), "/api/orders/my").await;

    let refused = refused.expect_problem(503, "unavailable");
    expect_shape(&refused, "/api/orders/my", &[]);
    expect_retry_after(&refused);
}

#[tokio::test]
async fn overload_is_answered_with_unavailable() {
    let waits = ["PRODUCT_ATTEMPT_TIMEOUT_MS", "PRODUCT_DEADLINE_MS"];
    let builder = Shop::builder().with("MAX_CONCURRENT_REQUESTS", "1").with("REQUEST_DEADLINE_MS", "60001");
    let shop = waits.iter().fold(builder, |builder, wait| builder.with(wait, "60000")).start().await;
    let phone = shop.product("phone", "1", 5).await;
    shop.fault(&phone, &json!({"kind": "hang"})).await;
    let order = lines(&[(&phone, 1)]);
    let other = async || {
        let asked = || async { shop.requests_seen(Some(&phone)).await["total"] != 0 };
        eventually("the placement calls the Product Service", asked).await;
        shop.get(customer("bob@example.com"), "/api/orders/my").await
    };

    let refused = tokio::select! {
        placed = shop.place(customer("ada@example.com"), &order) => panic!("{placed:?}"),
        refused = other() => refused,
    };

    let refused = refused.expect_problem(503, "unavailable");
    expect_shape(&refused, "/api/orders/my", &[]);
    expect_retry_after(&refused);
    // The first client has disconnected, so a permit is free again.
    let served = async || shop.get(customer("bob@example.com"), "/api/orders/my").await.status == 200;
    eventually("the next request is served", served).await;
}

#[tokio::test]
async fn the_frameworks_errors_for_routes_and_methods_have_the_same_shape() {
    let shop = Shop::start().await;
    for path in ["/", "/api", "/api/orders/", "/api/orders/my/more", "/API/orders", "/health"] {
        let refused = shop.get(admin(), path).await.expect_problem(404, "not-found");
        expect_shape(&refused, path, &[]);
    }
    let status = format!("{UNKNOWN_ORDER}/status");
    let rows = [
        ("DELETE", "/api/orders", "GET,HEAD,POST"),
        ("POST", "/api/orders/my", "GET,HEAD"),
        ("PATCH", UNKNOWN_ORDER, "GET,HEAD"),
        ("GET", &status, "PUT"),
        ("POST", "/health/live", "GET,HEAD"),
    ];
    for (method, path, allowed) in rows {
        let refused = shop.call(method, path).by(admin()).send().await;
        let refused = refused.expect_problem(405, "method-not-allowed");
        expect_shape(&refused, path, &[]);
        let mut methods: Vec<&str> =
            refused.header("allow").expect("Allow").split(',').map(str::trim).collect();
        methods.sort_unstable();
        assert_eq!(methods.join(","), allowed, "{method} {path}");
    }
}

#[tokio::test]
async fn the_frameworks_errors_for_bodies_have_the_same_shape() {
    let shop = Shop::start().await;
    let post = || shop.call("POST", "/api/orders").by(customer("ada@example.com"));

    let body = r#"{"items":[]}"#;
    let fits = body.to_owned() + &" ".repeat(64 * 1024 - body.len());
    post().body(fits.clone()).send().await.expect_problem(400, "invalid-request").naming("/items");
    let large = post().body(fits + " ").send().await.expect_problem(413, "payload-too-large");
    expect_shape(&large, "/api/orders", &[]);

    let order = r#"{"items":[{"productId":"PROD123","quantity":1}]}"#;
    let calls = [
        post().bare_body(order),
        post().header("Content-Type", "text/plain").bare_body(order),
        post().header("Content-Type", "application/jsonx").bare_body(order),
        post().header("Content-Type", "application/json").body(order),
        post().header("Content-Type", [0xff]).bare_body(order),
        post().header("Content-Type", "application/json; charset=iso-8859-1").bare_body(order),
        post().header("Content-Type", "application/json;x=y;CHARSET=\"utf-16\"").bare_body(order),
    ];
    for call in calls {
        let refused = call.send().await.expect_problem(415, "unsupported-media-type");
        expect_shape(&refused, "/api/orders", &[]);
        assert_eq!(refused.header("accept"), Some("application/json"));
    }
    for coding in ["gzip", "br", "identity, gzip", ""] {
        let refused = post().header("Content-Encoding", coding).body(order).send().await;
        let refused = refused.expect_problem(415, "unsupported-media-type");
        assert_eq!(refused.header("accept-encoding"), Some("identity"), "{coding}");
    }
    for read in
        ["application/json; charset=utf-8", "Application/JSON;charset=\"UTF-8\"", "application/json;x=y"]
    {
        let call = post().header("Content-Type", read).header("Content-Encoding", "identity");
        call.bare_body(order.replace("\"quantity\":1", "\"quantity\":0"))
            .send()
            .await
            .expect_problem(400, "invalid-request");
    }
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn a_client_that_expects_100_continue_for_a_large_body_is_refused_at_once() {
    let shop = Shop::start().await;
    let asks = ["Content-Type: application/json", "Content-Length: 10485760", "Expect: 100-continue"];
    let head = Shop::head("POST /api/orders HTTP/1.1", &asks);
    let refused = shop.raw(head.as_bytes()).await.expect_problem(413, "payload-too-large");
    expect_shape(&refused, "/api/orders", &[]);
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn a_body_that_never_arrives_gets_408() {
    let shop = Shop::builder().with("REQUEST_BODY_TIMEOUT_MS", "300").start().await;
    let head =
        Shop::head("POST /api/orders HTTP/1.1", &["Content-Type: application/json", "Content-Length: 10"]);
    let refused = shop.raw(format!("{head}{{").as_bytes()).await.expect_problem(408, "request-timeout");
    expect_shape(&refused, "/api/orders", &[]);
    shop.expect_nothing_happened().await;
}

fn errors<'a>(refused: &'a Answer, member: &str) -> Vec<(&'a Value, &'a Value)> {
    let errors = refused.body["errors"].as_array().expect("errors");
    errors.iter().map(|error| (&error["pointer"], &error[member])).collect()
}
