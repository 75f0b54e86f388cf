//! The relay while a snapshot stays open (issue 8, point 3).
//!
//! While it is open, vacuum cannot remove deleted rows of the outbox. Events still pass through a real relay, and each
//! takes the same time from its commit to the consumer as before.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sqlx::AssertSqlSafe;

use super::report::Report;
use super::scale::{is_large, size};
use super::world::World;
use crate::support::{PATIENCE, Shop, Topic, eventually};

/// Events per commit during the load.
const CHUNK: u64 = 500;
/// The maximum number of committed and unreceived events during the load.
const WINDOW: u64 = 4_000;
const PROBES: u64 = 100;

/// The events that arrived in Kafka: their number, and the delay of each since its commit.
#[derive(Default)]
pub(super) struct Arrivals {
    count: AtomicU64,
    delays: Mutex<Vec<Duration>>,
    pub(super) stop: AtomicBool,
}

impl Arrivals {
    /// Reads the topic on its own thread, from the beginning.
    pub(super) fn watch(topic: &Topic) -> Arc<Self> {
        let arrivals = Arc::new(Self::default());
        let (topic, watched) = (topic.clone(), Arc::clone(&arrivals));
        std::thread::spawn(move || watched.read(&topic));
        arrivals
    }

    fn read(&self, topic: &Topic) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &topic.bootstrap_servers)
            .set("group.id", "size")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "10")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        // The service may not have created the topic yet.
        while list.count() == 0 && !self.stop.load(Relaxed) {
            let metadata = consumer.fetch_metadata(Some(&topic.name), PATIENCE).unwrap();
            for partition in metadata.topics()[0].partitions() {
                list.add_partition_offset(&topic.name, partition.id(), Offset::Beginning).unwrap();
            }
        }
        consumer.assign(&list).unwrap();
        while !self.stop.load(Relaxed) {
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(10)) {
                let delay = delay(message.payload().unwrap_or_default());
                self.delays.lock().unwrap().extend(delay);
                self.count.fetch_add(1, Relaxed);
            }
        }
    }

    fn take(&self) -> Vec<Duration> {
        let mut delays = std::mem::take(&mut *self.delays.lock().unwrap());
        delays.sort_unstable();
        delays
    }
}

/// The age of an event: its first member is the time of writing, in microseconds.
fn delay(payload: &[u8]) -> Option<Duration> {
    let text = str::from_utf8(payload).ok()?.strip_prefix(r#"{"at":"#)?;
    let at = text.split(',').next()?.parse().ok()?;
    let now = std::time::UNIX_EPOCH.elapsed().ok()?;
    Some(now.saturating_sub(Duration::from_micros(at)))
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

pub(super) async fn write(world: &World, events: u64) {
    let insert = format!(
        r#"insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
           select n % 64, gen_random_uuid(), gen_random_uuid(), 1, 'ORDER_PLACED',
                  '{{"at":' || (extract(epoch from clock_timestamp()) * 1000000)::bigint
                  || ',"filler":"' || repeat('x', 300) || '"}}', '[]'
           from (select n + (random() * 64)::integer as n from generate_series(1, {events}) n) made"#
    );
    sqlx::query(AssertSqlSafe(insert)).execute(&world.database).await.unwrap();
}

/// The delays of single events, one after the other.
pub(super) async fn probe(world: &World, arrivals: &Arrivals) -> Vec<Duration> {
    arrivals.take();
    for _ in 0..PROBES {
        let before = arrivals.count.load(Relaxed);
        write(world, 1).await;
        arrived(arrivals, before + 1).await;
    }
    arrivals.take()
}

async fn arrived(arrivals: &Arrivals, count: u64) {
    let (started, mut seen) = (Instant::now(), 0);
    let mut last = Instant::now();
    while arrivals.count.load(Relaxed) < count {
        let now = arrivals.count.load(Relaxed);
        if now > seen {
            (seen, last) = (now, Instant::now());
        }
        assert!(last.elapsed() < PATIENCE, "{seen} of {count} arrived after {:?}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Sends `events` events through the relay and reports each tenth.
async fn pass(world: &World, arrivals: &Arrivals, events: u64, report: &mut Report) {
    for tenth in 1..=10 {
        let (begin, before) = (Instant::now(), arrivals.count.load(Relaxed));
        arrivals.take();
        for written in (0..events / 10).step_by(usize::try_from(CHUNK).unwrap()) {
            write(world, CHUNK.min(events / 10 - written)).await;
            arrived(arrivals, (before + written).saturating_sub(WINDOW)).await;
        }
        arrived(arrivals, before + events / 10).await;
        let delays = arrivals.take();
        let rate = u128::from(events / 10) * 1_000 / begin.elapsed().as_millis().max(1);
        Report::note(&format!("tenth {tenth} of {events} events, events/s"), rate);
        let what = format!("tenth {tenth}, commit to Kafka, p99 of {WINDOW} at once");
        report.within(&what, quantile(&delays, 0.99), bound());
    }
}

/// In a small world, other tests run at the same time.
fn bound() -> Duration {
    Duration::from_secs(if is_large() { 1 } else { 10 })
}

pub(super) fn report_probes(report: &mut Report, when: &str, delays: &[Duration]) {
    Report::note(&format!("{when}: commit to Kafka, p50"), format!("{:.1?}", quantile(delays, 0.5)));
    report.within(&format!("{when}: commit to Kafka, p99"), quantile(delays, 0.99), bound());
}

/// The relay's read with nothing pending. Counts buffers, because each visit to a deleted row is one.
pub(super) async fn report_read(world: &World, report: &mut Report, when: &str) {
    let floors = "select min(floor) from relay_leases";
    let last = world.number("select coalesce(pg_sequence_last_value('outbox_position_seq'), 0)").await;
    eventually("the floors have passed everything", async || world.number(floors).await > last).await;
    let mut session = world.database.begin().await.unwrap();
    let plans =
        "set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off";
    sqlx::raw_sql(plans).execute(&mut *session).await.unwrap();
    let read = "explain (analyze, buffers, format json)
        select event.* from (select bucket, floor from relay_leases) as held
        cross join lateral (
            select * from outbox where outbox.bucket = held.bucket and outbox.position >= held.floor
              and not exists (select from parked_orders where parked_orders.order_id = outbox.order_id)
            order by position limit 15
        ) event";
    let told: sqlx::types::Json<serde_json::Value> =
        sqlx::query_scalar(read).fetch_one(&mut *session).await.unwrap();
    let cost = super::cost::Cost::read(&told.0);
    Report::note(&format!("{when}: one read of 64 buckets, ms"), format!("{:.1}", cost.millis));
    report.at_most(&format!("{when}: one read of 64 buckets, pages"), cost.buffers, 2_000);
}

/// The index entries that the relay reads per event if the statistics show an empty outbox.
async fn report_entries(world: &World, arrivals: &Arrivals, report: &mut Report) {
    let read = async || {
        sqlx::raw_sql("select pg_stat_force_next_flush()").execute(&world.database).await.unwrap();
        world.number("select idx_tup_read from pg_stat_user_indexes where indexrelname = 'outbox_pkey'").await
    };
    world.run("analyze outbox").await;
    // The first statement after the change is planned again.
    probe(world, arrivals).await;
    let before = read().await;
    probe(world, arrivals).await;
    let deleted = i64::try_from(PROBES).unwrap();
    // Each session reports its statistics after a short idle time.
    eventually("the statistics include the relay's sessions", async || read().await - before >= deleted)
        .await;
    let entries = u64::try_from(read().await - before).unwrap() / PROBES;
    report.at_most("analyzed while empty: index entries read for an event", entries, 2_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_snapshot_does_not_slow_down_the_relay() {
    let events = size("SIZE_PASSING_EVENTS", 20_000, 5_000_000);
    let world = World::new(1).await;
    world.autovacuum(true).await;
    let builder = Shop::builder().database(&world.url).with("RELAY_POLL_INTERVAL_MS", "10");
    let builder = builder.with("KAFKA_DELIVERY_TIMEOUT_MS", "3000").with("RELAY_LEASE_MS", "9000");
    let mut shop = builder.start().await;
    let arrivals = Arrivals::watch(&shop.topic);
    let mut report = Report::new();
    report_probes(&mut report, "without a snapshot", &probe(&world, &arrivals).await);

    let mut snapshot = shop.database.begin().await.unwrap();
    let open = "set transaction isolation level repeatable read";
    sqlx::query(open).execute(&mut *snapshot).await.unwrap();
    sqlx::query("select from outbox").execute(&mut *snapshot).await.unwrap();

    pass(&world, &arrivals, events, &mut report).await;
    report_probes(&mut report, "during the snapshot", &probe(&world, &arrivals).await);
    report_read(&world, &mut report, "during the snapshot").await;
    report_entries(&world, &arrivals, &mut report).await;
    let dead = "select n_dead_tup from pg_stat_user_tables where relname = 'outbox'";
    Report::note("deleted rows that vacuum cannot remove", world.number(dead).await);

    shop.stop_service().await;
    shop.start_service().await;
    report_probes(&mut report, "after a restart during the snapshot", &probe(&world, &arrivals).await);

    snapshot.rollback().await.unwrap();
    arrivals.stop.store(true, Relaxed);
    shop.stop_service().await;
    shop.database.close().await;
    report.finish();
    world.end().await;
}
