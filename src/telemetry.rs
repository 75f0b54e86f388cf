//! What the service says of itself: logs, one line an event, on standard error ([`start`]), and traces ([`otlp`],
//! [`span`]). Settings are plain arguments; nothing here knows the rest of the service but [`TraceParent`].
//!
//! [`TraceParent`]: crate::domain::TraceParent

pub mod otlp;
pub mod span;

use std::error::Error;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// What logs look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Human,
}

/// The settings of the log, needed before all others.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The form.
    pub format: LogFormat,
    /// What is logged: a level, or directives of `tracing-subscriber`.
    pub filter: String,
}

/// An error and all its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Lets one line in a while through, for what can go wrong thousands of times a second.
#[derive(Debug)]
pub struct Seldom {
    every: Duration,
    latest: Mutex<(Option<Instant>, u64)>,
}

impl Seldom {
    /// At most one line in so long.
    pub const fn new(every: Duration) -> Self {
        Self { every, latest: Mutex::new((None, 0)) }
    }

    /// Whether this line is let through: then how many were held back since the one before.
    pub fn held_back(&self) -> Option<u64> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.0.is_some_and(|at| at.elapsed() < self.every) {
            latest.1 += 1;
            return None;
        }
        Some(std::mem::replace(&mut *latest, (Some(Instant::now()), 0)).1)
    }
}

/// Starts logging for the whole process. Where logging was started already, that stays.
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
    fn what_happens_often_is_let_through_once_and_counted() {
        let seldom = Seldom::new(Duration::from_hours(1));
        assert_eq!([seldom.held_back(), seldom.held_back(), seldom.held_back()], [Some(0), None, None]);
        let always = Seldom { every: Duration::ZERO, ..seldom };
        assert_eq!([always.held_back(), always.held_back()], [Some(2), Some(0)]);
    }
}
