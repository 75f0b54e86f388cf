//! The log line of a request, and its request id and trace id.
//!
//! The line contains no header, no query and no e-mail address.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use chrono::Utc;
use opentelemetry::trace::SpanKind;
use tracing::{Instrument, error, info, info_span, warn};

use super::problem::{Problem, write_problem};
use crate::domain::TraceParent;
use crate::domain::trace::random;
use crate::metrics::{Counted, Metrics, known_method};
use crate::telemetry::span::{self, Span};

/// The request id, which is also in the log.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The routes that platforms poll every few seconds.
const NOT_TRACED: [&str; 3] = ["/health", "/metrics", "/actuator"];

/// The outermost layer.
pub(super) async fn observe(
    State(metrics): State<Arc<Metrics>>,
    mut request: Request,
    next: Next,
) -> Response {
    let (started, _active) = (Instant::now(), Counted::new(&metrics.http.active));
    let request_id = request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let (mut recorded, trace) = server_span(request.headers(), &method, route);
    let span = info_span!(
        "request", request_id = %request_id, trace_id = %trace.trace_id(), span_id = %trace.span_id(), %method,
        route = route.unwrap_or("none")
    );
    request.extensions_mut().insert(trace.clone());
    let response = span::within(&trace, next.run(request)).instrument(span.clone()).await;
    let mut response = write_problem(uri.path(), response);
    span.in_scope(|| log(&response, started));
    measure(&metrics, &method, route.unwrap_or("none"), &response, started);
    note_answer(&mut recorded, &response);
    if let Ok(value) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The span of the request, and its context. The span has the route and not the path, because an unknown path may
/// contain anything.
fn server_span(headers: &HeaderMap, method: &Method, route: Option<&str>) -> (Span, TraceParent) {
    let states: Vec<&str> =
        headers.get_all(TRACESTATE).iter().filter_map(|value| value.to_str().ok()).collect();
    let state = (!states.is_empty()).then(|| states.join(","));
    let caller = TraceParent::extract(only(headers, &TRACEPARENT), state.as_deref());
    if route.is_some_and(|route| NOT_TRACED.iter().any(|prefix| route.starts_with(prefix))) {
        return (Span::none(), caller.unwrap_or_else(TraceParent::start).unsampled());
    }
    let method = known_method(method.as_str());
    let name = || route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"));
    let (mut span, trace) = Span::entry(SpanKind::Server, name, caller);
    if span.is_recorded() {
        span.set("http.request.method", method);
        span.set("url.scheme", "http");
        if let Some(route) = route {
            span.set("http.route", route.to_owned());
        }
    }
    (span, trace)
}

fn note_answer(span: &mut Span, response: &Response) {
    let status = response.status();
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        let code = response.extensions().get::<Problem>().map(Problem::code);
        span.fail(code.map_or_else(|| Cow::from(status.as_u16().to_string()), Cow::from));
    }
}

fn log(response: &Response, started: Instant) {
    let status = response.status().as_u16();
    let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let problem = response.extensions().get::<Problem>();
    let code = problem.map_or("", Problem::code);
    let cause = problem.and_then(Problem::cause_chain).unwrap_or_default();
    match status {
        500 => error!(status, duration_ms, code, cause, "request failed"),
        501.. => warn!(status, duration_ms, code, cause, "request failed temporarily"),
        400..500 => info!(status, duration_ms, code, "request refused"),
        _ => info!(status, duration_ms, "request answered"),
    }
}

fn measure(metrics: &Metrics, method: &Method, route: &str, response: &Response, started: Instant) {
    metrics.http.answered(method.as_str(), route, response.status().as_u16(), started.elapsed());
    let problem = response.extensions().get::<Problem>();
    if let Some(problem) = problem.filter(|_| method == Method::POST && route == "/api/orders") {
        metrics.orders.refused(problem.code());
    }
}

/// The request id of the caller if it is safe to log and to echo, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let safe = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    only(headers, &REQUEST_ID).filter(safe).map_or_else(new_request_id, str::to_owned)
}

/// A `UUIDv7`, so that ids sort by time.
fn new_request_id() -> String {
    let millis = u64::try_from(Utc::now().timestamp_millis()).unwrap_or_default();
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&random().to_ne_bytes());
    bytes[8..].copy_from_slice(&random().to_ne_bytes()[..2]);
    uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid().to_string()
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok();
    values.next().is_none().then_some(value)?
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (REQUEST_ID, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_single_safe_request_id_of_the_caller_is_used() {
        assert_eq!(request_id(&headers(&["abc-123"])), "abc-123");
        for bad in [&["a b"][..], &["a\"b"], &["a", "b"], &[""], &[]] {
            assert!(Uuid::try_parse(&request_id(&headers(bad))).is_ok(), "{bad:?}");
        }
    }
}
