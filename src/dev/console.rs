//! The console of `dev`: a page in the browser that places orders, shows their events, and breaks parts.
//!
//! | call | what it does |
//! |---|---|
//! | `GET /`, `/console.css`, `/console.js` | the page |
//! | `GET /events` | server-sent events: `state` (parts and catalogue) and `record` (of either topic) |
//! | `/api/…` | forwards the call to a replica, as the gateway would; `X-Replica: 2` chooses one |
//! | `POST /payments` | publishes the body to the payment topic, as the Payment Service would |
//! | `PUT /parts/{part}` `{"state":"down"}` | breaks or repairs `kafka`, `product-service` or `replica` |
//!
//! It listens on 127.0.0.1 only, and accepts a browser's requests only from its own page (`guard.rs`).

mod feed;
mod gateway;
mod guard;
mod parts;
mod payments;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::kafka::Journal;
use super::replica::Replica;
use super::{DevError, Stack};
use crate::config::Environment;
use crate::events::KafkaSettings;
use feed::Feed;
use gateway::Gateway;
use payments::PaymentService;

/// The address of the console; it uses a free port if another process has this one.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8088);
/// The interval between comparisons of the state with the one that the pages show.
const TICK: Duration = Duration::from_millis(400);
/// The interval between readiness requests to the service.
const HEALTH: Duration = Duration::from_secs(15);
const HEALTH_WHILE_UNSETTLED: Duration = Duration::from_secs(1);
/// The service notices a change within this time.
const SETTLED_AFTER: Duration = Duration::from_secs(15);
const STOPPED_WITHIN: Duration = Duration::from_secs(5);
/// More than the replica itself takes.
const REPLICA_STOPPED_WITHIN: Duration = Duration::from_secs(30);
/// The maximum number of open pages.
const MOST_PAGES: usize = 32;

const HTML: &str = include_str!("console/page/index.html");
const STYLE: &str = include_str!("console/page/console.css");
const SCRIPT: &str = include_str!("console/page/console.js");

/// The running console.
pub struct Console {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: AbortOnDropHandle<std::io::Result<()>>,
    reader: JoinHandle<()>,
}

struct Shared {
    stack: Arc<Stack>,
    gateway: Gateway,
    payments: PaymentService,
    second: Replica,
    feed: Feed,
    /// Identifies this process. A page of an earlier process reloads itself.
    run: uuid::Uuid,
    kafka_down: std::sync::atomic::AtomicBool,
    state: watch::Sender<String>,
    changed: Notify,
    pages: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Console {
    /// Starts listening and reading both topics. `replica` is the one in this process. `program` and `env` are the
    /// binary and the settings of a second one.
    pub async fn start(
        stack: Arc<Stack>,
        kafka: KafkaSettings,
        replica: SocketAddr,
        program: PathBuf,
        env: &Environment,
        journal: Option<Journal>,
    ) -> Result<Self, DevError> {
        let failed = || DevError::io("listen for the console");
        let listener = match TcpListener::bind(ADDRESS).await {
            Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed())?,
            Ok(listener) => listener,
        };
        let address = listener.local_addr().map_err(failed())?;
        let variables = env.clone().with("BIND_ADDRESS", "127.0.0.1:0").variables().clone();
        let stopping = CancellationToken::new();
        let console = Arc::new(Shared {
            gateway: Gateway::new(replica, env.optional("GATEWAY_SECRET"))?,
            payments: PaymentService::new(&kafka)?,
            second: Replica::new(program, variables),
            feed: Feed::default(),
            run: uuid::Uuid::new_v4(),
            kafka_down: false.into(),
            state: watch::Sender::new(String::new()),
            changed: Notify::new(),
            pages: Arc::new(Semaphore::new(MOST_PAGES)),
            stopping: stopping.clone(),
            stack,
        });
        let reading = Arc::clone(&console);
        let reader = tokio::task::spawn_blocking(move || feed::read_topics(&kafka, &reading, journal));
        tokio::spawn(watch_state(Arc::clone(&console)));
        let app = router(&console, address.port());
        let stopped = stopping.cancelled_owned();
        let server = async move { axum::serve(listener, app).with_graceful_shutdown(stopped).await };
        let server = AbortOnDropHandle::new(tokio::spawn(server));
        Ok(Self { address, shared: console, server, reader })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the console and the second replica, and writes the last records of Kafka to the journal. Each step has a
    /// time limit.
    pub async fn stop(self) {
        self.shared.stopping.cancel();
        // The replica may still be starting. After a timeout, it ends with this process.
        let _ = timeout(REPLICA_STOPPED_WITHIN, self.shared.second.stop()).await;
        // After a timeout, the drop of the handle aborts the server.
        let _ = timeout(STOPPED_WITHIN, self.server).await;
        // After a timeout, the journal lacks the records that were not read yet.
        let _ = timeout(STOPPED_WITHIN, self.reader).await;
    }
}

fn router(console: &Arc<Shared>, port: u16) -> Router {
    Router::new()
        .route("/", get(async || page("text/html; charset=utf-8", HTML)))
        .route("/console.css", get(async || page("text/css; charset=utf-8", STYLE)))
        .route("/console.js", get(async || page("text/javascript; charset=utf-8", SCRIPT)))
        .route("/events", get(events))
        .route("/api/{*path}", any(gateway::forward))
        .route("/payments", post(payments::publish))
        .route("/parts/{part}", put(parts::set))
        .layer(from_fn_with_state(port, guard::admit))
        .with_state(Arc::clone(console))
}

fn page(content_type: &'static str, text: &'static str) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
                          connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}

/// An error of the console itself, not of the service.
struct Refusal {
    status: StatusCode,
    detail: String,
}

fn refuse(status: StatusCode, detail: impl Into<String>) -> Refusal {
    Refusal { status, detail: detail.into() }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let body =
            json!({"title": title, "status": self.status.as_u16(), "detail": self.detail, "from": "console"});
        (self.status, reply(&body)).into_response()
    }
}

/// Updates the state while a page is open. The service logs each readiness request, so a healthy service is asked
/// less often.
async fn watch_state(console: Arc<Shared>) {
    let looking = async {
        let (mut health, mut looked_at, mut changed_at) = (None, Instant::now(), Instant::now());
        loop {
            if console.state.receiver_count() > 0 {
                let unsettled = parts::is_any_broken(&console) || changed_at.elapsed() < SETTLED_AFTER;
                let pause = if unsettled { HEALTH_WHILE_UNSETTLED } else { HEALTH };
                if health.is_none() || looked_at.elapsed() >= pause {
                    (health, looked_at) = (console.gateway.health().await, Instant::now());
                }
                let state = parts::state(&console, health.as_ref()).to_string();
                console.state.send_if_modified(|before| {
                    let is_new = *before != state;
                    *before = state;
                    is_new
                });
            }
            // The page shows a change at once.
            if timeout(TICK, console.changed.notified()).await.is_ok() {
                changed_at = Instant::now();
            }
        }
    };
    console.stopping.run_until_cancelled(looking).await;
}

/// One open page.
struct Page {
    console: Arc<Shared>,
    state: watch::Receiver<String>,
    records: watch::Receiver<u64>,
    /// The number of the next record to send.
    next: u64,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

/// Sends the state of the parts whenever it changes, and the records of both topics: first the kept ones, then each
/// as it arrives. A page that reconnects continues after its `Last-Event-ID`.
async fn events(State(console): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let Ok(permit) = Arc::clone(&console.pages).try_acquire_owned() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open").into_response();
    };
    let last = headers.get(HeaderName::from_static("last-event-id"));
    let last = last.and_then(|id| id.to_str().ok()).and_then(|id| id.rsplit_once('/'));
    let seen = last.filter(|(run, _)| *run == console.run.to_string()).and_then(|(_, id)| id.parse().ok());
    let mut state = console.state.subscribe();
    state.mark_changed();
    let records = console.feed.subscribe();
    console.changed.notify_one();
    let page = Page { state, records, next: seen.map_or(0, |id: u64| id + 1), console, _permit: permit };
    let events =
        stream::unfold(page, async |mut page| Some((Ok::<_, Infallible>(page.event().await?), page)));
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

impl Page {
    /// The next event; none when the console stops.
    async fn event(&mut self) -> Option<Event> {
        let stopping = self.console.stopping.clone();
        loop {
            if let Some((id, record)) = self.console.feed.at(self.next) {
                self.next = id + 1;
                let id = format!("{}/{id}", self.console.run);
                return Some(Event::default().event("record").id(id).data(record));
            }
            tokio::select! {
                () = stopping.cancelled() => return None,
                changed = self.records.changed() => changed.ok()?,
                changed = self.state.changed() => {
                    changed.ok()?;
                    let state = self.state.borrow_and_update().clone();
                    if !state.is_empty() {
                        return Some(Event::default().event("state").data(state));
                    }
                }
            }
        }
    }
}

fn reply(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
