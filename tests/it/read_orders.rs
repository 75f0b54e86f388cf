//! Reading one order, and the shapes of all successful answers.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::support::{Answer, Shop, admin, customer, lines};

#[track_caller]
fn expect_keys(object: &Value, keys: &[&str]) {
    let found: BTreeSet<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(found, keys.iter().copied().collect(), "{object}");
}

/// Checks for RFC 3339 in UTC with `Z` and six fractional digits, close to the current time.
#[track_caller]
fn expect_date(date: &Value) {
    let text = date.as_str().expect("a string");
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{text}");
    let age = Utc::now() - text.parse::<DateTime<Utc>>().unwrap();
    assert!((-1..600).contains(&age.num_seconds()), "{text}");
}

#[track_caller]
fn expect_json(answer: Answer) -> Answer {
    let answer = answer.expect(200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    answer
}

#[tokio::test]
async fn every_answer_has_exactly_the_members_of_the_contract() {
    let shop = Shop::start().await;
    let ada = customer("ada@example.com");
    let phone = shop.product("phone", "2499.10", 50).await;

    let placed = shop.place(ada, &lines(&[(&phone, 2)])).await.expect(201);
    assert_eq!(placed.header("content-type"), Some("application/json"));
    expect_keys(&placed.body, &["orderId", "status", "totalAmount"]);
    let id = placed.order_id();
    assert_eq!(id.as_bytes()[14], b'7', "{id} is no UUIDv7");

    let path = format!("/api/orders/{id}");
    let order_keys = ["orderId", "customerId", "status", "orderDate", "totalAmount", "items"];
    for who in [ada, admin()] {
        let shown = expect_json(shop.get(who, &path).await);
        expect_keys(&shown.body, &order_keys);
        expect_keys(&shown.body["items"][0], &["productId", "quantity", "price"]);
        expect_date(&shown.body["orderDate"]);
        assert_eq!(shown.body["customerId"], "ada@example.com");
    }
    let mine = expect_json(shop.get(ada, "/api/orders/my").await);
    expect_keys(&mine.body[0], &["orderId", "status", "totalAmount", "orderDate"]);
    expect_date(&mine.body[0]["orderDate"]);
    let all = expect_json(shop.get(admin(), "/api/orders").await);
    expect_keys(&all.body[0], &["orderId", "customerId", "status", "totalAmount", "orderDate"]);
    expect_date(&all.body[0]["orderDate"]);
    let changed = expect_json(shop.set_status(&id, "CONFIRMED").await);
    expect_keys(&changed.body, &order_keys);
    assert_eq!(changed.text, shop.get(ada, &path).await.text);
}

#[tokio::test]
async fn amounts_keep_their_decimals_in_every_answer() {
    let shop = Shop::start().await;
    let ada = customer("ada@example.com");
    let prices = [
        ("2499.10", 2, "4998.20"),
        ("2499", 2, "4998"),
        ("0.10", 3, "0.30"),
        ("0.07", 100, "7.00"),
        ("0", 1, "0"),
        ("99999999999.99", 10, "999999999999.90"),
    ];
    for (number, (price, quantity, total)) in prices.into_iter().enumerate() {
        let product = shop.product(&format!("p{number}"), price, 1_000).await;
        let placed = shop.place(ada, &lines(&[(&product, quantity)])).await.expect(201);
        let in_total = format!(r#""totalAmount":{total}"#);
        assert!(placed.text.contains(&format!("{in_total}}}")), "{}", placed.text);
        let shown = shop.get(ada, &format!("/api/orders/{}", placed.order_id())).await;
        assert!(shown.text.contains(&format!(r#"{in_total},"items""#)), "{}", shown.text);
        assert!(shown.text.contains(&format!(r#""price":{price}}}"#)), "{}", shown.text);
        for list in [shop.get(ada, "/api/orders/my").await, shop.get(admin(), "/api/orders").await] {
            assert!(list.text.contains(&format!("{in_total},")), "{}", list.text);
        }
    }
}

#[tokio::test]
async fn fields_outside_the_contract_are_ignored() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 5).await;
    let order = format!(
        r#"{{"customerId":"eve@example.com","totalAmount":0.01,"status":"CONFIRMED","note":null,
            "items":[{{"productId":"{phone}","quantity":1,"price":0.01,"gift":{{"wrap":[true]}}}}]}}"#
    );
    let placed = shop.call("POST", "/api/orders").by(customer("ada@example.com")).body(order).send().await;
    let id = placed.expect(201).order_id();
    let shown = shop.get(admin(), &format!("/api/orders/{id}")).await;
    assert_eq!(shown.body["customerId"], "ada@example.com");
    assert_eq!(shown.body["status"], "CREATED");
    assert!(shown.text.contains(r#""price":10}"#), "{}", shown.text);
}

#[tokio::test]
async fn lines_are_shown_as_ordered_at_the_price_of_that_moment() {
    let shop = Shop::start().await;
    let (z, a) = (shop.product("z", "3", 9).await, shop.product("a", "5", 9).await);
    let id = shop.placed("ada@example.com", &[(&z, 1), (&a, 2)]).await;
    shop.product("z", "1000", 9).await;
    shop.withdraw(&a).await;

    let shown = shop.get(customer("ada@example.com"), &format!("/api/orders/{id}")).await.expect(200);

    let expected = format!(
        r#""items":[{{"productId":"{z}","quantity":1,"price":3}},{{"productId":"{a}","quantity":2,"price":5}}]}}"#
    );
    assert!(shown.text.ends_with(&expected), "{}", shown.text);
}

#[tokio::test]
async fn an_unchanged_order_gets_304() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "1", 5).await;
    let placed = shop.place(customer("ada@example.com"), &lines(&[(&phone, 1)])).await;
    let path = format!("/api/orders/{}", placed.order_id());
    let tag = placed.header("etag").expect("ETag").to_owned();
    let ask = async |condition: &str| {
        let call = shop.call("GET", &path).by(customer("ada@example.com"));
        call.header("If-None-Match", condition).send().await
    };
    let shown = shop.get(customer("ada@example.com"), &path).await.expect(200);
    assert_eq!(shown.header("etag"), Some(tag.as_str()));
    assert_eq!(shown.header("cache-control"), Some("private, no-cache"));

    let known = [tag.clone(), format!("W/{tag}"), "*".into(), format!("\"x,y\", W/\"z\" ,{tag}")];
    for condition in known {
        let answer = ask(&condition).await.expect(304);
        assert_eq!(answer.text, "", "{condition}");
        assert_eq!(answer.header("etag"), Some(tag.as_str()), "{condition}");
    }
    for condition in ["\"x\"", "\"x,y\", W/\"z\"", "", "\"\"", "\"01\"", "\"*\""] {
        assert_eq!(ask(condition).await.expect(200).text, shown.text, "{condition}");
    }
    shop.set_status(&placed.order_id(), "CONFIRMED").await.expect(200);
    let changed = ask(&tag).await.expect(200);
    assert_eq!(changed.body["status"], "CONFIRMED");
    assert_ne!(changed.header("etag"), Some(tag.as_str()));
}

#[tokio::test]
async fn a_precondition_gives_no_access_to_another_customers_order() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "1", 5).await;
    let path = format!("/api/orders/{}", shop.placed("ada@example.com", &[(&phone, 1)]).await);
    let eve = || shop.call("GET", &path).by(customer("eve@example.com"));
    for condition in ["*", "\"1\"", "malformed"] {
        eve().header("If-None-Match", condition).send().await.expect_problem(403, "forbidden");
    }
}

#[tokio::test]
async fn head_answers_like_get_without_the_body() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "1", 5).await;
    let path = format!("/api/orders/{}", shop.placed("ada@example.com", &[(&phone, 1)]).await);
    let get = shop.get(admin(), &path).await.expect(200);
    let head = shop.call("HEAD", &path).by(admin()).send().await.expect(200);
    assert_eq!(head.text, "");
    for name in ["etag", "content-type", "content-length"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
}
