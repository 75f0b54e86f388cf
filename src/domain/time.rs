//! Timestamps: UTC, whole microseconds (the precision of PostgreSQL), RFC 3339 with `Z`.

use std::time::Duration;

use chrono::{DateTime, DurationRound, SecondsFormat, TimeDelta, Utc};

/// Now, truncated to the microsecond.
pub fn now() -> DateTime<Utc> {
    let now = Utc::now();
    now.duration_trunc(TimeDelta::microseconds(1)).unwrap_or(now)
}

/// Now, or `last` plus a microsecond if the clock has not moved past it (clock steps, clocks of other replicas).
///
/// Consumers of the platform dedupe by type, order and timestamp, so the times of an order must increase.
pub fn after(last: DateTime<Utc>) -> DateTime<Utc> {
    now().max(last + TimeDelta::microseconds(1))
}

/// `2026-01-21T12:30:00.123456Z`.
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// [`rfc3339`] for serde: `#[serde(serialize_with = "time::serialize")]`.
pub fn serialize<S: serde::Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

/// The backoff after this many failures in a row: `first`, doubled by each further failure, up to `longest`.
pub fn backoff(first: Duration, failures: u32, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_within_an_order_increase_even_if_the_clock_steps_back() {
        let ahead = now() + TimeDelta::hours(1);
        assert_eq!(after(ahead), ahead + TimeDelta::microseconds(1));
        let long_ago = now() - TimeDelta::hours(1);
        assert!(after(long_ago) > long_ago + TimeDelta::minutes(59));
    }

    #[test]
    fn a_time_is_written_with_microseconds_and_z() {
        let time = DateTime::from_timestamp_micros(1_769_000_000_120_000).unwrap();
        assert_eq!(rfc3339(time), "2026-01-21T12:53:20.120000Z");
    }
}
