//! Requests that hyper cannot parse are refused in the same shape as all others.

use crate::support::{Answer, Shop};

#[track_caller]
fn expect_refusal(answer: Answer, status: u16) {
    let answer = answer.expect_problem(status, "invalid-request");
    let id = answer.header("x-request-id").expect("a request id").to_owned();
    assert_eq!(answer.body["instance"], format!("urn:uuid:{id}"));
    assert_eq!(answer.header("connection"), Some("close"));
}

#[tokio::test]
async fn a_head_that_is_no_http_is_a_400_problem() {
    let shop = Shop::start().await;
    let bad: [&[u8]; 10] = [
        b"GET /api/orders/my HTTP/1.1\r\nX-User-Email: ada\x01@example.com\r\n\r\n",
        b"GET /api/orders/my HTTP/1.1\r\nX-User-Email: ada\x00@example.com\r\n\r\n",
        b"GET /api/orders/my HTTP/1.1\r\nX-User-Email: ada@example.com\rX: y\r\n\r\n",
        b"GET /api/orders/my HTTP/1.1\r\nX-User\x7fEmail: ada@example.com\r\n\r\n",
        b"GET /api/orders/my HTTP/1.1\r\nX-User-Email : ada@example.com\r\n\r\n",
        b"GET /api/orders/my HTTP/1.1\r\nno header\r\n\r\n",
        b"GET /api/orders/my\r\n\r\n",
        b"GET /api/orders/my HTTP/3.0\r\n\r\n",
        b"POST /api/orders HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ];
    for request in bad {
        expect_refusal(shop.raw(request).await, 400);
    }
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn a_head_that_is_too_much_is_a_431_or_414_problem() {
    let shop = Shop::start().await;
    let request = "GET /api/orders/my HTTP/1.1";
    let many: Vec<String> = (0..101).map(|number| format!("X-{number}: 1")).collect();
    let many = Shop::head(request, &many.iter().map(String::as_str).collect::<Vec<_>>());
    expect_refusal(shop.raw(many.as_bytes()).await, 431);
    let large = Shop::head(request, &[&format!("X-Large: {}", "x".repeat(1_000_000))]);
    expect_refusal(shop.raw(large.as_bytes()).await, 431);
    let long = Shop::head(&format!("GET /api/orders/{} HTTP/1.1", "x".repeat(70_000)), &[]);
    expect_refusal(shop.raw(long.as_bytes()).await, 414);
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn answers_on_the_same_connection_before_the_refusal_stay_whole() {
    let shop = Shop::start().await;
    let good = "GET /health/live HTTP/1.1\r\nHost: it\r\n\r\n";

    let answers = shop.raw_text(format!("{good}{good}nonsense\r\n\r\n").as_bytes()).await;

    let answers: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).collect();
    let [first, second, refusal] = answers[..] else { panic!("{answers:?}") };
    for answer in [first, second] {
        assert!(answer.starts_with("200 ") && answer.ends_with("\r\n\r\n{\"status\":\"live\"}"), "{answer}");
    }
    assert!(refusal.starts_with("400 ") && refusal.ends_with('}'), "{refusal}");
    assert!(refusal.contains("application/problem+json"), "{refusal}");
}
