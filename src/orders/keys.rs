//! The idempotency keys of the requests that run on this replica.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::CustomerId;

type Key = (String, String);

/// The keys in flight; bounded by the maximum number of concurrent placements.
#[derive(Clone, Debug, Default)]
pub(super) struct KeysInFlight(Arc<Mutex<HashSet<Key>>>);

/// A key in flight; its drop frees the key.
#[derive(Debug)]
pub(super) struct KeyGuard {
    keys: KeysInFlight,
    key: Key,
}

impl KeysInFlight {
    /// Registers a key. `None` if a request with this key is running.
    pub(super) fn try_insert(&self, customer: &CustomerId, key: &str) -> Option<KeyGuard> {
        let key = (customer.as_str().to_owned(), key.to_owned());
        let is_new = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        is_new.then(|| KeyGuard { keys: self.clone(), key })
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        self.keys.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
