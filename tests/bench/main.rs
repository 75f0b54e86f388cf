//! The benchmark of the order service: `cargo bench --bench orders`.
//!
//! It starts its own PostgreSQL with default durability, Kafka, a stub of the Product Service and the service as
//! a process, puts load on it, and runs pgbench's own transaction on the same tables before and after each load.
//! It prints tables of the results, and writes `target/bench/orders.json` and SVG plots. It asserts nothing.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `BENCH_ONLY` | all | lines to run: start, alone, place, key, hot, read, list, confirm, payments, events, backlog, size |
//! | `BENCH_SECONDS` | 5 | duration of each measured load |
//! | `BENCH_WARM_UP_SECONDS` | 1 | duration of the warm-up before it |
//! | `BENCH_CONNECTIONS` | 1,8,64,256 | connections of the closed loops |
//! | `BENCH_RATES` | shares of the maximum | rates of the open loops of `place`, requests per second |
//! | `BENCH_ORDERS` | 10000 | orders in the tables before a load |
//! | `BENCH_SIZES` | 10000,100000 | table sizes of the line `size`; up to 10000000 takes 10 GB of disk and half an hour |
//! | `BENCH_BACKLOG` | 1000000 | events of the line `backlog`; they take 1.5 GB of disk |
//! | `BENCH_BASELINE` | none | an older binary for the line `alone`, which alternates between the two |
//! | `BENCH_BINARY` | this build's | another binary to measure; it must have the same schema |
//! | `BENCH_PGBENCH_MODE` | prepared | `simple`, `extended` or `prepared` |
//! | `BENCH_LOG_FILTER` | warn | `LOG_FILTER` of the service |
//! | `BENCH_SERVICE_X` | none | the setting `X` of the service |
//! | `BENCH_PLOTS` | target/bench/plots | folder of the plots |
//! | `KAFKA_BOOTSTRAP_SERVERS` | embedded | a real Kafka: `.ci/kafka run cargo bench --bench orders` |
//!
//! A Java broker compiles its code while it works: for minutes on two cores. For the figures of a warm broker, run
//! the benchmark twice on one Kafka, with the JVM options of Kafka's own `bin/kafka-server-start.sh`:
//!
//! ```sh
//! export KAFKA_HEAP_OPTS="-Xmx1G -Xms1G"
//! export KAFKA_JVM_PERFORMANCE_OPTS="-server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35"
//! export BENCH_ONLY=backlog
//! .ci/kafka run sh -c 'BENCH_BACKLOG=2000000 cargo bench --bench orders; cargo bench --bench orders'
//! ```
//!
//! A single line: `BENCH_ONLY=place cargo bench --bench orders`. The logs of the services are in the same folder as the
//! JSON.
//!
//! * A closed loop measures throughput: each connection sends the next request when it has its answer. An open
//!   loop sends at a fixed rate and counts latency from the intended start, so that every request that a stall
//!   delays counts the delay (no coordinated omission).
//! * All parts share the cores of one machine. CPU is counted by part, from `/proc`: the service, PostgreSQL with
//!   all its processes, the stub, the broker, and this program, which is the load generator and the consumer.
//! * Orders have two lines from 1,000 equally likely products; each order has another customer.

#![allow(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program for a terminal, not part of the service"
)]

mod backlog;
mod cpu;
mod events;
mod http;
mod lines;
mod load;
mod parts;
mod payments;
mod pgbench;
mod plots;
mod progress;
mod report;
mod settings;
mod stub;
mod work;

use std::error::Error;
use std::fs;
use std::process::{Command, ExitCode};

use lines::Bench;
use parts::Parts;
use pgbench::Pgbench;
use progress::Progress;
use report::Report;
use settings::{LINES, Settings};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let done = match argument.as_str() {
        "stub" => stub::product_service(),
        "--bench" => bench(),
        _ => {
            println!("This is a benchmark: cargo bench --bench orders");
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orders: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let settings = Settings::read()?;
    // Remove the logs of the previous run.
    let _ = fs::remove_dir_all(&settings.folder);
    fs::create_dir_all(&settings.folder)?;
    let progress = Progress::new(progress::steps(&settings));
    let pgbench = Pgbench::find(settings.folder.clone(), settings.pgbench_mode.clone());
    let parts = Parts::start(settings.clone())?;
    let mut bench = Bench { report: about(&parts), parts, pgbench, progress };
    if bench.pgbench.is_none() {
        bench.report.note("pgbench is not installed: no ratios.");
    }
    for line in LINES.into_iter().filter(|line| settings.wants(line)) {
        if let Err(error) = bench.run(line) {
            bench.report.note(format!("{line} was not measured: {error}"));
        }
    }
    let Bench { parts, report, progress, .. } = bench;
    progress.finish();
    parts.stop();
    let json = settings.folder.join("orders.json");
    fs::write(&json, serde_json::to_vec_pretty(&report)?)?;
    plots::draw(&report, &settings.plots)?;
    println!("{}\n{} and {}", report.tables(), json.display(), settings.plots.display());
    Ok(())
}

fn about(parts: &Parts) -> Report {
    let (model, cores) = cpu::machine();
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let mut report = Report::default();
    report.machine.insert("machine", format!("{cores} cores ({model}), which run everything"));
    report.machine.insert("commit", said("git", &["describe", "--always", "--dirty", "--abbrev=8"]));
    report.machine.insert("time", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]));
    report.machine.insert("kafka", parts.kafka_name().to_owned());
    let settings = &parts.settings;
    report.machine.insert(
        "load",
        format!(
            "{} s each after {} s, pgbench with 64 clients ({})",
            settings.duration.as_secs(),
            settings.warm_up.as_secs(),
            settings.pgbench_mode
        ),
    );
    report
}
