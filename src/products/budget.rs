//! What all retries together may cost: one retry for ten look-ups, so that a struggling Product Service gets
//! a tenth more calls at worst, not a multiple.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Counts what the look-ups have earned for retries.
pub(super) struct RetryBudget(AtomicU32);

impl RetryBudget {
    /// How many look-ups pay for one retry.
    const PRICE: u32 = 10;
    /// The most that is saved up, which is also there at the start: enough for a short hiccup.
    const FULL: u32 = 100 * Self::PRICE;

    /// One look-up begins.
    pub(super) fn earn(&self) {
        // An error says that the budget is full, which is no error.
        let _ = self.0.fetch_update(Relaxed, Relaxed, |saved| (saved < Self::FULL).then_some(saved + 1));
    }

    /// Whether one retry can be paid for, which it then is.
    pub(super) fn spend(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |saved| saved.checked_sub(Self::PRICE)).is_ok()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicU32::new(Self::FULL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_look_ups_pay_for_one_retry() {
        let budget = RetryBudget::default();
        while budget.spend() {}
        for _ in 0..9 {
            budget.earn();
        }
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend());
        assert!(!budget.spend());
    }

    #[test]
    fn a_quiet_day_does_not_save_up_for_a_storm() {
        let budget = RetryBudget::default();
        for _ in 0..100_000 {
            budget.earn();
        }
        let mut retries = 0;
        while budget.spend() {
            retries += 1;
        }
        assert_eq!(retries, 100);
    }
}
