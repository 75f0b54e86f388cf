//! The service as a separate process, for tests of signals, exit codes and kills.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use order_service::config::Environment;
use serde_json::Value;

use super::PATIENCE;

/// The binary of the service.
pub(super) const PROGRAM: &str = env!("CARGO_BIN_EXE_order-service");

/// A running `order-service serve`, or another command that logs. Dropping it kills it.
pub(crate) struct Replica {
    child: Child,
    pub(crate) url: String,
    log: mpsc::Receiver<Value>,
}

/// A command of the service with only this environment. `.ci/planted` sets a binary with a planted bug.
pub(crate) fn command(name: &str, environment: &Environment) -> Command {
    let program = std::env::var("ORDER_SERVICE_PROGRAM");
    let mut command = Command::new(program.as_deref().unwrap_or(PROGRAM));
    // An empty working directory, so that no .env is found.
    command.arg(name).env_clear().envs(environment.variables()).current_dir("/tmp");
    command
}

/// Sends the signal with this name.
pub(crate) fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

/// Waits for the end; returns the exit code, or `None` after a signal.
pub(crate) fn exit_code(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "the process never ended");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Replica {
    /// Starts `serve` and waits for its log entry `serving`.
    pub(crate) fn start(environment: &Environment) -> Self {
        let mut replica = Self::spawn(environment);
        let listening = replica.wait_for_log("listening");
        replica.url = format!("http://{}", listening["address"].as_str().expect("an address"));
        replica.wait_for_log("serving");
        replica
    }

    /// Starts `serve` without waiting.
    pub(crate) fn spawn(environment: &Environment) -> Self {
        Self::spawn_command("serve", environment)
    }

    /// Starts another command that logs, without waiting.
    pub(crate) fn spawn_command(name: &str, environment: &Environment) -> Self {
        let mut child = command(name, environment).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, log) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let entry = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if lines.send(entry).is_err() {
                    break;
                }
            }
        });
        Self { child, url: String::new(), log }
    }

    /// The next log entry with this message.
    pub(crate) fn wait_for_log(&self, message: &str) -> Value {
        let (deadline, mut seen) = (Instant::now() + PATIENCE, Vec::new());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let entry = self.log.recv_timeout(left);
            let entry = entry.unwrap_or_else(|_| panic!("never logged: {message}, but {seen:#?}"));
            if entry["message"].as_str().is_some_and(|text| text.starts_with(message)) {
                return entry;
            }
            seen.push(entry);
        }
    }

    /// The resident memory of the process in bytes (`VmRSS` of `proc(5)`).
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        kilobytes.trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// All log entries from here to the end of the process.
    pub(crate) fn rest_of_log(&mut self) -> Vec<Value> {
        self.exit_code();
        self.log.iter().collect()
    }

    /// Shows the unread log entries of the process, except those of level INFO, beside the failure of the test.
    #[expect(clippy::print_stderr, reason = "for the reader of a failed test")]
    fn show_warnings(&self) {
        for entry in self.log.try_iter().filter(|entry| entry["level"] != "INFO") {
            eprintln!("log of {}: {entry}", self.url);
        }
    }

    /// Sends the signal with this name.
    pub(crate) fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for the end; returns the exit code, or `None` after a signal.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        exit_code(&mut self.child)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_warnings();
        }
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
