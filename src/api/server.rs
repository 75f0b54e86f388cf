//! The listener: accepts connections, bounds them, and ends them well.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::refusals::Refusals;

/// How connections are served.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// The most connections at once; more wait in the backlog of the listener.
    pub max_connections: usize,
    /// How long a connection may take to send the head of its next request; so also how long it may idle.
    pub idle_timeout: Duration,
    /// How long any request may take; so also how long a stop waits for connections.
    pub request_deadline: Duration,
}

/// What an answer has for its way out, beyond the deadline of its request.
const WRITE_TIME: Duration = Duration::from_secs(1);

/// Serves until `stop`; then accepts nothing more, finishes the requests that are running, and returns.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: &ServerSettings,
    stop: &CancellationToken,
) {
    let (connections, cut) = (GracefulShutdown::new(), CancellationToken::new());
    let permits = Arc::new(Semaphore::new(settings.max_connections));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, permit)) = accepted else { continue };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.idle_timeout)
            .serve_connection(TokioIo::new(Refusals::on(stream)), TowerToHyperService::new(router.clone()));
        let connection = cut.clone().run_until_cancelled_owned(connections.watch(connection));
        tokio::spawn(async move {
            if let Some(Err(error)) = connection.await {
                debug!(%error, "a connection ended badly");
            }
            drop(permit);
        });
    }
    drop(listener);
    // No request runs for longer: what is open then belongs to a client that stopped sending or reading.
    if timeout(settings.request_deadline + WRITE_TIME, connections.shutdown()).await.is_err() {
        warn!("clients that neither finish their requests nor read their answers are cut off");
    }
    cut.cancel();
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // Never closed, so the permit always comes.
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Answers are written in one piece; waiting to fill a packet would only delay them.
            stream.set_nodelay(true).ok()?;
            Some((stream, permit))
        }
        Err(error) => {
            // Out of file descriptors, most likely: pause, so that the loop does not spin.
            warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}
