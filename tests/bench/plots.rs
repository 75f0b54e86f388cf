//! SVG plots of the measurements.

use std::fs;
use std::path::Path;

use plotters::prelude::*;

use crate::Result;
use crate::load::as_f64;
use crate::report::{Level, Line, Report, count};

const SIZE: (u32, u32) = (720, 420);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(90, 90, 90),
];

struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Draws the plots that have enough measurements.
pub(crate) fn draw(report: &Report, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    throughput(report, &folder.join("throughput.svg"))?;
    latency(report, &folder.join("latency-by-rate.svg"))?;
    size(report, &folder.join("cost-by-table-size.svg"))?;
    memory(report, &folder.join("memory.svg"))
}

fn throughput(report: &Report, file: &Path) -> Result<()> {
    let closed = |level: &&Level| level.intended_rate.is_none() && level.orders.is_none();
    let series: Vec<Series> = report
        .lines
        .iter()
        .map(|line| Series {
            name: line.name.clone(),
            points: line
                .levels
                .iter()
                .filter(closed)
                .map(|level| (of(level.connections), level.rate))
                .collect(),
        })
        .filter(|series| series.points.len() > 1)
        .collect();
    chart(file, "Throughput by connections (closed loop)", ("connections", "requests/s"), &series)
}

fn latency(report: &Report, file: &Path) -> Result<()> {
    let Some(line) = report.lines.iter().find(|line| line.name == "place") else { return Ok(()) };
    let quantile = |name: &str, of: fn(&Level) -> f64| Series {
        name: name.to_owned(),
        points: line.levels.iter().filter_map(|level| Some((level.intended_rate?, of(level)))).collect(),
    };
    let series = [
        quantile("p50", |level| level.p50),
        quantile("p99", |level| level.p99),
        quantile("p99.9", |level| level.p999),
    ];
    chart(file, "Placing: latency by rate (open loop)", ("orders/s", "ms from the intended start"), &series)
}

fn size(report: &Report, file: &Path) -> Result<()> {
    let series: Vec<Series> = report
        .lines
        .iter()
        .filter_map(|line| Some((line.name.strip_prefix("size: ")?, line)))
        .map(|(name, line)| Series {
            name: name.to_owned(),
            points: line.levels.iter().filter_map(by_size).collect(),
        })
        .collect();
    chart(
        file,
        "CPU by table size (service and PostgreSQL)",
        ("orders in the table", "µs per request"),
        &series,
    )
}

fn by_size(level: &Level) -> Option<(f64, f64)> {
    let used = |part| level.cpu.get(part).copied().unwrap_or_default();
    Some((as_f64(level.orders?), used("service") + used("postgres")))
}

fn of(number: usize) -> f64 {
    as_f64(number as u64)
}

/// Lines over a logarithmic x axis; no plot without points to connect.
fn chart(file: &Path, title: &str, (x, y): (&str, &str), series: &[Series]) -> Result<()> {
    let points = || series.iter().flat_map(|series| &series.points);
    let (least, most) =
        points().fold((f64::MAX, 0.0_f64), |(least, most), (x, _)| (least.min(*x), most.max(*x)));
    if least >= most {
        return Ok(());
    }
    let top = points().map(|(_, y)| *y).fold(0.0, f64::max) * 1.1;
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((least..most).log_scale(), 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| short(*y))
        .light_line_style(WHITE)
        .draw()?;
    for (series, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(
                LineSeries::new(series.points.iter().copied(), colour.stroke_width(2)).point_size(3),
            )?
            .label(&series.name)
            .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(area.present()?)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a label")]
fn short(number: f64) -> String {
    if number < 10.0 { format!("{number:.1}") } else { count(number as u64) }
}

/// A bar for each line with a memory figure.
fn memory(report: &Report, file: &Path) -> Result<()> {
    let known: Vec<(&Line, f64)> =
        report.lines.iter().filter_map(|line| line.memory.map(|memory| (line, memory))).collect();
    if known.is_empty() {
        return Ok(());
    }
    let top = known.iter().map(|(_, memory)| *memory).fold(0.0, f64::max) * 1.1;
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let bars = i32::try_from(known.len())?;
    let name = |bar: &SegmentValue<i32>| match bar {
        SegmentValue::CenterOf(bar) => usize::try_from(*bar)
            .ok()
            .and_then(|bar| known.get(bar))
            .map_or(String::new(), |(line, _)| line.name.clone()),
        _ => String::new(),
    };
    let mut chart = ChartBuilder::on(&area)
        .caption("Maximum memory of the service (VmHWM)", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((0..bars - 1).into_segmented(), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_desc("MB")
        .x_labels(known.len())
        .x_label_formatter(&name)
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(known.iter().zip(0..).map(|((_, memory), bar)| {
        let corners = [(SegmentValue::Exact(bar), 0.0), (SegmentValue::Exact(bar + 1), *memory)];
        let mut bar = Rectangle::new(corners, COLOURS[0].filled());
        bar.set_margin(0, 0, 12, 12);
        bar
    }))?;
    Ok(area.present()?)
}
