//! Slow clients use little memory and do not affect other clients (issue 8, point 10).

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::report::Report;
use super::scale::{is_large, size};
use crate::support::{PATIENCE, Replica, Shop, customer, eventually};

/// The length of an incomplete head, below the limit of the service.
const HALF_A_HEAD: usize = 8 * 1024 - 64;

/// Connects and sends these bytes.
async fn send(shop: &Shop, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(shop.url.strip_prefix("http://").unwrap()).await.unwrap();
    // The service may have closed the connection already, to make room for others.
    let _ = stream.write_all(bytes).await;
    stream
}

/// Connects and sends an incomplete head.
async fn send_half_a_head(shop: &Shop) -> TcpStream {
    send(shop, format!("GET /api/orders/my HTTP/1.1\r\nX-Slow: {}", "x".repeat(HALF_A_HEAD)).as_bytes()).await
}

/// Waits until the service closes the connection; returns everything that it sent.
async fn read_to_the_end(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    // A connection that is closed with unread bytes ends in a reset.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("the end of the connection");
    String::from_utf8(said).unwrap()
}

/// Sends a request on this connection, which stays open; returns the status line of the answer.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: it\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with("{\"status\":\"live\"}") {
        let mut buffer = [0; 512];
        let read = timeout(PATIENCE, stream.read(&mut buffer)).await.expect("an answer").unwrap();
        assert!(read > 0, "closed after {answer:?}");
        answer += std::str::from_utf8(&buffer[..read]).unwrap();
    }
    answer.lines().next().unwrap().to_owned()
}

#[tokio::test]
async fn incomplete_heads_use_little_memory_and_do_not_block_other_clients() {
    let clients = size("SIZE_SLOW_CLIENTS", 300, 4_000);
    // The small world exceeds the connection limit, the large one is just below its default.
    let builder = if is_large() { Shop::builder() } else { Shop::builder().with("MAX_CONNECTIONS", "150") };
    let shop = builder.without_service().await;
    let replica = Replica::start(&shop.environment);
    let shop = shop.through(&replica.url);
    let before = replica.resident_bytes();

    let mut slow = Vec::new();
    for number in 0..clients {
        slow.push(send_half_a_head(&shop).await);
        if number % 10 == 0 {
            // Each probe opens its own connection.
            for path in ["/health/live", "/api/orders/my"] {
                shop.raw(Shop::head(&format!("GET {path} HTTP/1.1"), &[]).as_bytes()).await.expect(200);
            }
        }
    }

    let (mut report, after) = (Report::new(), replica.resident_bytes());
    let open = if is_large() { clients } else { 150 };
    let each = after.saturating_sub(before) / open;
    report.at_most("bytes of memory for a half-sent head", each, 64 * 1024);
    report.at_most(&format!("MB of memory with {clients} half-sent heads"), after >> 20, 120);
    report.finish();
}

#[tokio::test]
async fn slow_bodies_hold_no_permit() {
    let shop = Shop::builder().with("MAX_CONCURRENT_REQUESTS", "2").start().await;
    let head =
        Shop::head("POST /api/orders HTTP/1.1", &["Content-Type: application/json", "Content-Length: 99"]);
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(send(&shop, format!("{head}{{").as_bytes()).await);
        shop.get(customer("bob@example.com"), "/api/orders/my").await.expect(200);
    }
    let refused = read_to_the_end(&mut slow[0]).await;
    assert!(refused.starts_with("HTTP/1.1 408 "), "{refused}");
}

#[tokio::test]
async fn slow_bodies_of_one_customer_fail_no_read_of_another() {
    let (rate, seconds) = (size("SIZE_SLOW_RATE", 50, 300), size("SIZE_SLOW_SECONDS", 2, 10));
    let shop = Shop::builder().start().await;
    let head =
        Shop::head("POST /api/orders HTTP/1.1", &["Content-Type: application/json", "Content-Length: 99"]);
    let slow = format!("{head}{{");
    let slow_clients = async {
        let mut open = Vec::new();
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate).unwrap());
        for _ in 0..rate * seconds {
            ticks.tick().await;
            open.push(send(&shop, slow.as_bytes()).await);
        }
        open.len()
    };
    tokio::pin!(slow_clients);

    let (mut reads, mut refused) = (0, 0);
    let sent = loop {
        let read = async { shop.get(customer("bob@example.com"), "/api/orders/my").await.status };
        tokio::select! {
            biased;
            sent = &mut slow_clients => break sent,
            status = read => {
                reads += 1;
                refused += u64::from(status != 200);
            }
        }
    };

    let mut report = Report::new();
    report.at_least("reads of another customer", reads, seconds);
    report.at_most(&format!("of them refused during {sent} slow bodies, {rate} a second"), refused, 0);
    report.finish();
}

#[tokio::test]
async fn slow_bodies_are_closed_first_at_the_connection_limit() {
    let shop =
        Shop::builder().with("MAX_CONNECTIONS", "4").with("REQUEST_BODY_TIMEOUT_MS", "60000").start().await;
    let head =
        Shop::head("POST /api/orders HTTP/1.1", &["Content-Type: application/json", "Content-Length: 99"]);
    let mut slow = Vec::new();
    for _ in 0..12 {
        slow.push(send(&shop, format!("{head}{{").as_bytes()).await);
        shop.raw(Shop::head("GET /health/live HTTP/1.1", &[]).as_bytes()).await.expect(200);
    }
    assert_eq!(read_to_the_end(&mut slow[0]).await, "", "the oldest is closed");
}

#[tokio::test]
async fn the_deadline_of_a_head_is_separate_from_the_idle_deadline() {
    let shop = Shop::builder().with("REQUEST_HEAD_TIMEOUT_MS", "300").start().await;
    let mut idle = send(&shop, b"").await;
    ask(&mut idle).await;
    let mut silent = send(&shop, b"").await;
    let mut slow = send_half_a_head(&shop).await;
    let mut second = send(&shop, b"").await;
    ask(&mut second).await;
    second.write_all(b"GET /health/live HTTP/1.1\r\n").await.unwrap();

    for late in [&mut silent, &mut slow, &mut second] {
        assert_eq!(read_to_the_end(late).await, "");
    }
    assert_eq!(ask(&mut idle).await, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn an_idle_connection_is_closed_at_its_deadline() {
    let shop = Shop::builder().with("CONNECTION_IDLE_TIMEOUT_MS", "300").start().await;
    let mut idle = send(&shop, b"").await;
    ask(&mut idle).await;
    assert_eq!(read_to_the_end(&mut idle).await, "");
}

#[tokio::test]
async fn the_connection_of_a_client_that_never_reads_is_closed() {
    let shop = Shop::builder().with("RESPONSE_WRITE_TIMEOUT_MS", "300").start().await;
    let stream = send(&shop, b"").await;
    let (_unread, mut write) = stream.into_split();
    let requests = "GET /health/live HTTP/1.1\r\nHost: it\r\n\r\n".repeat(1_000);
    let closed = async || {
        // Answers accumulate until the sockets are full; then the service stops reading and closes the connection.
        let mut write = write.try_write(requests.as_bytes());
        matches!(&mut write, Err(error) if error.kind() != std::io::ErrorKind::WouldBlock)
    };
    eventually("the connection is closed", closed).await;
    let _ = write.shutdown().await;
}
