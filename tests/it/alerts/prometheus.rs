//! Debian's Prometheus as a process, with the rules of the kit.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Shop, eventually, figure, http_client};

/// The rules of the kit.
pub(super) const RULES: &str = include_str!("../../../src/kit/prometheus/rules/order-service.yml");

/// The divisor for every time of the rules. Thresholds (such as an age of a minute) stay unchanged.
pub(super) const FASTER: u64 = 20;

/// Seconds between two scrapes, long enough that a slow machine misses none.
const SCRAPE: u64 = 3;

/// The shortest range in seconds: a rate needs several samples.
pub(super) const SHORTEST_RANGE: u64 = 5 * SCRAPE;

/// The time limit of an alert: the largest threshold of an age is two minutes, and each step waits for scrapes.
pub(super) const PATIENCE: Duration = Duration::from_mins(6);

/// The folder with one target file per shop.
const TARGETS: &str = "targets";

/// A running Prometheus. Dropping it kills it.
pub(super) struct Prometheus {
    process: Child,
    folder: TempDir,
    url: String,
    client: Client,
}

/// A time of the rules in seconds, such as `5m`.
fn seconds(time: &str) -> u64 {
    let (number, unit) = time.split_at(time.len() - 1);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => panic!("{time} is not a time"),
    };
    number.parse::<u64>().unwrap_or_else(|_| panic!("{time} is not a time")) * unit
}

/// A line with each range divided by [`FASTER`].
fn with_faster_ranges(line: &str) -> String {
    let mut parts = line.split('[');
    let before = parts.next().unwrap_or_default().to_owned();
    let faster = |part: &str| {
        let (range, rest) = part.split_once(']').expect("the end of a range");
        format!("[{}s]{rest}", (seconds(range) / FASTER).max(SHORTEST_RANGE))
    };
    before + &parts.map(faster).collect::<String>()
}

/// The rules with each `for` and each range divided by [`FASTER`].
fn faster(rules: &str) -> String {
    let line = |line: &str| match line.split_once("for: ") {
        Some((indent, time)) => format!("{indent}for: {}s\n", (seconds(time) / FASTER).max(1)),
        None => with_faster_ranges(line) + "\n",
    };
    rules.lines().map(line).collect()
}

#[test]
fn only_the_times_of_the_rules_are_shortened() {
    let rules = "- expr: sum by (a) (rate(b[1h])) / rate(b[5m]) > 60\n  for: 10m\n  labels: {c: d}";
    let faster = faster(rules);
    assert_eq!(
        faster,
        "- expr: sum by (a) (rate(b[180s])) / rate(b[15s]) > 60\n  for: 30s\n  labels: {c: d}\n"
    );
    assert_eq!(self::faster(RULES).lines().count(), RULES.lines().count());
}

fn configuration(folder: &Path) -> String {
    let place = |file: &str| folder.join(file).to_str().expect("UTF-8").to_owned();
    json!({
        "global": {
            "scrape_interval": format!("{SCRAPE}s"),
            "scrape_timeout": format!("{SCRAPE}s"),
            "evaluation_interval": "1s",
        },
        "rule_files": [place("rules.yml")],
        "scrape_configs": [{
            "job_name": "order-service",
            "file_sd_configs": [{"files": [place(&format!("{TARGETS}/*.json"))], "refresh_interval": "1s"}],
        }],
    })
    .to_string()
}

impl Prometheus {
    /// Starts Prometheus with the rules of the kit and no targets.
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |file: &str| folder.path().join(file);
        std::fs::write(place("rules.yml"), faster(RULES)).unwrap();
        std::fs::create_dir(place(TARGETS)).unwrap();
        // JSON is valid YAML.
        std::fs::write(place("prometheus.yml"), configuration(folder.path())).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", place("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", place("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stderr(File::create(place("log")).unwrap())
            .spawn()
            .expect("prometheus; `.ci/prometheus` installs it");
        let mut prometheus = Self { process, folder, url: String::new(), client: http_client() };
        eventually("Prometheus listens", async || prometheus.address().is_some()).await;
        prometheus.url = format!("http://{}", prometheus.address().expect("an address"));
        eventually("Prometheus is ready", async || {
            let ready = prometheus.client.get(format!("{}/-/ready", prometheus.url)).send().await;
            ready.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
        prometheus
    }

    /// The address of Prometheus, from its log.
    fn address(&self) -> Option<String> {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap();
        let line = log.lines().find(|line| line.contains(r#"msg="Listening on""#))?;
        Some(line.split_once("address=")?.1.to_owned())
    }

    /// Scrapes a shop from now on, in its own namespace.
    pub(super) fn scrape(&self, namespace: &str, shop: &Shop) {
        let address = shop.url.strip_prefix("http://").expect("http");
        let labels = json!({"namespace": namespace, "instance": namespace});
        let new = self.folder.path().join(format!("{namespace}.new"));
        std::fs::write(&new, json!([{"targets": [address], "labels": labels}]).to_string()).unwrap();
        // The rename is atomic: Prometheus must not read a partial file.
        std::fs::rename(new, self.folder.path().join(TARGETS).join(format!("{namespace}.json"))).unwrap();
    }

    async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let url = format!("{}/api/v1/{path}?{body}", self.url);
        let text = self.client.get(url).send().await.unwrap().text().await.unwrap();
        let mut answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["status"], "success", "{query:?}: {text}");
        answer["data"].take()
    }

    /// The current samples of an expression.
    pub(super) async fn query(&self, expression: &str) -> Vec<Value> {
        let mut data = self.ask("query", &[("query", expression)]).await;
        serde_json::from_value(data["result"].take()).unwrap()
    }

    /// Waits until a shop has been scraped.
    pub(super) async fn has_scraped(&self, namespace: &str) {
        let up = format!(r#"up{{namespace="{namespace}"}} == 1"#);
        self.wait_until(&format!("a scrape of {namespace}"), async || !self.query(&up).await.is_empty())
            .await;
    }

    /// Waits for a result of a rule evaluation.
    async fn wait_until(&self, what: &str, happened: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !happened().await {
            assert!(Instant::now() < deadline, "never happened: {what}");
            self.next_evaluation().await;
        }
    }

    /// The expressions of all loaded rules.
    pub(super) async fn rules(&self) -> Vec<String> {
        let data = self.ask("rules", &[]).await;
        let groups = data["groups"].as_array().expect("groups");
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules"));
        rules.map(|rule| rule["query"].as_str().expect("a query").to_owned()).collect()
    }

    /// Waits for the interval between two evaluations.
    pub(super) async fn next_evaluation(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    async fn is_firing(&self, namespace: &str, alert: &str) -> bool {
        let firing = format!(
            r#"ALERTS{{alertname="OrderService{alert}",namespace="{namespace}",alertstate="firing"}}"#
        );
        !self.query(&firing).await.is_empty()
    }

    async fn wait_for(&self, namespace: &str, alert: &str, firing: bool) {
        let (started, what) = (Instant::now(), if firing { "fires" } else { "ends" });
        let is_so = async || self.is_firing(namespace, alert).await == firing;
        self.wait_until(&format!("{alert} {what} of {namespace}"), is_so).await;
        figure(&format!("{namespace}: {alert} {what} after {} s", started.elapsed().as_secs()));
    }

    /// Waits until an alert fires for a shop.
    pub(super) async fn fires(&self, namespace: &str, alert: &str) {
        self.wait_for(namespace, alert, true).await;
    }

    /// Waits until an alert of a shop has ended.
    pub(super) async fn ends(&self, namespace: &str, alert: &str) {
        self.wait_for(namespace, alert, false).await;
    }

    /// The alerts that have fired since the start, for the shops that match a regular expression.
    pub(super) async fn fired(&self, namespaces: &str) -> BTreeSet<String> {
        let ever = format!(r#"max_over_time(ALERTS{{namespace=~"{namespaces}",alertstate="firing"}}[1h])"#);
        let alerts = self.query(&ever).await;
        alerts.iter().map(|alert| alert["metric"]["alertname"].as_str().expect("a name").to_owned()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
