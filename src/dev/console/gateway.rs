//! The console as the platform's gateway: forwards calls to the replicas.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};

use super::{Shared, refuse};
use crate::dev::DevError;
use crate::http_client;

/// More than the maximum time of the service.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

const TO_SERVICE: [&str; 7] = [
    "content-type",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "x-user-email",
    "x-user-role",
    "traceparent",
];
const TO_PAGE: [&str; 8] = [
    "content-type",
    "etag",
    "location",
    "link",
    "idempotency-replayed",
    "retry-after",
    "allow",
    "www-authenticate",
];

pub(super) struct Gateway {
    client: reqwest::Client,
    /// The URL of the replica in this process.
    pub(super) first: String,
    secret: Option<HeaderValue>,
    calls: AtomicUsize,
}

impl Gateway {
    pub(super) fn new(first: SocketAddr, secret: Option<String>) -> Result<Self, DevError> {
        let client = http_client::plain_builder().no_proxy().timeout(ANSWERS_WITHIN).build()?;
        let secret = secret.and_then(|secret| HeaderValue::from_str(&secret).ok());
        Ok(Self { client, first: format!("http://{first}"), secret, calls: AtomicUsize::new(0) })
    }

    /// The readiness response of the first replica; `None` if it does not answer.
    pub(super) async fn health(&self) -> Option<serde_json::Value> {
        let url = format!("{}/health/ready", self.first);
        let answer = self.client.get(url).timeout(Duration::from_secs(2)).send().await.ok()?;
        serde_json::from_slice(&answer.bytes().await.ok()?).ok()
    }

    /// The replicas to try, in order: only the chosen one, or else all of them, starting with another one each time.
    fn replicas(&self, second: Option<String>, chosen: Option<&str>) -> Vec<(u8, String)> {
        let mut replicas = vec![(1, self.first.clone())];
        replicas.extend(second.map(|address| (2, format!("http://{address}"))));
        match chosen {
            Some(number) => replicas.retain(|(known, _)| known.to_string() == number),
            None if self.calls.fetch_add(1, Ordering::Relaxed) % 2 == 1 => replicas.reverse(),
            None => {}
        }
        replicas
    }
}

/// Forwards the call to a replica. If it cannot connect, it has sent nothing and tries the next replica. Any later
/// failure leaves the outcome unknown, and the response says so.
pub(super) async fn forward(
    State(console): State<Arc<Shared>>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let gateway = &console.gateway;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let chosen = headers.get("x-replica").and_then(|value| value.to_str().ok());
    let mut passed_on = HeaderMap::new();
    for name in TO_SERVICE {
        for value in headers.get_all(name) {
            passed_on.append(HeaderName::from_static(name), value.clone());
        }
    }
    if let Some(secret) = &gateway.secret {
        passed_on.insert(HeaderName::from_static("x-gateway-secret"), secret.clone());
    }
    for (number, replica) in gateway.replicas(console.second.address(), chosen) {
        let request = gateway.client.request(method.clone(), format!("{replica}{path}"));
        match request.headers(passed_on.clone()).body(body.clone()).send().await {
            Ok(answer) => return pass_back(number, answer).await,
            Err(error) if error.is_connect() => {}
            Err(_) => return unknown(number),
        }
    }
    refuse(StatusCode::BAD_GATEWAY, "no replica accepts connections; nothing was sent").into_response()
}

async fn pass_back(number: u8, answer: reqwest::Response) -> Response {
    let (status, headers) = (answer.status(), answer.headers().clone());
    let Ok(body) = answer.bytes().await else { return unknown(number) };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    for name in TO_PAGE {
        if let Some(value) = headers.get(name) {
            response.headers_mut().insert(HeaderName::from_static(name), value.clone());
        }
    }
    response.headers_mut().insert(HeaderName::from_static("x-replica"), HeaderValue::from(u16::from(number)));
    response
}

fn unknown(number: u8) -> Response {
    let detail = format!(
        "Replica {number} did not answer, so the outcome of the request is unknown. Send it again with the same \
         Idempotency-Key."
    );
    refuse(StatusCode::BAD_GATEWAY, detail).into_response()
}
