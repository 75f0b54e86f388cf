//! `ProductClient`: price and stock from the Product Service, before an order is placed.
//!
//! There is no call for several products, so the lines of an order are asked for side by side. What keeps a
//! slow or broken Product Service from taking this one down with it (invariant 8), from the outside in:
//!
//! | bound | setting | in |
//! |---|---|---|
//! | one deadline for all look-ups of a placement | `deadline` | here |
//! | look-ups of one placement at once | `concurrency` | here |
//! | look-ups of one product at once: placements share them | | `singleflight` |
//! | look-ups of all placements at once | `max_in_flight` | here |
//! | further attempts of one GET, and of all together | `retries` | `budget` |
//! | no calls at all while most of them fail | `breaker_*` | `breaker`, `gate` |
//! | one attempt, its connection, its answer | `attempt_timeout`, `connect_timeout` | here, `answer` |
//!
//! A 404 is an answer like any other: it neither fails a look-up nor counts against the breaker. An answer that
//! is wrong for its product (a price with three decimals, another product's id, a 4xx) fails the look-up, and
//! counts for the breaker neither way: one broken product does not close the shop.

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

use crate::domain::{Money, ProductId, TraceParent};
use crate::metrics::Metrics;
use crate::telemetry::Seldom;
use crate::telemetry::span::Span;

mod answer;
mod breaker;
mod budget;
mod failure;
mod gate;
mod settings;
mod singleflight;
pub mod stock;
#[cfg(test)]
mod tests;

use breaker::Outcome;
pub use breaker::State as BreakerState;
use budget::RetryBudget;
use failure::Failure;
use gate::Gate;
pub use settings::{InvalidSettings, ProductSettings};
use singleflight::{Singleflight, Ticket};
pub use stock::{StockRoute, StockSettings};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const USER_AGENT: &str = concat!("order-service/", env!("CARGO_PKG_VERSION"));

/// Shorter than the 20 s after which Spring Boot's Tomcat closes an idle connection: a request that is sent
/// on a connection that is just being closed fails for nothing.
const IDLE_CONNECTION: Duration = Duration::from_secs(15);

/// The pause before the second attempt; it doubles with each further one up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(40);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// A look-up that takes longer than this no longer holds back the next one of its product: one lost packet must
/// not stop the sale of a product for a whole `attempt_timeout`.
const SLOW: Duration = Duration::from_millis(20);

/// What the Product Service says of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// What one of it costs now.
    pub price: Money,
    /// How many there are; a negative stock counts as 0.
    pub stock: u64,
}

/// The Product Service gave no answer that an order can be placed on. Nothing was changed anywhere.
#[derive(Debug, Error)]
#[error("the Product Service is unavailable")]
pub struct Unavailable {
    /// When to try again: never less than a second.
    pub retry_after: Duration,
    /// For the log, never for the client.
    #[source]
    cause: Failure,
}

/// The client of the Product Service; one for the whole process.
pub struct ProductClient {
    http: reqwest::Client,
    base: Url,
    stock: StockSettings,
    deadline: Duration,
    retries: u32,
    concurrency: usize,
    misrouted: Seldom,
    unmoved: Seldom,
    budget: RetryBudget,
    catalogue: Arc<Catalogue>,
    look_ups: Arc<Singleflight<Answer>>,
    metrics: Arc<Metrics>,
}

/// The price and stock of a product; none where it is unknown or withdrawn.
type Answer = Result<Option<Product>, Failure>;

/// What one attempt needs, whichever placements share it.
struct Catalogue {
    http: reqwest::Client,
    products: Url,
    attempt_timeout: Duration,
    permits: Semaphore,
    gate: Gate,
    metrics: Arc<Metrics>,
}

/// What the look-ups of one placement have in common.
struct Call<'a> {
    trace: &'a TraceParent,
    started: Instant,
    deadline: Instant,
}

impl ProductClient {
    /// A client with no connections yet: the Product Service need not be there.
    pub fn new(settings: ProductSettings, metrics: &Arc<Metrics>) -> Result<Self, InvalidSettings> {
        let settings = settings.within_bounds();
        let http = http_client(&settings)?;
        let catalogue = Catalogue {
            http: http.clone(),
            products: settings.products()?,
            attempt_timeout: settings.attempt_timeout,
            permits: Semaphore::new(settings.max_in_flight),
            gate: Gate::new(&settings, metrics.products.breaker_calls.clone()),
            metrics: Arc::clone(metrics),
        };
        Ok(Self {
            base: settings.url.clone(),
            stock: settings.stock.clone(),
            http,
            deadline: settings.deadline,
            retries: settings.retries,
            concurrency: settings.concurrency,
            misrouted: Seldom::new(Duration::from_mins(1)),
            unmoved: Seldom::new(Duration::from_secs(10)),
            budget: RetryBudget::default(),
            catalogue: Arc::new(catalogue),
            look_ups: Arc::new(Singleflight::new()),
            metrics: Arc::clone(metrics),
        })
    }

    /// Asks for every product at once (bounded), within one overall deadline.
    ///
    /// The answers come in the order of `ids`; none is for a product that is unknown or withdrawn. The first
    /// product without a usable answer ends the whole call at once, for its order cannot be placed any more.
    pub async fn look_up(
        &self,
        ids: &[&ProductId],
        trace: &TraceParent,
    ) -> Result<Vec<Option<Product>>, Unavailable> {
        let started = Instant::now();
        let call = Call { trace, started, deadline: started + self.deadline };
        let mut products = vec![None; ids.len()];
        let mut waiting = ids.iter().enumerate();
        let mut asked = FuturesUnordered::new();
        loop {
            let limit = self.side_by_side();
            while asked.len() < limit
                && let Some((index, id)) = waiting.next()
            {
                let call = &call;
                asked.push(async move { (index, id, self.ask(id, call).await) });
            }
            match asked.next().await {
                None => return Ok(products),
                Some((index, _, Ok(product))) => products[index] = product,
                Some((_, id, Err(cause))) => return Err(self.unavailable(id, &call, cause)),
            }
        }
    }

    /// Where the breaker is, for the readiness answer.
    pub fn state(&self) -> BreakerState {
        self.catalogue.gate.state()
    }

    /// How many products of one call to ask for at once.
    ///
    /// While the breaker is not closed it is one: with more, a placement of many products would use up the
    /// few permitted calls, be refused the next, and cancel its own probes before they could close anything.
    fn side_by_side(&self) -> usize {
        if self.catalogue.gate.state() == BreakerState::Closed { self.concurrency } else { 1 }
    }

    /// One product, with the retries that its failures, the deadline and the budget allow.
    async fn ask(&self, id: &ProductId, call: &Call<'_>) -> Answer {
        self.budget.earn();
        let mut retries = 0;
        loop {
            let failure = match self.attempt(id, call, retries).await {
                Ok(product) => return Ok(product),
                Err(failure) => failure,
            };
            let pause = pause_before(retries);
            let worthwhile = retries < self.retries
                && failure.may_pass()
                && self.catalogue.gate.state() != BreakerState::Open
                && Instant::now() + pause < call.deadline;
            if !worthwhile || !self.budget.spend() {
                return Err(failure);
            }
            retries += 1;
            tracing::debug!(product = %id, retries, error = %failure.chain(), "asking the Product Service again");
            sleep(pause).await;
        }
    }

    /// One attempt, which placements that ask for the same product share. The caller waits for it until its own
    /// deadline; the trace that it carries is that of the caller who began it.
    async fn attempt(&self, id: &ProductId, call: &Call<'_>, retries: u32) -> Answer {
        if self.catalogue.gate.refuses() {
            return Err(Failure::Refused);
        }
        let mut span = self.catalogue.span(call.trace);
        if retries > 0 {
            span.set("http.request.resend_count", i64::from(retries));
        }
        let trace = span.place().unwrap_or_else(|| call.trace.clone());
        let (catalogue, product, place) = (Arc::clone(&self.catalogue), id.clone(), trace.clone());
        let look_up = move |ticket| async move { catalogue.attempt(&product, &place, ticket).await };
        let mut joined = self.look_ups.join(id, call.deadline, trace, look_up);
        if let Some(begun_in) = &joined.begun_in {
            span.link(begun_in);
        }
        let answer = match timeout_at(call.deadline, &mut joined.answer).await {
            Ok(answer) => answer,
            Err(_) => Err(joined.sent().map_or(Failure::Crowded, |sent| Failure::Late {
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
        // While the breaker is open every placement comes here: its opening was the warning.
        if matches!(cause, Failure::Refused) {
            tracing::debug!(product = %id, elapsed_ms, %trace_id, %error, "product not looked up");
        } else {
            tracing::warn!(product = %id, elapsed_ms, %trace_id, %error, "product look-up failed");
        }
        let retry_after =
            self.catalogue.gate.remaining().unwrap_or_else(|| Duration::from_secs(1 + random_below(2)));
        Unavailable { retry_after: retry_after.max(Duration::from_secs(1)), cause }
    }
}

impl Catalogue {
    /// One GET, within its own time and the latest deadline of those who wait for it.
    async fn attempt(&self, id: &ProductId, trace: &TraceParent, ticket: Ticket<Answer>) -> Answer {
        let _permit = self.permits.acquire().await.map_err(|_| Failure::Crowded)?;
        let latest = ticket.send();
        let now = Instant::now();
        let due = latest.map_or(now, |latest| min(now + self.attempt_timeout, latest));
        let pass = self.gate.admit(due).ok_or(Failure::Refused)?;
        let mut get = pin!(timeout_at(due, self.get(id, trace)));
        let answer = if let Ok(answer) = timeout(SLOW, &mut get).await {
            answer
        } else {
            ticket.let_next_go();
            get.await
        };
        let late = |_| Failure::Late { after: due.saturating_duration_since(now) };
        let answer = answer.map_err(late).flatten();
        self.measure(now, &answer);
        pass.finish(answer.as_ref().map_or_else(Failure::outcome, |_| Outcome::Success));
        answer
    }

    /// The span of one look-up, which is shared with others or not.
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

    /// Takes note of one GET.
    fn measure(&self, started: Instant, answer: &Answer) {
        let outcome = match answer {
            Ok(Some(_)) => "success",
            Ok(None) => "not_found",
            Err(failure) => failure.word(),
        };
        self.metrics.products.requested("look_up", outcome, started.elapsed());
    }

    /// `…/api/products/{id}`, the id as exactly one segment.
    fn address(&self, id: &ProductId) -> Url {
        let mut address = self.products.clone();
        if let Ok(mut path) = address.path_segments_mut() {
            path.push(id.as_str());
        }
        address
    }
}

/// The request with the headers of its trace.
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
    if !span.is_recorded() {
        return;
    }
    match answer {
        Ok(Some(_)) => span.set("http.response.status_code", 200),
        Ok(None) => span.set("http.response.status_code", 404),
        Err(Failure::Status(status)) => note_refusal(span, *status),
        Err(failure) => span.fail(failure.as_str()),
    }
}

fn note_refusal(span: &mut Span, status: StatusCode) {
    span.set("http.response.status_code", i64::from(status.as_u16()));
    span.fail(status.as_str().to_owned());
}

fn http_client(settings: &ProductSettings) -> Result<reqwest::Client, reqwest::Error> {
    let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .default_headers(accept)
        .connect_timeout(settings.connect_timeout)
        .pool_idle_timeout(IDLE_CONNECTION)
        .pool_max_idle_per_host(settings.max_in_flight)
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .no_proxy()
        .build()
}

/// A random pause, so that what failed together does not come back together.
fn pause_before(retry: u32) -> Duration {
    let longest = min(FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(retry)), LONGEST_PAUSE);
    let half = longest / 2;
    half + Duration::from_micros(random_below(u64::try_from(half.as_micros()).unwrap_or(u64::MAX)))
}

/// Good enough to spread retries: the standard library seeds every `RandomState` differently.
fn random_below(bound: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() % bound.max(1)
}
