//! Spans on their way to a collector: OpenTelemetry's protocol (OTLP) over gRPC or HTTP.
//!
//! The spans that have ended wait in a queue of bounded length, and a thread of the SDK's own sends them. A collector that is
//! slow or away holds up nothing: spans that find the queue full are dropped, and so is a batch that could not be sent.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter,
    SpanProcessor,
};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::{info, warn};

use super::Seldom;
use super::span::TRACER;

/// At most one line in so long says that spans are dropped.
const ONE_WARNING: Duration = Duration::from_mins(1);

/// Where spans go, and which ones.
#[derive(Clone)]
pub struct TraceSettings {
    /// The whole address: for HTTP with its path.
    pub endpoint: String,
    /// The transport.
    pub protocol: Protocol,
    /// Headers of each export, such as an API key.
    pub headers: reqwest::header::HeaderMap,
    /// How long one export may take, its retries included.
    pub timeout: Duration,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// What is said of this service with its spans: `service.name` and others.
    pub resource: Vec<(String, String)>,
    /// How long a span waits for others at most.
    pub schedule_delay: Duration,
    /// How long one export of a batch may take altogether.
    pub export_timeout: Duration,
    /// How many spans wait; further ones are dropped.
    pub max_queue_size: usize,
    /// How many spans one export has.
    pub max_batch_size: usize,
}

/// The transports of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC, without TLS.
    Grpc,
    /// Protobuf over HTTP.
    HttpProtobuf,
}

/// Without the headers, which hold keys.
impl fmt::Debug for TraceSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceSettings")
            .field("endpoint", &self.endpoint)
            .field("protocol", &self.protocol)
            .field("timeout", &self.timeout)
            .field("sampler", &self.sampler)
            .field("resource", &self.resource)
            .field("schedule_delay", &self.schedule_delay)
            .field("export_timeout", &self.export_timeout)
            .field("max_queue_size", &self.max_queue_size)
            .field("max_batch_size", &self.max_batch_size)
            .finish_non_exhaustive()
    }
}

/// The traces of this process.
#[derive(Debug)]
#[must_use]
pub struct Traces(SdkTracerProvider);

/// Starts traces for the whole process. Needs a Tokio runtime. Where they were started already, that stays.
pub fn start(settings: &TraceSettings) -> Result<Traces, ExporterBuildError> {
    let waiting = Arc::new(AtomicUsize::new(0));
    let exporter = Exporter {
        otlp: Arc::new(otlp(settings)?),
        runtime: Handle::current(),
        timeout: settings.export_timeout,
        is_failing: AtomicBool::new(false),
        waiting: Arc::clone(&waiting),
    };
    let batches = BatchConfigBuilder::default()
        .with_scheduled_delay(settings.schedule_delay)
        .with_max_queue_size(settings.max_queue_size)
        .with_max_export_batch_size(settings.max_batch_size)
        .build();
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let processor =
        Queue { batches, waiting, longest: settings.max_queue_size, warnings: Seldom::new(ONE_WARNING) };
    let resource = settings.resource.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(settings.sampler.clone())
        .with_resource(Resource::builder_empty().with_attributes(resource).build())
        .build();
    let _ = TRACER.set(provider.tracer("order-service"));
    info!(endpoint = settings.endpoint, protocol = ?settings.protocol, "traces are exported");
    Ok(Traces(provider))
}

impl Traces {
    /// Sends the spans that wait, for at most so long. No span is recorded after it.
    pub async fn stop(self, patience: Duration) {
        let stopped = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(patience)).await;
        if !matches!(stopped, Ok(Ok(()))) {
            warn!("the last spans could not be exported");
        }
    }
}

fn otlp(settings: &TraceSettings) -> Result<OtlpExporter, ExporterBuildError> {
    let builder = OtlpExporter::builder();
    match settings.protocol {
        Protocol::Grpc => builder
            .with_tonic()
            .with_endpoint(&settings.endpoint)
            .with_timeout(settings.timeout)
            .with_metadata(MetadataMap::from_headers(settings.headers.clone()))
            .build(),
        Protocol::HttpProtobuf => {
            let text = |value: &reqwest::header::HeaderValue| value.to_str().map(str::to_owned).ok();
            let headers = settings.headers.iter();
            let headers = headers.filter_map(|(name, value)| Some((name.to_string(), text(value)?)));
            builder
                .with_http()
                .with_endpoint(&settings.endpoint)
                .with_timeout(settings.timeout)
                .with_headers(headers.collect())
                .build()
        }
    }
}

/// The SDK's queue and thread. The SDK drops what finds its queue full without a word, so this drops it before, and says so.
#[derive(Debug)]
struct Queue {
    batches: BatchSpanProcessor,
    /// How many spans wait for an export.
    waiting: Arc<AtomicUsize>,
    longest: usize,
    warnings: Seldom,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.longest {
            return self.batches.on_end(span);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(held_back) = self.warnings.held_back() {
            let (dropped, waiting) = (held_back + 1, self.longest);
            warn!(dropped, waiting, "spans are dropped: the queue (OTEL_BSP_MAX_QUEUE_SIZE) is full");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Exports on the runtime of the service, which the clients of both transports need, and says in the log when the
/// collector goes away and when it is back.
#[derive(Debug)]
struct Exporter {
    otlp: Arc<OtlpExporter>,
    runtime: Handle,
    timeout: Duration,
    is_failing: AtomicBool,
    waiting: Arc<AtomicUsize>,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        let (otlp, limit) = (Arc::clone(&self.otlp), self.timeout);
        let export = self.runtime.spawn(async move { timeout(limit, otlp.export(batch)).await });
        let result = match export.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(OTelSdkError::Timeout(limit)),
            Err(error) => Err(OTelSdkError::InternalFailure(error.to_string())),
        };
        match (&result, self.is_failing.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                warn!(%error, "spans cannot be exported; they are dropped until the collector answers");
            }
            (Ok(()), true) => info!("spans are exported again"),
            _ => {}
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(otlp) = Arc::get_mut(&mut self.otlp) {
            otlp.set_resource(resource);
        }
    }
}
