//! The export of spans to a collector, by the OpenTelemetry protocol (OTLP) over gRPC or HTTP.
//!
//! Ended spans wait in a bounded queue, which a thread of the SDK sends. A slow or unreachable collector does not block
//! the service: spans are dropped while the queue is full, and so is a batch that could not be sent.

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

use super::RateLimitedLog;
use super::span::TRACER;
use crate::http_client;

/// The minimum interval between two warnings of dropped spans.
const ONE_WARNING: Duration = Duration::from_mins(1);

/// The settings of traces.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// The full address; for HTTP with its path.
    pub endpoint: String,
    /// The transport.
    pub protocol: Protocol,
    /// Headers of each export, such as an API key. Their values are sensitive, so `Debug` hides them.
    pub headers: reqwest::header::HeaderMap,
    /// The timeout of one export, including its retries.
    pub timeout: Duration,
    /// Decides which traces are recorded.
    pub sampler: Sampler,
    /// The attributes of this service, such as `service.name`.
    pub resource: Vec<(String, String)>,
    /// The maximum wait of a span for its batch.
    pub schedule_delay: Duration,
    /// The overall timeout of the export of a batch.
    pub export_timeout: Duration,
    /// The maximum number of waiting spans; more are dropped.
    pub max_queue_size: usize,
    /// The maximum number of spans per export.
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

/// The traces of this process.
#[derive(Debug)]
#[must_use]
pub struct Traces(SdkTracerProvider);

/// Starts traces for the process, once. Needs a Tokio runtime.
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
    let processor = Queue {
        batches,
        waiting,
        max_waiting: settings.max_queue_size,
        warnings: RateLimitedLog::new(ONE_WARNING),
    };
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
    /// Sends the waiting spans within `limit`. No span is recorded afterwards.
    pub async fn stop(self, limit: Duration) {
        let stopped = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(limit)).await;
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
            // The exporter builds its own client.
            http_client::install_crypto_provider();
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

/// The queue of the SDK. The SDK drops spans silently while its queue is full, so this type drops them first and logs
/// it.
#[derive(Debug)]
struct Queue {
    batches: BatchSpanProcessor,
    /// The number of spans that wait for an export.
    waiting: Arc<AtomicUsize>,
    max_waiting: usize,
    warnings: RateLimitedLog,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.max_waiting {
            return self.batches.on_end(span);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(suppressed) = self.warnings.allow() {
            let (dropped, waiting) = (suppressed + 1, self.max_waiting);
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

/// Exports on the runtime of the service, which the clients of both transports need. Logs when exports begin to fail,
/// and when they succeed again.
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
