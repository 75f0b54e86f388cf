//! Probe mode of the stock worker: while the Product Service is down, the worker sends it one job per interval, not
//! all.

use std::time::{Duration, Instant};

use tracing::{info, warn};

/// Counts jobs in a row without an answer. `after` of them turn probe mode on; an answer turns it off.
#[derive(Debug)]
pub(super) struct ProbeMode {
    after: usize,
    probe_every: Duration,
    unanswered: usize,
    next_probe: Option<Instant>,
}

impl ProbeMode {
    pub(super) const fn new(after: usize, probe_every: Duration) -> Self {
        Self { after, probe_every, unanswered: 0, next_probe: None }
    }

    pub(super) const fn is_on(&self) -> bool {
        self.unanswered >= self.after
    }

    /// How many jobs may be claimed now, at most `room`.
    pub(super) fn limit(&mut self, room: usize, now: Instant) -> usize {
        if !self.is_on() || room == 0 {
            return room;
        }
        if self.next_probe.is_some_and(|due| now < due) {
            return 0;
        }
        self.next_probe = Some(now + self.probe_every);
        1
    }

    /// Leaves probe mode after a failed claim, which says nothing about the Product Service.
    pub(super) const fn leave(&mut self) {
        self.unanswered = 0;
    }

    /// Records whether any call of a batch was answered. `None` is a batch without calls.
    pub(super) fn record(&mut self, answered: Option<bool>) {
        let before = self.is_on();
        match answered {
            Some(true) => self.unanswered = 0,
            Some(false) => self.unanswered = self.unanswered.saturating_add(1),
            None => {}
        }
        match (before, self.is_on()) {
            (false, true) => warn!("no stock call is answered: probing with one job at a time"),
            (true, false) => info!("stock calls are answered again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    #[test]
    fn probe_mode_allows_one_job_per_interval_until_an_answer() {
        let (mut probe, start) = (ProbeMode::new(3, EVERY), Instant::now());
        for _ in 0..3 {
            assert_eq!(probe.limit(8, start), 8);
            probe.record(Some(false));
        }
        assert_eq!([probe.limit(0, start), probe.limit(8, start), probe.limit(8, start)], [0, 1, 0]);
        probe.record(Some(false));
        probe.record(None);
        assert_eq!([probe.limit(8, start + EVERY / 2), probe.limit(8, start + EVERY)], [0, 1]);
        probe.record(Some(true));
        assert_eq!(probe.limit(8, start + EVERY), 8);
    }

    #[test]
    fn a_few_failing_products_do_not_start_probe_mode() {
        let mut probe = ProbeMode::new(3, EVERY);
        for answered in [false, false, true].repeat(10) {
            probe.record(Some(answered));
            assert!(!probe.is_on());
        }
    }
}
