//! Requests, answers and retries.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket};
use tracing::subscriber::NoSubscriber;

use super::shop::product;
use super::*;

#[tokio::test]
async fn results_are_in_the_order_of_the_ids() {
    let shop = Shop::open(|id, _| match id {
        "SLOW" => Reply::Later(Duration::from_millis(200), 200, product("10.50", 1)),
        "FAST" => Reply::Now(200, product("3", -4)),
        "UNKNOWN" => Reply::Now(404, String::from("no")),
        _ => Reply::Now(410, String::new()),
    })
    .await;
    let found = look_up(&client(patient(&shop)), &ids(&["SLOW", "UNKNOWN", "FAST", "WITHDRAWN"])).await;
    let product = |price, stock| Some(Product { price: Money::parse(price).unwrap(), stock });
    assert_eq!(found.unwrap(), [product("10.50", 1), None, product("3", 0), None]);
}

#[tokio::test]
async fn a_call_without_ids_sends_no_request() {
    let shop = Shop::always(Reply::good()).await;
    assert_eq!(look_up(&client(patient(&shop)), &[]).await.unwrap(), []);
    assert_eq!(shop.calls(), 0);
}

#[tokio::test]
async fn a_look_up_is_a_get_below_the_base_path_with_the_trace() {
    let shop = Shop::always(Reply::good()).await;
    let mut settings = patient(&shop);
    settings.url.set_path("/in/here/");
    let id = ProductId::parse("a.b-c_d:e").unwrap();
    let trace = TraceParent::continue_or_start(None);
    client(settings).look_up(&[&id], &trace).await.unwrap();
    let requests = shop.seen.requests.lock().unwrap();
    let [(uri, headers)] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!(uri, "/in/here/api/products/a.b-c_d:e");
    assert_eq!(headers["traceparent"], trace.to_string());
    assert_eq!(headers["user-agent"], concat!("order-service/", env!("CARGO_PKG_VERSION")));
    assert_eq!(headers["accept"], "application/json");
}

#[tokio::test]
async fn any_other_status_is_a_failure() {
    for status in [201, 204, 304, 400, 401, 403, 429, 500, 501, 502, 503, 504] {
        let shop = Shop::always(Reply::Now(status, product("1", 1))).await;
        let failure = cause(&client(patient(&shop))).await;
        assert!(matches!(failure, Failure::Status(s) if s.as_u16() == status), "{status}: {failure:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let shop = Shop::open(|id, _| if id == "good" { Reply::good() } else { Reply::Redirect("/good") }).await;
    assert!(matches!(cause(&client(patient(&shop))).await, Failure::Status(s) if s.as_u16() == 302));
    assert_eq!(shop.calls(), 1);
}

#[tokio::test]
async fn an_invalid_answer_is_a_failure_and_not_retried() {
    let huge = product(&format!("1{}", " ".repeat(300 * 1024)), 1);
    let bodies = [
        String::new(),
        String::from("<html>"),
        product("\"1\"", 1),
        product("-1", 1),
        String::from(r#"{"price":1}"#),
        String::from(r#"{"id":"OTHER","price":1,"stock":1}"#),
        huge,
    ];
    for body in bodies {
        let shop = Shop::always(Reply::Now(200, body.clone())).await;
        let failure = cause(&client(ProductSettings { retries: 3, ..patient(&shop) })).await;
        let start: String = body.chars().take(50).collect();
        assert!(matches!(failure, Failure::InvalidAnswer(_)), "{start}: {failure:?}");
        assert_eq!(shop.calls(), 1, "{start}");
    }
}

#[tokio::test]
async fn an_endless_body_is_refused_without_buffering() {
    for reply in [Reply::Endless, Reply::Long(1024 * 1024 * 1024)] {
        let shop = Shop::always(reply).await;
        assert!(matches!(cause(&client(patient(&shop))).await, Failure::InvalidAnswer(_)));
        until("the shop stops sending", || shop.seen.now.load(SeqCst) == 0).await;
        // The socket buffers hold more than the 256 KiB that the client reads.
        assert!(shop.seen.chunks.load(SeqCst) * 16 < 64 * 1024, "{:?}", shop.seen.chunks);
    }
}

#[tokio::test]
async fn a_retry_hides_a_transient_failure() {
    for failing in
        [Reply::status(502), Reply::status(503), Reply::status(504), Reply::Never, Reply::Unfinished]
    {
        let shop = Shop::open(move |_, nth| if nth == 0 { failing.clone() } else { Reply::good() }).await;
        let attempt_timeout = Duration::from_secs(1);
        let client = client(ProductSettings { retries: 3, attempt_timeout, ..patient(&shop) });
        assert!(one(&client).await.unwrap().is_some());
        assert_eq!(shop.calls(), 2);
    }
}

#[tokio::test]
async fn a_permanent_failure_is_retried_the_configured_number_of_times() {
    for retries in 0..3 {
        let shop = Shop::always(Reply::status(503)).await;
        let failure = cause(&client(ProductSettings { retries, ..patient(&shop) })).await;
        assert!(matches!(failure, Failure::Status(_)));
        assert_eq!(shop.calls(), 1 + usize::try_from(retries).unwrap());
    }
}

#[tokio::test]
async fn an_empty_budget_ends_retries() {
    let shop = Shop::always(Reply::status(503)).await;
    let client = client(ProductSettings { retries: 3, ..patient(&shop) });
    while client.budget.spend() {}
    assert!(one(&client).await.is_err());
    assert_eq!(shop.calls(), 1);
}

/// A port that refuses connections, reserved while the socket lives.
fn closed_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn a_closed_port_is_a_failure() {
    let shop = Shop::always(Reply::good()).await;
    let (_reserved, unused) = closed_port();
    let url = format!("http://{unused}").parse().unwrap();
    let failure = cause(&client(ProductSettings { url, retries: 2, ..patient(&shop) })).await;
    assert!(matches!(&failure, Failure::Connection(error) if error.is_connect()), "{failure:?}");
}

#[tokio::test]
async fn a_connection_that_closes_without_an_answer_is_retried() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = patient(&Shop::always(Reply::good()).await);
    settings.url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    settings.retries = 2;
    let hang_up = tokio::spawn(async move {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    assert!(matches!(cause(&client(settings)).await, Failure::Connection(_)));
    tokio::time::timeout(GENEROUS, hang_up).await.expect("three connections").unwrap();
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_failed_look_up_is_logged_once_with_its_product_and_its_cause() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // With one subscriber only, tracing disables an event for all threads when a thread without a subscriber
    // meets it first. The other tests are such threads.
    let _second = tracing::Dispatch::new(NoSubscriber::default());
    let _log = tracing::subscriber::set_default(subscriber);
    let (_reserved, unused) = closed_port();
    let mut settings = patient(&Shop::always(Reply::good()).await);
    settings.url = format!("http://user:secret@{unused}").parse().unwrap();
    settings.retries = 1;
    let error = one(&client(settings)).await.unwrap_err();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("WARN").count(), 1, "{text}");
    for word in ["product=PROD123", "elapsed_ms=", "trace_id=", "the connection failed: ", "os error"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    assert!(!text.contains("secret"), "{text}");
    assert_eq!(error.to_string(), "the Product Service is unavailable");
}
