//! Moving stock at the Product Service. What is not known after a call is said to be unknown, never guessed.
//!
//! | answer | outcome |
//! |---|---|
//! | 2xx | done |
//! | 400, 404, 409 to taking, and the product, looked up again, does not exist or has not the stock | refused |
//! | 400, 404, 409 to taking, and it has the stock, or could not be looked up | refusal not confirmed |
//! | 400, 409 to giving back; 404, and the product does not exist | refused |
//! | 404 to giving back, and the product can be looked up, or that failed: the path may be wrong | not sent |
//! | 409 to a repeat, with `Retry-After` or about its key | unknown: the first call is still running |
//! | no connection; 401, 403, 405, 415, 421, 429: turned away before it was looked at | not sent |
//! | anything else, or none in time | unknown |
//!
//! A refusal alone could be a wrong path, an ingress without upstream or a conflict of the Product Service's own
//! (contract), so it is confirmed by a look-up. The row about keys is for a Product Service that follows the IETF's draft of `Idempotency-Key`. A plain 409 to a
//! repeat is a refusal like any other.

use std::time::Duration;

use opentelemetry::trace::SpanKind;
use reqwest::header::RETRY_AFTER;
use reqwest::{Method, Response, StatusCode, Url};
use serde_json::Value;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};

use super::failure::Failure;
use super::{Product, ProductClient, answer, note_look_up, note_refusal, note_server, traced};
use crate::domain::TraceParent;
use crate::domain::stock::{CallOutcome, Direction, StockCall};
use crate::telemetry::span::Span;

/// Where a stock change is asked for. The platform's pages do not show it, so it is all settings.
#[derive(Clone, Debug)]
pub struct StockRoute {
    /// The method.
    pub method: Method,
    /// The path after the URL of the Product Service, with `{productId}` in it.
    pub path: String,
}

/// How stock is moved.
#[derive(Clone, Debug)]
pub struct StockSettings {
    /// Takes stock.
    pub reduce: StockRoute,
    /// Gives it back.
    pub restore: StockRoute,
    /// How long one call may take.
    pub timeout: Duration,
    /// The service's own `X-User-Email`.
    pub service_email: String,
    /// Whether a repeat under the same `Idempotency-Key` is applied once.
    pub key_is_honoured: bool,
    /// For how long a key is taken to be remembered.
    pub key_ttl: Duration,
    /// How often a call is repeated whose refusal a look-up does not confirm.
    pub refusal_retries: i32,
}

impl StockRoute {
    /// What stands for the product in a path.
    pub const PLACEHOLDER: &'static str = "{productId}";

    /// The address of one product's route: ids mean themselves in a path ([`ProductId`](crate::domain::ProductId)).
    fn address(&self, base: &Url, product: &str) -> Option<Url> {
        let path = self.path.replace(Self::PLACEHOLDER, product);
        format!("{}/{}", base.as_str().trim_end_matches('/'), path.trim_start_matches('/')).parse().ok()
    }
}

impl ProductClient {
    /// Makes one stock call. It is made once: who repeats it has to write that down first.
    pub async fn move_stock(&self, call: &StockCall, trace: &TraceParent) -> CallOutcome {
        let mut span = self.stock_span(call, trace);
        let (started, place) = (Instant::now(), span.place());
        let answered = self.send_stock(call, place.as_ref().unwrap_or(trace));
        let answered = timeout(self.stock.timeout, answered).await;
        self.measure(call.direction, started, &answered);
        note_answer(&mut span, &answered);
        drop(span);
        let outcome = match answered {
            Err(_) => CallOutcome::Unknown(format!("no answer within {:?}", self.stock.timeout)),
            Ok(Err(error)) if error.is_builder() || error.is_connect() => {
                CallOutcome::NotSent(Failure::from(error).chain())
            }
            Ok(Err(error)) => CallOutcome::Unknown(Failure::from(error).chain()),
            Ok(Ok(answered)) => self.outcome_of(answered, call, trace).await,
        };
        self.log(call, &outcome);
        outcome
    }

    /// Takes note of one request, by its own answer.
    fn measure(
        &self,
        direction: Direction,
        started: Instant,
        answered: &Result<Result<Answered, reqwest::Error>, Elapsed>,
    ) {
        let outcome = match answered {
            Err(_) => "timeout",
            Ok(Err(_)) => "error",
            Ok(Ok(answered)) => answered.word(),
        };
        let operation = match direction {
            Direction::Take => "take_stock",
            Direction::GiveBack => "give_back_stock",
        };
        self.metrics.products.requested(operation, outcome, started.elapsed());
    }

    fn log(&self, call: &StockCall, outcome: &CallOutcome) {
        let (product, line, direction) = (&call.product_id, call.line, call.direction);
        let (what, error) = match outcome {
            CallOutcome::Done => return tracing::debug!(%product, line, ?direction, "stock moved"),
            CallOutcome::Refused(error) => {
                return tracing::info!(%product, line, ?direction, error, "stock not moved");
            }
            CallOutcome::NotSent(error) | CallOutcome::RefusalUnconfirmed(error) => {
                ("stock not moved", error)
            }
            CallOutcome::Unknown(error) => ("nobody knows whether stock was moved", error),
        };
        // While the Product Service is away, every line of every job comes here again and again.
        if let Some(held_back) = self.unmoved.held_back() {
            tracing::warn!(%product, line, ?direction, error, held_back, "{what}");
        } else {
            tracing::debug!(%product, line, ?direction, error, "{what}");
        }
    }

    /// How stock is moved.
    pub fn stock_settings(&self) -> &StockSettings {
        &self.stock
    }

    fn route(&self, call: &StockCall) -> &StockRoute {
        match call.direction {
            Direction::Take => &self.stock.reduce,
            Direction::GiveBack => &self.stock.restore,
        }
    }

    /// The span of one stock call.
    fn stock_span(&self, call: &StockCall, trace: &TraceParent) -> Span {
        let route = self.route(call);
        let mut span = Span::child(SpanKind::Client, || format!("{} {}", route.method, route.path), trace);
        if span.is_recorded() {
            span.set("http.request.method", route.method.to_string());
            span.set("url.template", route.path.clone());
            note_server(&mut span, &self.base);
        }
        span
    }

    async fn send_stock(&self, call: &StockCall, trace: &TraceParent) -> Result<Answered, reqwest::Error> {
        let route = self.route(call);
        let Some(address) = route.address(&self.base, call.product_id.as_str()) else {
            return Ok(StatusCode::MISDIRECTED_REQUEST.into());
        };
        let response = traced(self.http.request(route.method.clone(), address), trace)
            .header("Idempotency-Key", &call.idempotency_key)
            .header("X-User-Email", &self.stock.service_email)
            .header("X-User-Role", "ADMIN")
            .header("Content-Type", "application/json")
            .body(format!(r#"{{"quantity":{}}}"#, call.quantity.get()))
            .send()
            .await?;
        let status = response.status();
        let conflict = call.sent_before && status == StatusCode::CONFLICT;
        Ok(Answered { status, in_progress: conflict && says_in_progress(response).await })
    }

    /// What an answer says, with a second look where it refuses.
    async fn outcome_of(&self, answered: Answered, call: &StockCall, trace: &TraceParent) -> CallOutcome {
        let is_missing = answered.status == StatusCode::NOT_FOUND;
        match (outcome_of(answered), call.direction) {
            (CallOutcome::Refused(said), Direction::Take) => self.confirm_refusal(call, trace, said).await,
            (CallOutcome::Refused(said), Direction::GiveBack) if is_missing => {
                self.not_found(call, trace, said).await
            }
            (outcome, _) => outcome,
        }
    }

    /// A take was refused: that counts only where the product, looked up now, does not exist or has not the stock.
    async fn confirm_refusal(&self, call: &StockCall, trace: &TraceParent, said: String) -> CallOutcome {
        let found = match self.look_up_again(call, trace).await {
            Ok(None) => return CallOutcome::Refused(said),
            Ok(Some(product)) if product.stock < u64::from(call.quantity.get()) => {
                return CallOutcome::Refused(said);
            }
            Ok(Some(product)) => format!("the product exists with {} in stock", product.stock),
            Err(error) => format!("the product could not be looked up: {error}"),
        };
        self.complain(call, "PRODUCT_REDUCE_PATH", &said, &found);
        CallOutcome::RefusalUnconfirmed(format!("{said}, but {found}"))
    }

    /// Giving back met a 404: the product is gone, or the path is wrong, which only a look-up can tell apart.
    async fn not_found(&self, call: &StockCall, trace: &TraceParent, said: String) -> CallOutcome {
        let found = match self.look_up_again(call, trace).await {
            Ok(None) => return CallOutcome::Refused(said),
            Ok(Some(_)) => "the product exists".to_owned(),
            Err(error) => format!("the product could not be looked up: {error}"),
        };
        self.complain(call, "PRODUCT_RESTORE_PATH", &said, &found);
        CallOutcome::NotSent(format!("{said}, but {found}"))
    }

    /// Has a timeout of its own: the refusal may have come late.
    async fn look_up_again(&self, call: &StockCall, trace: &TraceParent) -> Result<Option<Product>, String> {
        let mut span = self.catalogue.span(trace);
        let (started, after, place) = (Instant::now(), self.stock.timeout, span.place());
        let found = self.catalogue.get(&call.product_id, place.as_ref().unwrap_or(trace));
        let found = timeout(after, found).await.unwrap_or(Err(Failure::Late { after }));
        self.catalogue.measure(started, &found);
        note_look_up(&mut span, &found);
        found.map_err(|failure| failure.chain())
    }

    fn complain(&self, call: &StockCall, setting: &str, said: &str, found: &str) {
        if let Some(held_back) = self.misrouted.held_back() {
            let product = &call.product_id;
            tracing::error!(
                %product, setting, said, found, held_back, "a stock call was refused, and a look-up does not say why: is its path right?"
            );
        }
    }
}

fn note_answer(span: &mut Span, answered: &Result<Result<Answered, reqwest::Error>, Elapsed>) {
    if !span.is_recorded() {
        return;
    }
    match answered {
        Err(_) => span.fail("timeout"),
        Ok(Err(_)) => span.fail("connection"),
        Ok(Ok(Answered { status, .. })) if status.is_success() => {
            span.set("http.response.status_code", i64::from(status.as_u16()));
        }
        Ok(Ok(Answered { status, .. })) => note_refusal(span, *status),
    }
}

/// What is told from an answer.
struct Answered {
    status: StatusCode,
    /// Whether it says that the first call with this key is still running.
    in_progress: bool,
}

impl Answered {
    /// The outcome of the request, as a metric has it.
    fn word(&self) -> &'static str {
        match self.status.as_u16() {
            200..=299 => "success",
            400 | 404 | 409 => "refused",
            _ => "error",
        }
    }
}

impl From<StatusCode> for Answered {
    fn from(status: StatusCode) -> Self {
        Self { status, in_progress: false }
    }
}

fn outcome_of(Answered { status, in_progress }: Answered) -> CallOutcome {
    let said = || format!("answered {status}");
    match status.as_u16() {
        409 if in_progress => CallOutcome::Unknown(format!("{}: the first call is still running", said())),
        200..=299 => CallOutcome::Done,
        400 | 404 | 409 => CallOutcome::Refused(said()),
        401 | 403 | 405 | 415 | 421 | 429 => CallOutcome::NotSent(said()),
        _ => CallOutcome::Unknown(said()),
    }
}

/// Whether a 409 is about the key and not about the stock.
async fn says_in_progress(response: Response) -> bool {
    if response.headers().contains_key(RETRY_AFTER) {
        return true;
    }
    answer::body(response).await.is_ok_and(|body| is_about_the_key(&body))
}

/// The draft's own example has no `type` of its own, but this `title`: "A request is outstanding for this
/// Idempotency-Key".
fn is_about_the_key(body: &[u8]) -> bool {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    ["type", "code", "title"].into_iter().filter_map(|member| problem[member].as_str()).any(|text| {
        let mut words = text.to_ascii_lowercase();
        words.retain(|letter| letter.is_ascii_lowercase());
        words.contains("inprogress") || words.contains("idempotency")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_what_became_of_the_stock_or_that_nobody_knows() {
        let outcome = |status| outcome_of(StatusCode::from_u16(status).unwrap().into());
        for done in [200, 201, 204] {
            assert_eq!(outcome(done), CallOutcome::Done, "{done}");
        }
        for refused in [400, 404, 409] {
            assert!(matches!(outcome(refused), CallOutcome::Refused(_)), "{refused}");
        }
        for unknown in [302, 408, 422, 500, 502, 503, 504] {
            assert!(matches!(outcome(unknown), CallOutcome::Unknown(_)), "{unknown}");
        }
    }

    #[test]
    fn a_conflict_says_whether_it_is_about_the_key() {
        for key in [
            r#"{"type":"urn:problem:order-service:request-in-progress"}"#,
            r#"{"code":"REQUEST_IN_PROGRESS"}"#,
            r#"{"type":"about:blank","title":"A request is outstanding for this Idempotency-Key"}"#,
        ] {
            assert!(is_about_the_key(key.as_bytes()), "{key}");
        }
        for stock in [
            "",
            "[]",
            "Idempotency-Key",
            r#"{"error":"not enough"}"#,
            r#"{"type":"urn:problem:insufficient-stock","title":"Not enough","code":409}"#,
        ] {
            assert!(!is_about_the_key(stock.as_bytes()), "{stock}");
        }
    }

    #[test]
    fn a_route_is_put_behind_the_url_with_the_product_in_its_place() {
        let route =
            StockRoute { method: Method::POST, path: "/api/products/{productId}/reduce-stock".into() };
        for base in ["http://shop/in/here", "http://shop/in/here/"] {
            let address = route.address(&base.parse().unwrap(), "P:1").unwrap();
            assert_eq!(address.as_str(), "http://shop/in/here/api/products/P:1/reduce-stock");
        }
    }
}
