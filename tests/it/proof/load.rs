//! The clients place, pay, confirm and cancel orders; without an answer they repeat the request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::Utc;
use futures_util::future::join_all;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::random::Random;
use super::shelf::Shelf;
use super::story::{PaymentKind, SentPayment, Story};
use super::world::World;
use crate::support::{Answer, Call, PATIENCE, admin, customer, http_client};

/// The client's timeout of one attempt, and its maximum number of attempts.
const ATTEMPT: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 60;

/// An action on a placed order.
#[derive(Clone, Copy, Debug)]
enum Action {
    Pay(PaymentKind),
    PayTwiceWithinASecond,
    PayTwiceUnderOneId,
    Confirm,
    CancelAsAdmin,
    CancelAsOwner,
}

const ACTIONS: [Action; 15] = [
    Action::Pay(PaymentKind::Success),
    Action::Pay(PaymentKind::Success),
    Action::Pay(PaymentKind::Success),
    Action::Pay(PaymentKind::Success),
    Action::Pay(PaymentKind::Success),
    Action::Pay(PaymentKind::Failed),
    Action::Pay(PaymentKind::WrongAmount),
    Action::PayTwiceWithinASecond,
    Action::PayTwiceUnderOneId,
    Action::Confirm,
    Action::Confirm,
    Action::Confirm,
    Action::CancelAsAdmin,
    Action::CancelAsAdmin,
    Action::CancelAsOwner,
];

/// The result of an action, for the story.
enum Done {
    Paid(Vec<SentPayment>),
    Changed(&'static str),
    Nothing,
}

pub(super) struct Load {
    world: Arc<World>,
    shelf: Shelf,
    http: Client,
    producer: FutureProducer,
    stories: AtomicUsize,
    answered: AtomicUsize,
    payments: AtomicUsize,
}

impl Load {
    pub(super) fn new(world: Arc<World>, shelf: Shelf) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &world.payments.bootstrap_servers)
            .set("enable.idempotence", "true")
            .set("reconnect.backoff.max.ms", "500")
            .set("socket.timeout.ms", "3000")
            .create()
            .unwrap();
        Self {
            world,
            shelf,
            http: http_client(),
            producer,
            stories: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            payments: AtomicUsize::new(0),
        }
    }

    /// The number of answered requests.
    pub(super) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// The number of different published payment events.
    pub(super) fn payments(&self) -> usize {
        self.payments.load(Ordering::Relaxed)
    }

    /// Runs one client, story after story, until `stop`.
    pub(super) async fn client(self: Arc<Self>, mut random: Random, stop: CancellationToken) -> Vec<Story> {
        let mut stories = Vec::new();
        while !stop.is_cancelled() {
            let mut story = self.begin(&mut random);
            self.disturb(&story, &mut random).await;
            self.place(&mut story, &mut random).await;
            if story.order().is_some() {
                self.live(&mut story, &mut random).await;
            }
            stories.push(story);
        }
        stories
    }

    fn begin(&self, random: &mut Random) -> Story {
        let number = self.stories.fetch_add(1, Ordering::Relaxed);
        Story {
            customer: format!("c{number}@proof.example"),
            key: random.percent(70).then(|| format!("key-{number}")),
            basket: self.shelf.basket(number, random),
            acknowledged: Vec::new(),
            told_unwritten: Vec::new(),
            outcomes_unknown: 0,
            total: Value::Null,
            changed_to: Vec::new(),
            payments: Vec::new(),
            garbage: Vec::new(),
        }
    }

    /// Injects a fault of the Product Service for a product of the story.
    async fn disturb(&self, story: &Story, random: &mut Random) {
        if !random.percent(35) {
            return;
        }
        let (product, _) = &story.basket[random.index(story.basket.len())];
        let (times, millis) = (random.between(1, 3), random.between(20, 700));
        let on = random.pick(&["reduce-stock", "reduce-stock", "restore-stock"]);
        let refusal = random.pick(&[400, 404, 409]);
        let fault = match random.below(12) {
            0..5 => json!({"kind": "lose-answer", "times": times, "on": on}),
            5 => json!({"kind": "status", "status": 503, "times": times, "on": on}),
            6 => json!({"kind": "hang", "times": 1, "on": on}),
            7 => json!({"kind": "status", "status": 500, "times": 1, "on": "read"}),
            // The stock is available nevertheless.
            8 | 9 if Shelf::never_runs_out(product) => {
                json!({"kind": "status", "status": refusal, "times": 1, "on": "reduce-stock"})
            }
            _ => json!({"kind": "slow", "millis": millis, "times": times, "on": on}),
        };
        self.world.fault(product, &fault).await;
    }

    /// Places the order until it is acknowledged or refused, and sometimes once more after that.
    async fn place(&self, story: &mut Story, random: &mut Random) {
        for _ in 0..ATTEMPTS {
            let copies = if random.percent(15) { random.between(2, 4) } else { 1 };
            let attempts: Vec<_> = (0..copies).map(|_| self.ask_for_order(story, random.fork())).collect();
            let answers: Vec<(String, Answer)> = join_all(attempts).await.into_iter().flatten().collect();
            let refused = answers.iter().any(|(_, answer)| matches!(answer.status, 400 | 401 | 403 | 422));
            for (trace, answer) in answers {
                story.note(trace, &answer);
            }
            let satisfied = story.order().is_some() && !random.percent(25);
            if refused || satisfied {
                return;
            }
            pause(random).await;
        }
    }

    /// One placement attempt; returns its trace and its answer. Some clients disconnect before the answer.
    async fn ask_for_order(&self, story: &Story, mut random: Random) -> Option<(String, Answer)> {
        let trace = Uuid::new_v4().simple().to_string();
        let mut call = self.call("POST", "/api/orders", &mut random)?.by(customer(&story.customer));
        call = call.header("traceparent", format!("00-{trace}-00000000000000ff-01"));
        if let Some(key) = &story.key {
            call = call.header("Idempotency-Key", key);
        }
        let patience =
            if random.percent(10) { Duration::from_millis(random.between(1, 40)) } else { ATTEMPT };
        let answer = self.send(call.json(&story.body()), patience).await?;
        Some((trace, answer))
    }

    /// Runs up to three actions on the order, sequentially or concurrently.
    async fn live(&self, story: &mut Story, random: &mut Random) {
        let actions: Vec<Action> = (0..random.below(4)).map(|_| random.pick(&ACTIONS)).collect();
        let done = if random.percent(50) {
            join_all(actions.iter().map(|action| self.act(story, *action, random.fork()))).await
        } else {
            let mut done = Vec::new();
            for action in actions {
                done.push(self.act(story, action, random.fork()).await);
            }
            done
        };
        for done in done {
            match done {
                Done::Paid(payments) => story.payments.extend(payments),
                Done::Changed(status) => story.changed_to.push(status),
                Done::Nothing => {}
            }
        }
        if random.percent(5) {
            let garbage = format!("no payment of {}", story.customer);
            self.publish(&story.customer, &garbage).await;
            story.garbage.push(garbage);
        }
    }

    async fn act(&self, story: &Story, action: Action, mut random: Random) -> Done {
        let order = story.order().expect("an order");
        let status = format!("/api/orders/{order}/status");
        let cancel = format!("/api/orders/{order}/cancel");
        match action {
            Action::Pay(kind) => {
                let payment = self.pay(story, kind, &story.payment(kind, random.percent(50))).await;
                for _ in 0..random.pick(&[0, 0, 0, 1, 2]) {
                    self.publish(order, &payment.envelope).await;
                }
                Done::Paid(vec![payment])
            }
            Action::PayTwiceWithinASecond => self.pay_twice(story, story.payments_within_a_second()).await,
            Action::PayTwiceUnderOneId => self.pay_twice(story, story.payments_under_one_id()).await,
            Action::Confirm => self.change("PUT", &status, None, "CONFIRMED", &mut random).await,
            Action::CancelAsAdmin => self.change("PUT", &status, None, "CANCELLED", &mut random).await,
            Action::CancelAsOwner => {
                self.change("POST", &cancel, Some(&story.customer), "CANCELLED", &mut random).await
            }
        }
    }

    async fn pay_twice(&self, story: &Story, payments: [Value; 2]) -> Done {
        let mut sent = Vec::new();
        for payment in payments {
            sent.push(self.pay(story, PaymentKind::Success, &payment).await);
        }
        Done::Paid(sent)
    }

    /// Publishes a payment once.
    pub(super) async fn pay(&self, story: &Story, kind: PaymentKind, payment: &Value) -> SentPayment {
        let envelope = payment.to_string();
        self.payments.fetch_add(1, Ordering::Relaxed);
        self.publish(story.order().expect("an order"), &envelope).await;
        SentPayment { kind, envelope, acknowledged_at: Utc::now() }
    }

    /// Requests a status change until the answer is final.
    async fn change(
        &self,
        method: &str,
        path: &str,
        owner: Option<&str>,
        to: &'static str,
        random: &mut Random,
    ) -> Done {
        let who = owner.map_or(admin(), customer);
        let body = if method == "PUT" { json!({"status": to}) } else { json!({}) };
        for _ in 0..ATTEMPTS {
            if let Some(call) = self.call(method, path, random) {
                match self.send(call.by(who).json(&body), ATTEMPT).await {
                    Some(answer) if answer.status == 200 => return Done::Changed(to),
                    Some(answer) if answer.status < 500 => return Done::Nothing,
                    _ => {}
                }
            }
            pause(random).await;
        }
        Done::Nothing
    }

    fn call(&self, method: &str, path: &str, random: &mut Random) -> Option<Call> {
        let url = self.world.any_replica(random)?;
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        Some(Call::new(&self.http, method, format!("{url}{path}")))
    }

    /// The answer, unless the connection breaks or the client times out first.
    async fn send(&self, call: Call, patience: Duration) -> Option<Answer> {
        let answer = timeout(patience, call.try_send()).await.ok()?.ok()?;
        self.answered.fetch_add(1, Ordering::Relaxed);
        Some(answer)
    }

    /// Publishes to the payment topic, and repeats until the broker acknowledges it.
    async fn publish(&self, key: &str, payload: &str) {
        let record = FutureRecord::to(&self.world.payments.name).key(key).payload(payload);
        self.producer.send(record, PATIENCE).await.expect("an acknowledgement");
    }
}

/// The pause of `Retry-After`, shortened to limit the duration of the proof.
async fn pause(random: &mut Random) {
    sleep(Duration::from_millis(random.between(20, 250))).await;
}
