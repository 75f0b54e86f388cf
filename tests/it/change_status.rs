//! Status changes: the state machine, the history and the events.

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Answer, Record, Shop, admin, customer, lines};

const STATUSES: [&str; 3] = ["CREATED", "CONFIRMED", "CANCELLED"];

/// A shop and the id of a new order of Ada.
async fn shop_with_an_order() -> (Shop, String) {
    with_an_order(Shop::start().await).await
}

async fn with_an_order(shop: Shop) -> (Shop, String) {
    let phone = shop.product("phone", "2499.10", 50).await;
    let id = shop.placed("ada@example.com", &[(&phone, 2)]).await;
    (shop, id)
}

/// `PUT` as the admin, with an `If-Match` header.
async fn put_if(shop: &Shop, id: &str, status: &str, condition: &str) -> Answer {
    let call = shop.call("PUT", &format!("/api/orders/{id}/status")).by(admin());
    call.header("If-Match", condition).json(&json!({"status": status})).send().await
}

/// The events of an order in the order of the topic, after the relay has finished.
async fn events(shop: &Shop, id: &str) -> Vec<Record> {
    shop.relayed().await;
    let all = shop.topic.everything().await;
    all.into_iter().filter(|record| record.key == id).collect()
}

/// The history of an order as JSON, oldest first.
async fn history(shop: &Shop, id: &str) -> Vec<Value> {
    let rows: Vec<String> = sqlx::query_scalar(
        "select json_build_array(version, from_status, to_status, actor_role, actor_id, reason)::text
         from order_history where order_id = $1::uuid order by version",
    )
    .bind(id)
    .fetch_all(&shop.database)
    .await
    .unwrap();
    rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect()
}

/// A shop with a connection for each of 20 requests (a quarter of all connections is for lists), and with a deadline
/// that lets all of them wait for one row.
async fn patient_shop() -> Shop {
    let builder = Shop::builder().with("DATABASE_MAX_CONNECTIONS", "28");
    let waits = ["DATABASE_ACQUIRE_TIMEOUT_MS", "DATABASE_DEADLINE_MS", "REQUEST_DEADLINE_MS"];
    waits.iter().fold(builder, |builder, wait| builder.with(wait, "60000")).start().await
}

/// Runs concurrent requests that change an order. A lock holds the order until the first request waits for it; the
/// others queue behind that one in the service.
async fn collide<T>(shop: &Shop, id: &str, requests: impl Future<Output = T>) -> T {
    let mut lock = shop.database.begin().await.unwrap();
    let take = sqlx::query("select from orders where id = $1::uuid for update").bind(id);
    take.execute(&mut *lock).await.unwrap();
    let release = async {
        shop.a_session_waits_for_a_lock().await;
        // The others were sent before this request, whose answer does not need the order.
        shop.get(admin(), &format!("/api/orders/{id}")).await.expect(200);
        lock.rollback().await.unwrap();
    };
    tokio::join!(requests, release).0
}

#[tokio::test]
async fn every_pair_of_statuses_gets_the_answer_of_the_contract() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "1", 50).await;
    let paths: [&[&str]; 3] = [&[], &["CONFIRMED"], &["CANCELLED"]];
    for path in paths {
        for to in STATUSES {
            let id = shop.placed("ada@example.com", &[(&phone, 1)]).await;
            for step in path {
                shop.set_status(&id, step).await.expect(200);
            }
            let from = path.last().copied().unwrap_or("CREATED");
            let before = shop.get(admin(), &format!("/api/orders/{id}")).await;
            let answer = shop.set_status(&id, to).await;
            let after = shop.get(admin(), &format!("/api/orders/{id}")).await;
            let allowed: &[&str] = match from {
                "CREATED" => &["CONFIRMED", "CANCELLED"],
                "CONFIRMED" => &["CANCELLED"],
                _ => &[],
            };
            if to == from || allowed.contains(&to) {
                let answer = answer.expect(200);
                assert_eq!(answer.body["status"], to);
                assert_eq!(answer.text, after.text);
                assert_eq!(answer.header("etag"), after.header("etag"));
            } else {
                let refused = answer.expect_problem(409, "invalid-transition");
                assert_eq!(refused.body["allowed"], json!(allowed));
            }
            let changed = allowed.contains(&to);
            assert_eq!(before.header("etag") != after.header("etag"), changed, "{from} to {to}");
            let versions = 1 + path.len() + usize::from(changed);
            assert_eq!(history(&shop, &id).await.len(), versions, "{from} to {to}");
            assert_eq!(events(&shop, &id).await.len(), versions, "{from} to {to}");
        }
    }
}

#[tokio::test]
async fn the_history_records_actor_old_status_new_status_and_reason() {
    let (shop, id) = shop_with_an_order().await;
    shop.set_status(&id, "CONFIRMED").await.expect(200);
    let call = shop.call("PUT", &format!("/api/orders/{id}/status"));
    let call = call.header("X-User-Email", "root@example.com").header("X-User-Role", "ADMIN");
    call.json(&json!({"status": "CANCELLED", "reason": "„zu spät“"})).send().await.expect(200);

    let expected = [
        json!([1, null, "CREATED", "CUSTOMER", "ada@example.com", null]),
        json!([2, "CREATED", "CONFIRMED", "ADMIN", "admin@example.com", null]),
        json!([3, "CONFIRMED", "CANCELLED", "ADMIN", "root@example.com", "„zu spät“"]),
    ];
    assert_eq!(history(&shop, &id).await, expected);
}

#[tokio::test]
async fn each_change_has_an_event_with_the_next_sequence_and_a_later_time() {
    let (shop, id) = shop_with_an_order().await;
    shop.set_status(&id, "CONFIRMED").await.expect(200);
    let call = shop.call("PUT", &format!("/api/orders/{id}/status")).by(admin());
    let call = call.header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    call.json(&json!({"status": "CANCELLED", "reason": "lost"})).send().await.expect(200);

    let records = shop.topic.records_of(&id, 3).await;

    let partitions: Vec<i32> = records.iter().map(|record| record.partition).collect();
    assert!(partitions.iter().all(|partition| *partition == partitions[0]), "{partitions:?}");
    assert_eq!(records.iter().map(Record::sequence).collect::<Vec<_>>(), [1, 2, 3]);
    let time =
        |record: &Record| record.value()["timestamp"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
    assert!(records.is_sorted_by(|one, next| time(one) < time(next)), "{records:#?}");
    let types: Vec<String> = records.iter().map(Record::event_type).collect();
    assert_eq!(types, ["ORDER_PLACED", "ORDER_STATUS_UPDATED", "ORDER_STATUS_UPDATED"]);

    let expected = |record: &Record, rest: &str| {
        let value = record.value();
        format!(
            r#"{{"eventType":"ORDER_STATUS_UPDATED","service":"ORDER_SERVICE","userEmail":"ada@example.com","entityId":"{id}","amount":4998.20,"timestamp":{},"metadata":{{"eventId":{},{rest}}}}}"#,
            value["timestamp"], value["metadata"]["eventId"]
        )
    };
    let [_, confirmed, cancelled] = &records[..] else { panic!("{records:#?}") };
    let rest = r#""sequence":2,"status":"CONFIRMED","previousStatus":"CREATED""#;
    assert_eq!(confirmed.payload, expected(confirmed, rest));
    let rest = r#""sequence":3,"status":"CANCELLED","previousStatus":"CONFIRMED","reason":"lost""#;
    assert_eq!(cancelled.payload, expected(cancelled, rest));

    for record in [confirmed, cancelled] {
        let value = record.value();
        assert_eq!(record.header("ce_specversion"), Some("1.0"));
        assert_eq!(record.header("ce_id"), value["metadata"]["eventId"].as_str());
        assert_eq!(record.header("ce_type"), Some("shopverse.order.status-updated.v1"));
        assert_eq!(record.header("ce_source"), Some("/order-service"));
        assert_eq!(record.header("ce_subject"), Some(id.as_str()));
        assert_eq!(record.header("ce_time"), value["timestamp"].as_str());
        assert_eq!(record.header("content-type"), Some("application/json"));
    }
    let trace = cancelled.header("traceparent").expect("traceparent");
    assert!(trace.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{trace}");
}

#[tokio::test]
async fn setting_the_same_status_again_changes_and_publishes_nothing() {
    let (shop, id) = shop_with_an_order().await;
    let confirmed = shop.set_status(&id, "CONFIRMED").await.expect(200);
    for _ in 0..3 {
        let again = shop.call("PUT", &format!("/api/orders/{id}/status")).by(admin());
        let again = again.json(&json!({"status": "CONFIRMED", "reason": "again"})).send().await.expect(200);
        assert_eq!(again.text, confirmed.text);
        assert_eq!(again.header("etag"), confirmed.header("etag"));
    }
    assert_eq!(history(&shop, &id).await.len(), 2);
    assert_eq!(events(&shop, &id).await.len(), 2);
}

#[tokio::test]
async fn twenty_concurrent_requests_for_one_status_cause_one_change_and_one_event() {
    let (shop, id) = with_an_order(patient_shop().await).await;
    let requests = join_all((0..20).map(|_| shop.set_status(&id, "CONFIRMED")));
    let answers = collide(&shop, &id, requests).await;
    for answer in &answers {
        assert_eq!((answer.status, &answer.text), (200, &answers[0].text));
        assert_eq!(answer.header("etag"), answers[0].header("etag"));
    }
    assert_eq!(history(&shop, &id).await.len(), 2);
    let sequences: Vec<i64> = events(&shop, &id).await.iter().map(Record::sequence).collect();
    assert_eq!(sequences, [1, 2]);
}

#[tokio::test]
async fn a_precondition_that_does_not_match_gets_412_and_changes_nothing() {
    let (shop, id) = shop_with_an_order().await;
    let tag = shop.get(admin(), &format!("/api/orders/{id}")).await.header("etag").unwrap().to_owned();
    let weak = format!("W/{tag}");
    for other in ["\"2\"", "\"x\"", "\"x,y\", \"z\"", weak.as_str(), "\"01\"", "\"\"", "\"*\""] {
        let refused = put_if(&shop, &id, "CONFIRMED", other).await.expect_problem(412, "precondition-failed");
        assert!(refused.body["detail"].as_str().unwrap().contains(&tag), "{}", refused.text);
    }
    // The service checks the version before the transition: the order may have changed since.
    put_if(&shop, &id, "CREATED", "\"x\"").await.expect_problem(412, "precondition-failed");
    assert_eq!(history(&shop, &id).await.len(), 1);
    assert_eq!(events(&shop, &id).await.len(), 1);
}

#[tokio::test]
async fn a_matching_precondition_allows_the_change_once() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "1", 50).await;
    for condition in ["TAG", "*", "\"x,y\" , W/\"z\",TAG", "W/TAG, TAG"] {
        let placed = shop.place(customer("ada@example.com"), &lines(&[(&phone, 1)])).await.expect(201);
        let (id, tag) = (placed.order_id(), placed.header("etag").unwrap());
        let condition = condition.replace("TAG", tag);
        let changed = put_if(&shop, &id, "CONFIRMED", &condition).await.expect(200);
        assert_ne!(changed.header("etag"), Some(tag));
        if condition != "*" {
            put_if(&shop, &id, "CANCELLED", &condition).await.expect_problem(412, "precondition-failed");
        }
        let tag = changed.header("etag").unwrap();
        put_if(&shop, &id, "CANCELLED", tag).await.expect(200);
    }
}

#[tokio::test]
async fn one_of_two_admins_with_the_same_version_wins() {
    let shop = patient_shop().await;
    let phone = shop.product("phone", "1", 50).await;
    for _ in 0..5 {
        let placed = shop.place(customer("ada@example.com"), &lines(&[(&phone, 1)])).await.expect(201);
        let (id, tag) = (placed.order_id(), placed.header("etag").unwrap());
        let confirm = put_if(&shop, &id, "CONFIRMED", tag);
        let cancel = put_if(&shop, &id, "CANCELLED", tag);
        let both = Box::pin(async { tokio::join!(confirm, cancel) });
        let (confirm, cancel) = collide(&shop, &id, both).await;
        let (winner, loser) = if confirm.status == 200 { (confirm, cancel) } else { (cancel, confirm) };
        let winner = winner.expect(200);
        loser.expect_problem(412, "precondition-failed");
        assert_eq!(shop.get(admin(), &format!("/api/orders/{id}")).await.text, winner.text);
        assert_eq!(history(&shop, &id).await.len(), 2);
        assert_eq!(events(&shop, &id).await.len(), 2);
    }
}
