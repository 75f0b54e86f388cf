//! An embedded Kafka cluster in its own process.
//!
//! librdkafka aborts the process of its cluster if a restarted broker cannot get its port back at once. So the cluster
//! must not run in the process of the service or of the tests.

mod cluster;
mod journal;

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::types::RDKafkaRespErr;

use super::{DataFolder, DevError};

pub use cluster::run;
pub use journal::Journal;

/// As a broker's number: all brokers.
pub const ALL_BROKERS: i32 = -1;

/// The subcommand of the binary that runs the cluster.
pub const COMMAND: &str = "embedded-kafka";

/// The answer of the cluster to a command that it has carried out.
const DONE: &str = "done";
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// librdkafka's own cluster for tests. It speaks Kafka's protocol on 127.0.0.1 to any process, with consumer groups and
/// idempotent and transactional producers, and creates a topic (with four partitions) when a client first names it.
/// Brokers are numbered from 1. Its process ends when this is dropped, and when the process that started it dies.
///
/// Its limits:
/// * It does not recognise a repeated batch of an idempotent producer, because it checks sequence numbers only for
///   producers with a transactional id. So a lost acknowledgement leads to a second copy of the record, and an injected
///   error for one of several batches in flight loses this batch: the producer takes the acknowledgement of a later
///   batch for that of an earlier one.
/// * It shows records of uncommitted transactions, and loses offsets that were committed in a transaction.
/// * It writes nothing to disk: its records end with its process ([`restore`](Self::restore) publishes them again).
/// * It keeps only the newest 5 MiB (or 100,000 batches) of each partition, and drops older ones silently.
/// * It has no admin API: no client can create, change, list or delete topics, groups or settings
///   ([`create_topic`](Self::create_topic) is the only way).
/// * It does not find offsets by time, compact, authenticate, encrypt, or stamp records (every acknowledgement says
///   1234).
/// * It does not move leadership: the partitions of a broker that is down are unavailable until it is up again.
#[derive(Debug)]
pub struct Kafka {
    process: Mutex<Process>,
    bootstrap_servers: String,
}

impl Kafka {
    /// Starts a cluster of `brokers` brokers. `program` is the `order-service` binary, which contains the cluster.
    pub fn start(program: &Path, brokers: i32) -> Result<Self, DevError> {
        let mut process = Process::spawn(program, brokers)?;
        let bootstrap_servers = process.answer("start")?;
        Ok(Self { process: Mutex::new(process), bootstrap_servers })
    }

    /// The addresses of the brokers, in the form of `KAFKA_BOOTSTRAP_SERVERS`.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// The process id of the cluster.
    pub fn pid(&self) -> u32 {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).child.id()
    }

    /// Creates a topic with Kafka's default replication factor, at most three.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), DevError> {
        self.tell(&format!("create-topic {name} {partitions}"))
    }

    /// Publishes the records of earlier starts from the folder, and opens its journal for new ones. The topics must
    /// exist.
    pub async fn restore(&self, data: &DataFolder) -> Result<Journal, DevError> {
        Journal::restore(data, &self.bootstrap_servers).await
    }

    /// Cuts the broker's connections and refuses new ones until [`broker_up`](Self::broker_up).
    pub fn broker_down(&self, broker: i32) -> Result<(), DevError> {
        self.tell(&format!("broker-down {broker}"))
    }

    /// Lets the broker accept connections again.
    pub fn broker_up(&self, broker: i32) -> Result<(), DevError> {
        self.tell(&format!("broker-up {broker}"))
    }

    /// Answers the next produce requests with these errors, one each. `RD_KAFKA_RESP_ERR__TRANSPORT` cuts the
    /// connection instead.
    pub fn produce_errors(&self, errors: &[RDKafkaRespErr]) -> Result<(), DevError> {
        let codes: Vec<String> = errors.iter().map(|error| (*error as i32).to_string()).collect();
        self.tell(&format!("produce-errors {}", codes.join(" ")))
    }

    fn tell(&self, command: &str) -> Result<(), DevError> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(process.commands, "{command}").map_err(DevError::io("command the embedded Kafka"))?;
        match process.answer(command)? {
            answer if answer == DONE => Ok(()),
            answer => Err(DevError::KafkaRefuses { command: command.to_owned(), answer }),
        }
    }
}

/// The cluster's process. It reads commands from its standard input, and ends when its standard input ends.
#[derive(Debug)]
struct Process {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<String>,
}

impl Process {
    fn spawn(program: &Path, brokers: i32) -> Result<Self, DevError> {
        let failed = || DevError::io("run the embedded Kafka");
        let mut child = Command::new(program)
            .args([COMMAND, &brokers.to_string()])
            // It must not read a `.env` of the current folder.
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Only this process handles Ctrl-C: Kafka must outlive the shutdown of the service.
            .process_group(0)
            .spawn()
            .map_err(failed())?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (commands, output) = pipes.ok_or_else(|| failed()(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { child, commands, answers: lines(output) })
    }

    fn answer(&mut self, command: &str) -> Result<String, DevError> {
        self.answers.recv_timeout(ANSWERS_WITHIN).map_err(|_| DevError::KafkaRefuses {
            command: command.to_owned(),
            answer: match self.child.try_wait() {
                Ok(Some(status)) => format!("it ended: {status}"),
                _ => "it did not answer".to_owned(),
            },
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has nothing to clean up, and a failure cannot be handled here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that the process prints, read on a thread: a pipe has no deadline of its own.
fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    lines
}
