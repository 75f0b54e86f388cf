//! `outbox` and `stock`: what operators do about work that waits for a person.

use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};
use order_service::config::{self, Environment};
use order_service::domain::OrderId;
use order_service::store::{DatabaseSettings, Store};

use super::Failure;

#[derive(Subcommand)]
pub(super) enum OutboxCommand {
    /// List the orders whose events Kafka refuses
    List,
    /// Let the relay try the events of a parked order again
    Replay(Deed),
    /// Give up the refused event of a parked order, so that its later events go on
    Skip(Deed),
}

#[derive(Args)]
pub(super) struct Deed {
    /// The order
    #[arg(value_parser = OrderId::parse)]
    order: OrderId,
    /// Who does it, for the record
    #[arg(long)]
    by: String,
}

#[derive(Subcommand)]
pub(super) enum StockCommand {
    /// List the lines that wait for a person, those of the 1,000 oldest jobs
    List,
    /// Say what was found out about such a line at the Product Service
    Resolve(Resolve),
}

#[derive(Args)]
pub(super) struct Resolve {
    /// The order
    #[arg(value_parser = OrderId::parse)]
    order: OrderId,
    /// The attempt, as listed
    attempt: i16,
    /// The line, as listed
    line: i16,
    /// Whether the Product Service moved the stock
    finding: Finding,
    /// Who found it out, for the record
    #[arg(long)]
    by: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Finding {
    Applied,
    NotApplied,
}

pub(super) async fn outbox(command: &OutboxCommand, env: &Environment) -> Result<(), Failure> {
    let store = store(env)?;
    let (found, deed) = match command {
        OutboxCommand::List => return list_outbox(&store).await,
        OutboxCommand::Replay(deed) => (store.replay_parked(deed.order, &deed.by).await?, deed),
        OutboxCommand::Skip(deed) => (store.skip_parked(deed.order, &deed.by).await?, deed),
    };
    if found {
        say(&format!("{}: done", deed.order))
    } else {
        Err(format!("{} is not parked", deed.order).into())
    }
}

async fn list_outbox(store: &Store) -> Result<(), Failure> {
    for parked in store.parked_orders().await? {
        say(&format!(
            "{} since {}: event {} (sequence {}), {} waiting: {}",
            parked.order_id, parked.parked_at, parked.event_id, parked.sequence, parked.waiting, parked.error
        ))?;
    }
    Ok(())
}

pub(super) async fn stock(command: &StockCommand, env: &Environment) -> Result<(), Failure> {
    let store = store(env)?;
    let Resolve { order, attempt, line, finding, by } = match command {
        StockCommand::List => return list_stock(&store).await,
        StockCommand::Resolve(resolve) => resolve,
    };
    let applied = matches!(finding, Finding::Applied);
    if store.resolve_stock((*order, *attempt, *line), applied, by).await? {
        say(&format!("{order} attempt {attempt} line {line}: done"))
    } else {
        Err(format!("{order} attempt {attempt} line {line} is not parked").into())
    }
}

async fn list_stock(store: &Store) -> Result<(), Failure> {
    /// As many jobs as a person looks at; the next ones are listed when these are resolved.
    const MOST: i64 = 1_000;
    for line in store.parked_stock(MOST).await? {
        say(&format!(
            "{} attempt {} line {}: {} of {}, {}: {}",
            line.order_id,
            line.attempt,
            line.line_number,
            line.quantity,
            line.product_id,
            line.state,
            line.parked
        ))?;
    }
    Ok(())
}

fn store(env: &Environment) -> Result<Store, Failure> {
    let (database, stock) = config::read_store(env)?;
    Ok(Store::new(&DatabaseSettings { max_connections: 2, ..database }, stock))
}

fn say(line: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
