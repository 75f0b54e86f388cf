//! `order-service check` names each contradiction, and reports nothing for a consistent shop under load.

use std::collections::BTreeSet;
use std::process::Stdio;

use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{Payment, Shop, command, customer, eventually, exit_code, lines, signal};

const ADA: &str = "ada@example.com";

async fn paying_shop() -> Shop {
    Shop::builder()
        .with("PAYMENT_EVENTS_ENABLED", "true")
        .with("DUPLICATE_WINDOW_SECONDS", "10")
        .with("STOCK_POLL_INTERVAL_MS", "50")
        .start()
        .await
}

/// The state of an order before its invariant is broken.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Created,
    Paid,
    Refunded,
    Mismatched,
}

/// An invariant, the state of an order, and the SQL that breaks it; ID stands for the order.
const BREACHES: [(&str, State, &str); 32] = [
    ("order-items", State::Created, "delete from order_items where order_id = ID and line_number = 1"),
    ("order-items", State::Created, "update order_items set quantity = quantity + 1 where order_id = ID"),
    ("order-items", State::Created, "update order_items set product_id = 'P1' where order_id = ID"),
    ("order-history", State::Created, "delete from order_history where order_id = ID"),
    ("order-history", State::Paid, "delete from order_history where order_id = ID and version = 1"),
    (
        "order-history",
        State::Paid,
        "update order_history set to_status = 'CANCELLED' where order_id = ID and version = 2",
    ),
    (
        "order-history",
        State::Paid,
        "update order_history set changed_at = changed_at - interval '1 h' where order_id = ID and version = 2",
    ),
    (
        "order-history",
        State::Refunded,
        "update order_history set from_status = 'CREATED' where order_id = ID and version = 3",
    ),
    ("order-history", State::Created, "update orders set version = 2 where id = ID"),
    ("confirmed-stock", State::Created, "update orders set status = 'CONFIRMED' where id = ID"),
    ("confirmed-stock", State::Paid, "update stock_jobs set attempt = 2 where order_id = ID"),
    (
        "stock-lines",
        State::Paid,
        "update stock_lines set state = 'TODO' where order_id = ID and line_number = 1",
    ),
    ("stock-lines", State::Paid, "delete from stock_lines where order_id = ID and line_number = 1"),
    ("stock-lines", State::Refunded, "update stock_lines set quantity = quantity + 1 where order_id = ID"),
    ("stock-paid", State::Paid, "delete from payments where order_id = ID"),
    ("paid-orders", State::Paid, "update payments set amount = amount + 1 where order_id = ID"),
    ("paid-orders", State::Refunded, "delete from refunds_due where order_id = ID"),
    (
        "paid-orders",
        State::Created,
        "insert into payments (order_id, amount) select id, total_amount from orders where id = ID",
    ),
    ("paid-orders", State::Paid, "delete from payment_events where order_id = ID"),
    ("refunds", State::Paid, "insert into refunds_due (order_id, amount, reason) values (ID, 1, 'a test')"),
    ("payment-effect", State::Paid, "update payment_events set outcome = 'CANCELLED' where order_id = ID"),
    ("payment-effect", State::Paid, "update payment_events set outcome = 'REFUND_DUE' where order_id = ID"),
    ("payment-effect", State::Mismatched, "delete from orders where id = ID"),
    ("payment-parked", State::Mismatched, "delete from parked_payments where order_id = ID"),
    (
        "idempotency-keys",
        State::Created,
        "update idempotency_keys set customer_id = 'eve@example.com' where order_id = ID",
    ),
    (
        "recent-orders",
        State::Created,
        "update recent_orders set customer_id = 'eve@example.com' where order_id = ID",
    ),
    ("event-change", State::Created, "EVENT 2, 'ORDER_STATUS_UPDATED', BUCKET, '{}'"),
    ("event-change", State::Created, "EVENT 1, 'ORDER_PLACED', BUCKET, '{}'"),
    ("event-bucket", State::Created, "EVENT 1, 'ORDER_PLACED', (BUCKET + 1) & 63, PAYLOAD"),
    (
        "event-floor",
        State::Created,
        "update relay_leases set floor = 1000000000 where bucket = BUCKET; EVENT 1, 'ORDER_PLACED', BUCKET, PAYLOAD",
    ),
    ("event-sequence", State::Paid, "EVENT 1, 'ORDER_PLACED', BUCKET, PAYLOAD"),
    (
        "event-sequence",
        State::Refunded,
        "EVENT 1, 'ORDER_PLACED', BUCKET, PAYLOAD; EVENT 3, 'ORDER_STATUS_UPDATED', BUCKET, '{}'",
    ),
];

/// The statements of a breach, with the order id filled in.
fn statements(breach: &str, order: &str) -> String {
    let event = "insert into outbox (event_id, order_id, headers, sequence, event_type, bucket, payload) \
                 select 'EID'::uuid, ID, '[]',";
    let payload =
        "'{\"entityId\":\"OID\",\"metadata\":{\"eventId\":\"EID\",\"sequence\":1,\"status\":\"CREATED\"}}'";
    let bucket = "(get_byte(uuid_send(ID), 15) & 63)::smallint";
    breach
        .replace("EVENT ", &format!("{event} "))
        .replace("PAYLOAD", payload)
        .replace("BUCKET", bucket)
        .replace("EID", &Uuid::now_v7().to_string())
        .replace("OID", order)
        .replace("ID", &format!("'{order}'::uuid"))
}

/// Creates an order in this state. Each order has different lines, so that none counts as a repeat.
async fn order_in(shop: &Shop, state: State, number: u32, products: &[String; 2]) -> String {
    let body = lines(&[(&products[0], number + 1), (&products[1], 1)]);
    let mut call = shop.call("POST", "/api/orders").by(customer(ADA)).json(&body);
    if number.is_multiple_of(2) {
        call = call.header("Idempotency-Key", Uuid::new_v4().to_string());
    }
    let order = call.send().await.expect(201).order_id();
    let amount = ((number + 1) * 10 + 5).to_string();
    match state {
        State::Created => {}
        State::Mismatched => shop.read(&order, &[Payment::success(&order, "1")]).await,
        State::Paid | State::Refunded => {
            shop.pay(&Payment::success(&order, &amount)).await;
            shop.becomes(&order, "CONFIRMED").await;
            if state == State::Refunded {
                shop.set_status(&order, "CANCELLED").await.expect(200);
            }
        }
    }
    order
}

fn found(report: &Value) -> BTreeSet<(String, String)> {
    let broken = report["broken"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    broken.map(|one| (text(&one["invariant"]), text(&one["orderId"]))).collect()
}

#[tokio::test]
async fn check_names_each_planted_contradiction_with_its_order() {
    let mut shop = paying_shop().await;
    let products = [shop.product("phone", "10", 10_000).await, shop.product("case", "5", 10_000).await];
    let mut orders = Vec::new();
    for (number, (_, state, _)) in (0..).zip(BREACHES) {
        orders.push(order_in(&shop, state, number, &products).await);
    }
    shop.no_stock_work().await;
    shop.relayed().await;
    shop.stop_service().await;
    let well = shop.operate(&["check", "--json"]).await.json(0);
    assert_eq!((&well["broken"], &well["complete"]), (&json!([]), &json!(true)), "{well:#}");
    assert_eq!(well["checked"]["orders"], BREACHES.len());

    let mut expected = BTreeSet::new();
    for ((invariant, _, breach), order) in BREACHES.into_iter().zip(&orders) {
        // This session has the constraints of the schema switched off.
        let sql = format!("set session_replication_role = replica; {}", statements(breach, order));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&shop.database).await.unwrap();
        expected.insert((invariant.to_owned(), order.clone()));
    }
    // The breach of the floor needs the lease of its bucket.
    let of_the_schema = "
        delete from relay_leases where bucket = (select min(bucket) from relay_leases where floor < 1000000000);
        alter sequence outbox_position_seq cache 10;
        update pg_index set indisvalid = false where indexrelid = 'refunds_due_open'::regclass";
    sqlx::raw_sql(of_the_schema).execute(&shop.database).await.unwrap();
    expected.extend(["buckets", "positions", "indexes"].map(|name| (name.to_owned(), String::new())));

    let run = shop.operate(&["check", "--json"]).await;

    let report = run.json(1);
    let missing: Vec<_> = expected.difference(&found(&report)).cloned().collect();
    assert!(missing.is_empty(), "not found: {missing:#?} in {report:#}");
    let listed = shop.operate(&["check", "--list", "--json"]).await.json(0);
    let known: BTreeSet<&str> =
        listed.as_array().unwrap().iter().map(|one| one["invariant"].as_str().unwrap()).collect();
    let broken: BTreeSet<&str> = expected.iter().map(|(invariant, _)| invariant.as_str()).collect();
    assert_eq!(broken, known, "this test breaks each invariant");
    // The unchanged orders are not reported. Without `--json` the output is a table.
    let touched: BTreeSet<&String> = orders.iter().collect();
    for (invariant, order) in found(&report) {
        assert!(order.is_empty() || touched.contains(&order), "{invariant} {order}");
    }
    let table = shop.operate(&["check"]).await.text(1);
    assert!(table.starts_with("INVARIANT ") && table.contains(&orders[0]) && !table.contains('@'), "{table}");
}

/// Places, pays, confirms and cancels orders until `stop`.
async fn trade(shop: &Shop, client: u32, product: &str, closing: &CancellationToken) {
    let customer = format!("customer-{client}@example.com");
    for round in 0.. {
        if closing.is_cancelled() {
            return;
        }
        let quantity = round % 50 + 1;
        let body = lines(&[(product, quantity)]);
        let key = format!("{client}-{round}");
        let call = shop.call("POST", "/api/orders").by(self::customer(&customer)).json(&body);
        let order = call.header("Idempotency-Key", key).send().await.expect(201).order_id();
        match round % 4 {
            0 => shop.pay(&Payment::success(&order, &(quantity * 10).to_string())).await,
            1 => shop.pay(&Payment::failed(&order)).await,
            2 => {
                shop.set_status(&order, "CONFIRMED").await;
                shop.set_status(&order, "CANCELLED").await;
            }
            _ => shop.pay(&Payment::success(&order, "1")).await,
        }
    }
}

#[tokio::test]
async fn check_finds_nothing_in_a_busy_consistent_shop() {
    let shop = paying_shop().await;
    let phone = shop.product("phone", "10", 1_000_000).await;
    let closing = CancellationToken::new();
    let clients = join_all((0..4).map(|client| trade(&shop, client, &phone, &closing)));
    let checks = async {
        eventually("the shop is busy", async || shop.count("payment_events").await >= 20).await;
        for _ in 0..5 {
            let report = shop.operate(&["check", "--json"]).await.json(0);
            assert_eq!(report["broken"], json!([]), "{report:#}");
            let orders = report["checked"]["orders"].as_u64().unwrap();
            let more = async || shop.count("orders").await.unsigned_abs() > orders + 5;
            eventually("the shop continues", more).await;
        }
        closing.cancel();
    };

    join(clients, checks).await;
}

#[tokio::test]
async fn a_check_reads_pages_and_resumes_after_the_last_checked_order() {
    let shop = Shop::builder().without_service().await;
    let fill = "
        with placed as (
            insert into orders (id, customer_id, status, total_amount, placed_at, version, changed_at)
            select ('0198c1f2-7b5a-7cc0-8d3e-' || lpad(to_hex(number), 12, '0'))::uuid, 'ada@example.com', 'CREATED', 10,
                   now(), 1, now()
            from generate_series(1, 2000) as number
            returning *
        ),
        items as (
            insert into order_items (order_id, line_number, product_id, quantity, unit_price)
            select id, 1, 'P1', 1, 10 from placed
        )
        insert into order_history (order_id, version, to_status, actor_role, actor_id, changed_at)
        select id, 1, 'CREATED', 'CUSTOMER', customer_id, placed_at from placed";
    sqlx::raw_sql(fill).execute(&shop.database).await.unwrap();
    let whole = shop.operate(&["check", "--json"]).await.json(0);
    assert_eq!(whole["checked"]["orders"], 2_000, "{whole:#}");

    let last_half =
        shop.operate(&["check", "--json", "--after", "0198c1f2-7b5a-7cc0-8d3e-0000000003e8"]).await;

    assert_eq!(last_half.json(0)["checked"], json!({"orders": 1_000}));
    // No statement scanned a whole table.
    let scans = "select coalesce(sum(seq_scan), 0)::bigint from pg_stat_user_tables
                 where relname in ('order_items', 'order_history', 'stock_jobs', 'payments', 'outbox')";
    let scans: i64 = sqlx::query_scalar(scans).fetch_one(&shop.database).await.unwrap();
    assert_eq!(scans, 0);
    let wrong = shop.operate(&["check", "--after", "7"]).await.error(2);
    assert!(wrong.contains("--after"), "{wrong}");
}

#[tokio::test]
async fn an_interrupted_check_prints_how_to_resume() {
    let shop = Shop::builder().without_service().await;
    let mut held = shop.database.begin().await.unwrap();
    sqlx::query("lock table orders in access exclusive mode").execute(&mut *held).await.unwrap();
    let mut check = command("check", &shop.environment).stderr(Stdio::piped()).spawn().unwrap();
    shop.a_session_waits_for_a_lock().await;

    signal(&check, "INT");

    let ended = tokio::task::spawn_blocking(move || {
        let code = exit_code(&mut check);
        (code, std::io::read_to_string(check.stderr.take().unwrap()).unwrap())
    });
    let (code, said) = ended.await.unwrap();
    assert!(code == Some(1) && said.contains("interrupted"), "{code:?} {said}");
    held.rollback().await.unwrap();
    shop.operate(&["check"]).await.text(0);
}

#[tokio::test]
async fn a_check_refuses_a_database_without_the_schema() {
    let shop = Shop::builder().database(&Shop::empty_database().await).without_service().await;
    let said = shop.operate(&["check"]).await.error(1);
    assert!(said.contains("migrate"), "{said}");
}
