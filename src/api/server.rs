//! The HTTP server: accepts connections, limits them, and closes them gracefully.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::connection::{Connections, Socket, Waits};
use crate::telemetry::RateLimitedLog;

#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// The maximum number of open connections. Beyond it, the one that has waited longest for its client is closed.
    pub max_connections: usize,
    /// How long a connection may be idle between two requests.
    pub idle_timeout: Duration,
    /// The timeout for a request head from its first byte on, and for the first head of a connection.
    pub head_timeout: Duration,
    /// How long a client may leave its response unread.
    pub write_timeout: Duration,
    /// The maximum time from the head of a request to its response. A stop waits for connections this long.
    pub longest_request: Duration,
}

/// The maximum size of a request head, in bytes, as in Tomcat. It is also the buffer of a connection: hyper's minimum
/// is 8 KiB, its default 408 KiB.
const MAX_HEAD: usize = 8 * 1024;

/// Serves until `stop`, and counts its `connections`. Then accepts no more connections, finishes the running requests,
/// and returns.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    settings: &ServerSettings,
    stop: &CancellationToken,
    connections: Gauge,
) {
    let (watched, cut) = (GracefulShutdown::new(), CancellationToken::new());
    let connections = Connections::new(settings.max_connections, connections);
    let failures = RateLimitedLog::new(Duration::from_secs(10));
    let waits = Waits { head: settings.head_timeout, write: settings.write_timeout };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &connections, &failures) => accepted,
        };
        let Some(stream) = accepted else { continue };
        let entry = tokio::select! {
            () = stop.cancelled() => break,
            entry = connections.enter(&cut) => entry,
        };
        let Some(entry) = entry else { continue };
        let socket = Socket::new(stream, Arc::clone(&entry.activity), waits);
        let (router, activity) = (TowerToHyperService::new(router.clone()), Arc::clone(&entry.activity));
        let service = service_fn(move |mut request: Request<Incoming>| {
            let activity = Arc::clone(&activity);
            activity.begin();
            request.extensions_mut().insert(Arc::clone(&activity));
            let answering = router.call(request);
            async move {
                let answer = answering.await;
                activity.end();
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Counts from the end of a response. A head that has begun has the shorter deadline of the socket.
            .header_read_timeout(settings.idle_timeout)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(socket), service);
        let connection = entry.closed.clone().run_until_cancelled_owned(watched.watch(connection));
        tokio::spawn(async move {
            if let Some(Err(error)) = connection.await {
                debug!(%error, "a connection ended with an error");
            }
            drop(entry);
        });
    }
    drop(listener);
    // No request runs longer. A connection that is still open belongs to a client that does not read its response.
    if timeout(settings.longest_request + settings.write_timeout, watched.shutdown()).await.is_err() {
        warn!("closing connections whose clients do not read their responses");
    }
    cut.cancel();
}

async fn accept(
    listener: &TcpListener,
    connections: &Connections,
    failures: &RateLimitedLog,
) -> Option<TcpStream> {
    const PAUSE: Duration = Duration::from_millis(10);
    match listener.accept().await {
        Ok((stream, _)) => {
            // Responses are written in one piece; Nagle's algorithm would only delay them.
            stream.set_nodelay(true).ok()?;
            Some(stream)
        }
        Err(error) => {
            // Most likely no file descriptor is left: close a connection, and pause so that the loop does not spin.
            if let Some(suppressed) = failures.allow() {
                warn!(%error, suppressed, "could not accept a connection");
            }
            connections.close_longest_waiting();
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}
