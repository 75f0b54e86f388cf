//! The stock calls of the Product Service. An outcome that the answer does not prove is unknown, never guessed.
//!
//! | answer | outcome |
//! |---|---|
//! | 2xx | done |
//! | 400, 404, 409 to a take; a look-up shows that the product is gone or has too little stock | refused |
//! | 400, 404, 409 to a take; a look-up shows enough stock, or fails | refusal not confirmed |
//! | 400, 409 to a restore; or 404, and a look-up shows that the product is gone | refused |
//! | 404 to a restore; a look-up finds the product, or fails: the path may be wrong | not sent |
//! | 409 to a repeated call, with `Retry-After` or about its key | unknown: the first call is still running |
//! | no connection; 401, 403, 405, 415, 421, 429: refused before it was processed | not sent |
//! | anything else, or a timeout | unknown |
//!
//! A wrong path, an ingress without upstream or an internal conflict of the Product Service looks like a refusal.
//! So a look-up must confirm each refusal (contract). The row about keys follows the IETF draft of
//! `Idempotency-Key`. Any other 409 to a repeated call is a refusal.

use std::time::Duration;

use opentelemetry::trace::SpanKind;
use reqwest::header::RETRY_AFTER;
use reqwest::{Method, Response, StatusCode, Url};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::failure::Failure;
use super::{Product, ProductClient, answer, note_look_up, note_refusal, note_server, traced};
use crate::domain::TraceParent;
use crate::domain::stock::{CallOutcome, Direction, StockCall};
use crate::telemetry::span::Span;

/// The route of a stock call. The platform's pages do not document it, so all of it is a setting.
#[derive(Clone, Debug)]
pub struct StockRoute {
    pub method: Method,
    /// The path below the URL of the Product Service; it contains `{productId}`.
    pub path: String,
}

#[derive(Clone, Debug)]
pub struct StockSettings {
    pub reduce: StockRoute,
    pub restore: StockRoute,
    /// The timeout of one call.
    pub timeout: Duration,
    /// The `X-User-Email` of this service.
    pub service_email: String,
    /// Whether the Product Service applies repeated calls with the same `Idempotency-Key` once.
    pub key_is_honoured: bool,
    /// How long the Product Service remembers a key.
    pub key_ttl: Duration,
    /// How often a call is repeated while a look-up does not confirm its refusal.
    pub refusal_retries: i32,
}

impl StockRoute {
    /// Stands for the product id in a path.
    pub const PLACEHOLDER: &'static str = "{productId}";

    /// The URL for one product. Ids need no escaping in a path ([`ProductId`](crate::domain::ProductId)).
    fn address(&self, base: &Url, product: &str) -> Option<Url> {
        let path = self.path.replace(Self::PLACEHOLDER, product);
        format!("{}/{}", base.as_str().trim_end_matches('/'), path.trim_start_matches('/')).parse().ok()
    }
}

impl ProductClient {
    /// Sends one stock call over HTTP, once. Before a retry, the caller must record it in the database.
    pub async fn send_stock_call(&self, call: &StockCall, trace: &TraceParent) -> CallOutcome {
        let mut span = self.stock_span(call, trace);
        let (started, context) = (Instant::now(), span.context());
        let after = self.settings.stock.timeout;
        let answered = self.send(call, context.as_ref().unwrap_or(trace));
        let answered = timeout(after, answered).await.unwrap_or(Err(Failure::TimedOut { after }));
        self.measure(call.direction, started, &answered);
        note_answer(&mut span, &answered);
        drop(span);
        let outcome = match answered {
            Ok(answered) => self.outcome_of(answered, call, trace).await,
            Err(Failure::Connection(error)) if error.is_builder() || error.is_connect() => {
                CallOutcome::NotSent(Failure::Connection(error).chain())
            }
            Err(failure) => CallOutcome::Unknown(failure.chain()),
        };
        self.log(call, &outcome);
        outcome
    }

    fn measure(&self, direction: Direction, started: Instant, answered: &Result<Answered, Failure>) {
        let outcome = answered.as_ref().map_or_else(Failure::metric_outcome, Answered::metric_outcome);
        let operation = match direction {
            Direction::Take => "take_stock",
            Direction::GiveBack => "give_back_stock",
        };
        self.catalogue.metrics.products.requested(operation, outcome, started.elapsed());
    }

    fn log(&self, call: &StockCall, outcome: &CallOutcome) {
        let (product, line, direction) = (&call.product_id, call.line, call.direction);
        let (what, error) = match outcome {
            CallOutcome::Done => return tracing::debug!(%product, line, ?direction, "stock call done"),
            CallOutcome::Refused(error) => {
                return tracing::info!(%product, line, ?direction, error, "stock call refused");
            }
            CallOutcome::NotSent(error) | CallOutcome::RefusalUnconfirmed(error) => {
                ("stock call not applied", error)
            }
            CallOutcome::Unknown(error) => ("stock call with an unknown outcome", error),
        };
        // While the Product Service is down, every line of every job fails here repeatedly.
        if let Some(suppressed) = self.failed_calls.allow() {
            tracing::warn!(%product, line, ?direction, error, suppressed, "{what}");
        } else {
            tracing::debug!(%product, line, ?direction, error, "{what}");
        }
    }

    pub fn stock_settings(&self) -> &StockSettings {
        &self.settings.stock
    }

    fn route(&self, call: &StockCall) -> &StockRoute {
        match call.direction {
            Direction::Take => &self.settings.stock.reduce,
            Direction::GiveBack => &self.settings.stock.restore,
        }
    }

    fn stock_span(&self, call: &StockCall, trace: &TraceParent) -> Span {
        let route = self.route(call);
        let mut span = Span::child(SpanKind::Client, || format!("{} {}", route.method, route.path), trace);
        if span.is_recorded() {
            span.set("http.request.method", route.method.to_string());
            span.set("url.template", route.path.clone());
            note_server(&mut span, &self.settings.url);
        }
        span
    }

    async fn send(&self, call: &StockCall, trace: &TraceParent) -> Result<Answered, Failure> {
        let route = self.route(call);
        let Some(address) = route.address(&self.settings.url, call.product_id.as_str()) else {
            return Ok(StatusCode::MISDIRECTED_REQUEST.into());
        };
        let response = traced(self.catalogue.http.request(route.method.clone(), address), trace)
            .header("Idempotency-Key", &call.idempotency_key)
            .header("X-User-Email", &self.settings.stock.service_email)
            .header("X-User-Role", "ADMIN")
            .header("Content-Type", "application/json")
            .body(format!(r#"{{"quantity":{}}}"#, call.quantity.get()))
            .send()
            .await?;
        let status = response.status();
        let conflict = call.sent_before && status == StatusCode::CONFLICT;
        Ok(Answered { status, in_progress: conflict && is_in_progress(response).await })
    }

    /// The outcome of an answered call, with a look-up where the answer is a refusal.
    async fn outcome_of(&self, answered: Answered, call: &StockCall, trace: &TraceParent) -> CallOutcome {
        let is_missing = answered.status == StatusCode::NOT_FOUND;
        match (outcome_of(answered), call.direction) {
            (CallOutcome::Refused(said), Direction::Take) => self.confirm_refusal(call, trace, said).await,
            (CallOutcome::Refused(said), Direction::GiveBack) if is_missing => {
                self.confirm_not_found(call, trace, said).await
            }
            (outcome, _) => outcome,
        }
    }

    /// Checks a refused take: it is refused only if a look-up shows that the product is gone or has too little stock.
    async fn confirm_refusal(&self, call: &StockCall, trace: &TraceParent, said: String) -> CallOutcome {
        let found = match self.look_up_again(call, trace).await {
            Ok(None) => return CallOutcome::Refused(said),
            Ok(Some(product)) if product.stock < u64::from(call.quantity.get()) => {
                return CallOutcome::Refused(said);
            }
            Ok(Some(product)) => format!("the product exists with {} in stock", product.stock),
            Err(error) => format!("the product could not be looked up: {error}"),
        };
        self.warn_of_path(call, "PRODUCT_REDUCE_PATH", &said, &found);
        CallOutcome::RefusalUnconfirmed(format!("{said}, but {found}"))
    }

    /// Checks a restore that was answered 404: the product is gone, or the path is wrong.
    async fn confirm_not_found(&self, call: &StockCall, trace: &TraceParent, said: String) -> CallOutcome {
        let found = match self.look_up_again(call, trace).await {
            Ok(None) => return CallOutcome::Refused(said),
            Ok(Some(_)) => "the product exists".to_owned(),
            Err(error) => format!("the product could not be looked up: {error}"),
        };
        self.warn_of_path(call, "PRODUCT_RESTORE_PATH", &said, &found);
        CallOutcome::NotSent(format!("{said}, but {found}"))
    }

    /// Looks up the product with a timeout of its own, because the refusal may have used up the call's.
    async fn look_up_again(&self, call: &StockCall, trace: &TraceParent) -> Result<Option<Product>, String> {
        let mut span = self.catalogue.span(trace);
        let (started, after, context) = (Instant::now(), self.settings.stock.timeout, span.context());
        let found = self.catalogue.get(&call.product_id, context.as_ref().unwrap_or(trace));
        let found = timeout(after, found).await.unwrap_or(Err(Failure::TimedOut { after }));
        self.catalogue.measure(started, &found);
        note_look_up(&mut span, &found);
        found.map_err(|failure| failure.chain())
    }

    fn warn_of_path(&self, call: &StockCall, setting: &str, said: &str, found: &str) {
        if let Some(suppressed) = self.unconfirmed_refusals.allow() {
            let product = &call.product_id;
            tracing::error!(
                %product, setting, said, found, suppressed, "a stock call was refused, but a look-up does not confirm it: check the path setting"
            );
        }
    }
}

fn note_answer(span: &mut Span, answered: &Result<Answered, Failure>) {
    match answered {
        Ok(Answered { status, .. }) if status.is_success() => {
            span.set("http.response.status_code", i64::from(status.as_u16()));
        }
        Ok(Answered { status, .. }) => note_refusal(span, *status),
        Err(failure) => span.fail(failure.error_type()),
    }
}

/// The parts of an answer that decide the outcome.
struct Answered {
    status: StatusCode,
    /// Whether the first call with this key is still running.
    in_progress: bool,
}

impl Answered {
    /// The outcome of the request in the metrics.
    fn metric_outcome(&self) -> &'static str {
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

/// Whether a 409 is about the idempotency key and not about the stock.
async fn is_in_progress(response: Response) -> bool {
    if response.headers().contains_key(RETRY_AFTER) {
        return true;
    }
    answer::body(response).await.is_ok_and(|body| is_about_the_key(&body))
}

/// The example in the IETF draft has no specific `type`, but the `title` "A request is outstanding for this
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
    fn an_answer_decides_the_outcome_of_a_stock_call() {
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
    fn a_conflict_about_the_key_is_recognised() {
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
    fn a_route_is_appended_to_the_url_with_the_product_id_filled_in() {
        let route =
            StockRoute { method: Method::POST, path: "/api/products/{productId}/reduce-stock".into() };
        for base in ["http://shop/in/here", "http://shop/in/here/"] {
            let address = route.address(&base.parse().unwrap(), "P:1").unwrap();
            assert_eq!(address.as_str(), "http://shop/in/here/api/products/P:1/reduce-stock");
        }
    }
}
