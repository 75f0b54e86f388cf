//! Payments change orders: repeated, late, shuffled and foreign events have the results of the contract.

use serde_json::json;

use crate::support::{Movement, Payment, Shop, customer, eventually};

async fn shop_with_order() -> (Shop, String, String) {
    let shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    (shop, phone, id)
}

async fn cancel(shop: &Shop, id: &str) {
    let path = format!("/api/orders/{id}/cancel");
    shop.call("POST", &path).by(customer("ada@example.com")).send().await.expect(200);
}

#[tokio::test]
async fn a_payment_confirms_its_order_and_takes_the_stock() {
    let (shop, phone, id) = shop_with_order().await;

    shop.pay(&Payment::success(&id, "200.00")).await;

    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.stock(&phone).await, 3);
    let path = format!("/api/orders/{id}/history");
    let history = shop.get(customer("ada@example.com"), &path).await.expect(200);
    assert_eq!(history.body[1]["actorRole"], "PAYMENT");
}

#[tokio::test]
async fn a_payment_for_missing_stock_cancels_the_order_and_makes_a_refund_due() {
    let (shop, phone, id) = shop_with_order().await;
    shop.set_stock(&phone, 1).await;

    shop.pay(&Payment::success(&id, "200")).await;

    let cancelled = shop.topic.records_of(&id, 2).await.remove(1).value();
    assert_eq!(cancelled["metadata"]["status"], "CANCELLED");
    assert_eq!(cancelled["metadata"]["reason"], "OUT_OF_STOCK");
    assert_eq!(cancelled["metadata"]["refundDue"], json!(200));
    assert_eq!(shop.refunds(&id).await, [("200".to_owned(), "OUT_OF_STOCK".to_owned())]);
    assert_eq!(shop.stock(&phone).await, 1);
}

#[tokio::test]
async fn a_failed_payment_cancels_the_order() {
    let (shop, phone, id) = shop_with_order().await;

    shop.read(&id, &[Payment::failed(&id)]).await;

    let cancelled = shop.topic.records_of(&id, 2).await.remove(1).value();
    assert_eq!(cancelled["metadata"]["status"], "CANCELLED");
    assert_eq!(cancelled["metadata"]["reason"], "PAYMENT_FAILED");
    assert_eq!(cancelled["metadata"].get("refundDue"), None);
    assert_eq!((shop.refunds(&id).await, shop.ledger(&phone).await), (vec![], vec![]));
}

#[tokio::test]
async fn a_repeated_payment_changes_nothing() {
    let (shop, phone, id) = shop_with_order().await;
    let payment = Payment::success(&id, "200");

    shop.read(&id, &[payment.clone(), payment.clone()]).await;
    shop.becomes(&id, "CONFIRMED").await;
    shop.read(&id, std::slice::from_ref(&payment)).await;

    assert!(shop.parked(payment.record.to_string().as_bytes()).await.is_empty());
    assert_eq!(shop.ledger(&phone).await, [Movement::new(-2, &id, 1, "take", 1)]);
    assert_eq!((shop.count("payments").await, shop.count("order_history").await), (1, 2));
    shop.relayed().await;
    assert_eq!(shop.topic.everything().await.len(), 2);
}

#[tokio::test]
async fn a_second_payment_of_a_paid_order_is_parked_and_changes_nothing() {
    let (shop, phone, id) = shop_with_order().await;
    let again = Payment::success(&id, "200");

    shop.read(&id, &[Payment::success(&id, "200"), again.clone()]).await;

    shop.becomes(&id, "CONFIRMED").await;
    let parked = shop.parked(again.record.to_string().as_bytes()).await;
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].3, "200 was paid and the order was paid before");
    assert_eq!((shop.count("payments").await, shop.stock(&phone).await), (1, 3));
}

#[tokio::test]
async fn a_second_payment_within_the_same_second_is_kept() {
    let (shop, _, id) = shop_with_order().await;
    let payments = ["PAY-AAA", "PAY-BBB"].map(|entity| {
        let mut payment = Payment::success(&id, "200");
        payment.record["entityId"] = json!(entity);
        payment.record["metadata"] = json!({"orderId": id});
        payment
    });

    shop.read(&id, &payments).await;

    shop.becomes(&id, "CONFIRMED").await;
    let parked = shop.parked(payments[1].record.to_string().as_bytes()).await;
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].3, "200 was paid and the order was paid before");
    assert_eq!((shop.count("payments").await, shop.count("payment_events").await), (1, 2));
}

#[tokio::test]
async fn a_repeat_with_different_bytes_is_parked() {
    let (shop, _, id) = shop_with_order().await;
    let mut first = Payment::success(&id, "200");
    let mut other = first.clone();
    other.record["metadata"]["paymentMode"] = json!("CARD");
    shop.read(&id, &[first.clone(), other.clone(), first.clone()]).await;
    shop.becomes(&id, "CONFIRMED").await;
    first.record["metadata"] = json!({});
    other.record["metadata"] = json!({"paymentMode": "CARD"});

    shop.read(&id, &[first.clone(), other.clone(), first.clone(), other.clone()]).await;

    let with_id = shop.count("parked_payments where error like 'its key is that of the event at %'").await;
    assert_eq!(with_id, 3);
    let parked = shop.parked(other.record.to_string().as_bytes()).await;
    assert_eq!(parked.len(), 2);
    assert!(parked[0].3.starts_with(&format!("its key is that of the event at {}/", shop.payments.name)));
}

/// Up to 2026-11 a key had the order id instead of the entity id, and the service did not store a hash of the bytes.
#[tokio::test]
async fn a_repeat_of_an_event_applied_by_an_earlier_release_is_recognised() {
    let (shop, phone, id) = shop_with_order().await;
    let (with_id, mut with_time) = (Payment::success(&id, "200"), Payment::success(&id, "200"));
    with_time.record["entityId"] = json!("PAY-AAA");
    with_time.record["metadata"] = json!({"orderId": id});
    shop.read(&id, std::slice::from_ref(&with_id)).await;
    shop.becomes(&id, "CONFIRMED").await;
    let other = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    sqlx::raw_sql("update payment_events set payload_sha256 = null").execute(&shop.database).await.unwrap();
    sqlx::query(
        "insert into payment_events (event_key, order_id, event_type, outcome, topic, partition, \"offset\")
         values ('PAYMENT_SUCCESS:' || $1 || ':at:2026-01-21T12:30:00', $1::uuid, 'PAYMENT_SUCCESS', 'CONFIRMING',
                 'elsewhere', 0, 0)",
    )
    .bind(&other)
    .execute(&shop.database)
    .await
    .unwrap();
    with_time.record["metadata"] = json!({"orderId": other});
    let mut of_order = Payment::success(&other, "100");
    of_order.record["metadata"] = json!({});

    shop.read(&id, &[with_id, of_order, with_time.clone()]).await;

    assert_eq!((shop.status(&other).await, shop.count("payments").await), ("CREATED".to_owned(), 1));
    let parked = shop.parked(with_time.record.to_string().as_bytes()).await;
    assert_eq!(parked[0].3, "its key is that of the event at elsewhere/0/0, which may have been another");
    assert_eq!(shop.count("parked_payments").await, 3, "two changed repeats, one unverifiable");
}

#[tokio::test]
async fn a_failed_payment_after_a_successful_one_is_ignored() {
    let (shop, phone, id) = shop_with_order().await;

    shop.read(&id, &[Payment::success(&id, "200"), Payment::failed(&id)]).await;

    shop.becomes(&id, "CONFIRMED").await;
    shop.no_stock_work().await;
    assert_eq!((shop.stock(&phone).await, shop.refunds(&id).await), (3, vec![]));
}

#[tokio::test]
async fn a_payment_after_the_cancellation_makes_a_refund_due_and_the_order_stays_cancelled() {
    let (shop, phone, id) = shop_with_order().await;
    cancel(&shop, &id).await;

    shop.read(&id, &[Payment::success(&id, "150"), Payment::success(&id, "150")]).await;

    assert_eq!(shop.status(&id).await, "CANCELLED");
    assert_eq!(shop.refunds(&id).await, [("150".to_owned(), "PAID_AFTER_CANCELLED".to_owned())]);
    shop.relayed().await;
    assert_eq!((shop.topic.everything().await.len(), shop.ledger(&phone).await), (2, vec![]));
}

#[tokio::test]
async fn a_wrong_amount_is_parked_with_the_reason_and_the_right_one_still_confirms() {
    let (shop, _, id) = shop_with_order().await;
    let less = Payment::success(&id, "199.99");

    shop.read(&id, std::slice::from_ref(&less)).await;

    let parked = shop.parked(less.record.to_string().as_bytes()).await;
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].3, "199.99 was paid and the order costs 200");
    assert_eq!(shop.status(&id).await, "CREATED");
    assert_eq!(shop.count("payments").await, 0);
    shop.read(&id, &[less.clone(), Payment::success(&id, "200")]).await;
    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.parked(less.record.to_string().as_bytes()).await.len(), 1);
}

#[tokio::test]
async fn the_order_id_of_the_metadata_overrides_the_entity() {
    let (shop, phone, id) = shop_with_order().await;
    let other = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    let mut payment = Payment::success(&other, "200");
    payment.record["metadata"]["orderId"] = json!(id);

    shop.read(&id, &[payment]).await;

    shop.becomes(&id, "CONFIRMED").await;
    assert_eq!(shop.status(&other).await, "CREATED");
}

#[tokio::test]
async fn events_that_are_not_order_payments_change_nothing() {
    let (shop, phone, id) = shop_with_order().await;
    let foreign = |field: &str, value: &str| {
        let mut payment = Payment::success(&id, "200");
        payment.record[field] = json!(value);
        payment
    };

    let events = [
        foreign("eventType", "PAYMENT_CREATED"),
        foreign("eventType", "PAYMENT_REFUNDED"),
        foreign("service", "AUTH_SERVICE"),
    ];
    shop.read(&id, &events).await;

    assert_eq!(shop.status(&id).await, "CREATED");
    assert_eq!((shop.count("payment_events").await, shop.count("parked_payments").await), (0, 1));
    assert_eq!(shop.ledger(&phone).await, []);
}

#[tokio::test]
async fn invalid_payments_are_parked_with_their_offset_and_the_consumer_continues() {
    let (shop, _, id) = shop_with_order().await;
    let missing = "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10";
    let (mut text, unknown) = (Payment::success(&id, "200"), Payment::success(missing, "200"));
    text.record["amount"] = json!("200");
    let bad: [(Vec<u8>, &str); 5] = [
        (b"{".to_vec(), "EOF"),
        (b"\xff\xfe\x00".to_vec(), "expected value"),
        (Vec::new(), "EOF"),
        (text.record.to_string().into_bytes(), "amount is not a number"),
        (unknown.record.to_string().into_bytes(), "there is no such order"),
    ];
    let records: Vec<_> = bad.iter().map(|(payload, _)| (id.clone(), payload.clone())).collect();
    shop.payments.publish_all(&records).await;
    shop.read(&id, &[Payment::success(&id, "200")]).await;

    shop.becomes(&id, "CONFIRMED").await;
    for (offset, (payload, why)) in (0..).zip(&bad) {
        let parked = shop.parked(payload).await;
        let (topic, _, at, error) = parked.first().unwrap_or_else(|| panic!("not parked: {why}"));
        assert_eq!((topic, *at, parked.len()), (&shop.payments.name, offset, 1));
        assert!(error.contains(why), "{error}");
    }
    let partitions: i64 = sqlx::query_scalar("select count(distinct partition) from parked_payments")
        .fetch_one(&shop.database)
        .await
        .unwrap();
    assert_eq!(partitions, 1);
}

#[tokio::test]
async fn an_event_id_that_cannot_be_stored_does_not_stop_the_consumer() {
    let (shop, phone, id) = shop_with_order().await;
    let other = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    let (mut with_nul, mut long) = (Payment::success(&id, "200"), Payment::success(&other, "100"));
    with_nul.record["metadata"]["eventId"] = json!("a\u{0}b");
    let noise: String = (0..400).map(|_| uuid::Uuid::new_v4().to_string()).collect();
    long.record["metadata"]["eventId"] = json!(noise);

    shop.read(&id, &[with_nul, long]).await;

    for order in [&id, &other] {
        shop.becomes(order, "CONFIRMED").await;
    }
    eventually("both payments are stored", async || shop.count("payment_events").await == 2).await;
}
