//! `check`: checks the invariants of a live database.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use order_service::config::Environment;
use order_service::domain::OrderId;
use order_service::store::check::{Broken, CheckCursor, CheckPart, CheckStep, invariants};
use order_service::store::{Store, StoreError};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::operate::store;
use super::output::{Output, progress_bar, text};
use super::{Failure, stop_signal};

/// The maximum number of rows in one step.
const PAGE: i64 = 500;
/// The maximum number of findings in the output; the count includes all.
const MAX_SHOWN: usize = 10_000;
/// The check gives up after this many consecutive failures of a step.
const ATTEMPTS: u32 = 10;

#[derive(Args)]
#[command(
    after_help = "The command only reads, one page of rows at a time, and may run beside a live service. After an \
                  interruption it is safe to start again. Exit code 0: all invariants hold. 1: the list names the broken \
                  ones.\n\n\
                  Examples:\n  order-service check\n  order-service check --json > check.json\n  \
                  order-service check --list"
)]
pub(super) struct CheckArgs {
    /// Check only the orders after this one, as an interrupted check printed it
    #[arg(long, value_name = "ORDER", value_parser = OrderId::parse)]
    after: Option<OrderId>,
    /// List the invariants without checking them
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    output: Output,
}

/// The findings of a check.
#[derive(Default)]
struct Findings {
    rows: BTreeMap<&'static str, usize>,
    broken: Vec<Broken>,
    /// The number of all findings, including those that are not in `broken`.
    count: usize,
}

pub(super) async fn check(args: &CheckArgs, env: &Environment) -> Result<(), Failure> {
    if args.list {
        return list(args.output);
    }
    let (store, stop) = (store(env).await?, stop_signal()?);
    let start = args.after.map_or_else(CheckCursor::start, |order| CheckCursor::after(order.0));
    let rows = store.estimate_check().await?.unsigned_abs();
    let bar = progress_bar(rows, "{msg:16} {wide_bar} {human_pos} of about {human_len} rows, {eta}");
    let mut findings = Findings::default();
    let interrupted_at = walk(&store, start, &mut findings, &bar, &stop).await;
    bar.finish_and_clear();
    let interrupted_at = interrupted_at?;
    findings.show(args.output, interrupted_at.is_none())?;
    match interrupted_at {
        Some(at) => Err(match at.order() {
            Some(order) => format!("interrupted; `order-service check --after {order}` continues").into(),
            None => "interrupted; start again".into(),
        }),
        None if findings.count > 0 => Err(format!("{} broken invariants", findings.count).into()),
        None => Ok(()),
    }
}

/// Runs all steps. Returns the position of an interruption.
async fn walk(
    store: &Store,
    start: CheckCursor,
    findings: &mut Findings,
    bar: &ProgressBar,
    interrupted: &CancellationToken,
) -> Result<Option<CheckCursor>, Failure> {
    let (mut next, mut limit) = (Some(start), PAGE);
    while let Some(at) = next {
        let mut step = tokio::select! {
            step = try_step(store, &at, &mut limit) => step?,
            () = interrupted.cancelled() => return Ok(Some(at)),
        };
        bar.inc(step.rows as u64);
        bar.set_message(name(step.part));
        next = step.next.take();
        findings.add(step);
    }
    Ok(None)
}

/// Retries a failed step after a pause, with half the rows: it may have been too slow.
async fn try_step(store: &Store, at: &CheckCursor, limit: &mut i64) -> Result<CheckStep, StoreError> {
    const PAUSE: Duration = Duration::from_secs(1);
    let mut attempts = 0;
    loop {
        attempts += 1;
        match store.check_step(at, *limit).await {
            Err(error) if error.is_transient() && attempts < ATTEMPTS => {
                *limit = (*limit / 2).max(1);
                sleep(PAUSE).await;
            }
            step => return step,
        }
    }
}

const fn name(part: CheckPart) -> &'static str {
    match part {
        CheckPart::Schema => "schema",
        CheckPart::Events => "pendingEvents",
        CheckPart::Keys => "idempotencyKeys",
        CheckPart::Recent => "recentOrders",
        CheckPart::Payments => "paymentEvents",
        CheckPart::Orders => "orders",
    }
}

impl Findings {
    fn add(&mut self, step: CheckStep) {
        *self.rows.entry(name(step.part)).or_default() += step.rows;
        self.count += step.broken.len();
        let room = MAX_SHOWN.saturating_sub(self.broken.len());
        self.broken.extend(step.broken.into_iter().take(room));
    }

    fn show(&self, output: Output, complete: bool) -> Result<(), Failure> {
        if output.is_json() {
            let result = json!({
                "complete": complete,
                "checked": self.rows,
                "brokenTotal": self.count,
                "broken": self.broken.iter().map(as_json).collect::<Vec<Value>>(),
            });
            return output.result(&result, "");
        }
        let checked: Vec<String> = self.rows.iter().map(|(part, rows)| format!("{part} {rows}")).collect();
        let none = format!("No invariant is broken. Checked: {}.", checked.join(", "));
        let rows: Vec<Value> = self.broken.iter().map(as_json).collect();
        output.rows(
            &rows,
            &[("INVARIANT", &text("invariant")), ("ORDER", &text("orderId")), ("FOUND", &text("detail"))],
            &none,
        )
    }
}

fn as_json(broken: &Broken) -> Value {
    json!({
        "invariant": broken.invariant, "says": broken.says, "orderId": broken.order, "detail": broken.detail,
    })
}

fn list(output: Output) -> Result<(), Failure> {
    let rows: Vec<Value> =
        invariants().into_iter().map(|(name, says)| json!({"invariant": name, "says": says})).collect();
    output.rows(&rows, &[("INVARIANT", &text("invariant")), ("WHAT HOLDS", &text("says"))], "")
}
