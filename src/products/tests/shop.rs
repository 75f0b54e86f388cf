//! A Product Service with answers that the test defines.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use futures_util::{StreamExt, stream};
use reqwest::Url;
use reqwest::header::HeaderMap;

/// An answer.
#[derive(Clone)]
pub(super) enum Reply {
    Now(u16, String),
    Later(Duration, u16, String),
    /// A 302 to this location.
    Redirect(&'static str),
    /// No answer at all.
    Never,
    /// A head and the beginning of a body, but no end.
    Unfinished,
    /// An endless body, sent as fast as the client reads.
    Endless,
    /// A body with this `Content-Length`, sent as fast as the client reads.
    Long(usize),
}

impl Reply {
    /// A valid product.
    pub(super) fn good() -> Self {
        Self::Now(200, product("2499.10", 50))
    }

    pub(super) fn status(status: u16) -> Self {
        Self::Now(status, String::from("{}"))
    }
}

pub(super) fn product(price: &str, stock: i64) -> String {
    format!(r#"{{"name":"Phone","price":{price},"stock":{stock}}}"#)
}

/// The requests that the shop received.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) calls: AtomicUsize,
    pub(super) now: AtomicUsize,
    pub(super) most: AtomicUsize,
    pub(super) chunks: AtomicUsize,
    pub(super) requests: Mutex<Vec<(String, HeaderMap)>>,
}

impl Seen {
    fn note(&self, request: &Request) -> String {
        let uri = request.uri();
        self.requests.lock().unwrap().push((uri.to_string(), request.headers().clone()));
        uri.path().rsplit('/').next().unwrap_or_default().to_owned()
    }
}

pub(super) struct Shop {
    pub(super) url: Url,
    pub(super) seen: Arc<Seen>,
}

impl Shop {
    /// `reply` gets the product id and the number of the call, from 0.
    pub(super) async fn open(reply: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Seen::default());
        let (reply, state) = (Arc::new(reply), seen.clone());
        let router = Router::new().fallback(move |request: Request| {
            let (reply, seen) = (reply.clone(), state.clone());
            async move {
                let id = seen.note(&request);
                serve(&seen, &id, &*reply).await
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { url, seen }
    }

    pub(super) async fn always(reply: Reply) -> Self {
        Self::open(move |_, _| reply.clone()).await
    }

    pub(super) fn calls(&self) -> usize {
        self.seen.calls.load(SeqCst)
    }

    pub(super) fn most_at_once(&self) -> usize {
        self.seen.most.load(SeqCst)
    }
}

/// Counts the calls in progress, except those that the client cancelled.
struct Busy<'a>(&'a Seen);

impl<'a> Busy<'a> {
    fn new(seen: &'a Seen) -> Self {
        seen.most.fetch_max(seen.now.fetch_add(1, SeqCst) + 1, SeqCst);
        Self(seen)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

async fn serve(seen: &Arc<Seen>, id: &str, reply: &(impl Fn(&str, usize) -> Reply + Sync)) -> Response {
    let nth = seen.calls.fetch_add(1, SeqCst);
    let _busy = Busy::new(seen);
    match reply(id, nth) {
        Reply::Now(status, body) => response(status, body),
        Reply::Later(pause, status, body) => {
            tokio::time::sleep(pause).await;
            response(status, body)
        }
        Reply::Redirect(to) => {
            Response::builder().status(302).header("location", to).body(Body::empty()).unwrap()
        }
        Reply::Never => std::future::pending().await,
        Reply::Unfinished => {
            let start = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{\"price\":1,"))]);
            response(200, Body::from_stream(start.chain(stream::pending())))
        }
        Reply::Endless => response(200, blanks(seen.clone(), usize::MAX)),
        Reply::Long(length) => {
            let body = blanks(seen.clone(), length / CHUNK.len());
            Response::builder().header("content-length", length).body(body).unwrap()
        }
    }
}

static CHUNK: [u8; 16 * 1024] = [b' '; 16 * 1024];

fn blanks(seen: Arc<Seen>, chunks: usize) -> Body {
    let blank = move || {
        seen.chunks.fetch_add(1, SeqCst);
        Ok::<_, Infallible>(Bytes::from_static(&CHUNK))
    };
    Body::from_stream(stream::repeat_with(blank).take(chunks))
}

fn response(status: u16, body: impl Into<Body>) -> Response {
    Response::builder().status(status).header("content-type", "application/json").body(body.into()).unwrap()
}
