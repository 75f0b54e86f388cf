//! `events replay`: publishes events again, for a consumer that lost its data.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use order_service::config::{self, Environment};
use order_service::domain::{OrderId, time};
use order_service::events::{KafkaSettings, PublishError, Replay, ReplayProgress};
use order_service::store::replay::ReplayRange;
use order_service::store::{DatabaseSettings, Store};
use serde_json::json;

use super::operate::migrated;
use super::output::{self, Operated, Output, progress_bar};
use super::{BadArgument, Failure, stop_signal};

#[derive(Subcommand)]
pub(super) enum EventsCommand {
    /// Publish the events of some orders, or of a period, again to a topic of your choice
    #[command(
        after_help = "The events have the key, the value, the headers and the id (metadata.eventId, ce_id) of their \
                      first publication. For orders from a release before 2026-11-25, the id differs from the first \
                      one, but is the same in every replay. Consumers drop repeats by the id, or by metadata.sequence \
                      within the order. The events of an order keep their ordering; orders come by id, oldest first.\n\n\
                      After an interruption it is safe to start again, from the beginning or with --after. The topic \
                      must exist, with the same number of partitions if consumers rely on it.\n\n\
                      Examples:\n  \
                      order-service events replay --order 0198c1f2-7b5a-7cc0-8d3e-2f1a6b4c9d10 --topic order-events-replay --by ada\n  \
                      order-service events replay --from 2026-11-01T00:00:00Z --to 2026-11-02T00:00:00Z \
                      --topic order-events-replay --by ada --rate 200"
    )]
    Replay(ReplayArgs),
}

#[derive(Args)]
pub(super) struct ReplayArgs {
    /// An order whose events are sent; may be given more than once
    #[arg(long = "order", value_name = "ORDER", value_parser = OrderId::parse, required_unless_present = "from")]
    orders: Vec<OrderId>,
    /// The start of the period (RFC 3339), inclusive
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "to", conflicts_with = "orders")]
    from: Option<DateTime<Utc>>,
    /// The end of the period (RFC 3339), exclusive
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "from")]
    to: Option<DateTime<Utc>>,
    /// The topic to send to
    #[arg(long, value_parser = config::parse_topic)]
    topic: String,
    /// Allow the topic of the relay, which every consumer reads
    #[arg(long)]
    to_all_consumers: bool,
    /// The maximum number of events per second
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Start after this order, as an interrupted replay printed it
    #[arg(long, value_name = "ORDER", value_parser = OrderId::parse)]
    after: Option<OrderId>,
    /// Your name, for the record
    #[arg(long, value_parser = output::actor)]
    by: String,
}

fn moment(text: &str) -> Result<DateTime<Utc>, &'static str> {
    let moment = DateTime::parse_from_rfc3339(text);
    moment.map(|moment| moment.to_utc()).map_err(|_| "must be a time such as 2026-11-01T00:00:00Z")
}

pub(super) async fn events(args: &Operated<EventsCommand>, env: &Environment) -> Result<(), Failure> {
    let EventsCommand::Replay(replay) = &args.command;
    let settings = config::read_replay(env)?;
    replay.refuse_dangerous_topics(&settings.2)?;
    let range = replay.range()?;
    let (database, stock, kafka) = settings;
    let settings = DatabaseSettings { max_connections: 2, ..database };
    let store = migrated(Store::new(&settings, stock, &Arc::default())).await?;
    let kafka = KafkaSettings { topic: replay.topic.clone(), ..kafka };
    let stop = stop_signal()?;
    let expected = replay.expected(&store).await?;
    let bar = progress_bar(expected, "{wide_bar} {human_pos} of about {human_len} orders, {msg}, {eta}");
    let prepared = Replay::prepare(store.clone(), kafka, range, replay.rate).await;
    let mut sender = prepared.map_err(|error| match error {
        PublishError::NoTopic(topic) => {
            Failure::from(format!("--topic {topic} does not exist: create it first"))
        }
        error => error.into(),
    })?;
    let only = (replay.orders.len() == 1).then(|| replay.orders[0]);
    store.record_replay(only, &replay.detail(), &replay.by).await?;
    let mut progress = ReplayProgress { after: replay.after, ..ReplayProgress::default() };
    let outcome = loop {
        let sent = tokio::select! {
            sent = sender.send_page(&mut progress) => sent,
            () = stop.cancelled() => break Err("interrupted".into()),
        };
        bar.set_position(progress.looked_at as u64);
        bar.set_message(format!("{} events", progress.events));
        match sent {
            Ok(true) => break Ok(()),
            Ok(false) => {}
            Err(error) => break Err(Failure::from(error)),
        }
    };
    bar.finish_and_clear();
    replay.show(&progress, outcome, args.output)
}

impl ReplayArgs {
    /// A consumer that does not drop repeats would process old events again.
    fn refuse_dangerous_topics(&self, kafka: &KafkaSettings) -> Result<(), Failure> {
        if self.topic == kafka.payments.topic {
            return Err(BadArgument("--topic must not be PAYMENT_EVENTS_TOPIC").into());
        }
        if self.topic == kafka.topic && !self.to_all_consumers {
            let rule = "--topic is ORDER_EVENTS_TOPIC, which every consumer reads: add --to-all-consumers to confirm";
            return Err(BadArgument(rule).into());
        }
        Ok(())
    }

    fn range(&self) -> Result<ReplayRange, Failure> {
        match (self.from, self.to) {
            (Some(from), Some(to)) if from >= to => Err(BadArgument("--from must be before --to").into()),
            (Some(from), Some(to)) => Ok(ReplayRange::Changed { from, to }),
            _ => Ok(ReplayRange::Orders(self.orders.clone())),
        }
    }

    /// The number of orders in the list; 0 for a period.
    fn listed(&self) -> usize {
        let listed = self.orders.iter().filter(|order| self.after.is_none_or(|after| **order > after));
        listed.collect::<BTreeSet<_>>().len()
    }

    /// Estimates the number of orders to read.
    async fn expected(&self, store: &Store) -> Result<u64, Failure> {
        if self.from.is_some() {
            return Ok(store.estimate_orders().await?.unsigned_abs());
        }
        Ok(self.listed() as u64)
    }

    /// The detail of the record.
    fn detail(&self) -> String {
        let what = match (self.from, self.to) {
            (Some(from), Some(to)) => format!("{} to {}", time::rfc3339(from), time::rfc3339(to)),
            _ => self.orders.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        };
        let after = self.after.map(|after| format!(", after {after}")).unwrap_or_default();
        format!("to {}: {what}{after}", self.topic)
    }

    fn show(
        &self,
        progress: &ReplayProgress,
        outcome: Result<(), Failure>,
        output: Output,
    ) -> Result<(), Failure> {
        let ReplayProgress { orders, events, after, .. } = progress;
        let complete = outcome.is_ok();
        let result = json!({
            "topic": self.topic, "orders": orders, "events": events, "complete": complete,
            "after": after.filter(|_| !complete),
        });
        output.result(&result, &format!("{events} events of {orders} orders are in {}", self.topic))?;
        let missing = self.listed().saturating_sub(progress.looked_at);
        if complete && missing > 0 {
            return Err(format!("{missing} of these orders do not exist").into());
        }
        outcome.map_err(|error| match after {
            Some(after) => {
                let why = order_service::telemetry::error_chain(error.as_ref());
                format!("{why}; repeat the command with --after {after} to continue").into()
            }
            None => error,
        })
    }
}
