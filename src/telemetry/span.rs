//! Spans of OpenTelemetry. With tracing off, or for a trace that is not sampled, there is no span, and the cost is a
//! branch.
//!
//! | span | kind | parent | name |
//! |---|---|---|---|
//! | a request | SERVER | the caller's `traceparent` | `POST /api/orders` |
//! | an attempt of a look-up; a stock call | CLIENT | the request, or the cause of the stock job | `GET /api/products/{productId}` |
//! | a use of the database | CLIENT | the request, the payment, or the cause of the stock job | the summary, such as `place` |
//! | a publication of an event | PRODUCER | the cause of the event, by its stored `traceparent` | `send order-events` |
//! | a payment | CONSUMER | the record's `traceparent` | `process payment-events` |
//! | the cancellation of an unpaid order | INTERNAL | none | `cancel unpaid order` |
//!
//! Shared work (a group commit, a shared read, a shared look-up) has a span in each trace that waits for it, from the
//! request to the answer. The spans of one commit or statement have its number of callers (`db.operation.batch.size`),
//! and a link to the first of them. The spans of a shared look-up have a link to the span whose context went to the
//! Product Service.
//!
//! The record of a payment is the parent of its span. The semantic conventions allow this for records that are
//! processed one by one. So one trace contains the order and its payment, if the Payment Service continues the trace of
//! `ORDER_PLACED`. The events of a stock job belong to the trace that started the job, whose `tracestate` is not
//! stored.
//!
//! Probes, scrapes and background work (leases, reads of the relay, housekeeping) have no span.

use std::borrow::Cow;
use std::sync::OnceLock;

use futures_util::future::Either;
use opentelemetry::trace::{
    FutureExt, Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, WithContext,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};

use crate::domain::TraceParent;

/// Set once, if traces are on.
pub(super) static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// A span that is recorded, or nothing. It ends when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Span(Option<Box<SdkSpan>>);

impl Span {
    /// Starts a span for incoming work, if the sampler records it. `caller` is the context of the caller. Also returns
    /// the context to pass on.
    pub fn entry<N: Into<Cow<'static, str>>>(
        kind: SpanKind,
        name: impl FnOnce() -> N,
        caller: Option<TraceParent>,
    ) -> (Self, TraceParent) {
        let Some(tracer) = TRACER.get() else {
            return (Self(None), caller.unwrap_or_else(TraceParent::start));
        };
        let parent = caller.map_or_else(Context::new, |caller| parent(&caller));
        let span = start(tracer, kind, name().into(), &parent);
        let context = TraceParent::from(span.span_context().clone());
        if !context.context().is_valid() {
            // The tracer was shut down.
            return (Self(None), TraceParent::start());
        }
        (Self(span.is_recording().then(|| Box::new(span))), context)
    }

    /// Starts a span for a part of the work, if the work is recorded.
    pub fn child<N: Into<Cow<'static, str>>>(
        kind: SpanKind,
        name: impl FnOnce() -> N,
        of: &TraceParent,
    ) -> Self {
        match TRACER.get() {
            Some(tracer) if of.context().is_sampled() => {
                Self(Some(Box::new(start(tracer, kind, name().into(), &parent(of)))))
            }
            _ => Self(None),
        }
    }

    /// Starts a span for a use of the database, in the trace of this task ([`within`]).
    pub fn of_database(summary: &'static str) -> Self {
        let Some(tracer) = TRACER.get() else { return Self(None) };
        let parent = Context::current();
        if !parent.span().span_context().is_sampled() {
            return Self(None);
        }
        let mut span = Self(Some(Box::new(start(tracer, SpanKind::Client, summary.into(), &parent))));
        span.set("db.system.name", "postgresql");
        span.set("db.query.summary", summary);
        span
    }

    /// No span.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Whether the span is recorded.
    pub const fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Sets an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(name, value));
        }
    }

    /// Sets the attributes of an operation on a topic of Kafka.
    pub fn set_kafka_operation(&mut self, operation: &'static str, topic: &str) {
        if self.is_recorded() {
            self.set("messaging.system", "kafka");
            self.set("messaging.operation.type", operation);
            self.set("messaging.operation.name", operation);
            self.set("messaging.destination.name", topic.to_owned());
        }
    }

    /// Sets the partition and offset of a record.
    pub fn set_kafka_record(&mut self, partition: i32, offset: i64) {
        if self.is_recorded() {
            self.set("messaging.destination.partition.id", partition.to_string());
            self.set("messaging.kafka.offset", offset);
        }
    }

    /// Marks the work as failed. `error_type` must be one of a bounded set.
    pub fn fail(&mut self, error_type: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("error.type", Value::String(error_type.into().into())));
            span.set_status(Status::error(""));
        }
    }

    /// The context of the span, if it is recorded.
    pub fn context(&self) -> Option<TraceParent> {
        self.0.as_ref().map(|span| span.span_context().clone().into())
    }

    /// Links the span to another.
    pub fn link(&mut self, to: &TraceParent) {
        if let Some(span) = &mut self.0 {
            span.add_link(to.context().clone(), Vec::new());
        }
    }
}

/// Whether traces are on.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// Sets the number of callers in the spans of shared work, and links each span to the first.
pub fn share<'a>(size: usize, spans: impl Iterator<Item = &'a mut Span>) {
    let mut first = None;
    for span in spans {
        let Some(context) = span.context() else { continue };
        span.set("db.operation.batch.size", i64::try_from(size).unwrap_or(i64::MAX));
        match &first {
            None => first = Some(context),
            Some(first) => span.link(first),
        }
    }
}

/// Runs `work` in a trace, so that its spans of the database become children.
pub fn within<F: Future>(trace: &TraceParent, work: F) -> Either<WithContext<F>, F> {
    if is_on() && trace.context().is_sampled() {
        Either::Left(work.with_context(parent(trace)))
    } else {
        Either::Right(work)
    }
}

fn parent(of: &TraceParent) -> Context {
    Context::new().with_remote_span_context(of.context().clone())
}

fn start(tracer: &SdkTracer, kind: SpanKind, name: Cow<'static, str>, parent: &Context) -> SdkSpan {
    tracer.build_with_context(SpanBuilder::from_name(name).with_kind(kind), parent)
}
