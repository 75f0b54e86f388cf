//! Cancellation by the owner before payment, cancellation of unpaid orders, and the effects of both.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Answer, Call, Payment, Shop, admin, customer, eventually};

fn cancel(shop: &Shop, id: &str, email: &str) -> Call {
    shop.call("POST", &format!("/api/orders/{id}/cancel")).by(customer(email))
}

async fn history_of(shop: &Shop, id: &str) -> Vec<serde_json::Value> {
    let shown = shop.get(admin(), &format!("/api/orders/{id}/history")).await.expect(200);
    shown.body.as_array().unwrap().clone()
}

#[tokio::test]
async fn an_owner_can_cancel_a_created_order_once() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;

    let answers: Vec<Answer> = join_all((0..4).map(|_| cancel(&shop, &id, "ada@example.com").send())).await;

    for answer in answers {
        let answer = answer.expect(200);
        assert_eq!((&answer.body["status"], answer.header("etag")), (&json!("CANCELLED"), Some("\"2\"")));
    }
    shop.relayed().await;
    let events = shop.topic.everything().await;
    assert_eq!(events.len(), 2);
    let event = events.iter().find(|record| record.sequence() == 2).unwrap().value();
    assert_eq!(event["eventType"], "ORDER_STATUS_UPDATED");
    assert_eq!(event["metadata"]["previousStatus"], "CREATED");
    assert_eq!(event["metadata"]["reason"], "CUSTOMER_REQUEST");
    assert_eq!(event["metadata"].get("refundDue"), None);
    assert_eq!(shop.calls_seen(&phone).await, 1, "only the look-up of its placement");
}

#[tokio::test]
async fn an_empty_body_of_any_type_counts_as_no_body_and_an_array_is_refused() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;

    for array in ["[]", r#"["no reason"]"#] {
        let refused = cancel(&shop, &id, "ada@example.com").body(array).send().await;
        refused.expect_problem(400, "invalid-request");
    }
    assert_eq!(shop.status(&id).await, "CREATED");
    cancel(&shop, &id, "ada@example.com").body("").send().await.expect(200);
}

#[tokio::test]
async fn a_custom_reason_is_stored() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;

    cancel(&shop, &id, "ada@example.com").json(&json!({"reason": "ordered twice"})).send().await.expect(200);

    assert_eq!(history_of(&shop, &id).await[1]["reason"], "ordered twice");
    let event = shop.topic.records_of(&id, 2).await.remove(1).value();
    assert_eq!(event["metadata"]["reason"], "ordered twice");
}

#[tokio::test]
async fn only_the_owner_can_cancel_and_only_before_the_order_is_confirmed() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;

    cancel(&shop, &id, "bob@example.com").send().await.expect_problem(403, "forbidden");
    let unknown = cancel(&shop, "0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10", "ada@example.com");
    unknown.send().await.expect_problem(404, "order-not-found");
    shop.set_status(&id, "CONFIRMED").await.expect(200);
    cancel(&shop, &id, "ada@example.com").send().await.expect_problem(409, "invalid-transition");

    assert_eq!(shop.status(&id).await, "CONFIRMED");
    assert_eq!((shop.stock(&phone).await, shop.count("order_history").await), (3, 2));
}

#[tokio::test]
async fn a_cancellation_may_be_conditional_on_a_version() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;

    let stale = cancel(&shop, &id, "ada@example.com").header("If-Match", "\"2\"").send().await;
    stale.expect_problem(412, "precondition-failed");
    assert_eq!(shop.status(&id).await, "CREATED");
    cancel(&shop, &id, "ada@example.com").header("If-Match", "\"1\"").send().await.expect(200);
}

#[tokio::test]
async fn cancelling_a_paid_order_makes_a_refund_due() {
    let shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let phone = shop.product("phone", "100", 5).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    shop.pay(&Payment::success(&id, "200")).await;
    shop.becomes(&id, "CONFIRMED").await;

    let path = format!("/api/orders/{id}/status");
    let body = json!({"status": "CANCELLED", "reason": "DAMAGED"});
    shop.call("PUT", &path).by(admin()).json(&body).send().await.expect(200);

    assert_eq!(shop.refunds(&id).await, [("200".to_owned(), "DAMAGED".to_owned())]);
    let event = shop.topic.records_of(&id, 3).await.remove(2).value();
    assert_eq!(event["metadata"]["refundDue"], json!(200));
    shop.no_stock_work().await;
    assert_eq!(shop.stock(&phone).await, 5);
}

#[tokio::test]
async fn unpaid_orders_are_cancelled_unless_a_payment_is_pending_or_parked() {
    // A group that has lost a member waits for its session timeout.
    let session = ("KAFKA_SESSION_TIMEOUT_MS", "6000");
    let builder = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true");
    let shop = builder.with(session.0, session.1).start().await;
    let (phone, case) = (shop.product("phone", "100", 5).await, shop.product("case", "10", 5).await);
    shop.fault(&phone, &json!({"kind": "status", "status": 500, "on": "reduce-stock"})).await;
    let paid = shop.placed("ada@example.com", &[(&phone, 1)]).await;
    shop.pay(&Payment::success(&paid, "100")).await;
    eventually("the payment is stored", async || shop.count("payments").await == 1).await;
    let paid_too_little = shop.placed("eve@example.com", &[(&case, 2)]).await;
    shop.read(&paid_too_little, &[Payment::success(&paid_too_little, "1")]).await;
    let unpaid = shop.placed("bob@example.com", &[(&case, 1)]).await;

    let sweeper = [("UNPAID_ORDER_TTL", "1"), ("HOUSEKEEPING_INTERVAL_MS", "20")];
    let _replica = shop.replica(&sweeper).await;

    // The youngest order is cancelled, so the older ones were past their deadline, too.
    shop.becomes(&unpaid, "CANCELLED").await;
    for older in [&paid, &paid_too_little] {
        assert_eq!(shop.status(older).await, "CREATED");
    }
    shop.heal(&phone).await;
    shop.becomes(&paid, "CONFIRMED").await;

    let event = shop.topic.records_of(&unpaid, 2).await.remove(1).value();
    assert_eq!(event["metadata"]["reason"], "PAYMENT_TIMEOUT");
    let last = history_of(&shop, &unpaid).await.remove(1);
    assert_eq!((&last["actorRole"], &last["actorId"]), (&json!("SYSTEM"), &json!("ORDER_SERVICE")));
    assert_eq!(shop.refunds(&unpaid).await, []);
}
