//! An invalid body gets a problem that names the field; the service writes and publishes nothing.
//!
//! `bad_parameters.rs`, `access.rs` and `refusals.rs` check the other parts of a request.

use serde_json::json;

use crate::support::{Shop, admin, customer, lines};

const AN_ORDER: &str = "/api/orders/0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10";

/// An order body of one line with these members.
fn line(members: &str) -> Vec<u8> {
    format!(r#"{{"items":[{{{members}}}]}}"#).into_bytes()
}

fn quantity(number: &str) -> Vec<u8> {
    line(&format!(r#""productId":"PROD123","quantity":{number}"#))
}

fn product(text: &str) -> Vec<u8> {
    line(&format!(r#""productId":"{text}","quantity":1"#))
}

fn nested(open: &str, close: &str) -> String {
    open.repeat(5_000) + &close.repeat(5_000)
}

async fn expect_refused(shop: &Shop, bodies: Vec<(Vec<u8>, &str)>) {
    for (body, pointer) in bodies {
        let start = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
        let refused =
            shop.call("POST", "/api/orders").by(customer("ada@example.com")).body(body).send().await;
        assert_eq!(refused.status, 400, "{start}: {}", refused.text);
        refused.expect_problem(400, "invalid-request").naming(pointer);
    }
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let shop = Shop::start().await;
    let good = r#"{"items":[{"productId":"PROD123","quantity":1}]}"#;
    let mut not_utf8 = product("PROD_");
    let place = not_utf8.iter().position(|byte| *byte == b'_').unwrap();
    not_utf8[place] = 0xff;
    let deep = nested("[", "]");
    let deep_objects = nested(r#"{"a":"#, "}").replace(":}", ":1}");
    let bodies = [
        "".into(),
        "{".into(),
        "items=PROD123".into(),
        "<order/>".into(),
        "{'items':[]}".into(),
        "NaN".into(),
        format!("{good}{good}").into(),
        format!("{good}x").into(),
        format!("\u{feff}{good}").into(),
        format!("/* */{good}").into(),
        good.replace("1}", "1,}").into(),
        good.replace("PROD123", "PROD\n123").into(),
        good.replace("PROD123", r"PROD\ud800").into(),
        good.replace("PROD123", r"PROD\x41").into(),
        quantity("01"),
        quantity("0x1"),
        quantity("+1"),
        not_utf8,
        deep.clone().into(),
        deep_objects.clone().into(),
        good.replacen('{', &format!(r#"{{"note":{deep},"#), 1).into(),
        good.replacen('{', &format!(r#"{{"note":{deep_objects},"#), 1).into(),
    ];
    expect_refused(&shop, bodies.map(|body| (body, "")).into()).await;
}

#[tokio::test]
async fn duplicate_keys_are_refused_at_every_depth() {
    let shop = Shop::start().await;
    let bodies = [
        r#"{"items":[{"productId":"PROD123","quantity":1}],"items":[]}"#,
        r#"{"items":[{"productId":"PROD123","quantity":1,"quantity":2}]}"#,
        r#"{"items":[{"productId":"PROD123","productId":"PROD456","quantity":1}]}"#,
        r#"{"items":[{"productId":"PROD123","quantity":1,"quant\u0069ty":2}]}"#,
        r#"{"items":[{"productId":"PROD123","quantity":1}],"note":1,"note":2}"#,
        r#"{"items":[{"productId":"PROD123","quantity":1}],"note":[{"deep":{"a":1,"a":1}}]}"#,
        r#"{"items":[{"productId":"PROD123","quantity":1,"note":{"a":1,"a":1}}]}"#,
    ];
    expect_refused(&shop, bodies.map(|body| (body.into(), "")).into()).await;
}

#[tokio::test]
async fn wrong_types_missing_fields_and_broken_limits_are_refused_with_the_field_named() {
    let shop = Shop::start().await;
    let many = |count| lines(&vec![("PROD123", 1); count]).to_string().into_bytes();
    let mut bodies: Vec<(Vec<u8>, &str)> = vec![
        ("null".into(), ""),
        ("[]".into(), ""),
        (r#"[[{"productId":"PROD123","quantity":1}]]"#.into(), ""),
        (r#"{"items":[["PROD123",1]]}"#.into(), "/items/0"),
        ("\"items\"".into(), ""),
        ("{}".into(), ""),
        (r#"{"Items":[]}"#.into(), ""),
        (r#"{"items":null}"#.into(), "/items"),
        (r#"{"items":{}}"#.into(), "/items"),
        (r#"{"items":"PROD123"}"#.into(), "/items"),
        (r#"{"items":[]}"#.into(), "/items"),
        (many(101), "/items"),
        (many(1_000), "/items"),
        (r#"{"items":[null]}"#.into(), "/items/0"),
        (r#"{"items":["PROD123"]}"#.into(), "/items/0"),
        (line(r#""quantity":1"#), "/items/0"),
        (line(r#""productId":"PROD123""#), "/items/0"),
        (line(r#""productid":"PROD123","quantity":1"#), "/items/0"),
        (lines(&[("PROD123", 6_000), ("PROD123", 6_000)]).to_string().into(), "/items/1/quantity"),
    ];
    for bad in ["null", "7", "true", "[]", "{}", r#"["PROD123"]"#] {
        bodies.push((line(&format!(r#""productId":{bad},"quantity":1"#)), "/items/0/productId"));
    }
    let quantities = [
        "0",
        "-1",
        "-0",
        "1.5",
        "1.0",
        "1e2",
        "10001",
        "4294967297",
        "18446744073709551617",
        "1e400",
        "-1e400",
        "0.00000000000000000000001",
        "\"2\"",
        "null",
        "true",
        "[2]",
        r#"{"$serde_json::private::Number":"2"}"#,
    ];
    bodies.extend(quantities.map(|number| (quantity(number), "/items/0/quantity")));
    bodies.push((quantity(&"9".repeat(10_000)), "/items/0/quantity"));
    expect_refused(&shop, bodies).await;
}

#[tokio::test]
async fn product_ids_that_would_leave_their_path_segment_are_refused() {
    let shop = Shop::start().await;
    let long = "P".repeat(10_240);
    let just_too_long = "P".repeat(65);
    let ids = [
        "",
        " ",
        ".",
        "..",
        "../PROD456",
        "PROD/123",
        "/PROD123",
        r"PROD\\123",
        "PROD 123",
        " PROD123",
        "PROD123 ",
        "PROD123?x=1",
        "PROD123#x",
        "PROD%2F123",
        r"PROD\u0000123",
        r"PROD\r\nX: y",
        "PRÖD123",
        "PROD123\u{202e}",
        "PROD123' or '1'='1",
        "PROD123'; drop table orders; --",
        &just_too_long,
        &long,
    ];
    expect_refused(&shop, ids.iter().map(|id| (product(id), "/items/0/productId")).collect()).await;
    // The service looked up none of the invalid ids, but the valid unknown one.
    let unknown = format!("{}-unknown", shop.product("known", "1", 1).await);
    let refused = shop.place(customer("ada@example.com"), &lines(&[(&unknown, 1)])).await;
    refused.expect_problem(400, "product-not-found").naming("/items/0/productId");
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn a_body_of_10_megabytes_is_refused_and_the_client_receives_the_answer() {
    const SIZE: usize = 10 * 1024 * 1024;
    let shop = Shop::start().await;
    let call = shop.call("POST", "/api/orders").by(customer("ada@example.com"));
    call.body(vec![b' '; SIZE]).send().await.expect_problem(413, "payload-too-large");

    let headers = ["Content-Type: application/json", "Transfer-Encoding: chunked"];
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let chunked =
        Shop::head("POST /api/orders HTTP/1.1", &headers) + &chunk.repeat(SIZE / 0x10000) + "0\r\n\r\n";
    shop.raw(chunked.as_bytes()).await.expect_problem(413, "payload-too-large");

    let broken = Shop::head("POST /api/orders HTTP/1.1", &headers) + "zz\r\n{}\r\n0\r\n\r\n";
    shop.raw(broken.as_bytes()).await.expect_problem(400, "invalid-request");
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn an_invalid_status_request_is_refused_with_the_field_named() {
    let shop = Shop::start().await;
    let long = json!({"status": "CANCELLED", "reason": "x".repeat(201)}).to_string();
    let bodies = [
        ("", ""),
        ("[]", ""),
        (r#"["CONFIRMED"]"#, ""),
        ("{}", ""),
        (r#"{"status":"CONFIRMED","status":"CANCELLED"}"#, ""),
        (r#"{"status":null}"#, "/status"),
        (r#"{"status":1}"#, "/status"),
        (r#"{"status":["CONFIRMED"]}"#, "/status"),
        (r#"{"status":""}"#, "/status"),
        (r#"{"status":"PAID"}"#, "/status"),
        (r#"{"status":"confirmed"}"#, "/status"),
        (r#"{"status":"CONFIRMED "}"#, "/status"),
        (r#"{"status":"CONFIRMED'; drop table orders; --"}"#, "/status"),
        (r#"{"status":"CANCELLED","reason":""}"#, "/reason"),
        (r#"{"status":"CANCELLED","reason":7}"#, "/reason"),
        (r#"{"status":"CANCELLED","reason":["x"]}"#, "/reason"),
        (r#"{"status":"CANCELLED","reason":"two\nlines"}"#, "/reason"),
        (r#"{"status":"CANCELLED","reason":"a\u0000b"}"#, "/reason"),
        (r#"{"status":"CANCELLED","reason":"a\u0085b"}"#, "/reason"),
        (&long, "/reason"),
    ];
    for (body, pointer) in bodies {
        let call = shop.call("PUT", &format!("{AN_ORDER}/status")).by(admin()).body(body.to_owned());
        call.send().await.expect_problem(400, "invalid-request").naming(pointer);
    }
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn valid_strings_that_contain_sql_are_stored_as_text() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "1", 5).await;
    let robert = "robert');drop/**/table/**/orders;--@example.com";
    let id = shop.placed(robert, &[(&phone, 1)]).await;
    let reason = "'); drop table orders; --";
    let call = shop.call("PUT", &format!("/api/orders/{id}/status")).by(admin());
    call.json(&json!({"status": "CANCELLED", "reason": reason})).send().await.expect(200);

    let mine = shop.get(customer(robert), "/api/orders/my").await.expect(200);
    assert_eq!(mine.body[0]["orderId"], id);
    let others = shop.get(customer("'or'1'='1'--@example.com"), "/api/orders/my").await.expect(200);
    assert_eq!(others.text, "[]");
    let events = shop.topic.records_of(&id, 2).await;
    assert_eq!(events[1].value()["userEmail"], robert);
    assert_eq!(events[1].value()["metadata"]["reason"], reason);
}
