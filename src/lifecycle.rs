//! The lifecycle of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// A phase of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The schema may not be current; no orders are served.
    Starting,
    /// Orders are served.
    Serving,
    /// Stopping: running requests finish, and no new ones should be sent.
    Stopping,
}

/// The phase, shared by all parts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle(Arc<AtomicU8>);

impl Lifecycle {
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Stopping,
        }
    }

    /// Marks the start as complete, unless a stop was requested before.
    pub fn serving(&self) {
        self.0.fetch_max(1, Ordering::AcqRel);
    }

    pub fn stopping(&self) {
        self.0.store(2, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_during_the_start_takes_effect() {
        let lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.phase(), Phase::Starting);
        lifecycle.stopping();
        lifecycle.serving();
        assert_eq!(lifecycle.phase(), Phase::Stopping);
    }
}
