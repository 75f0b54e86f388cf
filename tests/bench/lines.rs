//! The lines of the benchmark. Each has its own database, topics and service, so that a single line has the same
//! result as in a full run.

use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::events::Watcher;
use crate::load::{Load, Outcome, Pace, as_f64};
use crate::parts::{Parts, Service};
use crate::pgbench::{Measured, Pgbench, Script};
use crate::progress::Progress;
use crate::report::{Level, Line, Report, count};
use crate::work::Work;
use crate::{Result, backlog, cpu, payments};

/// The number of connections in the issue's own measurements.
const TYPICAL: usize = 64;
const STARTS: usize = 10;
/// Shares of the maximum throughput, for the open loops.
const SHARES: [f64; 4] = [0.25, 0.5, 0.75, 0.9];
/// Connections of an open loop, enough that no request waits for one.
const OPEN_CONNECTIONS: usize = 256;
/// The upper limit of confirmations per second on one machine.
const CONFIRMATIONS_A_SECOND: u64 = 6000;

pub(crate) struct Bench {
    pub(crate) parts: Parts,
    pub(crate) pgbench: Option<Pgbench>,
    pub(crate) report: Report,
    pub(crate) progress: Progress,
}

impl Bench {
    pub(crate) fn run(&mut self, line: &str) -> Result<()> {
        match line {
            "start" => self.start(),
            "alone" => self.alone(),
            "place" => self.place(),
            "key" => self.compared(
                line,
                Work::PlaceWithKey,
                Script::Order,
                "place with a key ÷ pgbench one order",
                "≥ 1.7",
            ),
            "hot" => self.hot(),
            "read" => {
                let orders = self.parts.settings.orders;
                let title = "read one ÷ pgbench same select";
                self.compared(line, Work::Read(orders), Script::Select(orders), title, "≥ 1.0")
            }
            "list" => {
                let orders = self.parts.settings.orders;
                let title = "list my ÷ pgbench's select of one order";
                self.compared(line, Work::ListMy(orders), Script::Select(orders), title, "≥ 1.0")
            }
            "confirm" => self.confirm(),
            "payments" => self.payments(),
            "events" => self.events(),
            "backlog" => self.backlog(),
            _ => self.size(),
        }
    }

    fn binary(&self) -> PathBuf {
        self.parts.settings.binary.clone()
    }

    /// A service on a new database with the usual orders.
    fn service(&mut self, orders: u64) -> Result<(Service, String)> {
        let binary = self.binary();
        let url = self.parts.database(&binary, orders)?;
        Ok((self.parts.serve(&binary, &url)?, url))
    }

    fn load(
        &mut self,
        service: &Service,
        work: Work,
        connections: usize,
        pace: Pace,
    ) -> Result<(Load, Outcome)> {
        let settings = &self.parts.settings;
        let load = Load {
            address: service.address,
            work,
            connections,
            pace,
            warm_up: settings.warm_up,
            duration: settings.duration,
            keep_ids: false,
        };
        let outcome = self.measure(service, &load)?;
        Ok((load, outcome))
    }

    fn measure(&mut self, service: &Service, load: &Load) -> Result<Outcome> {
        let pace = match load.pace {
            Pace::Closed => format!("{} connections", load.connections),
            Pace::Open(rate) => format!("{rate:.0}/s"),
        };
        self.progress.step(&format!("{:?}, {pace}", load.work));
        let watched = self.watched(service);
        let outcome = load.run(&watched, || self.progress.tick())?;
        self.progress.done(&format!(
            "{:.0}/s, p50 {:.2} ms, p99 {:.2} ms, {} failed",
            outcome.rate(),
            outcome.millis(0.5),
            outcome.millis(0.99),
            outcome.failures
        ));
        if let Some(failure) = &outcome.first_failure {
            self.report
                .note(format!("{:?}, {pace}: {} failed, first: {failure}", load.work, outcome.failures));
        }
        Ok(outcome)
    }

    fn watched(&self, service: &Service) -> cpu::Watched {
        self.parts.watched().with("service", service.pid())
    }

    /// pgbench on a separate database of the same size.
    fn beside(&mut self, script: Script) -> Result<Option<Measured>> {
        let Some(pgbench) = self.pgbench.clone() else { return Ok(None) };
        self.progress.step(&format!("pgbench {script:?}"));
        let (binary, orders) = (self.binary(), self.parts.settings.orders);
        let url = self.parts.database(&binary, orders)?;
        let measured = pgbench.run(&url, script, self.parts.settings.duration)?;
        self.parts.drop_database(&url)?;
        self.progress.done(&format!("{:.0}/s, {:.2} ms", measured.rate, measured.millis));
        Ok(Some(measured))
    }

    /// The p99 of pgbench at half of its maximum: the stalls of the machine, without the service.
    fn beside_at_half(&mut self, line: &Line) -> Result<Option<f64>> {
        let (Some(pgbench), Some(most)) = (self.pgbench.clone(), line.pgbench_mean()) else {
            return Ok(None);
        };
        self.progress.step("pgbench at half of its maximum");
        let url = self.parts.database(&self.binary(), self.parts.settings.orders)?;
        let p99 = pgbench.p99_at(&url, Script::Order, self.parts.settings.duration, most / 2.0)?;
        self.parts.drop_database(&url)?;
        self.progress.done(&format!("p99 {p99:.2} ms"));
        Ok(Some(p99))
    }

    /// A closed loop for every number of connections, between two runs of pgbench.
    fn compared(&mut self, name: &str, work: Work, script: Script, title: &str, goal: &str) -> Result<()> {
        let mut line = Line::new(name);
        line.beside(self.beside(script)?);
        let (service, url) = self.service(self.parts.settings.orders)?;
        self.closed_loops(&mut line, &service, work)?;
        self.end(&mut line, service, &url)?;
        line.beside(self.beside(script)?);
        self.compare(&line, script, title, goal);
        self.report.lines.push(line);
        Ok(())
    }

    fn closed_loops(&mut self, line: &mut Line, service: &Service, work: Work) -> Result<()> {
        for connections in self.parts.settings.connections.clone() {
            let (load, outcome) = self.load(service, work, connections, Pace::Closed)?;
            line.levels.push(Level::new(&load, &outcome));
        }
        Ok(())
    }

    fn end(&mut self, line: &mut Line, service: Service, url: &str) -> Result<()> {
        line.memory = service.stop()?;
        self.parts.drop_database(url)
    }

    fn compare(&mut self, line: &Line, script: Script, title: &str, goal: &str) {
        let (Some(level), Some(pgbench)) = (line.typical(), line.pgbench_mean()) else { return };
        let what = match script {
            Script::Order => "one order",
            Script::Select(_) => "one select",
        };
        let measured =
            format!("{:.0}/s at {} connections, p50 {:.1} ms", level.rate, level.connections, level.p50);
        let beside = format!("pgbench {what}: {pgbench:.0}/s");
        self.report.ratio(title, measured, beside, (level.rate / pgbench, ""), goal);
    }

    /// The time from the start of the process to ready, on a current schema.
    fn start(&mut self) -> Result<()> {
        let binary = self.binary();
        let url = self.parts.database(&binary, 0)?;
        let mut times = Vec::new();
        self.progress.step("starts");
        for _ in 0..STARTS {
            let service = self.parts.serve(&binary, &url)?;
            times.push(service.ready_after.as_secs_f64() * 1000.0);
            service.stop()?;
            self.progress.tick();
        }
        times.sort_by(f64::total_cmp);
        let median = f64::midpoint(times[(STARTS - 1) / 2], times[STARTS / 2]);
        self.progress.done(&format!("{median:.0} ms"));
        let measured = format!("{STARTS} starts, {:.0}–{:.0} ms", times[0], times[STARTS - 1]);
        self.report.ratio(
            "start to ready, schema current",
            measured,
            String::new(),
            (median, "ms"),
            "≤ 50 ms",
        );
        self.parts.drop_database(&url)
    }

    /// One connection, compared with the baseline binary, in the order baseline, this, this, baseline.
    fn alone(&mut self) -> Result<()> {
        let (binary, baseline) = (self.binary(), self.parts.settings.baseline.clone());
        let turns = match &baseline {
            Some(old) => vec![old, &binary, &binary, old],
            None => vec![&binary],
        };
        let mut p50 = [Vec::new(), Vec::new()];
        for turn in turns {
            let url = self.parts.database(turn, 0)?;
            let service = self.parts.serve(turn, &url)?;
            let (load, outcome) = self.load(&service, Work::Place, 1, Pace::Closed)?;
            let old = Some(turn) == baseline.as_ref();
            p50[usize::from(old)].push(outcome.millis(0.5));
            let mut line = Line::new(if old { "alone (baseline)" } else { "alone" });
            line.levels.push(Level::new(&load, &outcome));
            self.end(&mut line, service, &url)?;
            self.report.lines.push(line);
        }
        let mean = |times: &[f64]| times.iter().sum::<f64>() / as_f64(times.len().max(1) as u64);
        let [new, old] = p50.map(|times| mean(&times));
        let title = "place at one connection, p50";
        if baseline.is_some() {
            let (measured, beside) = (format!("{new:.2} ms"), format!("baseline: {old:.2} ms"));
            self.report.ratio(
                &format!("{title} ÷ the baseline binary"),
                measured,
                beside,
                (new / old, ""),
                "≤ 1.0",
            );
        } else {
            self.report.ratio(title, format!("{new:.2} ms"), String::new(), (new, "ms"), "");
        }
        Ok(())
    }

    /// Closed loops, then open loops at shares of the maximum.
    fn place(&mut self) -> Result<()> {
        let mut line = Line::new("place");
        line.beside(self.beside(Script::Order)?);
        let (service, url) = self.service(self.parts.settings.orders)?;
        self.closed_loops(&mut line, &service, Work::Place)?;
        let most = line.levels.iter().map(|level| level.rate).fold(0.0, f64::max);
        let given = self.parts.settings.rates.clone();
        let rates = if given.is_empty() { SHARES.map(|share| share * most).to_vec() } else { given };
        for rate in rates {
            let (load, outcome) = self.load(&service, Work::Place, OPEN_CONNECTIONS, Pace::Open(rate))?;
            line.levels.push(Level::new(&load, &outcome));
        }
        self.end(&mut line, service, &url)?;
        line.beside(self.beside(Script::Order)?);
        self.compare(&line, Script::Order, "place ÷ pgbench one order", "≥ 2.0");
        let beside = self.beside_at_half(&line)?;
        let half = |level: &&Level| level.intended_rate.is_some_and(|rate| (rate / most - 0.5).abs() < 0.01);
        if let Some(level) = line.levels.iter().find(half) {
            let measured = format!("{:.0}/s, p50 {:.1} ms", level.rate, level.p50);
            let title = "place at half of the maximum, open loop, p99";
            let beside = beside.map_or(String::new(), |p99| format!("pgbench at half of its: {p99:.1} ms"));
            self.report.ratio(title, measured, beside, (level.p99, "ms"), "≤ 20 ms");
        }
        if let Some(memory) = line.memory {
            let title = "memory at the highest load";
            self.report.ratio(title, "VmHWM of the service".into(), String::new(), (memory, "MB"), "≤ 40 MB");
        }
        self.report.lines.push(line);
        Ok(())
    }

    /// All orders have the same two products.
    fn hot(&mut self) -> Result<()> {
        let mut line = Line::new("hot");
        let (service, url) = self.service(self.parts.settings.orders)?;
        let (load, outcome) = self.load(&service, Work::PlaceHot, TYPICAL, Pace::Closed)?;
        line.levels.push(Level::new(&load, &outcome));
        self.end(&mut line, service, &url)?;
        self.report.lines.push(line);
        Ok(())
    }

    /// Each load has new orders, because an order is confirmed only once.
    fn confirm(&mut self) -> Result<()> {
        let settings = &self.parts.settings;
        let seconds = (settings.duration + settings.warm_up).as_secs().max(1);
        let each = seconds * CONFIRMATIONS_A_SECOND;
        let levels = settings.connections.clone();
        let mut line = Line::new("confirm");
        line.beside(self.beside(Script::Order)?);
        let (service, url) = self.service(each * levels.len() as u64)?;
        for (turn, connections) in levels.into_iter().enumerate() {
            let first = turn as u64 * each;
            let work = Work::Confirm(first, first + each);
            let (load, outcome) = self.load(&service, work, connections, Pace::Closed)?;
            line.levels.push(Level::new(&load, &outcome));
        }
        self.end(&mut line, service, &url)?;
        line.beside(self.beside(Script::Order)?);
        self.compare(
            &line,
            Script::Order,
            "confirm (two lines, stub on the same cores) ÷ pgbench one order",
            "≥ 0.6",
        );
        self.report.lines.push(line);
        Ok(())
    }

    fn payments(&mut self) -> Result<()> {
        let mut line = Line::new("payments");
        line.beside(self.beside(Script::Order)?);
        let payments = payments::how_many(&self.parts.settings);
        let (service, url) = self.service(payments)?;
        self.progress.step(&format!("{payments} payments"));
        let applied = payments::run(&self.parts, &service, &url, payments, &self.watched(&service))?;
        self.progress.done(&format!("{:.0}/s", applied.rate));
        self.end(&mut line, service, &url)?;
        line.beside(self.beside(Script::Order)?);
        if let Some(pgbench) = line.pgbench_mean() {
            let beside = format!("pgbench one order: {pgbench:.0}/s");
            let title = "payments ÷ pgbench one order";
            self.report.ratio(title, applied.text(), beside, (applied.rate / pgbench, ""), "≥ 0.6");
        }
        self.report.note(format!("payments, CPU µs each: {}", applied.cpu_text()));
        self.report.lines.push(line);
        Ok(())
    }

    /// The time from the answer of a placement until a consumer has its event, at full load.
    fn events(&mut self) -> Result<()> {
        let mut line = Line::new("events");
        let (service, url) = self.service(self.parts.settings.orders)?;
        let mut load = Load {
            address: service.address,
            work: Work::Place,
            connections: 1,
            pace: Pace::Closed,
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(300),
            keep_ids: false,
        };
        // The first events create the topic.
        load.run(&self.watched(&service), || ())?;
        let watcher = Watcher::start(self.parts.bootstrap_servers(), &service.order_topic)?;
        load = Load {
            connections: TYPICAL,
            warm_up: self.parts.settings.warm_up,
            duration: self.parts.settings.duration,
            keep_ids: true,
            ..load
        };
        let outcome = self.measure(&service, &load)?;
        let (latency, missing) = watcher.finish(&outcome.acknowledged)?;
        line.levels.push(Level::new(&load, &outcome));
        self.end(&mut line, service, &url)?;
        self.report_events(&latency, missing, &outcome);
        self.report.lines.push(line);
        Ok(())
    }

    fn report_events(&mut self, latency: &Histogram<u64>, missing: u64, outcome: &Outcome) {
        let millis = |quantile| as_f64(latency.value_at_quantile(quantile)) / 1000.0;
        let measured = format!(
            "{:.0} orders/s; p50 {:.0} ms, most {:.0} ms, {missing} events missing after 60 s",
            outcome.rate(),
            millis(0.5),
            millis(1.0)
        );
        let title = "commit to Kafka at full load, p99";
        let beside = self.parts.kafka_name().to_owned();
        self.report.ratio(title, measured, beside, (millis(0.99), "ms"), "≤ 250 ms");
    }

    /// The rate and the memory of the relay while it drains the backlog of a Kafka outage.
    fn backlog(&mut self) -> Result<()> {
        let mut line = Line::new("backlog");
        let (binary, events) = (self.binary(), self.parts.settings.backlog);
        let url = self.parts.database(&binary, 0)?;
        self.progress.step(&format!("a backlog of {} events", count(events)));
        self.parts.fill_outbox(&url, events)?;
        let service = self.parts.serve(&binary, &url)?;
        let watched = self.watched(&service);
        let drained = backlog::drain(&self.parts, &service, events, &watched, || self.progress.tick())?;
        self.progress.done(&format!("{:.0}/s", drained.rate));
        self.end(&mut line, service, &url)?;
        let beside = self.parts.kafka_name().to_owned();
        let title = format!("a backlog of {} events drains", count(events));
        self.report.ratio(&title, drained.text(events), beside.clone(), (drained.rate, "/s"), "≥ 50000 /s");
        if let Some(memory) = line.memory {
            let title = "memory while it drains";
            self.report.ratio(title, "VmHWM of the service".into(), beside, (memory, "MB"), "≤ 40 MB");
        }
        self.report.lines.push(line);
        Ok(())
    }

    /// The same work on tables of growing size.
    fn size(&mut self) -> Result<()> {
        const NAMES: [&str; 4] = ["place", "read", "list my", "list all"];
        let mut lines: Vec<Line> = NAMES.iter().map(|name| Line::new(&format!("size: {name}"))).collect();
        let (binary, sizes) = (self.binary(), self.parts.settings.sizes.clone());
        let url = self.parts.database(&binary, 0)?;
        let mut filled = 0;
        for orders in sizes {
            self.progress.step(&format!("filling up to {}", count(orders)));
            self.parts.fill(&url, filled, orders)?;
            filled = filled.max(orders);
            self.progress.done("filled");
            let service = self.parts.serve(&binary, &url)?;
            let work = [Work::Place, Work::Read(orders), Work::ListMy(orders), Work::ListAll];
            for (work, line) in work.into_iter().zip(&mut lines) {
                let (load, outcome) = self.load(&service, work, TYPICAL, Pace::Closed)?;
                line.levels.push(Level { orders: Some(orders), ..Level::new(&load, &outcome) });
            }
            service.stop()?;
        }
        for (line, name) in lines.iter().zip(NAMES) {
            let [first, .., last] = line.levels.as_slice() else { continue };
            let at = |level: &Level| count(level.orders.unwrap_or_default());
            let title = format!("{name} at {} orders ÷ at {}", at(last), at(first));
            let (measured, beside) = (format!("{:.0}/s", last.rate), format!("{:.0}/s", first.rate));
            self.report.ratio(&title, measured, beside, (last.rate / first.rate, ""), "≥ 0.85");
        }
        self.report.lines.extend(lines);
        self.parts.drop_database(&url)
    }
}
