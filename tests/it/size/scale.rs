//! The size of a world.

/// The size from the variable `name`; without it `small`, or `large` if `SIZE_SCALE=large`.
pub(super) fn size(name: &str, small: u64, large: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name} must be a number")),
        _ if is_large() => large,
        _ => small,
    }
}

/// Whether the large worlds are requested. Only they have tight time bounds: a small world shares the machine with
/// other tests.
pub(super) fn is_large() -> bool {
    match std::env::var("SIZE_SCALE").as_deref() {
        Ok("large") => true,
        Ok("small" | "") | Err(_) => false,
        Ok(_) => panic!("SIZE_SCALE must be small or large"),
    }
}
