//! The W3C trace context, passed from the request to the Product Service and into the events.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The context of a span of this service or of a caller (W3C Trace Context). `Display` gives the value of the
/// `traceparent` header, version 00.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(SpanContext);

/// The maximum length of a `tracestate` in bytes, the minimum that the specification allows. A longer one is dropped,
/// because each event stores it.
const MAX_STATE_BYTES: usize = 512;

impl TraceParent {
    /// Parses the headers of a request or a record. `None` if `traceparent` is missing or invalid.
    pub fn extract(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<Self> {
        let header = traceparent.filter(|header| is_traceparent(header))?;
        let trace = TraceId::from_hex(header.get(3..35)?).ok()?;
        let span = SpanId::from_hex(header.get(36..52)?).ok()?;
        let flags = TraceFlags::new(u8::from_str_radix(header.get(53..55)?, 16).ok()?);
        let state = tracestate.filter(|state| is_tracestate(state)).and_then(|state| state.parse().ok());
        let flags = flags & TraceFlags::SAMPLED;
        let context = SpanContext::new(trace, span, flags, true, state.unwrap_or_default());
        context.is_valid().then_some(Self(context))
    }

    /// Parses the header, or starts a new trace.
    pub fn continue_or_start(traceparent: Option<&str>) -> Self {
        Self::extract(traceparent, None).unwrap_or_else(Self::start)
    }

    /// Starts a new trace. It is flagged as sampled, so that services downstream record it.
    pub fn start() -> Self {
        let trace = u128::from(random()) << 64 | u128::from(random());
        Self::sampled(trace, random())
    }

    /// A fixed context for the documentation.
    pub(crate) fn example() -> Self {
        Self::sampled(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7)
    }

    /// The same context, flagged as not sampled.
    #[must_use]
    pub fn unsampled(self) -> Self {
        let (trace, span, state) = (self.0.trace_id(), self.0.span_id(), self.0.trace_state().clone());
        Self(SpanContext::new(trace, span, TraceFlags::NOT_SAMPLED, self.0.is_remote(), state))
    }

    fn sampled(trace: u128, span: u64) -> Self {
        let (trace, span) = (TraceId::from(trace), SpanId::from(span));
        Self(SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE))
    }

    /// The id of the trace: 32 hex digits.
    pub fn trace_id(&self) -> TraceId {
        self.0.trace_id()
    }

    /// The id of the span: 16 hex digits.
    pub fn span_id(&self) -> SpanId {
        self.0.span_id()
    }

    /// The value of the `tracestate` header, if there is one.
    pub fn state(&self) -> Option<String> {
        Some(self.0.trace_state().header()).filter(|state| !state.is_empty())
    }

    /// The context as a type of OpenTelemetry.
    pub fn context(&self) -> &SpanContext {
        &self.0
    }
}

impl From<SpanContext> for TraceParent {
    fn from(context: SpanContext) -> Self {
        Self(context)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.0.trace_id(), self.0.span_id(), self.0.trace_flags())
    }
}

/// Random bits for jitter, and for ids that must be unique but may be guessable. Needs no system call: each
/// `RandomState` has a different key, derived from the random keys of its thread.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// Whether the header has the format of version 00; later versions may have more fields (W3C Trace Context, section
/// 3.2). Needed because the parser of the SDK accepts ids of any length.
fn is_traceparent(header: &str) -> bool {
    let bytes = header.as_bytes();
    let is_complete = bytes.len() == 55 || (!header.starts_with("00") && bytes.get(55) == Some(&b'-'));
    let fits = |(place, byte): (usize, &u8)| match place {
        2 | 35 | 52 => *byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    is_complete && !header.starts_with("ff") && bytes.iter().take(55).enumerate().all(fits)
}

/// Whether the header is valid and short enough to pass on.
fn is_tracestate(header: &str) -> bool {
    header.len() <= MAX_STATE_BYTES && header.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const HEADER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    #[test]
    fn a_valid_trace_is_passed_on_unchanged() {
        let trace = TraceParent::extract(Some(HEADER), Some("one=1,two=2")).unwrap();
        assert_eq!(trace.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(trace.to_string(), HEADER);
        assert_eq!(trace.state().as_deref(), Some("one=1,two=2"));
        assert_eq!(TraceParent::continue_or_start(Some(HEADER)).state(), None);
    }

    #[test]
    fn a_trace_state_that_is_too_long_or_malformed_is_dropped() {
        for state in [format!("one={}", "x".repeat(MAX_STATE_BYTES)), "one".to_owned(), "one=\n".to_owned()] {
            let trace = TraceParent::extract(Some(HEADER), Some(&state)).unwrap();
            assert_eq!((trace.to_string().as_str(), trace.state()), (HEADER, None));
        }
    }

    #[test]
    fn new_traces_differ() {
        let traces: HashSet<TraceId> = (0..1000).map(|_| TraceParent::start().trace_id()).collect();
        assert_eq!(traces.len(), 1000);
    }

    #[test]
    fn an_invalid_trace_is_replaced_by_a_new_one() {
        let bad = [
            "",
            "00",
            "00-0-0-00",
            "00-1-1-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "x\u{7f}",
        ];
        for bad in bad {
            assert_eq!(TraceParent::extract(Some(bad), None), None);
            let ours = TraceParent::continue_or_start(Some(bad)).to_string();
            assert!(TraceParent::extract(Some(&ours), None).is_some(), "{bad} gave {ours}");
            assert!(ours.ends_with("-01"), "{bad} gave {ours}");
        }
    }
}
