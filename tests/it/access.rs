//! Access control: the service checks identity first, then role, then ownership.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::{Answer, Call, Description, Shop, Who, admin, customer, lines};

/// Every route under `/api`, with a request that an admin who owns the order may make.
const ROUTES: [(&str, &str); 7] = [
    ("POST", "/api/orders"),
    ("GET", "/api/orders"),
    ("GET", "/api/orders/my"),
    ("GET", "/api/orders/{orderId}"),
    ("GET", "/api/orders/{orderId}/history"),
    ("POST", "/api/orders/{orderId}/cancel"),
    ("PUT", "/api/orders/{orderId}/status"),
];
const ADA: Who<'static> = customer("ada@example.com");
const EVE: Who<'static> = customer("eve@example.com");
const SECRET: &str = "the-secret-of-the-gateway";
const PREVIOUS: &str = "the-secret-before-that-one";

/// A shop with one order, which Ada owns.
struct Scene {
    shop: Shop,
    product: String,
    order: String,
}

impl Scene {
    async fn set() -> Self {
        let shop = Shop::start().await;
        let product = shop.product("phone", "1", 1_000).await;
        let order = shop.placed("ada@example.com", &[(&product, 1)]).await;
        Self { shop, product, order }
    }

    /// A valid request to the route, without an identity.
    fn request(&self, method: &str, route: &str) -> Call {
        let call = self.shop.call(method, &route.replace("{orderId}", &self.order));
        match method {
            "POST" => call.json(&lines(&[(&self.product, 1)])),
            "PUT" => call.json(&json!({"status": "CANCELLED"})),
            _ => call,
        }
    }

    /// Checks that Ada's order is still the only one, and unchanged.
    async fn expect_unchanged(&self) {
        assert_eq!(self.shop.count("orders").await, 1);
        assert_eq!(self.shop.count("order_history").await, 1);
        self.shop.relayed().await;
        assert_eq!(self.shop.topic.everything().await.len(), 1);
    }
}

#[tokio::test]
async fn every_route_gives_every_caller_the_answer_of_the_contract() {
    let scene = Scene::set().await;
    for (method, route) in ROUTES {
        let request = || scene.request(method, route);
        request().send().await.expect_problem(401, "unauthenticated");
        let (owner, other, root) = match (method, route) {
            ("POST", "/api/orders") => (201, 201, 201),
            (_, "/api/orders/my") => (200, 200, 200),
            ("GET", "/api/orders") | ("PUT", _) => (403, 403, 200),
            _ => (200, 403, 200),
        };
        for (who, status) in [(ADA, owner), (EVE, other), (admin(), root)] {
            let answer = request().by(who).send().await;
            assert_eq!(answer.status, status, "{method} {route}: {}", answer.text);
            if status == 403 {
                answer.expect_problem(403, "forbidden");
            }
        }
    }
}

/// Add every new route to [`ROUTES`], so that all tests here cover it.
#[tokio::test]
async fn these_tests_cover_every_route_under_api() {
    // The document has the same routes as the router: `routes!` accepts only documented handlers.
    let table = include_str!("../../src/api/mod.rs");
    for other_way in [".route(", ".nest(", ".route_service(", ".nest_service("] {
        assert_eq!(
            table.matches(other_way).count(),
            0,
            "{other_way} makes a route that this test does not see"
        );
    }
    let asked: BTreeSet<String> = ROUTES.iter().map(|(method, path)| format!("{method} {path}")).collect();
    let public = ["GET /health/live", "GET /health/ready"];
    let there: BTreeSet<String> =
        Description::get().operations().filter(|operation| !public.contains(&operation.as_str())).collect();
    assert_eq!(there, asked);

    // Unauthenticated callers get 401 for every other method, too.
    let scene = Scene::set().await;
    for (_, path) in ROUTES {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
            let answer = scene.shop.call(method, &path.replace("{orderId}", &scene.order)).send().await;
            assert_eq!(answer.status, 401, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn every_route_answers_401_to_a_malformed_identity() {
    let scene = Scene::set().await;
    let long = format!("{}@example.com", "a".repeat(243));
    let ada: &[u8] = b"ada@example.com";
    let emails: [&[&[u8]]; 15] = [
        &[],
        &[b""],
        &[b" "],
        &[b"ada"],
        &[b"@example.com"],
        &[b"ada@"],
        &[b"ada@x@example.com"],
        &[b"ada@example.com,eve@example.com"],
        &[b"ada @example.com"],
        &[b"ada\t@example.com"],
        &["ada\u{a0}@example.com".as_bytes()],
        &[b"\xff@example.com"],
        &[long.as_bytes()],
        &[ada, b"eve@example.com"],
        &[ada, ada],
    ];
    let roles: [&[&[u8]]; 7] = [
        &[],
        &[b""],
        &[b"admin"],
        &[b"ROOT"],
        &[b"CUSTOMER,ADMIN"],
        &[b"CUSTOMER", b"ADMIN"],
        &[b"\xc0ADMIN"],
    ];
    let with = |call: Call, name: &str, values: &[&[u8]]| {
        values.iter().fold(call, |call, value| call.header(name, value))
    };
    for (method, route) in ROUTES {
        for bad in emails {
            let call = with(scene.request(method, route), "X-User-Email", bad).header("X-User-Role", "ADMIN");
            call.send().await.expect_problem(401, "unauthenticated").naming("X-User-Email");
        }
        for bad in roles {
            let call = with(scene.request(method, route), "X-User-Role", bad).header("X-User-Email", ada);
            call.send().await.expect_problem(401, "unauthenticated").naming("X-User-Role");
        }
    }
    scene.expect_unchanged().await;
}

#[tokio::test]
async fn emails_are_compared_exactly() {
    let scene = Scene::set().await;
    let order = format!("/api/orders/{}", scene.order);
    let others =
        ["Ada@example.com", "ada@EXAMPLE.com", "ada@example.co", "ada+x@example.com", "ada@example.com."];
    for other in others {
        scene.shop.get(customer(other), &order).await.expect_problem(403, "forbidden");
        assert_eq!(scene.shop.get(customer(other), "/api/orders/my").await.expect(200).text, "[]", "{other}");
    }
    // Email addresses in other scripts are valid and compared byte by byte (RFC 6531): these two look the same.
    let phone = scene.shop.product("phone", "1", 5).await;
    let (composed, combining) = ("j\u{f6}rg@example.com", "jo\u{308}rg@example.com");
    let of_composed = format!("/api/orders/{}", scene.shop.placed(composed, &[(&phone, 1)]).await);
    let shown = scene.shop.get(customer(composed), &of_composed).await.expect(200);
    assert_eq!(shown.body["customerId"], composed);
    scene.shop.get(customer(combining), &of_composed).await.expect_problem(403, "forbidden");
    // White space around a header value is not part of it (RFC 9110, 5.5).
    let head = "GET ORDER HTTP/1.1\r\nX-User-Email: \t ada@example.com \t \r\nX-User-Role:CUSTOMER \r\nConnection: close\r\n\r\n";
    let spaced = scene.shop.raw(head.replace("ORDER", &order).as_bytes()).await.expect(200);
    assert_eq!(spaced.body["customerId"], "ada@example.com");
}

#[tokio::test]
async fn unauthenticated_callers_get_401_before_any_other_error() {
    let scene = Scene::set().await;
    let shop = &scene.shop;
    let wrong = [
        shop.call("GET", "/api/orders/7"),
        shop.call("GET", "/api/orders/0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10"),
        shop.call("GET", "/api/orders?limit=0&limit=0"),
        shop.call("DELETE", "/api/orders"),
        shop.call("POST", "/api/orders").body("{"),
        shop.call("POST", "/api/orders").bare_body("{}"),
        shop.call("POST", "/api/orders").body(vec![b' '; 1024 * 1024]),
        shop.call("PUT", "/api/orders/7/status").header("If-Match", "x").body("{"),
    ];
    for call in wrong {
        call.send().await.expect_problem(401, "unauthenticated");
    }
    // Customers get 403 before any other error on admin routes.
    let wrong = [
        shop.call("PUT", "/api/orders/7/status").body("{"),
        shop.call("PUT", "/api/orders/7/status").bare_body("{}"),
        shop.call("PUT", &format!("/api/orders/{}/status", scene.order)).header("If-Match", "x").body("{"),
        shop.call("GET", "/api/orders?limit=0&status=PAID&cursor=7"),
    ];
    for call in wrong {
        call.by(ADA).send().await.expect_problem(403, "forbidden");
    }
    scene.expect_unchanged().await;
}

#[tokio::test]
async fn my_orders_contains_only_the_callers_orders_for_any_query() {
    let scene = Scene::set().await;
    let mine = scene.shop.placed("eve@example.com", &[(&scene.product, 1)]).await;
    let ids = |answer: Answer| -> Vec<String> {
        answer
            .body
            .as_array()
            .unwrap()
            .iter()
            .map(|order| order["orderId"].as_str().unwrap().into())
            .collect()
    };
    for query in ["", "?customerId=ada@example.com", "?customerId=ada@example.com&customerId=x&limit=9"] {
        let seen = scene.shop.get(EVE, &format!("/api/orders/my{query}")).await.expect(200);
        assert_eq!(ids(seen), [mine.as_str()], "{query}");
    }
    assert_eq!(ids(scene.shop.get(admin(), "/api/orders/my").await.expect(200)), Vec::<String>::new());
    assert_eq!(ids(scene.shop.get(admin(), "/api/orders").await.expect(200)), [mine, scene.order]);
}

#[tokio::test]
async fn with_a_gateway_secret_only_the_gateway_is_accepted() {
    let shop = Shop::builder()
        .with("GATEWAY_SECRET", SECRET)
        .with("GATEWAY_SECRET_PREVIOUS", PREVIOUS)
        .start()
        .await;
    let almost =
        [&SECRET[1..], &SECRET.to_uppercase(), &format!("{SECRET}x"), &format!("{SECRET},{SECRET}"), ""];
    for (method, route) in ROUTES {
        let path = route.replace("{orderId}", "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10");
        let call = || shop.call(method, &path).by(admin());
        let mut refused = vec![
            call(),
            call().header("X-Gateway-Secret", SECRET).header("X-Gateway-Secret", SECRET),
            call().header("X-Gateway-Secret", SECRET).header("X-Gateway-Secret", PREVIOUS),
            call().header("X-Gateway-Secret", [0xff]),
            call().header("Authorization", format!("Bearer {SECRET}")),
        ];
        refused.extend(almost.map(|secret| call().header("X-Gateway-Secret", secret)));
        for call in refused {
            let answer = call.send().await.expect_problem(401, "unauthenticated").naming("X-Gateway-Secret");
            assert!(!answer.text.contains(SECRET), "{}", answer.text);
        }
        for right in [SECRET, PREVIOUS] {
            let answer = call().header("X-Gateway-Secret", right).send().await;
            assert_ne!(answer.status, 401, "{method} {route}: {}", answer.text);
        }
        // The secret proves the gateway, not the caller.
        let anonymous = shop.call(method, &path).header("X-Gateway-Secret", SECRET);
        anonymous.send().await.expect_problem(401, "unauthenticated").naming("X-User-Email");
    }
    shop.call("GET", "/health/ready").send().await.expect(200);
    shop.expect_nothing_happened().await;
}
