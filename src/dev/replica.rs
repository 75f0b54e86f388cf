//! A second replica of the service, in a process of its own that can be killed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::DevError;

/// The subcommand of the binary that runs the replica. It prints its address once it serves, and stops when its
/// standard input ends, so that it does not outlive the process that started it.
pub const COMMAND: &str = "dev-replica";

const READY_WITHIN: Duration = Duration::from_mins(1);
/// More than the default of `SHUTDOWN_TIMEOUT_MS`.
const STOPPED_WITHIN: Duration = Duration::from_secs(25);

/// The replica, running or not.
#[derive(Debug)]
pub(super) struct Replica {
    program: PathBuf,
    variables: HashMap<String, String>,
    status: Mutex<Status>,
    child: tokio::sync::Mutex<Option<Child>>,
}

/// The state of the replica's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(super) enum Status {
    NotStarted,
    Starting,
    Running { address: String, pid: u32 },
    Killed,
    Failed,
}

impl Replica {
    /// A replica that is not started yet. `variables` is the whole environment of its process.
    pub(super) fn new(program: PathBuf, variables: HashMap<String, String>) -> Self {
        Self { program, variables, status: Mutex::new(Status::NotStarted), child: None.into() }
    }

    pub(super) fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The address it listens on, while it runs.
    pub(super) fn address(&self) -> Option<String> {
        match self.status() {
            Status::Running { address, .. } => Some(address),
            _ => None,
        }
    }

    /// Starts it and waits until it serves. Does nothing while it runs.
    pub(super) async fn start(&self) -> Result<(), DevError> {
        let mut child = self.child.lock().await;
        if let Some(running) = child.as_mut()
            && matches!(running.try_wait(), Ok(None))
        {
            return Ok(());
        }
        self.set(Status::Starting);
        let started = self.spawn().await;
        self.set(match &started {
            Ok((child, address)) => {
                Status::Running { address: address.clone(), pid: child.id().unwrap_or_default() }
            }
            Err(_) => Status::Failed,
        });
        *child = Some(started?.0);
        Ok(())
    }

    async fn spawn(&self) -> Result<(Child, String), DevError> {
        let failed = || DevError::io("run the second replica");
        let mut child = Command::new(&self.program)
            .arg(COMMAND)
            .env_clear()
            .envs(&self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Only `dev` handles Ctrl-C, and then stops this process.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed())?;
        let output = child.stdout.take().ok_or_else(|| failed()(std::io::ErrorKind::BrokenPipe.into()))?;
        let mut lines = BufReader::new(output).lines();
        let address = match timeout(READY_WITHIN, lines.next_line()).await {
            Ok(line) => line.map_err(failed())?,
            Err(_) => None,
        };
        address.map(|address| (child, address)).ok_or(DevError::ReplicaNotReady)
    }

    /// Kills it with SIGKILL.
    pub(super) async fn kill(&self) -> Result<(), DevError> {
        if let Some(mut child) = self.child.lock().await.take() {
            child.kill().await.map_err(DevError::io("kill the second replica"))?;
            self.set(Status::Killed);
        }
        Ok(())
    }

    /// Marks it as failed if its process has ended by itself.
    pub(super) fn check(&self) {
        let Ok(mut child) = self.child.try_lock() else { return };
        if let Some(running) = child.as_mut()
            && matches!(running.try_wait(), Ok(Some(_)))
        {
            *child = None;
            self.set(Status::Failed);
        }
    }

    /// Stops it gracefully and waits for its end.
    pub(super) async fn stop(&self) {
        let Some(mut child) = self.child.lock().await.take() else { return };
        drop(child.stdin.take());
        if timeout(STOPPED_WITHIN, child.wait()).await.is_err() {
            // It fails only if the process has ended meanwhile.
            let _ = child.kill().await;
        }
        self.set(Status::NotStarted);
    }

    fn set(&self, status: Status) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
