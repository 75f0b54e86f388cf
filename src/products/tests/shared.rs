//! Shared look-ups over HTTP. The rules of sharing are tested in `singleflight/tests.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::task::JoinHandle;

use super::*;

type Found = Result<Option<Product>, Unavailable>;

fn asked(client: &Arc<ProductClient>) -> JoinHandle<Found> {
    let client = Arc::clone(client);
    tokio::spawn(async move { one(&client).await })
}

fn price(found: &Found) -> String {
    found.as_ref().unwrap().unwrap().price.to_string()
}

/// Answers the first call late with the old price, and all others at once with the new price.
async fn repriced(first_takes: Duration) -> (Shop, Arc<ProductClient>) {
    let shop = Shop::open(move |_, nth| match nth {
        0 => Reply::Later(first_takes, 200, shop::product("1", 1)),
        _ => Reply::Now(200, shop::product("2", 1)),
    })
    .await;
    let client = Arc::new(client(patient(&shop)));
    (shop, client)
}

#[tokio::test]
async fn no_order_is_priced_by_an_answer_older_than_its_request() {
    let (shop, client) = repriced(Duration::from_millis(300)).await;
    let first = asked(&client);
    until("the first look-up is in flight", || shop.calls() == 1).await;
    let later: Vec<_> = (0..64).map(|_| asked(&client)).collect();
    for placement in later {
        assert_eq!(price(&placement.await.unwrap()), "2");
    }
    assert_eq!(price(&first.await.unwrap()), "1");
    assert!(shop.calls() < 64, "{} calls for 65 placements", shop.calls());
}

#[tokio::test]
async fn a_hanging_look_up_does_not_block_later_orders_of_its_product() {
    let (shop, client) = repriced(HOUR).await;
    let first = asked(&client);
    until("the first look-up is in flight", || shop.calls() == 1).await;
    assert_eq!(price(&one(&client).await), "2");
    assert!(!first.is_finished());
    first.abort();
}

#[tokio::test]
async fn a_caller_that_times_out_does_not_cancel_a_shared_look_up() {
    let shop = Shop::always(Reply::good()).await;
    let deadline = Duration::from_secs(2);
    let client = Arc::new(client(ProductSettings { deadline, max_in_flight: 1, ..patient(&shop) }));
    let permit = client.catalogue.in_flight.acquire().await.unwrap();
    let first = asked(&client);
    sleep(deadline / 2).await;
    let second = asked(&client);
    assert!(matches!(first.await.unwrap().unwrap_err().cause, Failure::Overloaded));
    drop(permit);
    assert!(second.await.unwrap().is_ok());
    assert_eq!(shop.calls(), 1);
}

#[tokio::test]
async fn a_look_up_without_callers_is_cancelled() {
    let shop = Shop::always(Reply::Never).await;
    let client = Arc::new(client(patient(&shop)));
    let callers = [asked(&client), asked(&client)];
    until("a look-up is in flight", || shop.seen.now.load(SeqCst) > 0).await;
    for caller in callers {
        caller.abort();
    }
    until("no look-up is in flight", || shop.seen.now.load(SeqCst) == 0).await;
    assert_eq!(client.catalogue.in_flight.available_permits(), 256);
}

#[tokio::test]
async fn a_failure_is_shared_and_each_caller_retries() {
    let failures = Arc::new(AtomicUsize::new(0));
    let failed = Arc::clone(&failures);
    let shop = Shop::open(move |_, nth| {
        if nth > 1 {
            return Reply::good();
        }
        failed.fetch_add(1, SeqCst);
        Reply::Later(Duration::from_millis(50), 503, String::new())
    })
    .await;
    let client = Arc::new(client(ProductSettings { retries: 3, ..patient(&shop) }));
    let callers: Vec<_> = (0..20).map(|_| asked(&client)).collect();
    for caller in callers {
        assert!(caller.await.unwrap().is_ok());
    }
    assert_eq!(failures.load(SeqCst), 2);
}
