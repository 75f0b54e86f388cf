//! `ProductClient`: prices and stock from the Product Service, and the stock calls.
//!
//! The Product Service has no call for several products, so the products of an order are looked up concurrently.
//! These bounds keep a slow or broken Product Service from exhausting this service (invariant 8), outermost first:
//!
//! | bound | setting | in |
//! |---|---|---|
//! | deadline of all look-ups of a placement | `deadline` | here |
//! | concurrent look-ups of one placement | `concurrency` | here |
//! | one look-up of a product in flight, shared by placements | | `singleflight` |
//! | look-ups of all placements in flight | `max_in_flight` | here |
//! | retries of one GET, and of all GETs together | `retries` | `budget` |
//! | no calls while most of them fail | `breaker` | `circuit_breaker` |
//! | one attempt: connection, answer, size | `attempt_timeout`, `connect_timeout` | here, `answer` |
//!
//! A 404 is a normal answer: the look-up succeeds, and the breaker counts a success. An answer that is invalid for
//! its product (a price with three decimals, another product's id, a 4xx) fails the look-up, but the breaker ignores
//! it: one broken product must not stop all sales.

use std::cmp::min;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use opentelemetry::trace::SpanKind;
use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use reqwest::{RequestBuilder, StatusCode, Url, redirect, retry};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::domain::trace::random;
use crate::domain::{Money, ProductId, TraceParent, time};
use crate::http_client;
use crate::metrics::Metrics;
use crate::telemetry::RateLimitedLog;
use crate::telemetry::span::Span;

mod answer;
mod budget;
mod circuit_breaker;
mod failure;
mod singleflight;
pub(crate) mod stock;
#[cfg(test)]
mod tests;

use budget::RetryBudget;
pub(crate) use circuit_breaker::{BreakerSettings, State as BreakerState};
use circuit_breaker::{CallResult, CircuitBreaker};
use failure::Failure;
use singleflight::{InFlight, Singleflight};
pub(crate) use stock::{StockRoute, StockSettings};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const USER_AGENT: &str = concat!("order-service/", env!("CARGO_PKG_VERSION"));

/// Spring Boot's Tomcat closes idle connections after 20 s. This is less, so that no request is sent on a
/// connection that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The backoff before the first retry. It doubles with each retry, up to [`MAX_BACKOFF`].
const INITIAL_BACKOFF: Duration = Duration::from_millis(40);
const MAX_BACKOFF: Duration = Duration::from_millis(320);

/// After this time in flight, a look-up no longer delays the next look-up of its product. One lost packet must not
/// stop the sale of a product for a whole `attempt_timeout`.
const SLOW_LOOK_UP: Duration = Duration::from_millis(20);

/// Every bound of the [`ProductClient`].
#[derive(Clone, Debug)]
pub struct ProductSettings {
    /// The base URL of the Product Service; `/api/products/{id}` is appended to its path.
    pub url: Url,
    /// The deadline of all look-ups of one placement.
    pub deadline: Duration,
    /// The timeout of one attempt, including its connection and its body.
    pub attempt_timeout: Duration,
    /// The timeout of a connection, including name resolution and TLS.
    pub connect_timeout: Duration,
    /// How often one GET is retried after a transient failure.
    pub retries: u32,
    /// The maximum number of concurrent look-ups of one placement.
    pub concurrency: usize,
    /// The maximum number of concurrent look-ups of all placements.
    pub max_in_flight: usize,
    /// When look-ups stop because most of them fail.
    pub breaker: BreakerSettings,
    /// How stock is taken and given back.
    pub stock: StockSettings,
}

/// A product as the Product Service describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// The present price of one piece.
    pub price: Money,
    /// The pieces in stock; a negative stock counts as 0.
    pub stock: u64,
}

/// The Product Service did not give a usable answer. Nothing changed.
#[derive(Debug, Error)]
#[error("the Product Service is unavailable")]
pub struct Unavailable {
    /// When to try again, at least a second.
    pub retry_after: Duration,
    /// For the log; clients never see it.
    #[source]
    cause: Failure,
}

/// The client of the Product Service; one per process.
pub struct ProductClient {
    settings: ProductSettings,
    unconfirmed_refusals: RateLimitedLog,
    failed_calls: RateLimitedLog,
    budget: RetryBudget,
    catalogue: Arc<Catalogue>,
    look_ups: Arc<Singleflight<Answer>>,
}

/// The result of a look-up. `None` is a product that is unknown or withdrawn.
type Answer = Result<Option<Product>, Failure>;

/// The part of the client that look-ups own, because several placements may share one look-up.
struct Catalogue {
    http: reqwest::Client,
    products: Url,
    attempt_timeout: Duration,
    /// Bounds the look-ups of all placements in flight.
    in_flight: Semaphore,
    breaker: CircuitBreaker,
    metrics: Arc<Metrics>,
}

/// The context of all look-ups of one placement.
struct Call<'a> {
    trace: &'a TraceParent,
    started: Instant,
    deadline: Instant,
}

impl ProductClient {
    /// Creates a client. It opens no connection yet, so the Product Service may be down.
    pub fn new(settings: ProductSettings, metrics: &Arc<Metrics>) -> Result<Self, reqwest::Error> {
        let catalogue = Catalogue {
            http: build_http_client(&settings)?,
            products: products_url(&settings.url),
            attempt_timeout: settings.attempt_timeout,
            in_flight: Semaphore::new(settings.max_in_flight),
            breaker: CircuitBreaker::new(settings.breaker, metrics.products.breaker_calls.clone()),
            metrics: Arc::clone(metrics),
        };
        Ok(Self {
            settings,
            unconfirmed_refusals: RateLimitedLog::new(Duration::from_mins(1)),
            failed_calls: RateLimitedLog::new(Duration::from_secs(10)),
            budget: RetryBudget::default(),
            catalogue: Arc::new(catalogue),
            look_ups: Arc::new(Singleflight::new()),
        })
    }

    /// Looks up all products concurrently (bounded), within one deadline.
    ///
    /// The results have the order of `ids`; a product that is unknown or withdrawn is `None`. The first failed look-up
    /// ends the call, because the order cannot be placed without it.
    pub async fn look_up(
        &self,
        ids: &[&ProductId],
        trace: &TraceParent,
    ) -> Result<Vec<Option<Product>>, Unavailable> {
        let started = Instant::now();
        let call = Call { trace, started, deadline: started + self.settings.deadline };
        let mut products = vec![None; ids.len()];
        let mut waiting = ids.iter().enumerate();
        let mut running = FuturesUnordered::new();
        loop {
            let limit = self.concurrency_now();
            while running.len() < limit
                && let Some((index, id)) = waiting.next()
            {
                let call = &call;
                running.push(async move { (index, id, self.get_with_retries(id, call).await) });
            }
            match running.next().await {
                None => return Ok(products),
                Some((index, _, Ok(product))) => products[index] = product,
                Some((_, id, Err(cause))) => return Err(self.unavailable(id, &call, cause)),
            }
        }
    }

    pub fn state(&self) -> BreakerState {
        self.catalogue.breaker.state(Instant::now())
    }

    /// The maximum number of look-ups of one placement in flight.
    ///
    /// It is 1 while the breaker is not closed. With more, a placement of many products would take all permits of the
    /// half-open breaker, get a refusal for the next one, and cancel its own probes before they could close the
    /// breaker.
    fn concurrency_now(&self) -> usize {
        if self.state() == BreakerState::Closed { self.settings.concurrency } else { 1 }
    }

    /// Looks up one product, with the retries that the failures, the deadline and the budget allow.
    async fn get_with_retries(&self, id: &ProductId, call: &Call<'_>) -> Answer {
        self.budget.earn();
        let mut retries = 0;
        loop {
            let failure = match self.attempt(id, call, retries).await {
                Ok(product) => return Ok(product),
                Err(failure) => failure,
            };
            let backoff = backoff(retries);
            let retry = retries < self.settings.retries
                && failure.is_transient()
                && self.state() != BreakerState::Open
                && Instant::now() + backoff < call.deadline;
            if !retry || !self.budget.spend() {
                return Err(failure);
            }
            retries += 1;
            tracing::debug!(product = %id, retries, error = %failure.chain(), "retrying the product look-up");
            sleep(backoff).await;
        }
    }

    /// Makes one attempt, or joins one that is not sent yet. The caller waits until its own deadline. A shared
    /// attempt carries the trace of the caller that started it.
    async fn attempt(&self, id: &ProductId, call: &Call<'_>, retries: u32) -> Answer {
        if self.catalogue.breaker.refuses() {
            return Err(Failure::NotPermitted);
        }
        let mut span = self.catalogue.span(call.trace);
        if retries > 0 {
            span.set("http.request.resend_count", i64::from(retries));
        }
        let trace = span.context().unwrap_or_else(|| call.trace.clone());
        let (catalogue, product, of_flight) = (Arc::clone(&self.catalogue), id.clone(), trace.clone());
        let look_up = move |flight| async move { catalogue.attempt(&product, &of_flight, flight).await };
        let mut joined = self.look_ups.join(id, call.deadline, trace, look_up);
        if let Some(shared) = &joined.shared_trace {
            span.link(shared);
        }
        let answer = match timeout_at(call.deadline, &mut joined.answer).await {
            Ok(answer) => answer,
            Err(_) => Err(joined.sent().map_or(Failure::Overloaded, |sent| Failure::TimedOut {
                after: call.deadline.saturating_duration_since(sent),
            })),
        };
        note_look_up(&mut span, &answer);
        answer
    }

    fn unavailable(&self, id: &ProductId, call: &Call<'_>, cause: Failure) -> Unavailable {
        let elapsed_ms = u64::try_from(call.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let trace_id = call.trace.trace_id();
        let error = cause.chain();
        // The breaker warned once when it opened; while it is open, every placement fails here.
        if matches!(cause, Failure::NotPermitted) {
            tracing::debug!(product = %id, elapsed_ms, %trace_id, %error, "product look-up not permitted");
        } else {
            tracing::warn!(product = %id, elapsed_ms, %trace_id, %error, "product look-up failed");
        }
        let retry_after = self.catalogue.breaker.remaining(Instant::now());
        let retry_after = retry_after.unwrap_or_else(|| Duration::from_secs(1 + random_below(2)));
        Unavailable { retry_after: retry_after.max(Duration::from_secs(1)), cause }
    }
}

impl Catalogue {
    /// Sends one GET. It ends at the attempt timeout, or at the latest deadline of the callers that share it.
    async fn attempt(&self, id: &ProductId, trace: &TraceParent, flight: InFlight<Answer>) -> Answer {
        let _in_flight = self.in_flight.acquire().await.map_err(|_| Failure::Overloaded)?;
        let latest = flight.mark_sent();
        let now = Instant::now();
        let deadline = latest.map_or(now, |latest| min(now + self.attempt_timeout, latest));
        let permit = self.breaker.acquire(now, deadline).ok_or(Failure::NotPermitted)?;
        let mut get = pin!(timeout_at(deadline, self.get(id, trace)));
        let answer = if let Ok(answer) = timeout(SLOW_LOOK_UP, &mut get).await {
            answer
        } else {
            flight.allow_next();
            get.await
        };
        let timed_out = |_| Failure::TimedOut { after: deadline.saturating_duration_since(now) };
        let answer = answer.map_err(timed_out).flatten();
        self.measure(now, &answer);
        let result = answer.as_ref().map_or_else(Failure::call_result, |_| CallResult::Success);
        permit.record(Instant::now(), result);
        answer
    }

    fn span(&self, trace: &TraceParent) -> Span {
        let mut span = Span::child(SpanKind::Client, || "GET /api/products/{productId}", trace);
        if span.is_recorded() {
            span.set("http.request.method", "GET");
            span.set("url.template", "/api/products/{productId}");
            note_server(&mut span, &self.products);
        }
        span
    }

    async fn get(&self, id: &ProductId, trace: &TraceParent) -> Answer {
        let request = traced(self.http.get(self.address(id)), trace);
        let response = request.send().await?;
        match response.status() {
            StatusCode::OK => answer::read(response, id).await.map(Some),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            other => Err(Failure::Status(other)),
        }
    }

    fn measure(&self, started: Instant, answer: &Answer) {
        let outcome = match answer {
            Ok(Some(_)) => "success",
            Ok(None) => "not_found",
            Err(failure) => failure.metric_outcome(),
        };
        self.metrics.products.requested("look_up", outcome, started.elapsed());
    }

    /// `…/api/products/{id}`; the id is always exactly one path segment.
    fn address(&self, id: &ProductId) -> Url {
        let mut address = self.products.clone();
        if let Ok(mut path) = address.path_segments_mut() {
            path.push(id.as_str());
        }
        address
    }
}

/// `{url}/api/products`, also if the URL ends in a slash. Built once, because every look-up uses it.
fn products_url(base: &Url) -> Url {
    let mut products = base.clone();
    if let Ok(mut path) = products.path_segments_mut() {
        path.pop_if_empty().extend(["api", "products"]);
    }
    products
}

fn traced(request: RequestBuilder, trace: &TraceParent) -> RequestBuilder {
    let request = request.header(TRACEPARENT, trace.to_string());
    match trace.state() {
        Some(state) => request.header(TRACESTATE, state),
        None => request,
    }
}

fn note_server(span: &mut Span, base: &Url) {
    span.set("server.address", base.host_str().unwrap_or_default().to_owned());
    span.set("server.port", i64::from(base.port_or_known_default().unwrap_or_default()));
}

fn note_look_up(span: &mut Span, answer: &Answer) {
    match answer {
        Ok(Some(_)) => span.set("http.response.status_code", 200),
        Ok(None) => span.set("http.response.status_code", 404),
        Err(Failure::Status(status)) => note_refusal(span, *status),
        Err(failure) => span.fail(failure.error_type()),
    }
}

fn note_refusal(span: &mut Span, status: StatusCode) {
    span.set("http.response.status_code", i64::from(status.as_u16()));
    span.fail(status.as_str().to_owned());
}

fn build_http_client(settings: &ProductSettings) -> Result<reqwest::Client, reqwest::Error> {
    let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
    let builder = match settings.url.scheme() {
        "http" => http_client::plain_builder(),
        _ => http_client::builder(),
    };
    builder
        .user_agent(USER_AGENT)
        .default_headers(accept)
        .connect_timeout(settings.connect_timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(settings.max_in_flight)
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .no_proxy()
        .build()
}

/// Exponential backoff with jitter, so that look-ups that failed together do not retry together.
fn backoff(retries: u32) -> Duration {
    let longest = time::backoff(INITIAL_BACKOFF, retries + 1, MAX_BACKOFF);
    let half = longest / 2;
    half + Duration::from_micros(random_below(u64::try_from(half.as_micros()).unwrap_or(u64::MAX)))
}

/// Random enough for jitter.
fn random_below(bound: u64) -> u64 {
    random() % bound.max(1)
}
