//! The W3C trace context of a call, carried from the request to the Product Service and into the events.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;

/// A `traceparent` header value (W3C Trace Context, section 3.2), version 00.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(String);

impl TraceParent {
    /// Continues the caller's trace where it sent a valid header, else starts a new one.
    ///
    /// The parent id is our own in both cases: what we send on was caused by our part of the work.
    pub fn continue_or_start(header: Option<&str>) -> Self {
        let parent_id = random();
        Self(match header.and_then(parse) {
            Some((trace_id, flags)) => format!("00-{trace_id}-{parent_id:016x}-{flags}"),
            None => format!("00-{:016x}{:016x}-{parent_id:016x}-01", random(), random()),
        })
    }

    /// Always the same, for the documentation.
    pub(crate) fn example() -> Self {
        Self("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned())
    }

    /// The header value.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 32 hex digits that all parts of one trace share.
    pub fn trace_id(&self) -> &str {
        &self.0[3..35]
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Random bits for ids that have to be unique and may be guessed. Without a system call, because every request needs some:
/// each `RandomState` has another key of the thread's random ones.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// The trace id and the flags of a version-00 header, or nothing if it is not one.
fn parse(header: &str) -> Option<(&str, &str)> {
    let mut parts = header.split('-');
    let (version, trace_id, parent_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let valid = version == "00"
        && parts.next().is_none()
        && hex(trace_id, 32)
        && !zero(trace_id)
        && hex(parent_id, 16)
        && !zero(parent_id)
        && hex(flags, 2);
    valid.then_some((trace_id, flags))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_valid_trace_is_continued_under_our_own_parent_id() {
        let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        let ours = TraceParent::continue_or_start(Some(header));
        assert_eq!(ours.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert!(parse(ours.as_str()).is_some_and(|(_, flags)| flags == "00"));
        assert_ne!(ours.as_str(), header);
    }

    #[test]
    fn new_traces_differ() {
        let traces: HashSet<String> =
            (0..1000).map(|_| TraceParent::continue_or_start(None).trace_id().to_owned()).collect();
        assert_eq!(traces.len(), 1000);
    }

    #[test]
    fn an_invalid_trace_is_replaced_by_a_new_one() {
        for bad in
            ["", "00", "00-0-0-00", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x\u{7f}"]
        {
            let ours = TraceParent::continue_or_start(Some(bad));
            assert!(parse(ours.as_str()).is_some(), "{bad} gave {ours}");
        }
    }
}
