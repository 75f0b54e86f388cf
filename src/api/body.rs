//! Receives the body of a request, within limits of size and time.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::problem::{Problem, kinds};

/// The maximum size of a body (contract).
const MAX_BODY: usize = 64 * 1024;
/// How much of a larger body is read and discarded. A client that is still writing can then read the answer, instead of
/// getting a connection error.
const MAX_DRAINED: usize = 16 * 1024 * 1024;

/// The received body, for the extractors. Its error is reported by the extractor, after the errors of earlier
/// extractors.
#[derive(Clone)]
pub(super) struct Received(pub(super) Result<Bytes, Problem>);

/// Takes the body out of the request and receives it.
pub(super) async fn receive(request: &mut Request, within: Duration) -> Received {
    let body = std::mem::take(request.body_mut());
    if body.is_end_stream() {
        return Received(Ok(Bytes::new()));
    }
    let is_too_large = declared_length(request.headers()).is_some_and(|length| length > MAX_BODY as u64);
    if is_too_large && request.headers().contains_key(EXPECT) {
        // The client waits for 100 Continue (RFC 9110, 10.1.1), so there is nothing to drain.
        return Received(Err(too_large()));
    }
    Received(match timeout(within, read(body)).await {
        Ok(read) => read,
        Err(_) if is_too_large => Err(too_large()),
        Err(_) => Err(Problem::new(&kinds::REQUEST_TIMEOUT, "The body did not arrive in time.")),
    })
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large() -> Problem {
    Problem::new(&kinds::PAYLOAD_TOO_LARGE, "The body may have at most 64 KiB.")
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    let (mut kept, mut seen) = (Vec::new(), 0);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Problem::invalid("", "the body is incomplete"))?;
        seen += chunk.len();
        if seen > MAX_DRAINED {
            break;
        }
        if seen <= MAX_BODY {
            kept.extend_from_slice(&chunk);
        }
    }
    if seen > MAX_BODY { Err(too_large()) } else { Ok(kept.into()) }
}
