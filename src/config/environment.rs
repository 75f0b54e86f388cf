//! Reads environment variables, and collects the names that were read and the errors.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// The secret settings, each with the variable that names a file to read it from.
const SECRETS: [(&str, &str); 8] = [
    ("DATABASE_URL", "DATABASE_URL_FILE"),
    ("GATEWAY_SECRET", "GATEWAY_SECRET_FILE"),
    ("GATEWAY_SECRET_PREVIOUS", "GATEWAY_SECRET_PREVIOUS_FILE"),
    ("KAFKA_SASL_USERNAME", "KAFKA_SASL_USERNAME_FILE"),
    ("KAFKA_SASL_PASSWORD", "KAFKA_SASL_PASSWORD_FILE"),
    ("KAFKA_SSL_KEY_PASSWORD", "KAFKA_SSL_KEY_PASSWORD_FILE"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS_FILE"),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS_FILE"),
];

/// The maximum size of a secret's file, in bytes.
const LARGEST_SECRET: u64 = 64 * 1024;

/// The environment variables of a process. An empty variable counts as absent.
#[derive(Clone, Default)]
pub struct Environment {
    variables: HashMap<String, String>,
    asked: RefCell<BTreeSet<&'static str>>,
    wrong: RefCell<Vec<String>>,
    /// The defaults of the variables that were read.
    defaults: RefCell<BTreeMap<&'static str, String>>,
}

/// The errors in the settings, one line each.
#[derive(Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct InvalidConfig(pub Vec<String>);

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        Self::from(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        }))
    }

    /// An environment with these variables.
    pub fn from(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self::default().or(variables)
    }

    /// Sets or replaces a variable. A secret that is set is not read from its file.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        if let Some(file) = file_variable(name) {
            self.variables.remove(file);
        }
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// Adds variables that are absent. A secret is present by value or by file.
    #[must_use]
    pub fn or(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let is_new = |name: &str| {
            let forms = SECRETS.iter().find(|(value, file)| [*value, *file].contains(&name));
            !forms.is_some_and(|(value, file)| {
                [value, file].iter().any(|form| self.variables.contains_key(**form))
            })
        };
        let new = variables.into_iter().filter(|(name, value)| !value.trim().is_empty() && is_new(name));
        for (name, value) in new.collect::<Vec<_>>() {
            self.variables.entry(name).or_insert(value);
        }
        self
    }

    /// All variables, for another process.
    pub fn variables(&self) -> &HashMap<String, String> {
        &self.variables
    }

    /// The names that were read so far.
    pub fn asked(&self) -> BTreeSet<&'static str> {
        self.asked.borrow().clone()
    }

    /// The default of a variable that was read and has one.
    pub(super) fn default_of(&self, name: &str) -> Option<String> {
        self.defaults.borrow().get(name).cloned()
    }

    fn note_default(&self, name: &'static str, default: impl fmt::Display) {
        self.defaults.borrow_mut().insert(name, default.to_string());
    }

    /// An optional variable. A secret may come from the file that its `…_FILE` variable names.
    pub fn optional(&self, name: &'static str) -> Option<String> {
        self.asked.borrow_mut().insert(name);
        let value = self.variables.get(name).map(|value| value.trim().to_owned());
        let Some(file) = file_variable(name) else { return value };
        self.asked.borrow_mut().insert(file);
        let path = self.variables.get(file).map(|path| path.trim());
        match (value, path) {
            (value, None | Some("")) => value,
            (Some(value), Some(_)) if !value.is_empty() => {
                self.refuse(name, &format!("must not be set together with {file}: set one of them"));
                None
            }
            (_, Some(path)) => self.read_secret(file, path),
        }
    }

    fn read_secret(&self, variable: &'static str, path: &str) -> Option<String> {
        match read_secret_file(path) {
            Ok(secret) if secret.trim().is_empty() => {
                self.refuse(variable, "names an empty file");
                None
            }
            Ok(secret) => Some(secret),
            // The message does not repeat the path: it may be the secret itself, set under the wrong name.
            Err(error) => {
                self.refuse(variable, &format!("names a file that cannot be read: {error}"));
                None
            }
        }
    }

    /// Adds an error, once. The message does not repeat the value, which may be a secret.
    pub(super) fn refuse(&self, name: &str, rule: &str) {
        let line = format!("{name} {rule}");
        let mut wrong = self.wrong.borrow_mut();
        if !wrong.contains(&line) {
            wrong.push(line);
        }
    }

    /// Whether this variable, or the one for its file, has an error.
    pub(super) fn is_refused(&self, name: &str) -> bool {
        let wrong = self.wrong.borrow();
        let refused = wrong.iter().filter_map(|line| line.split(' ').next());
        refused.into_iter().any(|refused| refused == name || Some(refused) == file_variable(name))
    }

    /// One line for each variable that is probably a misspelt setting: its name is close to that of a setting, or has
    /// the same first word. Settings are the variables in `others` and those that were read. Ignores Kubernetes'
    /// service links.
    pub(super) fn unknown(&self, others: &[&'static str]) -> Vec<String> {
        let known: BTreeSet<&str> = self.asked.borrow().iter().chain(others).copied().collect();
        let mut lines: Vec<String> = Vec::new();
        for name in self.variables.keys().filter(|name| !known.contains(name.as_str())) {
            let nearest = known.iter().map(|known| (strsim::levenshtein(name, known), *known)).min();
            let Some((edits, nearest)) = nearest else { continue };
            let first_word = |name: &str| name.split_once('_').map(|(word, _)| word.to_owned());
            let is_ours =
                known.iter().any(|known| first_word(known) == first_word(name)) && !is_service_link(name);
            if is_ours || edits <= 2 {
                lines.push(format!("{name} is not a setting of this service; the nearest is {nearest}"));
            }
        }
        lines.sort_unstable();
        lines
    }

    /// Returns the settings, or all errors. `settings` is `None` only after an error.
    pub(super) fn finish<T>(&self, settings: Option<T>) -> Result<T, InvalidConfig> {
        let wrong = self.wrong.take();
        settings.filter(|_| wrong.is_empty()).ok_or(InvalidConfig(wrong))
    }

    pub(super) fn text(&self, name: &'static str, default: &str) -> String {
        self.note_default(name, default);
        self.optional(name).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn required<T>(
        &self,
        name: &'static str,
        rule: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let Some(text) = self.optional(name) else {
            if !self.is_refused(name) {
                self.refuse(name, &format!("is required: {rule}"));
            }
            return None;
        };
        let value = read(&text);
        if value.is_none() {
            self.refuse(name, &format!("must be {rule}"));
        }
        value
    }

    pub(super) fn number<T>(&self, name: &'static str, default: T, range: RangeInclusive<T>) -> T
    where
        T: Copy + FromStr + PartialOrd + fmt::Display,
    {
        self.note_default(name, default);
        let Some(text) = self.optional(name) else { return default };
        text.parse().ok().filter(|number| range.contains(number)).unwrap_or_else(|| {
            self.refuse(name, &format!("must be a whole number from {} to {}", range.start(), range.end()));
            default
        })
    }

    pub(super) fn millis(&self, name: &'static str, default: u64, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.number(name, default, range))
    }

    /// `off`, or a duration such as `90s`, `30m`, `24h` or `7d`. A plain number is in seconds; 0 is off.
    pub(super) fn span(&self, name: &'static str, most: Duration) -> Option<Duration> {
        let text = self.text(name, "off");
        let span = read_span(&text).filter(|span| *span <= most);
        if span.is_none() {
            let days = most.as_secs() / DAY;
            let rule = format!("must be off, or a time of at most {days}d, such as 90s, 30m, 24h or 7d");
            self.refuse(name, &rule);
        }
        span.filter(|span| !span.is_zero())
    }

    /// A duration that cannot be off.
    pub(super) fn time(&self, name: &'static str, default: Duration, most: Duration) -> Duration {
        self.note_default(name, show_span(default));
        let Some(text) = self.optional(name) else { return default };
        let time = read_span(&text).filter(|time| !time.is_zero() && *time <= most);
        time.unwrap_or_else(|| {
            let days = most.as_secs() / DAY;
            self.refuse(name, &format!("must be a time of at most {days}d, such as 90s, 30m, 24h or 7d"));
            default
        })
    }

    pub(super) fn flag(&self, name: &'static str, default: bool) -> bool {
        self.choice(name, default, &[("true", true), ("false", false)])
    }

    pub(super) fn choice<T: Copy + PartialEq>(
        &self,
        name: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> T {
        for (word, _) in choices.iter().filter(|(_, value)| *value == default) {
            self.note_default(name, word);
        }
        let Some(text) = self.optional(name) else { return default };
        let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        chosen.unwrap_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.refuse(name, &format!("must be one of {}", words.join(", ")));
            default
        })
    }
}

/// The variable that names the file of a secret.
fn file_variable(name: &str) -> Option<&'static str> {
    SECRETS.iter().find(|(secret, _)| *secret == name).map(|(_, file)| *file)
}

/// Whether the variable contains a secret, or the name of a file with a secret.
pub(super) fn is_of_a_secret(name: &str) -> bool {
    SECRETS.iter().any(|(secret, file)| [*secret, *file].contains(&name))
}

/// Reads a file without the newline at its end, which editors and `echo` add.
fn read_secret_file(path: &str) -> io::Result<String> {
    // A pipe or a device could block the start forever.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(LARGEST_SECRET + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_SECRET {
        return Err(io::Error::other("it is longer than 64 KiB"));
    }
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Whether the variable is a service link of Kubernetes: `KAFKA_SERVICE_HOST`, `KAFKA_PORT_9092_TCP_ADDR` …
fn is_service_link(name: &str) -> bool {
    let words: Vec<&str> = name.split('_').collect();
    let is_number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    match words.as_slice() {
        [.., "SERVICE", "HOST" | "PORT"] | [.., "PORT"] => true,
        [.., "PORT", port, "TCP" | "UDP" | "SCTP"]
        | [.., "PORT", port, "TCP" | "UDP" | "SCTP", "ADDR" | "PROTO"] => is_number(port),
        words => words.windows(2).any(|pair| pair == ["SERVICE", "PORT"]),
    }
}

const DAY: u64 = 24 * 60 * 60;

/// Formats a duration in the longest unit without a remainder.
fn show_span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (unit, name) = [(DAY, "d"), (60 * 60, "h"), (60, "m")]
        .into_iter()
        .find(|(unit, _)| seconds.is_multiple_of(*unit))
        .unwrap_or((1, "s"));
    format!("{}{name}", seconds / unit)
}

fn read_span(text: &str) -> Option<Duration> {
    if text == "off" {
        return Some(Duration::ZERO);
    }
    let (number, unit) =
        text.split_at(text.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => DAY,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
}
