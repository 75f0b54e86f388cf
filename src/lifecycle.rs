//! Where the process is between its start and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// A phase of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The schema is not known to be current yet; no order is served.
    Starting,
    /// Orders are served.
    Serving,
    /// A stop was asked for: what runs is finished, and nothing new should be sent here.
    Stopping,
}

/// The phase, shared by all parts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle(Arc<AtomicU8>);

impl Lifecycle {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Stopping,
        }
    }

    /// The start is complete. A stop that was asked for meanwhile stays asked for.
    pub fn serving(&self) {
        self.0.fetch_max(1, Ordering::AcqRel);
    }

    /// A stop was asked for.
    pub fn stopping(&self) {
        self.0.store(2, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_during_the_start_stays_a_stop() {
        let lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.phase(), Phase::Starting);
        lifecycle.stopping();
        lifecycle.serving();
        assert_eq!(lifecycle.phase(), Phase::Stopping);
    }
}
