//! An OTLP receiver for the spans of the service under test.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span as OtlpSpan;
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::eventually;

/// A received span.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedSpan {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) trace_id: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) failed: bool,
    pub(crate) attributes: BTreeMap<String, String>,
    /// The ids of the linked spans.
    pub(crate) links: Vec<String>,
    start: u64,
    end: u64,
}

#[derive(Default)]
struct Received {
    spans: Vec<ReceivedSpan>,
    resource: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
}

type Shared = Arc<Mutex<Received>>;

/// A collector. Dropping it stops it.
pub(crate) struct Collector {
    pub(crate) url: String,
    received: Shared,
    _server: AbortOnDropHandle<()>,
}

impl Collector {
    /// Receives OTLP as protobuf over HTTP.
    pub(crate) async fn http() -> Self {
        Self::http_at(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// The same on a given port.
    pub(crate) fn http_at(listener: TcpListener) -> Self {
        let (address, received) = (listener.local_addr().unwrap(), Shared::default());
        let router = Router::new().route("/v1/traces", post(over_http)).with_state(Arc::clone(&received));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self::new(address, received, server)
    }

    /// Receives OTLP over gRPC.
    pub(crate) async fn grpc() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, received) = (listener.local_addr().unwrap(), Shared::default());
        let server = Server::builder()
            .add_service(TraceServiceServer::new(Grpc(Arc::clone(&received))))
            .serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self::new(address, received, server)
    }

    fn new(address: SocketAddr, received: Shared, server: tokio::task::JoinHandle<()>) -> Self {
        Self { url: format!("http://{address}"), received, _server: AbortOnDropHandle::new(server) }
    }

    /// All received spans.
    pub(crate) fn spans(&self) -> Vec<ReceivedSpan> {
        self.received.lock().unwrap().spans.clone()
    }

    /// Waits until `count` spans of this trace have arrived.
    pub(crate) async fn spans_of(&self, trace_id: &str, count: usize) -> Vec<ReceivedSpan> {
        let of = || -> Vec<ReceivedSpan> {
            self.spans().into_iter().filter(|span| span.trace_id == trace_id).collect()
        };
        eventually(&format!("{count} spans of {trace_id}"), async || of().len() >= count).await;
        of()
    }

    /// The resource attributes of the service.
    pub(crate) fn resource(&self) -> BTreeMap<String, String> {
        self.received.lock().unwrap().resource.clone()
    }

    /// A header of the latest export.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.received.lock().unwrap().headers.get(name).cloned()
    }
}

async fn over_http(State(received): State<Shared>, headers: HeaderMap, body: Bytes) -> Vec<u8> {
    receive(&received, &headers, ExportTraceServiceRequest::decode(body).unwrap());
    ExportTraceServiceResponse::default().encode_to_vec()
}

struct Grpc(Shared);

#[tonic::async_trait]
impl TraceService for Grpc {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let headers = request.metadata().clone().into_headers();
        receive(&self.0, &headers, request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn receive(received: &Shared, headers: &HeaderMap, request: ExportTraceServiceRequest) {
    let mut received = received.lock().unwrap();
    received.headers = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    for resource in request.resource_spans {
        received.resource = resource.resource.map(|it| attributes(&it.attributes)).unwrap_or_default();
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        received.spans.extend(spans.map(ReceivedSpan::from));
    }
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(&pair.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

impl From<OtlpSpan> for ReceivedSpan {
    fn from(span: OtlpSpan) -> Self {
        const KINDS: [&str; 6] = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"];
        Self {
            kind: KINDS[usize::try_from(span.kind).unwrap()],
            trace_id: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            failed: span.status.is_some_and(|status| status.code == 2),
            attributes: attributes(&span.attributes),
            links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
            start: span.start_time_unix_nano,
            end: span.end_time_unix_nano,
            name: span.name,
        }
    }
}

/// The tree below a span, one line per span, indented by depth. Siblings are sorted by name.
pub(crate) fn tree(spans: &[ReceivedSpan], parent: &str) -> Vec<String> {
    let mut children: Vec<&ReceivedSpan> = spans.iter().filter(|span| span.parent == parent).collect();
    children.sort_by_key(|span| (&span.name, span.start));
    let mut lines = Vec::new();
    for span in children {
        lines.push(format!("{} {}", span.kind, span.name));
        lines.extend(tree(spans, &span.id).into_iter().map(|line| format!("  {line}")));
    }
    lines
}

/// The tree with times, for printing.
pub(crate) fn shown(spans: &[ReceivedSpan], parent: &str, since: u64) -> Vec<String> {
    let mut children: Vec<&ReceivedSpan> = spans.iter().filter(|span| span.parent == parent).collect();
    children.sort_by_key(|span| span.start);
    let mut lines = Vec::new();
    for span in children {
        let since = if since == 0 { span.start } else { since };
        let (at, took) = ((span.start - since) / 1_000, (span.end - span.start) / 1_000);
        lines.push(format!("{} {}  at {at} µs, {took} µs  {:?}", span.kind, span.name, span.attributes));
        lines.extend(shown(spans, &span.id, since).into_iter().map(|line| format!("  {line}")));
    }
    lines
}
