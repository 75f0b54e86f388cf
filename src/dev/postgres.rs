//! A real PostgreSQL server in a temporary folder or in the folder of `dev --data`. It ends with this process.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::binaries::Binaries;
use super::run_as::{self, RunAs};
use super::{DataFolder, DevError};

const SUPERVISOR: &str = include_str!("postgres.sh");

/// Settings for fast tests. The page cache keeps the writes of a killed process, so `fsync` and `full_page_writes` only
/// matter if the machine dies. `synchronous_commit` stays on, because without it a killed server loses acknowledged
/// commits.
const FOR_TESTS: [&str; 2] = ["fsync=off", "full_page_writes=off"];

const SETTINGS: [&str; 7] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "synchronous_commit=on",
    "max_connections=300",
    "shared_buffers=128MB",
    "jit=off",
    "timezone=UTC",
];

const READY_WITHIN: Duration = Duration::from_mins(1);
const CRASHED_WITHIN: Duration = Duration::from_secs(15);
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
const PORTS_TRIED: usize = 5;
const LOG_TAIL_LINES: usize = 20;

/// A running PostgreSQL server with an empty database, user `postgres`, no password, on 127.0.0.1.
///
/// It stops with [`stop`](Self::stop), on drop, and when this process dies in any way; then its temporary folder is
/// removed. It needs no async runtime to stay alive. PostgreSQL refuses root, so for root it runs as another user.
#[derive(Debug)]
pub struct Postgres {
    supervisor: Supervisor,
    port: u16,
    url: String,
    data_dir: PathBuf,
}

/// The durability of commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// PostgreSQL's defaults: commits also survive a power cut. The benchmark uses this.
    Default,
    /// Commits survive killed processes, but no power cut.
    ForTests,
}

impl Postgres {
    /// Starts a server for tests from the machine's own binaries, or from downloaded ones if it has none.
    pub async fn start() -> Result<Self, DevError> {
        Self::start_with(Durability::ForTests).await
    }

    /// Starts a server of the given durability.
    pub async fn start_with(durability: Durability) -> Result<Self, DevError> {
        Self::serve(Supervisor::spawn(&Binaries::find_or_fetch().await?, durability, None)?).await
    }

    /// Starts a server on the database of a data folder, with PostgreSQL's own durability. The database stays when the
    /// server stops.
    pub async fn start_in(data: &DataFolder) -> Result<Self, DevError> {
        let binaries = Binaries::find_or_fetch().await?;
        let version_of_data = fs::read_to_string(data.postgres().join("data/PG_VERSION"));
        if let Ok(made_by) = version_of_data
            && !binaries.is_version(made_by.trim())?
        {
            return Err(data.refuse(format!(
                "was created by PostgreSQL {}, and {} is another version: install that version, or name a new folder",
                made_by.trim(),
                binaries.postgres.display(),
            )));
        }
        Self::serve(Supervisor::spawn(&binaries, Durability::Default, Some(data))?).await
    }

    async fn serve(mut supervisor: Supervisor) -> Result<Self, DevError> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut tried = 0;
        loop {
            tried += 1;
            let port = free_port().map_err(DevError::io("find a free port"))?;
            match supervisor.serve(port, deadline).await? {
                Served::Ready => {
                    return Ok(Self {
                        url: url(port),
                        data_dir: supervisor.folder.join("data"),
                        port,
                        supervisor,
                    });
                }
                // Another process may have taken the port in the meantime.
                Served::Ended if tried < PORTS_TRIED && supervisor.initialised() => {}
                Served::Ended => return Err(supervisor.failure("did not start")),
            }
        }
    }

    /// The address of the server, as a `DATABASE_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The last lines of the server's log: why it refuses connections, or why it crashed.
    pub fn log_tail(&self) -> String {
        self.supervisor.log_tail()
    }

    /// The server's data folder.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Crashes the server with all its connections, and starts it again with the same port and data.
    pub async fn restart_immediately(&mut self) -> Result<(), DevError> {
        self.supervisor.crash().await?;
        let deadline = Instant::now() + READY_WITHIN;
        match self.supervisor.serve(self.port, deadline).await? {
            Served::Ready => Ok(()),
            Served::Ended => Err(self.supervisor.failure("did not start again")),
        }
    }

    /// Stops the server and removes its temporary folder, and returns when both are done.
    pub async fn stop(mut self) {
        if let Some(mut child) = self.supervisor.let_go() {
            // A failure cannot be handled here, and the supervisor has its own timeout.
            let _ = tokio::task::spawn_blocking(move || child.wait()).await;
        }
    }
}

/// Prepares PostgreSQL's folder in a data folder. Log, process id and exit files of an earlier server are removed.
fn kept_folder(data: &DataFolder, run_as: Option<&RunAs>) -> Result<PathBuf, DevError> {
    let folder = data.postgres();
    if run_as.is_some() && !run_as::can_be_reached(data.path()) {
        let why = "cannot be reached by the user that PostgreSQL runs as instead of root: name one below /tmp or /var";
        return Err(data.refuse(why.to_owned()));
    }
    fs::create_dir_all(&folder).map_err(DevError::io("make the folder of PostgreSQL"))?;
    let entries = fs::read_dir(&folder).map_err(DevError::io("read the folder of PostgreSQL"))?;
    for entry in entries.flatten().filter(|entry| entry.file_name() != "data") {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            fs::remove_file(entry.path()).map_err(DevError::io("tidy the folder of PostgreSQL"))?;
        }
    }
    Ok(folder)
}

enum Served {
    Ready,
    Ended,
}

/// The shell that supervises the server, and the pipe that keeps the shell alive.
#[derive(Debug)]
struct Supervisor {
    child: Option<Child>,
    lifeline: Option<ChildStdin>,
    folder: PathBuf,
    /// The number of starts of the server. It separates the exit file of this run from those of earlier runs.
    run: u32,
}

impl Supervisor {
    fn spawn(
        binaries: &Binaries,
        durability: Durability,
        data: Option<&DataFolder>,
    ) -> Result<Self, DevError> {
        let run_as = run_as::for_postgres()?;
        let (folder, temporary) = if let Some(data) = data {
            (kept_folder(data, run_as.as_ref())?, None)
        } else {
            let place = run_as::temp_dir(run_as.as_ref());
            let temporary = tempfile::Builder::new().prefix("order-service-postgres-").tempdir_in(place);
            let temporary = temporary.map_err(DevError::io("make a temporary folder"))?;
            (temporary.path().to_owned(), Some(temporary))
        };
        let lock =
            data.map(DataFolder::lock).transpose().map_err(DevError::io("hand over the lock of --data"))?;
        let for_tests = match durability {
            Durability::Default => [].as_slice(),
            Durability::ForTests => &FOR_TESTS,
        };
        let mut command = Command::new("sh");
        command
            .args(["-c", SUPERVISOR, "postgres"])
            .arg(if data.is_some() { "keep" } else { "remove" })
            .arg(&folder)
            .args([&binaries.initdb, &binaries.postgres])
            .args(["-D", "data"])
            .args(SETTINGS.iter().chain(for_tests).flat_map(|setting| ["-c", setting]))
            // The environment of this process, such as PGPORT, must not reach the server.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(lock.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::null())
            // Only this process handles Ctrl-C: PostgreSQL must outlive the shutdown of the service.
            .process_group(0);
        if let Some(RunAs { uid, gid }) = run_as {
            std::os::unix::fs::chown(&folder, Some(uid), Some(gid))
                .map_err(DevError::io("hand over the temporary folder"))?;
            command.gid(gid).uid(uid);
        }
        let mut child = command.spawn().map_err(DevError::io("run sh"))?;
        // From now on the supervisor removes it.
        let _ = temporary.map(tempfile::TempDir::keep);
        Ok(Self { lifeline: child.stdin.take(), child: Some(child), folder, run: 0 })
    }

    /// Starts the server and waits until it answers.
    async fn serve(&mut self, port: u16, deadline: Instant) -> Result<Served, DevError> {
        self.run += 1;
        self.tell(&format!("start {} {port}", self.run))?;
        while Instant::now() < deadline {
            if self.answers(port).await {
                return Ok(Served::Ready);
            }
            if self.exit_file().exists() {
                return Ok(Served::Ended);
            }
            sleep(POLL).await;
        }
        Err(self.failure("did not answer in time"))
    }

    /// Whether this server answers, not another one that has taken the port.
    async fn answers(&self, port: u16) -> bool {
        let attempt = async {
            let mut connection = PgConnection::connect(&url(port)).await?;
            let served: String = sqlx::query_scalar("SHOW data_directory").fetch_one(&mut connection).await?;
            connection.close().await?;
            Ok::<_, sqlx::Error>(served)
        };
        // Either path may contain symbolic links.
        let ours = |served: &str| {
            let folders = [Path::new(served), &self.folder.join("data")].map(Path::canonicalize);
            matches!(folders, [Ok(served), Ok(ours)] if served == ours)
        };
        matches!(timeout(ANSWERS_WITHIN, attempt).await, Ok(Ok(served)) if ours(&served))
    }

    async fn crash(&mut self) -> Result<(), DevError> {
        self.tell("crash")?;
        let deadline = Instant::now() + CRASHED_WITHIN;
        while !self.exit_file().exists() {
            if Instant::now() > deadline {
                return Err(self.failure("did not end"));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    fn tell(&mut self, command: &str) -> Result<(), DevError> {
        let lifeline = self.lifeline.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe));
        lifeline
            .and_then(|pipe| pipe.write_all(format!("{command}\n").as_bytes()))
            .map_err(DevError::io("command the PostgreSQL supervisor"))
    }

    fn exit_file(&self) -> PathBuf {
        self.folder.join(format!("exit.{}", self.run))
    }

    fn initialised(&self) -> bool {
        self.folder.join("data/PG_VERSION").exists()
    }

    fn failure(&self, what: &'static str) -> DevError {
        DevError::Postgres { what, log: self.log_tail() }
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    /// Closes the lifeline and returns the process, which then ends.
    fn let_go(&mut self) -> Option<Child> {
        self.lifeline = None;
        self.child.take()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(mut child) = self.let_go() {
            // A drop must not block, but an ended process must be waited for, or it stays in the process table.
            let _ = std::thread::Builder::new().spawn(move || child.wait());
        }
    }
}

fn url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_supervisor_reports_a_taken_port_and_leaves_no_folder() -> Result<(), DevError> {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(DevError::io("listen"))?;
        let port = taken.local_addr().map_err(DevError::io("listen"))?.port();
        let mut supervisor =
            Supervisor::spawn(&Binaries::find_or_fetch().await?, Durability::ForTests, None)?;
        let deadline = Instant::now() + READY_WITHIN;
        assert!(matches!(supervisor.serve(port, deadline).await?, Served::Ended));
        drop(taken);
        assert!(matches!(supervisor.serve(port, deadline).await?, Served::Ready));
        let folder = supervisor.folder.clone();
        drop(supervisor);
        while folder.exists() {
            assert!(Instant::now() < deadline, "{} is still there", folder.display());
            sleep(POLL).await;
        }
        Ok(())
    }
}
