//! Operators deal with parked payments and refunds by commands, and each change is recorded.

use serde_json::json;
use uuid::Uuid;

use crate::support::{Payment, Shop, customer};

const ADA: &str = "ada@example.com";

async fn paying_shop() -> Shop {
    Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await
}

/// A record that was parked as invalid and is valid now.
async fn plant_unread(shop: &Shop, payment: &Payment) -> String {
    let plant = "
        insert into parked_payments (topic, partition, \"offset\", order_id, payload, reason, error)
        values ('payment-events', 0, 7, $1::uuid, $2, 'UNDECODABLE', 'amount is not a number')";
    let payload = payment.record.to_string().into_bytes();
    sqlx::query(plant).bind(&payment.order).bind(payload).execute(&shop.database).await.unwrap();
    "payment-events/0/7".to_owned()
}

#[tokio::test]
async fn retrying_a_parked_payment_that_is_now_valid_confirms_its_order() {
    let shop = paying_shop().await;
    let phone = shop.product("phone", "100", 5).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    let record = plant_unread(&shop, &Payment::success(&order, "100")).await;
    let listed = shop.operate(&["payments", "list"]).await.text(0);
    assert!(
        listed.contains(&record) && listed.contains(&order) && listed.contains("UNDECODABLE"),
        "{listed}"
    );
    assert!(!listed.contains('@'), "{listed}");

    let retried = shop.operate(&["payments", "retry", &record, "--by", "bob", "--json"]).await.json(0);

    let expected = json!({"record": record, "orderId": order, "outcome": "CONFIRMING", "settled": true});
    assert_eq!(retried, expected);
    shop.becomes(&order, "CONFIRMED").await;
    assert_eq!(shop.stock(&phone).await, 4);
    let detail = format!("{record}: CONFIRMING");
    assert_eq!(shop.interventions().await, [("PAYMENT_RETRY".into(), detail, "bob".into())]);
    assert_eq!(shop.operate(&["payments", "list", "--json"]).await.json(0), json!([]));
    // A second retry applies nothing twice.
    let again = shop.operate(&["payments", "retry", &record, "--by", "bob"]).await.error(1);
    assert!(again.contains(&record), "{again}");
    assert_eq!((shop.interventions().await.len(), shop.count("payments").await), (1, 1));
}

#[tokio::test]
async fn a_retried_payment_of_another_amount_is_parked_for_that_reason() {
    let shop = paying_shop().await;
    let phone = shop.product("phone", "100", 5).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    let record = plant_unread(&shop, &Payment::success(&order, "99")).await;

    let said = shop.operate(&["payments", "retry", &record, "--by", "bob"]).await.error(1);

    assert!(said.contains("AMOUNT_MISMATCH"), "{said}");
    assert_eq!(shop.status(&order).await, "CREATED");
    let listed = shop.operate(&["payments", "list", "--json"]).await.json(0);
    assert_eq!(listed[0]["reason"], "AMOUNT_MISMATCH");
    assert_eq!(listed[0]["error"], "99 was paid and the order costs 100");
    let detail = format!("{record}: AMOUNT_MISMATCH");
    assert_eq!(shop.interventions().await, [("PAYMENT_RETRY".into(), detail, "bob".into())]);
}

#[tokio::test]
async fn a_parked_payment_is_settled_once_with_a_note_and_cannot_be_retried_afterwards() {
    let shop = paying_shop().await;
    let phone = shop.product("phone", "100", 5).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    shop.read(&order, &[Payment::success(&order, "99")]).await;
    let listed = shop.operate(&["payments", "list", "--json", "--payload"]).await.json(0);
    let parked = listed.as_array().unwrap().iter().find(|row| row["orderId"] == *order).unwrap();
    assert_eq!(parked["reason"], "AMOUNT_MISMATCH");
    assert!(parked["payload"].as_str().unwrap().contains("PAYMENT_SUCCESS"));
    // A record that is not a payment has no order.
    let foreign = listed.as_array().unwrap().iter().find(|row| row["orderId"].is_null()).unwrap();
    assert_eq!(foreign["reason"], "UNDECODABLE");
    let (record, foreign) = (parked["record"].as_str().unwrap(), foreign["record"].as_str().unwrap());

    for (record, why) in [(record, "an earlier decision exists"), (foreign, "expected")] {
        let said = shop.operate(&["payments", "retry", record, "--by", "bob"]).await.error(1);
        assert!(said.contains(record) && said.contains(why), "{said}");
    }
    assert_eq!(shop.interventions().await, []);
    for record in [record, foreign] {
        let settle = ["payments", "settle", record, "--by", "bob", "--note", "paid back, ticket 77"];
        shop.operate(&settle).await.text(0);
        assert!(shop.operate(&settle).await.error(1).contains(record));
    }

    assert_eq!(shop.operate(&["payments", "list"]).await.text(0), "No payment waits for an operator.\n");
    let detail = |record| format!("{record}: paid back, ticket 77");
    let settled = |record| ("PAYMENT_SETTLE".into(), detail(record), "bob".into());
    assert_eq!(shop.interventions().await, [settled(record), settled(foreign)]);
    assert_eq!(shop.status(&order).await, "CREATED");
}

#[tokio::test]
async fn a_settled_payment_blocks_neither_cancellation_nor_deletion_of_its_order() {
    let mut shop = Shop::start().await;
    let phone = shop.product("phone", "100", 5).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    let record = plant_unread(&shop, &Payment::success(&order, "99")).await;
    shop.operate(&["payments", "settle", &record, "--by", "bob", "--note", "a test"]).await.text(0);
    shop.set_status(&order, "CANCELLED").await.expect(200);
    let refund = "insert into refunds_due (order_id, amount, reason) values ($1::uuid, 100, 'a test')";
    sqlx::query(refund).bind(&order).execute(&shop.database).await.unwrap();
    shop.operate(&["refunds", "done", &order, "--by", "bob", "--note", "a test"]).await.text(0);
    shop.relayed().await;
    let age = "update orders set placed_at = placed_at - interval '40 days', changed_at = changed_at - interval '40 days'";
    sqlx::query(age).execute(&shop.database).await.unwrap();

    shop.stop_service().await;
    shop.environment =
        shop.environment.clone().with("ORDER_RETENTION", "30d").with("HOUSEKEEPING_INTERVAL_MS", "50");
    shop.start_service().await;

    for table in ["orders", "parked_payments", "refunds_due"] {
        crate::support::eventually(table, async || shop.count(table).await == 0).await;
    }
    assert_eq!(shop.count("interventions").await, 2);
    shop.stop_service().await;
}

#[tokio::test]
async fn a_due_refund_is_listed_until_it_is_marked_as_done() {
    let shop = paying_shop().await;
    let phone = shop.product("phone", "249.90", 5).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    shop.pay(&Payment::success(&order, "249.90")).await;
    shop.becomes(&order, "CONFIRMED").await;
    shop.set_status(&order, "CANCELLED").await.expect(200);
    let listed = shop.operate(&["refunds", "list"]).await.text(0);
    assert!(listed.starts_with("ORDER ") && listed.contains(&order) && listed.contains("249.90"), "{listed}");
    let rows = shop.operate(&["refunds", "list", "--json"]).await.json(0);
    assert_eq!((&rows[0]["orderId"], rows[0]["amount"].to_string()), (&json!(order), "249.90".to_owned()));

    let done = ["refunds", "done", &order, "--by", "bob", "--note", "payout 4711", "--json"];
    assert_eq!(shop.operate(&done).await.json(0), json!({"orderId": order, "done": true}));
    let again = shop.operate(&done).await.error(1);

    assert!(again.contains(&order), "{again}");
    assert_eq!(shop.operate(&["refunds", "list"]).await.text(0), "No refund is due.\n");
    let detail = "249.90: payout 4711".to_owned();
    assert_eq!(shop.interventions().await, [("REFUND_DONE".into(), detail, "bob".into())]);
    // The order is unchanged.
    let shown = shop.get(customer(ADA), &format!("/api/orders/{order}")).await.expect(200);
    assert_eq!(shown.body["status"], "CANCELLED");
}

#[tokio::test]
async fn a_wrong_argument_is_named_with_exit_code_2_and_changes_nothing() {
    let shop = Shop::builder().without_service().await;
    let order = Uuid::now_v7().to_string();
    let order = order.as_str();
    let wrong: [(&[&str], &str); 9] = [
        (&["payments", "retry", "payment-events/1", "--by", "bob"], "RECORD"),
        (&["payments", "retry", "payment-events/1/2"], "--by"),
        (&["payments", "retry", "payment-events/1/2", "--by", " "], "--by"),
        (&["payments", "settle", "payment-events/1/2", "--by", "bob"], "--note"),
        (&["payments", "list", "--limit", "0"], "--limit"),
        (&["refunds", "done", "7", "--by", "bob", "--note", "x"], "ORDER"),
        (&["refunds", "done", order, "--by", "bob", "--note", "a\nb"], "--note"),
        (&["outbox", "skip", order, "--by", ""], "--by"),
        (&["stock", "resolve", order, "1", "1", "perhaps", "--by", "bob"], "FINDING"),
    ];
    for (arguments, name) in wrong {
        let said = shop.operate(arguments).await.error(2);
        assert!(said.contains(name), "{arguments:?}: {said}");
    }
    assert_eq!(shop.interventions().await, []);
}
