//! A real Prometheus scrapes services under load. The services export all metrics of dashboard and rules; each broken
//! part fires its alert, which ends when the part is repaired.
//!
//! The rules are those of the kit with every time divided by [`prometheus::FASTER`]. `.ci/prometheus` installs
//! Prometheus and runs these tests.

mod broken;
mod expressions;
mod prometheus;
mod trade;

use std::collections::BTreeSet;
use std::time::Instant;

use expressions::{Expression, dashboard};
use order_service::domain::BUCKETS;
use prometheus::{PATIENCE, Prometheus, RULES};
use trade::Trade;

use crate::support::{Shop, figure};

#[test]
fn the_alert_on_buckets_uses_the_right_number_of_buckets() {
    assert!(RULES.contains(&format!("(relay_buckets_held{{job=\"order-service\"}}) < {BUCKETS}\n")));
}

/// Queries each of `wanted` until it has been found once; fails with those that are never found.
async fn expect_found(prometheus: &Prometheus, what: &str, mut wanted: BTreeSet<String>) {
    let (all, deadline) = (wanted.len(), Instant::now() + PATIENCE);
    while !wanted.is_empty() {
        assert!(Instant::now() < deadline, "{what} without a sample: {wanted:#?}");
        for query in wanted.clone() {
            if !prometheus.query(&query).await.is_empty() {
                wanted.remove(&query);
            }
        }
        prometheus.next_evaluation().await;
    }
    figure(&format!("{what}: {all} of {all} have samples"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Prometheus, which .ci/prometheus installs"]
async fn the_service_exports_every_metric_and_label_of_dashboard_and_rules() {
    let shop = Trade::builder().start().await;
    let mut trade = Trade::prepare(&shop).await;
    let prometheus = Prometheus::start().await;
    prometheus.scrape("shop", &shop);

    let look = async {
        let panels = dashboard();
        let rules = prometheus.rules().await;
        let expressions = || panels.iter().chain(&rules).map(|text| Expression::parse(text));
        let selectors = expressions().flat_map(|expression| expression.selectors).collect();
        let labels = expressions().flat_map(|expression| expression.with_labels()).collect();
        expect_found(&prometheus, "selectors of dashboard and rules", selectors).await;
        expect_found(&prometheus, "labels that are grouped by", labels).await;
        expect_found(&prometheus, "queries of the dashboard", panels.iter().cloned().collect()).await;
    };
    tokio::select! {
        () = look => {}
        () = trade.go_on() => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Prometheus, which .ci/prometheus installs"]
async fn each_broken_part_fires_its_alert_and_repairing_it_ends_the_alert() {
    let prometheus = Prometheus::start().await;
    let mut shops = broken::Shops::start().await;
    let healthy = Shop::builder().with("PAYMENT_EVENTS_ENABLED", "true").start().await;
    let mut trade = Trade::prepare(&healthy).await.without_failures();
    prometheus.scrape("healthy", &healthy);

    tokio::select! {
        () = shops.break_and_mend(&prometheus) => {}
        () = trade.go_on() => {}
    }

    let all = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    assert_eq!(prometheus.fired(".*").await, all.map(str::to_owned).collect(), "all alerts");
    // With ten shops at once, the machine may be slow.
    let fired = prometheus.fired("healthy").await;
    assert!(fired.iter().all(|alert| alert == "OrderServiceLatencyHigh"), "{fired:?}");
}
