//! Deadlines and limits on concurrency.

use super::*;

fn elapsed_within(started: Instant, least: Duration) {
    let elapsed = started.elapsed();
    assert!(elapsed >= least && elapsed < GENEROUS, "{elapsed:?}");
}

#[tokio::test]
async fn a_missing_or_endless_answer_times_out_at_the_deadline() {
    for reply in [Reply::Never, Reply::Unfinished] {
        let shop = Shop::always(reply).await;
        let deadline = Duration::from_millis(300);
        let client = client(ProductSettings { deadline, retries: 9, ..patient(&shop) });
        let started = Instant::now();
        assert!(matches!(cause(&client).await, Failure::TimedOut { .. }));
        elapsed_within(started, deadline);
        assert_eq!(shop.calls(), 1);
    }
}

#[tokio::test]
async fn retries_do_not_outlast_the_deadline() {
    let shop = Shop::always(Reply::status(503)).await;
    let deadline = Duration::from_millis(300);
    let client = client(ProductSettings { deadline, retries: u32::MAX, ..patient(&shop) });
    let started = Instant::now();
    assert!(matches!(cause(&client).await, Failure::Status(_) | Failure::TimedOut { .. }));
    elapsed_within(started, Duration::ZERO);
    assert!((2..=15).contains(&shop.calls()), "{} calls", shop.calls());
}

#[tokio::test]
async fn one_slow_product_among_many_ends_at_the_shared_deadline() {
    let shop = Shop::open(|id, _| if id == "P7" { Reply::Never } else { Reply::good() }).await;
    let deadline = Duration::from_millis(500);
    let client = client(ProductSettings { deadline, concurrency: 4, ..patient(&shop) });
    let started = Instant::now();
    let error = look_up(&client, &numbered(30)).await.unwrap_err();
    assert!(matches!(error.cause, Failure::TimedOut { .. }));
    elapsed_within(started, deadline);
}

#[tokio::test]
async fn a_hundred_products_share_one_deadline() {
    let slow = Reply::Later(Duration::from_millis(100), 200, shop::product("1", 1));
    let shop = Shop::always(slow).await;
    let deadline = Duration::from_millis(350);
    let client = client(ProductSettings { deadline, concurrency: 2, ..patient(&shop) });
    let started = Instant::now();
    assert!(look_up(&client, &numbered(100)).await.is_err());
    elapsed_within(started, deadline);
    assert!(shop.calls() <= 8, "{} calls", shop.calls());
}

#[tokio::test]
async fn the_first_failed_look_up_ends_the_call() {
    let shop = Shop::open(|id, _| if id == "P3" { Reply::status(500) } else { Reply::Never }).await;
    let client = client(patient(&shop));
    let error = look_up(&client, &numbered(8)).await.unwrap_err();
    assert!(matches!(error.cause, Failure::Status(_)));
    assert!(error.retry_after >= Duration::from_secs(1) && error.retry_after <= Duration::from_secs(2));
}

#[tokio::test]
async fn one_placement_never_exceeds_its_concurrency() {
    let slow = Reply::Later(Duration::from_millis(30), 200, shop::product("1", 1));
    let shop = Shop::always(slow).await;
    let client = client(ProductSettings { concurrency: 4, ..patient(&shop) });
    assert_eq!(look_up(&client, &numbered(30)).await.unwrap().len(), 30);
    assert_eq!(shop.calls(), 30);
    assert!((2..=4).contains(&shop.most_at_once()), "{}", shop.most_at_once());
}

#[tokio::test]
async fn all_placements_never_exceed_the_maximum_in_flight() {
    let slow = Reply::Later(Duration::from_millis(30), 200, shop::product("1", 1));
    let shop = Shop::always(slow).await;
    let settings = ProductSettings { concurrency: 4, max_in_flight: 5, ..patient(&shop) };
    let client = std::sync::Arc::new(client(settings));
    // Each of different products, because placements of the same products share look-ups.
    let products = numbered(30);
    let placements: Vec<_> = products
        .chunks(5)
        .map(|ids| {
            let (client, ids) = (client.clone(), ids.to_vec());
            // Spawned like a placement, so the future must be Send.
            tokio::spawn(async move { look_up(&client, &ids).await })
        })
        .collect();
    for placement in placements {
        assert_eq!(placement.await.unwrap().unwrap().len(), 5);
    }
    assert_eq!(shop.calls(), 30);
    assert!((2..=5).contains(&shop.most_at_once()), "{}", shop.most_at_once());
    assert_eq!(client.catalogue.in_flight.available_permits(), 5);
}

#[tokio::test]
async fn waiting_for_a_permit_uses_up_the_deadline_but_is_no_failure() {
    let shop = Shop::always(Reply::good()).await;
    let deadline = Duration::from_millis(200);
    let breaker = BreakerSettings { window: 1, failure_percent: 1, open: HOUR };
    let settings = ProductSettings { deadline, max_in_flight: 1, breaker, ..patient(&shop) };
    let client = client(settings);
    let permit = client.catalogue.in_flight.acquire().await.unwrap();
    let started = Instant::now();
    assert!(matches!(cause(&client).await, Failure::Overloaded));
    elapsed_within(started, deadline);
    assert_eq!((shop.calls(), client.state()), (0, BreakerState::Closed));
    drop(permit);
    assert!(one(&client).await.is_ok());
}
