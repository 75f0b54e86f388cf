//! Spans of OpenTelemetry. With tracing off, or where the trace is not sampled, none is made and a branch is all that it costs.
//!
//! | span | kind | parent | name |
//! |---|---|---|---|
//! | a request | SERVER | the caller's `traceparent` | `POST /api/orders` |
//! | a look-up, an attempt each; a stock call | CLIENT | the request, or what started the stock job | `GET /api/products/{productId}` |
//! | one use of the database | CLIENT | the request, the payment, or what started the stock job | the summary, such as `place` |
//! | an event on its way to Kafka | PRODUCER | what wrote the event, by its stored `traceparent` | `send order-events` |
//! | a payment | CONSUMER | the record's `traceparent` | `process payment-events` |
//! | an unpaid order that is cancelled | INTERNAL | none | `cancel unpaid order` |
//!
//! Work that is shared (a group commit, a shared read, a shared look-up) has a span for each trace that waits for it, from
//! the moment of asking to the answer. The spans of one commit or statement say how many share it
//! (`db.operation.batch.size`), and each is linked to the first of them, which is the one whose context went to the
//! Product Service where it was a look-up.
//!
//! A payment's span has the record as its parent, not a link: the semantic conventions permit it where one record is
//! processed at a time, and so one trace holds the order and its payment where the Payment Service goes on with the trace of
//! `ORDER_PLACED`. The events that follow from a stock job belong to the trace that started the job; its `tracestate`
//! is not stored.
//!
//! Probes and scrapes have no span. The work of the service for itself (leases, the reads of the relay, housekeeping) has no parent and no span.

use std::borrow::Cow;
use std::sync::OnceLock;

use futures_util::future::Either;
use opentelemetry::trace::{
    FutureExt, Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, WithContext,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};

use crate::domain::TraceParent;

/// Set once, where traces are on.
pub(super) static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// A span that is recorded, or nothing. It ends when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Span(Option<Box<SdkSpan>>);

impl Span {
    /// Starts a span where work comes in; the sampler decides. `caller` is the caller's place in the trace. Returns
    /// also the place to pass on.
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
        let place = TraceParent::from(span.span_context().clone());
        if !place.context().is_valid() {
            // The tracer was shut down.
            return (Self(None), TraceParent::start());
        }
        (Self(span.is_recording().then(|| Box::new(span))), place)
    }

    /// Starts a span for a part of the work, where that is recorded.
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

    /// Starts a span for one use of the database, for the trace that this task works on ([`within`]).
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

    /// Whether there is one: to spare what only a span needs.
    pub const fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Sets an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(name, value));
        }
    }

    /// Says that the work failed, by a word of a bounded set (`error.type`).
    pub fn fail(&mut self, error_type: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("error.type", Value::String(error_type.into().into())));
            span.set_status(Status::error(""));
        }
    }

    /// The place of the span in its trace, where it is recorded.
    pub fn place(&self) -> Option<TraceParent> {
        self.0.as_ref().map(|span| span.span_context().clone().into())
    }

    /// Links the span to another one.
    pub fn link(&mut self, to: &TraceParent) {
        if let Some(span) = &mut self.0 {
            span.add_link(to.context().clone(), Vec::new());
        }
    }
}

/// Whether spans are made at all.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// Says in the spans of work that is done together how many share it, and links each to the first.
pub fn share<'a>(size: usize, spans: impl Iterator<Item = &'a mut Span>) {
    let mut first = None;
    for span in spans {
        let Some(place) = span.place() else { continue };
        span.set("db.operation.batch.size", i64::try_from(size).unwrap_or(i64::MAX));
        match &first {
            None => first = Some(place),
            Some(first) => span.link(first),
        }
    }
}

/// Works as a part of this trace: the spans of the database become its children.
pub fn within<F: Future>(trace: &TraceParent, work: F) -> Either<WithContext<F>, F> {
    if TRACER.get().is_some() && trace.context().is_sampled() {
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
