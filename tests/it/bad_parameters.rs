//! An invalid path, query or precondition gets a problem that names it.

use serde_json::json;

use crate::support::{Shop, admin, customer};

#[tokio::test]
async fn order_ids_that_are_not_uuids_are_refused() {
    let shop = Shop::start().await;
    let ids = [
        "1",
        "null",
        "-1",
        "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d1",
        "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d100",
        "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d1g",
        "0198c1f27b5a7cc08d3e2f1a6b4c9d10",
        "%7B0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d%7D",
        "%00",
        "%ff%fe",
        "..%2fmy",
        "x'%20or%20'1'='1",
        "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10%20",
        &"9".repeat(6_000),
    ];
    for id in ids {
        let got = shop.get(admin(), &format!("/api/orders/{id}")).await;
        got.expect_problem(400, "invalid-request").naming("orderId");
        let put = shop.set_status(id, "CONFIRMED").await;
        put.expect_problem(400, "invalid-request").naming("orderId");
    }
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn invalid_query_parameters_are_refused_with_the_parameter_named() {
    let shop = Shop::start().await;
    let cursors = ["", "7", "%00", "not+a+cursor", "AAAA", "=", "'%20or%20'1'='1"].map(|bad| ("cursor", bad));
    let limits = ["", "0", "-1", "201", "1.5", "1e1", "ten", "%31%00", "99999999999999999999"];
    let paged: Vec<_> = cursors.into_iter().chain(limits.map(|bad| ("limit", bad))).collect();
    for (name, bad) in &paged {
        let mine = shop.get(customer("ada@example.com"), &format!("/api/orders/my?{name}={bad}")).await;
        mine.expect_problem(400, "invalid-request").naming(name);
    }
    let filters = [
        ("status", ""),
        ("status", "PAID"),
        ("status", "created"),
        ("status", "CREATED,CONFIRMED"),
        ("status", "CREATED'%20or%20'1'='1"),
        ("customerId", ""),
        ("customerId", "ada"),
        ("customerId", "%ff@example.com"),
        ("customerId", "ada%00@example.com"),
        ("customerId", "ada%20'--@example.com"),
        ("from", ""),
        ("from", "yesterday"),
        ("from", "2026-01-21"),
        ("from", "2026-01-21T12:30:00"),
        ("from", "2026-02-30T12:30:00Z"),
        ("from", "-5000-01-01T00:00:00Z"),
        ("to", "2026-01-21T25:00:00Z"),
        ("to", "10000-01-01T00:00:00Z"),
        ("to", "now()"),
    ];
    for (name, bad) in paged.into_iter().chain(filters) {
        let all = shop.get(admin(), &format!("/api/orders?{name}={bad}")).await;
        all.expect_problem(400, "invalid-request").naming(name);
    }
    for name in ["limit", "cursor", "status", "customerId", "from", "to"] {
        let twice = shop.get(admin(), &format!("/api/orders?{name}=1&x=1&{name}=1")).await;
        twice.expect_problem(400, "invalid-request").naming(name);
    }
}

#[tokio::test]
async fn malformed_preconditions_are_refused_with_the_header_named() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "1", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    let path = format!("/api/orders/{id}");
    for bad in
        [&b""[..], b"1", b",", b"\"1", b"'1'", b"W/1", b"w/\"1\"", b"*, \"1\"", b"\"1\" \"2\"", b"\xff"]
    {
        let get = shop.call("GET", &path).by(admin()).header("If-None-Match", bad).send().await;
        // Without a version in the header, the client gets the order.
        match bad {
            b"" | b"," => get.expect(200),
            _ => get.expect_problem(400, "invalid-request").naming("if-none-match"),
        };
        let put = shop.call("PUT", &format!("{path}/status")).by(admin()).header("If-Match", bad);
        let put = put.json(&json!({"status": "CONFIRMED"}));
        put.send().await.expect_problem(400, "invalid-request").naming("if-match");
    }
    assert_eq!(shop.get(admin(), &path).await.expect(200).body["status"], "CREATED");
}
