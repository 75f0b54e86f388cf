//! The retry budget of all look-ups: one retry per ten look-ups, so that retries add at most a tenth to the load
//! of a struggling Product Service.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Every look-up earns one unit; a retry costs [`RetryBudget::PRICE`] units.
pub(super) struct RetryBudget(AtomicU32);

impl RetryBudget {
    /// How many look-ups pay for one retry.
    const PRICE: u32 = 10;
    /// The maximum, which is also the initial value. It is enough for a short disturbance.
    const FULL: u32 = 100 * Self::PRICE;

    /// Earns for one look-up.
    pub(super) fn earn(&self) {
        // `Err` means that the budget is already full.
        let _ = self.0.fetch_update(Relaxed, Relaxed, |units| (units < Self::FULL).then_some(units + 1));
    }

    /// Pays for one retry. Returns false if the budget does not suffice.
    pub(super) fn spend(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |units| units.checked_sub(Self::PRICE)).is_ok()
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
    fn ten_look_ups_earn_one_retry() {
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
    fn the_budget_has_a_maximum() {
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
