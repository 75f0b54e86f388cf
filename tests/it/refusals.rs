//! Malformed HTTP gets a bare status and changes nothing.

use crate::support::Shop;

#[tokio::test]
async fn malformed_http_gets_a_bare_400() {
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
        let refused = shop.raw(request).await.expect(400);
        assert_eq!((refused.text.as_str(), refused.header("connection")), ("", Some("close")));
    }
    shop.expect_nothing_happened().await;
}

#[tokio::test]
async fn an_oversized_head_gets_a_bare_431() {
    let shop = Shop::start().await;
    let request = "GET /api/orders/my HTTP/1.1";
    let many: Vec<String> = (0..101).map(|number| format!("X-{number}: 1")).collect();
    let many = Shop::head(request, &many.iter().map(String::as_str).collect::<Vec<_>>());
    // A head without an end, as large as the service reads.
    let large = format!("{request}\r\nX-Large: {}", "x".repeat(8 * 1024))[..8 * 1024].to_owned();
    for head in [many, large] {
        let refused = shop.raw(head.as_bytes()).await.expect(431);
        assert_eq!((refused.text.as_str(), refused.header("connection")), ("", Some("close")));
    }
    shop.expect_nothing_happened().await;
}
