//! The content of the log, and the personal data that it must not contain.

use serde_json::Value;

use crate::support::{Mode, Proxy, Replica, Shop, admin, customer, lines, stack};

const ADA: &str = "ada@example.com";
const EVE: &str = "eve@example.com";

/// Makes every kind of call, with every kind of error.
async fn a_whole_session(shop: &Shop, database: &Proxy, products: &Proxy) {
    let phone = shop.product("phone", "10", 5).await;
    let body = lines(&[(&phone, 1)]);
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    let path = format!("/api/orders/{order}");
    shop.get(customer(ADA), &path).await.expect(200);
    shop.get(customer(ADA), "/api/orders/my?limit=1").await.expect(200);
    shop.get(admin(), &format!("/api/orders?customerId={ADA}")).await.expect(200);
    shop.get(admin(), &format!("/api/orders?customerId={ADA}&limit=0")).await.expect(400);
    shop.get(customer(EVE), &path).await.expect(403);
    shop.get(customer(EVE), "/api/orders").await.expect(403);
    shop.call("GET", &path).header("X-User-Email", ADA).send().await.expect(401);
    shop.call("GET", &format!("/{ADA}")).send().await.expect(404);
    shop.place(customer(ADA), &lines(&[(&phone, 6)])).await.expect(400);
    shop.place(customer(ADA), &lines(&[(ADA, 1)])).await.expect(400);
    shop.set_status(&order, "CONFIRMED").await.expect(200);
    shop.set_status(&order, "CREATED").await.expect(409);
    shop.relayed().await;

    products.set(Mode::Cut);
    shop.place(customer(ADA), &body).await.expect(503);
    products.set(Mode::Open);
    database.set(Mode::Cut);
    shop.place(customer(ADA), &body).await.expect(503);
    shop.get(customer(ADA), &path).await.expect(503);
    database.set(Mode::Open);
}

/// How many calls [`a_whole_session`] makes.
const CALLS: usize = 16;

async fn log_of_a_whole_session(filter: &str) -> Vec<Value> {
    let own = Shop::new_database().await;
    let (database, url) = Proxy::before_database(&own).await;
    let address = stack().product_service.trim_start_matches("http://").parse().expect("an address");
    let products = Proxy::before(address).await;
    let shop = Shop::builder()
        .database(&own)
        .with("DATABASE_URL", url)
        .with("PRODUCT_SERVICE_URL", format!("http://{}", products.address))
        .with("LOG_FILTER", filter)
        .without_service()
        .await;
    let mut replica = Replica::start(&shop.environment);
    a_whole_session(&shop.through(&replica.url), &database, &products).await;
    replica.signal("TERM");
    replica.rest_of_log()
}

fn is_of_a_request(line: &Value) -> bool {
    line["message"].as_str().is_some_and(|message| message.starts_with("request "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_request_logs_one_line_of_json() {
    let log = log_of_a_whole_session("info").await;

    assert!(log.iter().all(Value::is_object), "{log:#?}");
    let requests: Vec<&Value> = log.iter().filter(|line| is_of_a_request(line)).collect();
    assert_eq!(requests.len(), CALLS, "{requests:#?}");
    for line in requests {
        assert!(line["status"].is_u64() && line["duration_ms"].is_u64(), "{line:#}");
        for field in ["timestamp", "level"] {
            assert!(line[field].is_string(), "{line:#}");
        }
        for field in ["request_id", "trace_id", "method", "route"] {
            assert!(line["span"][field].is_string(), "{line:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_log_of_a_whole_session_contains_no_email_address() {
    for filter in ["info", "info,order_service=trace,sqlx=debug"] {
        let log = log_of_a_whole_session(filter).await;
        let named: Vec<&Value> = log.iter().filter(|line| line.to_string().contains("@example")).collect();
        assert!(named.is_empty(), "{named:#?}");
    }
}

#[tokio::test]
async fn a_request_id_comes_from_the_caller_or_is_generated() {
    let shop = Shop::builder().without_service().await;
    let mut replica = Replica::start(&shop.environment);
    let shop = shop.through(&replica.url);
    let ask = |id: &str| shop.call("GET", "/api/orders/my").by(customer(ADA)).header("X-Request-Id", id);

    let taken = ask("from-the-gateway.7").send().await.expect(200);
    let refused = ask("from the gateway").send().await.expect(200);
    let given = shop.get(customer(ADA), "/api/orders/my").await.expect(200);
    replica.signal("TERM");
    let log = replica.rest_of_log();

    let id = |answer: &crate::support::Answer| answer.header("x-request-id").expect("an id").to_owned();
    assert_eq!(id(&taken), "from-the-gateway.7");
    assert_ne!(id(&refused), "from the gateway");
    assert_ne!(id(&refused), id(&given));
    for answer in [&taken, &refused, &given] {
        let lines = log.iter().filter(|line| is_of_a_request(line));
        assert_eq!(lines.filter(|line| line["span"]["request_id"] == id(answer)).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_slow_statement_is_logged_as_slow() {
    let shop = Shop::builder().with("DATABASE_DEADLINE_MS", "8000").without_service().await;
    let replica = Replica::start(&shop.environment);
    let shop = shop.through(&replica.url);
    let phone = shop.product("phone", "1", 5).await;
    let order = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    let mut holder = shop.database.begin().await.unwrap();
    sqlx::query("select from orders for update").execute(&mut *holder).await.unwrap();

    let refused = shop.set_status(&order, "CANCELLED").await.expect_unavailable("unavailable");

    assert_eq!(refused.body["detail"], "The database took too long.");
    let line = replica.wait_for_log("request failed temporarily").to_string();
    assert!(line.contains("a statement took longer than DATABASE_DEADLINE_MS allows"), "{line}");
}
