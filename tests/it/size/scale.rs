//! How large a world is.

/// The size that variable `name` gives; without it `small`, or `large` where `SIZE_SCALE=large`.
pub(super) fn size(name: &str, small: u64, large: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name} must be a number")),
        _ if is_large() => large,
        _ => small,
    }
}

/// Whether the large worlds are asked for. Bounds of time are tight there only: a small world runs beside other tests.
pub(super) fn is_large() -> bool {
    match std::env::var("SIZE_SCALE").as_deref() {
        Ok("large") => true,
        Ok("small" | "") | Err(_) => false,
        Ok(_) => panic!("SIZE_SCALE must be small or large"),
    }
}
