//! Logs, one line per event on standard error ([`start`]), and traces ([`otlp`], [`span`]). Settings are plain
//! arguments.

pub mod otlp;
pub mod span;

use std::error::Error;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for humans.
    Human,
}

/// The settings of the log. They are read before all others.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The format.
    pub format: LogFormat,
    /// A level, or directives of `tracing-subscriber`.
    pub filter: String,
}

/// An error and all its causes, in one line.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Limits how often a line is logged, for errors that can happen thousands of times a second.
#[derive(Debug)]
pub struct RateLimitedLog {
    every: Duration,
    latest: Mutex<(Option<Instant>, u64)>,
}

impl RateLimitedLog {
    /// At most one line per `every`.
    pub const fn new(every: Duration) -> Self {
        Self { every, latest: Mutex::new((None, 0)) }
    }

    /// Returns `None` if this line must be suppressed, else the number of lines that were suppressed since the last
    /// one.
    pub fn allow(&self) -> Option<u64> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.0.is_some_and(|at| at.elapsed() < self.every) {
            latest.1 += 1;
            return None;
        }
        Some(std::mem::replace(&mut *latest, (Some(Instant::now()), 0)).1)
    }
}

/// Starts logging for the process. Does nothing if logging was started before.
pub fn start(config: &LogConfig) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(&config.filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).try_init(),
        LogFormat::Human => {
            let is_terminal = std::io::stderr().is_terminal();
            builder.compact().with_target(false).with_ansi(is_terminal).try_init()
        }
    };
    drop(started);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frequent_line_is_logged_once_and_counted() {
        let limited = RateLimitedLog::new(Duration::from_hours(1));
        assert_eq!([limited.allow(), limited.allow(), limited.allow()], [Some(0), None, None]);
        let unlimited = RateLimitedLog { every: Duration::ZERO, ..limited };
        assert_eq!([unlimited.allow(), unlimited.allow()], [Some(2), Some(0)]);
    }
}
