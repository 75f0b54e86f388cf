//! Helpers for tests of the promises: the Product Service's ledger, stock work, payments.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, Call, PATIENCE, Payment, Replica, Shop, admin, eventually};

/// A stock change that the Product Service has applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Movement {
    pub(crate) change: i64,
    pub(crate) key: String,
}

impl Movement {
    /// The direction in the key of an attempt: `take` or `give-back`.
    pub(crate) fn new(change: i64, order: &str, line: usize, direction: &str, attempt: usize) -> Self {
        Self { change, key: format!("{order}:{line}:{direction}:{attempt}") }
    }
}

/// The size of a run: short with every `cargo test`, long with `PROMISE_SCALE=long`.
pub(crate) fn scale(short: usize, long: usize) -> usize {
    match std::env::var("PROMISE_SCALE").as_deref() {
        Err(_) | Ok("" | "short") => short,
        Ok("long") => long,
        Ok(other) => panic!("PROMISE_SCALE is short or long, not {other}"),
    }
}

/// Prints a figure of a test, visible with `--nocapture`.
#[expect(clippy::print_stdout, reason = "for the person who runs the test")]
pub(crate) fn figure(text: &str) {
    println!("FIGURE {text}");
}

impl Shop {
    /// Waits until a session of this database waits for a lock.
    pub(crate) async fn a_session_waits_for_a_lock(&self) {
        eventually("a session waits for a lock", async || {
            let waits = "select exists (select from pg_stat_activity
                         where datname = current_database() and wait_event_type = 'Lock')";
            sqlx::query_scalar(waits).fetch_one(&self.database).await.unwrap()
        })
        .await;
    }

    /// Begins a call to another replica.
    pub(crate) fn call_at(&self, url: &str, method: &str, path: &str) -> Call {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        Call::new(&self.client, method, format!("{url}{path}"))
    }

    /// Starts another replica as a separate process, with the shop's environment and these settings.
    pub(crate) async fn replica(&self, changes: &[(&str, &str)]) -> Replica {
        let start = self.environment.clone();
        let environment = changes.iter().fold(start, |env, (name, value)| env.with(name, *value));
        tokio::task::spawn_blocking(move || Replica::start(&environment)).await.unwrap()
    }

    /// Confirms an order through a replica; returns `None` if the replica died before its answer.
    pub(crate) async fn confirm_at(&self, url: &str, order: &str) -> Option<Answer> {
        let path = format!("/api/orders/{order}/status");
        let call = self.call_at(url, "PUT", &path).by(admin()).json(&json!({"status": "CONFIRMED"}));
        call.try_send().await.ok()
    }

    /// Every change of a product's stock, in order.
    pub(crate) async fn ledger(&self, product: &str) -> Vec<Movement> {
        let book = self.demo("GET", &format!("/demo/ledger/{product}"), String::new()).await.expect(200);
        let movement = |entry: &Value| Movement {
            change: entry["change"].as_i64().unwrap(),
            key: entry["idempotencyKey"].as_str().expect("a key").to_owned(),
        };
        book.body.as_array().unwrap().iter().map(movement).collect()
    }

    /// The number of calls of any kind for a product.
    pub(crate) async fn calls_seen(&self, product: &str) -> u64 {
        self.requests_seen(Some(product)).await["total"].as_u64().unwrap()
    }

    /// Waits until another call for the product has arrived.
    pub(crate) async fn called_again(&self, product: &str, before: u64) {
        eventually("the Product Service is called", async || self.calls_seen(product).await > before).await;
    }

    /// The unfinished stock work, from the readiness answer.
    pub(crate) async fn stock_work(&self) -> Value {
        self.get(admin(), "/health/ready").await.expect(200).body["components"]["stockWork"].clone()
    }

    /// Waits until all stock work is finished.
    pub(crate) async fn no_stock_work(&self) {
        eventually("no stock work is left", async || self.stock_work().await["open"] == 0).await;
    }

    /// Waits until the order has this status.
    pub(crate) async fn becomes(&self, order: &str, status: &str) {
        eventually(&format!("the order is {status}"), async || self.status(order).await == status).await;
    }

    /// The due refunds of an order: amount and reason.
    pub(crate) async fn refunds(&self, order: &str) -> Vec<(String, String)> {
        sqlx::query_as("select amount::text, reason from refunds_due where order_id = $1::uuid")
            .bind(order)
            .fetch_all(&self.database)
            .await
            .unwrap()
    }

    /// The parked payments with this payload: topic, partition, offset and error.
    pub(crate) async fn parked(&self, payload: &[u8]) -> Vec<(String, i32, i64, String)> {
        sqlx::query_as("select topic, partition, \"offset\", error from parked_payments where payload = $1")
            .bind(payload)
            .fetch_all(&self.database)
            .await
            .unwrap()
    }

    /// Publishes payments with one key and waits until the consumer has read all of them: it has parked an invalid
    /// record that follows them in the same partition.
    pub(crate) async fn read(&self, key: &str, payments: &[Payment]) {
        let last = format!("the end {}", uuid::Uuid::new_v4()).into_bytes();
        let mut records: Vec<_> = payments
            .iter()
            .map(|payment| (key.to_owned(), payment.record.to_string().into_bytes()))
            .collect();
        records.push((key.to_owned(), last.clone()));
        self.payments.publish_all(&records).await;
        eventually("the payments have been read", async || !self.parked(&last).await.is_empty()).await;
    }
}

impl Replica {
    /// Kills the process with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.signal("KILL");
        assert_eq!(self.exit_code(), None, "the process ended by itself within {PATIENCE:?}");
    }
}
