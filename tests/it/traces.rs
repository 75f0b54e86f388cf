//! Traces: exported spans, propagated headers, and the effects of a collector outage.

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    Builder, Collector, Payment, Replica, Shop, command, customer, eventually, figure, lines, shown, tree,
};

const ADA: &str = "ada@example.com";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const GATEWAY: &str = "b7ad6b7169203331";
/// A span of the Payment Service.
const PAYMENT: &str = "00f067aa0ba902b7";

/// A service in its own process, which exports its spans at once.
fn traced(collector: &str) -> Builder {
    Shop::builder()
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        .with("OTEL_BSP_SCHEDULE_DELAY", "20")
        .with("PAYMENT_EVENTS_ENABLED", "true")
}

/// Starts the service, and routes all calls of the shop to it.
async fn start(builder: Builder) -> (Shop, Replica) {
    let shop = builder.without_service().await;
    let replica = Replica::start(&shop.environment);
    (shop.through(&replica.url), replica)
}

fn traceparent(span: &str, flags: &str) -> String {
    format!("00-{TRACE}-{span}-{flags}")
}

/// Places an order within a trace of the gateway.
async fn place(shop: &Shop, products: &[(&str, u32)], flags: &str) -> String {
    let call = shop.call("POST", "/api/orders").by(customer(ADA));
    let call = call.header("traceparent", traceparent(GATEWAY, flags)).header("tracestate", "gw=1,shop=a");
    call.json(&lines(products)).send().await.expect(201).order_id()
}

/// Acts as the Payment Service: it continues the trace of the record that it has read.
async fn pay(shop: &Shop, order: &str, amount: &str, flags: &str) {
    let payment = Payment::success(order, amount);
    let headers = [("traceparent", traceparent(PAYMENT, flags))];
    shop.payments.publish_with(order, payment.record.to_string().as_bytes(), &headers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_covers_gateway_placement_kafka_and_confirmation_by_payment() {
    let collector = Collector::http().await;
    let (shop, _replica) = start(traced(&collector.url)).await;
    let (phone, case) = (shop.product("phone", "10", 5).await, shop.product("case", "1", 5).await);

    let order = place(&shop, &[(&phone, 1), (&case, 2)], "01").await;
    let placed = shop.topic.records_of(&order, 1).await.remove(0);
    pay(&shop, &order, "12", "01").await;
    let confirmed = shop.topic.records_of(&order, 2).await.remove(1);
    let spans = collector.spans_of(TRACE, 11).await;

    figure(&format!("gateway\n  {}", shown(&spans, GATEWAY, 0).join("\n  ")));
    figure(&format!("Payment Service\n  {}", shown(&spans, PAYMENT, 0).join("\n  ")));
    let send = format!("  PRODUCER send {}", shop.topic.name);
    let request = [
        "SERVER POST /api/orders",
        "  CLIENT GET /api/products/{productId}",
        "  CLIENT GET /api/products/{productId}",
        "  CLIENT place",
        &send,
    ];
    assert_eq!(tree(&spans, GATEWAY), request);
    let payment = [
        &format!("CONSUMER process {}", shop.payments.name),
        "  CLIENT POST /api/products/{productId}/reduce-stock",
        "  CLIENT POST /api/products/{productId}/reduce-stock",
        &send,
        "  CLIENT update order",
        "  CLIENT update order",
    ];
    let mut found = tree(&spans, PAYMENT);
    found[1..].sort();
    let mut expected = payment.map(str::to_owned);
    expected[1..].sort();
    assert_eq!(found, expected);
    assert_eq!(spans.len(), request.len() + payment.len(), "{spans:#?}");
    assert!(!spans.iter().any(|span| span.failed), "{spans:#?}");

    // The record names the span that wrote it, which belongs to the gateway's trace.
    let id_of = |parent: &str| spans.iter().find(|span| span.parent == parent).unwrap().id.clone();
    assert_eq!(placed.header("traceparent"), Some(traceparent(&id_of(GATEWAY), "01").as_str()));
    assert_eq!(placed.header("tracestate"), Some("gw=1,shop=a"));
    assert_eq!(confirmed.header("traceparent"), Some(traceparent(&id_of(PAYMENT), "01").as_str()));
    assert_eq!(confirmed.header("tracestate"), None);

    // OpenTelemetry's semantic conventions.
    let attributes = |name: &str| &spans.iter().find(|span| span.name.starts_with(name)).unwrap().attributes;
    assert_eq!(attributes("POST /api/orders")["http.response.status_code"], "201");
    assert_eq!(attributes("POST /api/orders")["http.route"], "/api/orders");
    assert_eq!(attributes("GET")["http.response.status_code"], "200");
    assert_eq!(attributes("GET")["server.address"], "127.0.0.1");
    assert_eq!(attributes("place")["db.system.name"], "postgresql");
    assert_eq!(attributes("send")["messaging.system"], "kafka");
    assert_eq!(attributes("process")["messaging.destination.name"], shop.payments.name);
    assert_eq!(collector.resource()["service.name"], "order-service");
    let all = format!("{spans:?}");
    assert!(!all.contains("example.com") && !all.contains(&order), "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsampled_traces_are_propagated_but_not_exported_and_probes_are_not_traced() {
    let collector = Collector::http().await;
    let (shop, mut replica) = start(traced(&collector.url)).await;
    let phone = shop.product("phone", "10", 5).await;

    let order = place(&shop, &[(&phone, 1)], "00").await;
    pay(&shop, &order, "10", "00").await;
    let records = shop.topic.records_of(&order, 2).await;
    let probe = shop.call("GET", "/health/ready").header("traceparent", traceparent(GATEWAY, "01"));
    probe.send().await.expect(200);
    replica.signal("TERM");
    replica.rest_of_log();

    for record in records {
        let trace = record.header("traceparent").unwrap().to_owned();
        assert!(trace.starts_with(&format!("00-{TRACE}-")) && trace.ends_with("-00"), "{trace}");
    }
    let spans = collector.spans();
    assert!(!spans.iter().any(|span| span.trace_id == TRACE), "{spans:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_read_of_the_database_has_a_span() {
    let collector = Collector::http().await;
    let (shop, _replica) = start(traced(&collector.url)).await;
    let phone = shop.product("phone", "10", 5).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;

    let (one, history) = (format!("/api/orders/{order}"), format!("/api/orders/{order}/history"));
    for path in [&one, &history, "/api/orders/my"] {
        let call = shop.call("GET", path).by(customer(ADA));
        call.header("traceparent", traceparent(GATEWAY, "01")).send().await.expect(200);
    }
    let spans = collector.spans_of(TRACE, 6).await;

    let reads = ["  CLIENT list own orders", "  CLIENT read history", "  CLIENT read order"];
    let mut found = tree(&spans, GATEWAY);
    found.sort();
    assert_eq!(found[..3], reads);
    assert_eq!(found[3..].len(), 3, "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_that_share_a_commit_have_separate_linked_spans() {
    let collector = Collector::http().await;
    let (shop, mut replica) = start(traced(&collector.url)).await;
    let phone = shop.product("phone", "10", 1_000).await;

    let body = lines(&[(&phone, 1)]);
    let mut shared = Vec::new();
    eventually("two orders share a commit", async || {
        let placements = (0..32).map(|_| shop.place(customer(ADA), &body));
        for placed in futures_util::future::join_all(placements).await {
            placed.expect(201);
        }
        let spans = collector.spans();
        spans.iter().any(|span| span.name == "place" && !span.links.is_empty())
    })
    .await;
    replica.signal("TERM");
    replica.rest_of_log();

    let spans = collector.spans();
    for span in spans.iter().filter(|span| span.name == "place" && !span.links.is_empty()) {
        let first =
            spans.iter().find(|first| first.id == span.links[0]).expect("the span that it is linked to");
        assert_eq!(first.name, "place");
        assert_ne!(first.trace_id, span.trace_id);
        let size = "db.operation.batch.size";
        assert_eq!(first.attributes[size], span.attributes[size]);
        shared.push(span);
    }
    assert!(!shared.is_empty());
    // The same holds for orders that share a look-up.
    let linked = spans.iter().filter(|span| span.kind == "CLIENT" && span.name.starts_with("GET"));
    assert!(linked.flat_map(|span| &span.links).all(|link| spans.iter().any(|span| span.id == *link)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_are_sent_over_grpc_with_the_configured_headers_and_service_name() {
    let collector = Collector::grpc().await;
    let (shop, _replica) = start(
        traced(&collector.url)
            .with("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
            .with("OTEL_EXPORTER_OTLP_HEADERS", "api-key=the-key")
            .with("OTEL_SERVICE_NAME", "orders-of-the-test")
            .with("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    )
    .await;
    let phone = shop.product("phone", "10", 5).await;

    place(&shop, &[(&phone, 1)], "01").await;
    let spans = collector.spans_of(TRACE, 4).await;

    assert_eq!(tree(&spans, GATEWAY)[0], "SERVER POST /api/orders");
    assert_eq!(collector.header("api-key").as_deref(), Some("the-key"));
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "orders-of-the-test");
    assert_eq!(resource["deployment.environment.name"], "test");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_contain_their_span() {
    let collector = Collector::http().await;
    let (shop, replica) = start(traced(&collector.url)).await;
    let phone = shop.product("phone", "10", 5).await;

    let order = place(&shop, &[(&phone, 1)], "01").await;
    let answered = replica.wait_for_log("request answered");
    pay(&shop, &order, "10", "01").await;
    let applied = replica.wait_for_log("payment applied");
    let spans = collector.spans_of(TRACE, 9).await;

    let span_of = |log: &Value| {
        assert_eq!(log["span"]["trace_id"], TRACE, "{log:#}");
        let id = log["span"]["span_id"].as_str().expect("a span_id");
        spans.iter().find(|span| span.id == id).unwrap_or_else(|| panic!("{log:#}")).kind
    };
    assert_eq!((span_of(&answered), span_of(&applied)), ("SERVER", "CONSUMER"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_span_contains_the_code_of_its_failure() {
    let collector = Collector::http().await;
    let (shop, _replica) = start(traced(&collector.url)).await;
    let phone = shop.product("phone", "10", 5).await;
    shop.fault(&phone, &json!({"kind": "status", "status": 500})).await;

    let call = shop.call("POST", "/api/orders").by(customer(ADA));
    let call = call.header("traceparent", traceparent(GATEWAY, "01"));
    call.json(&lines(&[(&phone, 1)])).send().await.expect_unavailable("product-service-unavailable");
    let spans = collector.spans_of(TRACE, 2).await;

    let of = |kind: &str| spans.iter().find(|span| span.kind == kind).unwrap();
    assert!(of("SERVER").failed && of("CLIENT").failed, "{spans:#?}");
    assert_eq!(of("SERVER").attributes["error.type"], "product-service-unavailable");
    assert_eq!(of("CLIENT").attributes["http.response.status_code"], "500");
    assert_eq!(of("CLIENT").attributes["error.type"], "500");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_outage_logs_one_line_at_its_start_and_one_at_its_end() {
    // A port without a listener.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (shop, mut replica) = start(traced(&format!("http://{address}"))).await;
    let phone = shop.product("phone", "10", 1_000).await;

    shop.placed(ADA, &[(&phone, 1)]).await;
    let away = replica.wait_for_log("spans cannot be exported").to_string();
    for _ in 0..50 {
        shop.placed(ADA, &[(&phone, 1)]).await;
    }
    let collector = Collector::http_at(TcpListener::bind(address).await.unwrap());
    eventually("spans arrive again", async || {
        shop.placed(ADA, &[(&phone, 1)]).await;
        !collector.spans().is_empty()
    })
    .await;
    replica.signal("TERM");
    let log = replica.rest_of_log();

    assert!(away.contains("\"level\":\"WARN\""), "{away}");
    let says = |text: &str| {
        log.iter()
            .filter(|line| line["message"].as_str().is_some_and(|message| message.starts_with(text)))
            .count()
    };
    assert_eq!((says("spans cannot be exported"), says("spans are exported again")), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_sends_the_last_spans_and_does_not_wait_for_a_hanging_collector() {
    let collector = Collector::http().await;
    let shop = traced(&collector.url).with("OTEL_BSP_SCHEDULE_DELAY", "600000").without_service().await;
    let mut replica = Replica::start(&shop.environment);
    let through = shop.through(&replica.url);
    let phone = through.product("phone", "10", 5).await;
    place(&through, &[(&phone, 1)], "01").await;
    through.relayed().await;
    replica.signal("TERM");
    replica.rest_of_log();
    assert_eq!(collector.spans_of(TRACE, 4).await.len(), 4);

    // The listener accepts connections and never answers.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let environment = shop
        .environment
        .clone()
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", hanging.local_addr().unwrap()));
    let mut replica = Replica::start(&environment);
    place(&shop.through(&replica.url), &[(&phone, 1)], "01").await;
    replica.signal("TERM");
    let log = replica.rest_of_log();
    assert!(log.iter().any(|line| line["message"] == "the last spans could not be exported"), "{log:#?}");
    assert_eq!(replica.exit_code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_collector_delays_no_order_and_the_log_reports_dropped_spans_once() {
    // The listener accepts connections and never answers.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (shop, mut replica) = start(
        traced(&format!("http://{}", hanging.local_addr().unwrap()))
            .with("OTEL_BSP_MAX_QUEUE_SIZE", "4")
            .with("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
    )
    .await;
    let phone = shop.product("phone", "10", 1_000).await;

    for _ in 0..20 {
        shop.placed(ADA, &[(&phone, 1)]).await;
    }
    let dropped = replica.wait_for_log("spans are dropped");
    replica.signal("TERM");
    let log = replica.rest_of_log();

    assert_eq!((&dropped["level"], &dropped["waiting"]), (&json!("WARN"), &json!(4)), "{dropped}");
    let again = log.iter().filter(|line| line["message"].to_string().contains("spans are dropped"));
    assert_eq!(again.count(), 0, "{log:#?}");
}

#[tokio::test]
async fn an_invalid_setting_is_refused_with_its_name() {
    let shop = traced("collector:4318").with("OTEL_TRACES_SAMPLER", "sometimes").without_service().await;
    let refused = command("serve", &shop.environment).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for line in [
        "OTEL_EXPORTER_OTLP_ENDPOINT must be a URL such as",
        "OTEL_TRACES_SAMPLER must be one of parentbased_",
    ] {
        assert!(said.contains(line), "{said}");
    }
}
