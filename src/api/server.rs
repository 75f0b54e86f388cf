//! The listener: accepts connections, bounds them, and ends them well.

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
use crate::telemetry::Seldom;

/// How connections are served.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// The most connections at once. Where there are more, the one that has waited longest for its client is closed.
    pub max_connections: usize,
    /// How long a connection may idle between two requests.
    pub idle_timeout: Duration,
    /// How long the head of a request may take from its first byte; and the first head of a connection.
    pub head_timeout: Duration,
    /// How long a client may leave an answer where it is.
    pub write_timeout: Duration,
    /// How long a request may take from its head to its answer; so also how long a stop waits for connections.
    pub longest_request: Duration,
}

/// The largest head of a request, in bytes: what Tomcat takes, and the least that hyper allows. It is also all that
/// hyper buffers of a connection; hyper's own limit is 408 KiB.
const MAX_HEAD: usize = 8 * 1024;

/// Serves until `stop`, counting its `connections`; then accepts nothing more, finishes the requests that are running,
/// and returns.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: &ServerSettings,
    stop: &CancellationToken,
    connections: Gauge,
) {
    let (watched, cut) = (GracefulShutdown::new(), CancellationToken::new());
    let connections = Connections::new(settings.max_connections, connections);
    let failures = Seldom::new(Duration::from_secs(10));
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
            // From the end of an answer on; a head that has begun has the shorter deadline of the socket.
            .header_read_timeout(settings.idle_timeout)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(socket), service);
        let connection = entry.closed.clone().run_until_cancelled_owned(watched.watch(connection));
        tokio::spawn(async move {
            if let Some(Err(error)) = connection.await {
                debug!(%error, "a connection ended badly");
            }
            drop(entry);
        });
    }
    drop(listener);
    // No request runs for longer: what is open then belongs to a client that does not read its answer.
    if timeout(settings.longest_request + settings.write_timeout, watched.shutdown()).await.is_err() {
        warn!("clients that neither finish their requests nor read their answers are cut off");
    }
    cut.cancel();
}

async fn accept(listener: &TcpListener, connections: &Connections, failures: &Seldom) -> Option<TcpStream> {
    const PAUSE: Duration = Duration::from_millis(10);
    match listener.accept().await {
        Ok((stream, _)) => {
            // Answers are written in one piece; waiting to fill a packet would only delay them.
            stream.set_nodelay(true).ok()?;
            Some(stream)
        }
        Err(error) => {
            // Out of file descriptors, most likely: make room, and pause so that the loop does not spin.
            if let Some(held_back) = failures.held_back() {
                warn!(%error, held_back, "a connection could not be accepted");
            }
            connections.close_longest_waiting();
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}
