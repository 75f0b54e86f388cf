//! The circuit breaker in the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use futures_util::FutureExt;

use super::*;

/// Opens at the fifth failure in a row.
fn sensitive(shop: &Shop, open: Duration) -> ProductSettings {
    let breaker = BreakerSettings { window: 10, failure_percent: 50, open };
    ProductSettings { breaker, ..patient(shop) }
}

/// Answers with a valid product while the switch is on, and with `bad` while it is off.
async fn switched(bad: Reply) -> (Shop, Arc<AtomicBool>) {
    let switch = Arc::new(AtomicBool::new(false));
    let on = switch.clone();
    let shop = Shop::open(move |_, _| if on.load(SeqCst) { Reply::good() } else { bad.clone() }).await;
    (shop, switch)
}

async fn fail(client: &ProductClient, times: usize) {
    for _ in 0..times {
        assert_eq!(client.state(), BreakerState::Closed);
        assert!(one(client).await.is_err());
    }
}

#[tokio::test]
async fn many_failures_stop_further_requests() {
    let shop = Shop::always(Reply::status(500)).await;
    let client = client(sensitive(&shop, HOUR));
    fail(&client, 5).await;
    assert_eq!(client.state(), BreakerState::Open);
    let refused = look_up(&client, &numbered(20)).await.unwrap_err();
    assert!(matches!(refused.cause, Failure::NotPermitted));
    assert!(refused.retry_after > HOUR / 2 && refused.retry_after <= HOUR, "{refused:?}");
    assert_eq!(shop.calls(), 5);
}

#[tokio::test]
async fn an_open_breaker_ends_retries() {
    let shop = Shop::always(Reply::status(503)).await;
    let client = client(ProductSettings { retries: 100, ..sensitive(&shop, HOUR) });
    assert!(
        matches!(cause(&client).await, Failure::Status(_)),
        "the cause is the failure, not the open breaker"
    );
    assert_eq!(shop.calls(), 5);
}

#[tokio::test]
async fn the_breaker_closes_for_any_number_of_products_when_the_product_service_is_back() {
    let (shop, healthy) = switched(Reply::status(500)).await;
    let client = client(sensitive(&shop, Duration::from_millis(300)));
    fail(&client, 5).await;
    until("half-open", || client.state() == BreakerState::HalfOpen).await;
    healthy.store(true, SeqCst);
    assert_eq!(look_up(&client, &numbered(50)).await.unwrap().len(), 50);
    assert_eq!(client.state(), BreakerState::Closed);
}

#[tokio::test]
async fn the_breaker_opens_again_if_the_product_service_is_still_down() {
    let shop = Shop::always(Reply::status(500)).await;
    let client = client(sensitive(&shop, Duration::from_secs(2)));
    fail(&client, 5).await;
    until("half-open", || client.state() == BreakerState::HalfOpen).await;
    assert!(look_up(&client, &numbered(20)).await.is_err());
    assert_eq!(client.state(), BreakerState::Open);
    assert_eq!(shop.calls(), 6, "one product at a time while the breaker is not closed");
}

#[tokio::test]
async fn unknown_products_count_as_successes() {
    let shop = Shop::open(|_, nth| Reply::status(if nth % 2 == 0 { 404 } else { 410 })).await;
    let client = client(sensitive(&shop, HOUR));
    assert_eq!(look_up(&client, &numbered(40)).await.unwrap(), vec![None; 40]);
    assert_eq!(client.state(), BreakerState::Closed);
}

#[tokio::test]
async fn every_kind_of_failure_of_the_product_service_counts() {
    let page = Reply::Now(200, String::from("<html>maintenance</html>"));
    let cut = Reply::Now(200, String::from(r#"{"price":1"#));
    for bad in [Reply::status(500), Reply::status(302), Reply::status(429), page, cut, Reply::Never] {
        let shop = Shop::always(bad).await;
        let attempt_timeout = Duration::from_millis(50);
        let client = client(ProductSettings { attempt_timeout, ..sensitive(&shop, HOUR) });
        fail(&client, 5).await;
        assert_eq!(client.state(), BreakerState::Open);
    }
}

#[tokio::test]
async fn an_answer_that_is_invalid_for_its_product_is_ignored() {
    let wrong = ["null", "{}", r#"{"price":1.005,"stock":5}"#, r#"{"id":"OTHER","price":1,"stock":5}"#];
    let wrong = wrong.map(|body| Reply::Now(200, body.to_owned()));
    for bad in wrong.into_iter().chain([400, 401, 403, 422].map(Reply::status)) {
        let (shop, healthy) = switched(bad).await;
        let client = client(sensitive(&shop, Duration::from_millis(300)));
        fail(&client, 20).await;
        assert_eq!((client.state(), shop.calls()), (BreakerState::Closed, 20));
        healthy.store(true, SeqCst);
        assert!(one(&client).await.is_ok());
    }
}

#[tokio::test]
async fn a_missed_deadline_is_a_failure_of_every_attempt_in_flight() {
    let shop = Shop::always(Reply::Never).await;
    let deadline = Duration::from_millis(300);
    let client = client(ProductSettings { deadline, ..sensitive(&shop, HOUR) });
    assert!(look_up(&client, &numbered(5)).await.is_err());
    assert_eq!(client.state(), BreakerState::Open);
}

#[tokio::test]
async fn an_attempt_that_is_cancelled_for_another_product_is_ignored() {
    let shop = Shop::open(|id, _| if id == "P0" { Reply::status(500) } else { Reply::Never }).await;
    let client = client(sensitive(&shop, HOUR));
    for _ in 0..4 {
        assert!(look_up(&client, &numbered(10)).await.is_err());
        assert_eq!(client.state(), BreakerState::Closed);
    }
    assert!(look_up(&client, &numbered(10)).await.is_err());
    assert_eq!(client.state(), BreakerState::Open);
}

#[tokio::test]
async fn a_cancelled_probe_releases_its_permit() {
    let (shop, healthy) = switched(Reply::status(500)).await;
    let client = client(sensitive(&shop, Duration::from_millis(100)));
    fail(&client, 5).await;
    until("half-open", || client.state() == BreakerState::HalfOpen).await;
    let id = ProductId::parse("P1").unwrap();
    let trace = TraceParent::continue_or_start(None);
    for _ in 0..10 {
        // Polled once: the attempt is in flight when its placement is dropped.
        assert!(client.look_up(&[&id], &trace).now_or_never().is_none());
        assert_eq!(client.state(), BreakerState::HalfOpen);
    }
    healthy.store(true, SeqCst);
    assert!(one(&client).await.is_ok());
    assert_eq!(client.state(), BreakerState::Closed);
}

#[tokio::test]
async fn a_half_open_breaker_lets_a_few_placements_probe_and_refuses_the_others() {
    let (shop, healthy) = switched(Reply::status(500)).await;
    let client = Arc::new(client(sensitive(&shop, Duration::from_millis(100))));
    fail(&client, 5).await;
    until("half-open", || client.state() == BreakerState::HalfOpen).await;
    healthy.store(true, SeqCst);
    let now = Instant::now();
    let permits: Vec<_> =
        (0..3).map(|_| client.catalogue.breaker.acquire(now, now + HOUR).unwrap()).collect();
    let refused = one(&client).await.unwrap_err();
    assert!(matches!(refused.cause, Failure::NotPermitted));
    assert!(refused.retry_after <= Duration::from_secs(2), "{refused:?}");
    drop(permits);
    assert!(one(&client).await.is_ok());
}
