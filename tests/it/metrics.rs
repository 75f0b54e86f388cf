//! The metrics for Prometheus: each family exists, changes with the events that it counts, and has bounded labels.
#![expect(clippy::float_cmp, reason = "counts are whole numbers, which an f64 holds exactly")]

use std::collections::{BTreeMap, BTreeSet};

use order_service::dev::kafka::ALL_BROKERS;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Mode, Payment, Proxy, Samples, Shop, admin, customer, embedded_kafka, eventually, lines,
};

const ADA: &str = "ada@example.com";

/// The name and the labels of a sample, and its expected change.
type Movement<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

/// Checks that `happening` changes the samples by these amounts.
async fn moves<F: Future<Output = ()>>(
    shop: &Shop,
    expected: &[Movement<'_>],
    happening: impl FnOnce() -> F,
) {
    let before = shop.scrape().await;
    happening().await;
    for (name, labels, by) in expected {
        let before = before.get(name, labels).unwrap_or(0.0);
        shop.shows(name, labels, |now| now - before == *by).await;
    }
}

fn keyed(shop: &Shop, key: &str, body: &Value) -> crate::support::Call {
    shop.call("POST", "/api/orders").by(customer(ADA)).header("Idempotency-Key", key).json(body)
}

#[tokio::test]
async fn placed_refused_repeated_and_changed_orders_are_counted() {
    let shop = Shop::builder().with("DUPLICATE_WINDOW_SECONDS", "60").start().await;
    let phone = shop.product("phone", "10", 5).await;
    let (one, two) = (lines(&[(&phone, 1)]), lines(&[(&phone, 2)]));
    let first = [
        ("orders_placed_total", &[][..], 1.0),
        ("outbox_published_total", &[("type", "ORDER_PLACED")], 1.0),
        ("outbox_publish_delay_seconds_count", &[], 1.0),
        ("group_commit_writes_count", &[("kind", "place")], 1.0),
        ("db_client_operation_duration_seconds_count", &[("db_query_summary", "place")], 1.0),
        (
            "http_client_request_duration_seconds_count",
            &[("operation", "look_up"), ("outcome", "success")],
            1.0,
        ),
        ("resilience4j_circuitbreaker_calls_total", &[("kind", "successful")], 1.0),
        (
            "http_server_request_duration_seconds_count",
            &[
                ("http_request_method", "POST"),
                ("http_route", "/api/orders"),
                ("http_response_status_code", "201"),
            ],
            1.0,
        ),
    ];
    moves(&shop, &first, async || drop(shop.placed(ADA, &[(&phone, 1)]).await)).await;
    moves(&shop, &[("order_duplicates_total", &[], 1.0), ("orders_placed_total", &[], 0.0)], async || {
        shop.place(customer(ADA), &one).await.expect(201);
    })
    .await;

    let refusals = [
        ("insufficient-stock", lines(&[(&phone, 9)])),
        ("product-not-found", lines(&[("NOSUCH", 1)])),
        ("invalid-request", json!({"items": []})),
    ];
    for (reason, body) in refusals {
        moves(&shop, &[("orders_refused_total", &[("reason", reason)], 1.0)], async || {
            assert_eq!(shop.place(customer(ADA), &body).await.status, 400);
        })
        .await;
    }

    let key = Uuid::new_v4().to_string();
    for (result, body, status) in [("new", &two, 201), ("replayed", &two, 201), ("mismatch", &one, 422)] {
        moves(&shop, &[("idempotency_requests_total", &[("result", result)], 1.0)], async || {
            keyed(&shop, &key, body).send().await.expect(status);
        })
        .await;
    }

    let order = shop.placed(ADA, &[(&phone, 3)]).await;
    let moved = |from, to| [("from", from), ("to", to), ("actor", "ADMIN")];
    for (from, to, operation) in
        [("CREATED", "CONFIRMED", "take_stock"), ("CONFIRMED", "CANCELLED", "give_back_stock")]
    {
        let labels = moved(from, to);
        let expected = [
            ("order_status_changes_total", &labels[..], 1.0),
            ("outbox_published_total", &[("type", "ORDER_STATUS_UPDATED")], 1.0),
            (
                "http_client_request_duration_seconds_count",
                &[("operation", operation), ("outcome", "success")],
                1.0,
            ),
        ];
        moves(&shop, &expected, async || drop(shop.set_status(&order, to).await.expect(200))).await;
    }
    shop.shows("stock_jobs", &[], |count| count == 0.0).await;
}

#[tokio::test]
async fn the_outbox_metrics_count_waiting_events_and_their_age() {
    let kafka = embedded_kafka(1);
    let builder = Shop::builder().kafka(kafka.bootstrap_servers()).with("KAFKA_DELIVERY_TIMEOUT_MS", "1000");
    let mut shop =
        builder.with("RELAY_LEASE_MS", "3000").with("RELAY_MAX_BACKOFF_MS", "200").without_service().await;
    kafka.create_topic(&shop.topic.name, 3).unwrap();
    shop.start_service().await;
    let phone = shop.product("phone", "10", 9).await;
    shop.shows("relay_buckets_held", &[], |held| held == 64.0).await;
    shop.shows("order_service_ready", &[("component", "kafka")], |ready| ready == 1.0).await;

    kafka.broker_down(ALL_BROKERS).unwrap();
    for quantity in [1, 2] {
        shop.placed(ADA, &[(&phone, quantity)]).await;
    }
    shop.shows("outbox_pending_events", &[], |pending| pending == 2.0).await;
    shop.shows("outbox_oldest_age_seconds", &[], |age| age > 2.0).await;
    shop.shows("outbox_publish_failures_total", &[], |failures| failures >= 1.0).await;
    shop.shows("order_service_ready", &[("component", "kafka")], |ready| ready == 0.0).await;

    kafka.broker_up(ALL_BROKERS).unwrap();
    shop.shows("outbox_pending_events", &[], |pending| pending == 0.0).await;
    shop.shows("outbox_oldest_age_seconds", &[], |age| age == 0.0).await;
    // The delay includes the time until Kafka's acknowledgement.
    let late = shop.sample("outbox_publish_delay_seconds_sum", &[]).await;
    assert!(late > 2.0, "{late}");
}

#[tokio::test]
async fn a_product_service_outage_opens_the_breaker() {
    let builder = Shop::builder().with("PRODUCT_SERVICE_URL", "http://127.0.0.1:1");
    let shop = builder.with("PRODUCT_BREAKER_WINDOW", "10").with("PRODUCT_RETRIES", "0").start().await;
    let state = |state| [("name", "productService"), ("state", state)];
    assert_eq!(shop.sample("resilience4j_circuitbreaker_state", &state("closed")).await, 1.0);

    for _ in 0..6 {
        shop.place(customer(ADA), &lines(&[("PROD123", 1)])).await.expect(503);
    }

    let samples = shop.scrape().await;
    let calls = |kind| samples.get("resilience4j_circuitbreaker_calls_total", &[("kind", kind)]);
    assert_eq!(samples.get("resilience4j_circuitbreaker_state", &state("open")), Some(1.0));
    assert_eq!(samples.get("resilience4j_circuitbreaker_state", &state("closed")), Some(0.0));
    assert_eq!((calls("failed"), calls("not_permitted")), (Some(5.0), Some(1.0)));
    let refused = samples.get("orders_refused_total", &[("reason", "product-service-unavailable")]);
    assert_eq!(refused, Some(6.0));
    assert_eq!(shop.sample("order_service_ready", &[("component", "product_service")]).await, 0.0);
    assert_eq!(shop.sample("order_service_ready", &[("component", "service")]).await, 1.0);
}

#[tokio::test]
async fn payments_are_counted_by_result_and_parked_work_is_counted() {
    let builder = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true");
    let shop = builder.with("STOCK_POLL_INTERVAL_MS", "50").start().await;
    let phone = shop.product("phone", "100", 50).await;
    let records = |event_type, outcome| [("type", event_type), ("outcome", outcome)];
    let (paid, other, cancelled) = (
        shop.placed(ADA, &[(&phone, 1)]).await,
        shop.placed(ADA, &[(&phone, 2)]).await,
        shop.placed(ADA, &[(&phone, 3)]).await,
    );
    let payment = Payment::success(&paid, "100");
    let stranger = Uuid::now_v7().to_string();
    shop.set_status(&cancelled, "CANCELLED").await.expect(200);

    let events = [
        (payment.clone(), records("PAYMENT_SUCCESS", "confirming"), None),
        (payment, records("PAYMENT_SUCCESS", "repeated"), None),
        (Payment::success(&paid, "100"), records("PAYMENT_SUCCESS", "paid_again"), Some("PAID_AGAIN")),
        (
            Payment::success(&other, "7"),
            records("PAYMENT_SUCCESS", "amount_mismatch"),
            Some("AMOUNT_MISMATCH"),
        ),
        (
            Payment::success(&stranger, "7"),
            records("PAYMENT_SUCCESS", "unknown_order"),
            Some("UNKNOWN_ORDER"),
        ),
        (Payment::success(&cancelled, "300"), records("PAYMENT_SUCCESS", "refund_due"), None),
        (Payment::failed(&other), records("PAYMENT_FAILED", "cancelled"), None),
    ];
    for (event, labels, parked) in events {
        let reason = [("reason", parked.unwrap_or_default())];
        let counted = ("payment_records_total", &labels[..], 1.0);
        let waits = ("parked_payments", &reason[..], 1.0);
        let expected = if parked.is_some() { vec![counted, waits] } else { vec![counted] };
        moves(&shop, &expected, async || shop.pay(&event).await).await;
    }
    moves(&shop, &[("parked_payments", &[("reason", "UNDECODABLE")], 1.0)], async || {
        shop.payments.publish(&paid, b"not JSON").await;
    })
    .await;

    shop.shows("refunds_due", &[("reason", "PAID_AFTER_CANCELLED")], |due| due == 1.0).await;
    shop.shows("refunds_due_oldest_age_seconds", &[], |age| age > 0.0).await;
    let changed = [("from", "CREATED"), ("to", "CONFIRMED"), ("actor", "PAYMENT")];
    shop.shows("order_status_changes_total", &changed, |count| count == 1.0).await;
    shop.shows("payment_consumer_lag_records", &[("topic", &shop.payments.name)], |lag| lag == 0.0).await;
    assert_eq!(shop.sample("payment_consumer_oldest_age_seconds", &[]).await, 0.0);
}

#[tokio::test]
async fn payments_that_cannot_be_applied_increase_the_lag_and_its_age() {
    let database = Shop::new_database().await;
    let (proxy, url) = Proxy::before_database(&database).await;
    let builder = Shop::builder().database(&url).with("PAYMENT_EVENTS_ENABLED", "true");
    let mut shop =
        builder.with("DATABASE_DEADLINE_MS", "500").with("DATABASE_ACQUIRE_TIMEOUT_MS", "200").start().await;
    shop.database = sqlx::PgPool::connect_lazy(&database).unwrap();
    let phone = shop.product("phone", "100", 50).await;
    let (first, second) = (shop.placed(ADA, &[(&phone, 1)]).await, shop.placed(ADA, &[(&phone, 2)]).await);
    // Before this, the group has no committed offset, and its lag is unknown.
    shop.pay(&Payment::success(&first, "100")).await;
    shop.becomes(&first, "CONFIRMED").await;

    proxy.set(Mode::Cut);
    shop.pay(&Payment::success(&second, "200")).await;
    shop.shows("payment_consumer_oldest_age_seconds", &[], |age| age > 1.0).await;

    proxy.set(Mode::Open);
    shop.shows("payment_consumer_oldest_age_seconds", &[], |age| age == 0.0).await;
    shop.shows("payment_consumer_lag_records", &[], |lag| lag == 0.0).await;
}

#[tokio::test]
async fn unfinished_stock_work_is_counted_as_overdue_and_its_order_as_stuck() {
    let builder = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").with("STOCK_DEADLINE_MS", "500");
    let shop = builder.with("STOCK_POLL_INTERVAL_MS", "50").start().await;
    let phone = shop.product("phone", "100", 50).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    shop.fault(&phone, &json!({"kind": "status", "status": 500, "on": "reduce-stock"})).await;

    shop.pay(&Payment::success(&order, "100")).await;

    shop.shows("stock_jobs", &[("state", "TAKING")], |count| count == 1.0).await;
    shop.shows("stock_jobs_overdue", &[], |count| count == 1.0).await;
    shop.shows("orders_stuck", &[("kind", "paid_not_confirmed")], |count| count == 1.0).await;
    shop.shows("orders_stuck", &[("kind", "taking_overdue")], |count| count == 1.0).await;
    shop.shows("stock_jobs_oldest_age_seconds", &[], |age| age > 0.5).await;
    let failed = [("operation", "take_stock"), ("outcome", "error")];
    shop.shows("http_client_request_duration_seconds_count", &failed, |count| count >= 1.0).await;

    shop.heal(&phone).await;
    shop.shows("stock_jobs", &[], |count| count == 0.0).await;
    shop.shows("orders_stuck", &[], |count| count == 0.0).await;
    shop.shows("stock_jobs_overdue", &[], |count| count == 0.0).await;
}

#[tokio::test]
async fn a_scrape_during_a_database_outage_returns_the_known_values() {
    let database = Shop::new_database().await;
    let (proxy, url) = Proxy::before_database(&database).await;
    let shop = Shop::builder().database(&url).start().await;
    let phone = shop.product("phone", "100", 50).await;
    shop.placed(ADA, &[(&phone, 1)]).await;
    shop.shows("order_service_database_reachable", &[], |reachable| reachable == 1.0).await;
    shop.shows("outbox_pending_events", &[], |pending| pending == 0.0).await;

    for mode in [Mode::Silent, Mode::Cut] {
        proxy.set(mode);
        shop.shows("order_service_database_reachable", &[], |reachable| reachable == 0.0).await;
        let samples = shop.scrape().await;
        assert_eq!(samples.get("orders_placed_total", &[]), Some(1.0), "{mode:?}");
        assert_eq!(samples.get("outbox_pending_events", &[]), Some(0.0), "{mode:?}");
        let ready = |component| samples.get("order_service_ready", &[("component", component)]);
        assert_eq!((ready("service"), ready("database"), ready("kafka")), (Some(0.0), Some(0.0), Some(1.0)));
        shop.call("GET", "/actuator/health/liveness").send().await.expect(200);
        shop.call("GET", "/actuator/info").send().await.expect(200);
        proxy.set(Mode::Open);
        shop.shows("order_service_database_reachable", &[], |reachable| reachable == 1.0).await;
    }
}

#[tokio::test]
async fn metrics_and_health_on_the_api_port_need_no_identity() {
    let shop = Shop::builder().with("GATEWAY_SECRET", "sixteen-characters").start().await;

    let prometheus = shop.call("GET", "/actuator/prometheus").send().await.expect(200);
    assert!(Samples::parse(&prometheus.text).get("orders_placed_total", &[]).is_some());
    for path in ["/actuator/health", "/actuator/health/readiness"] {
        let health = shop.call("GET", path).send().await.expect(200);
        assert_eq!(health.body["status"], "UP", "{path}");
        assert_eq!(health.body["components"]["db"]["status"], "UP", "{path}");
    }
    let live = shop.call("GET", "/actuator/health/liveness").send().await.expect(200);
    assert_eq!(live.body, json!({"status": "UP"}));
    let info = shop.call("GET", "/actuator/info").send().await.expect(200);
    assert_eq!(info.body["build"]["version"], env!("CARGO_PKG_VERSION"));
    shop.call("POST", "/metrics").send().await.expect_problem(405, "method-not-allowed");
}

#[tokio::test]
async fn a_management_address_serves_metrics_and_health_exclusively() {
    let shop = Shop::builder().with("MANAGEMENT_ADDRESS", "127.0.0.1:0").start().await;
    let management = shop.through(&shop.management_url());
    let paths = [
        "/metrics",
        "/actuator/prometheus",
        "/actuator/health",
        "/actuator/health/liveness",
        "/actuator/health/readiness",
        "/actuator/info",
    ];
    for path in paths {
        management.call("GET", path).send().await.expect(200);
        shop.call("GET", path).send().await.expect_problem(404, "not-found");
    }
    for path in ["/health/live", "/health/ready"] {
        management.call("GET", path).send().await.expect(200);
        shop.call("GET", path).send().await.expect(200);
    }
    for path in ["/api/orders", "/docs", "/openapi.json"] {
        let answer = management.call("GET", path).by(admin()).try_send().await.unwrap();
        answer.expect_problem(404, "not-found");
    }
    let phone = shop.product("phone", "10", 5).await;
    shop.placed(ADA, &[(&phone, 1)]).await;
    management.shows("orders_placed_total", &[], |placed| placed == 1.0).await;
    management.shows("http_server_connections", &[], |open| open >= 1.0).await;
}

#[tokio::test]
async fn callers_can_neither_create_unbounded_labels_nor_choose_label_values() {
    let shop = Shop::start().await;
    let phone = shop.product("phone", "10", 500).await;
    let burst = async |round: usize| {
        for number in 0..20 {
            let word = format!("secret{round}x{number}");
            let path = format!("/api/{word}?q={word}");
            shop.call(&word.to_uppercase(), &path).by(customer(ADA)).send().await;
            shop.get(admin(), &format!("/api/orders/{}", Uuid::now_v7())).await.expect(404);
            let mail = format!("{word}@example.com");
            let order = shop.placed(&mail, &[(&phone, 1)]).await;
            keyed(&shop, &word, &lines(&[(&phone, 1)])).send().await.expect(201);
            let body = json!({"status": "CANCELLED", "reason": word});
            let path = format!("/api/orders/{order}/status");
            shop.call("PUT", &path).by(admin()).json(&body).send().await.expect(200);
        }
    };
    // A scrape is also a request, and queries the gauges from the first one on.
    shop.shows("outbox_pending_events", &[], |_| true).await;
    burst(1).await;
    let first = shop.scrape().await;
    burst(2).await;
    let second = shop.scrape().await;
    assert_eq!(first.count(), second.count(), "{}", second.text);
    for word in ["secret", "SECRET", "example.com", &phone] {
        assert!(!second.text.contains(word), "{word}: {}", second.text);
    }
}

#[tokio::test]
async fn gauges_of_waiting_work_read_a_bounded_number_of_rows_and_scan_no_table() {
    let kafka = embedded_kafka(1);
    let builder = Shop::builder().kafka(kafka.bootstrap_servers()).with("KAFKA_DELIVERY_TIMEOUT_MS", "1000");
    let mut shop = builder.with("RELAY_LEASE_MS", "3000").without_service().await;
    kafka.create_topic(&shop.topic.name, 3).unwrap();
    kafka.broker_down(ALL_BROKERS).unwrap();
    let backlog = "
        insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
        select number % 64, gen_random_uuid(), gen_random_uuid(), 1, 'ORDER_PLACED', '{}', '[]'
        from generate_series(1, 30000) as number";
    sqlx::query(backlog).execute(&shop.database).await.unwrap();
    shop.start_service().await;

    shop.shows("outbox_pending_events", &[], |pending| pending == 10_000.0).await;
    shop.scrape().await;

    // A session reports its statistics when it ends.
    shop.stop_service().await;
    let scanned = async || {
        let scanned: Vec<(String, i64)> = sqlx::query_as(
            "select relname::text, seq_scan from pg_stat_user_tables where seq_scan > 0 and relname = any ($1)",
        )
        .bind(["outbox", "parked_orders", "stock_jobs", "parked_payments", "refunds_due"])
        .fetch_all(&shop.database)
        .await
        .unwrap();
        scanned
    };
    eventually("the statistics of the scrapes are complete", async || {
        let read: Option<i64> = sqlx::query_scalar(
            "select idx_scan from pg_stat_user_tables where relname = 'stock_jobs' and idx_scan > 0",
        )
        .fetch_optional(&shop.database)
        .await
        .unwrap();
        read.is_some()
    })
    .await;
    assert_eq!(scanned().await, []);
}

/// The list in the documentation: name, type, labels and help of each family.
fn listed() -> BTreeMap<String, (String, BTreeSet<String>, String)> {
    let rows = include_str!("../../src/metrics/metrics.md").lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').splitn(4, '|').map(str::trim).collect();
        let words =
            |cell: &str| cell.split_whitespace().map(|word| word.trim_matches('`').to_owned()).collect();
        let [name, of, labels, help] = cells[..] else { panic!("{row}") };
        (name.trim_matches('`').to_owned(), (of.to_owned(), words(labels), help.to_owned()))
    });
    rows.collect()
}

#[tokio::test]
async fn the_list_of_metrics_matches_a_scrape() {
    let shop = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let phone = shop.product("phone", "10", 5).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    shop.pay(&Payment::success(&order, "10")).await;
    shop.becomes(&order, "CONFIRMED").await;
    // This family appears last: the Kafka client reports it once a second.
    shop.shows("payment_consumer_lag_records", &[], |lag| lag >= 0.0).await;
    shop.shows("outbox_pending_events", &[], |pending| pending >= 0.0).await;

    assert_eq!(shop.scrape().await.families(), listed());
}
