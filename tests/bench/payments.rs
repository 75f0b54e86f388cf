//! The rate at which the service applies payments from Kafka and confirms their orders.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};

use crate::load::as_f64;
use crate::parts::{Parts, Service};
use crate::settings::Settings;
use crate::{Result, cpu, work};

const PAYMENTS_A_SECOND: u64 = 3000;
const BROKER: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

pub(crate) struct Applied {
    /// Applied payments per second, from the first to the last that was observed.
    pub(crate) rate: f64,
    payments: u64,
    done: u64,
    confirmed: u64,
    seconds: f64,
    cpu: cpu::Usage,
}

impl Applied {
    pub(crate) fn text(&self) -> String {
        format!(
            "{:.0}/s; {} of {} applied and {} confirmed in {:.1} s",
            self.rate, self.done, self.payments, self.confirmed, self.seconds
        )
    }

    pub(crate) fn cpu_text(&self) -> String {
        let each = as_f64(self.done.max(1));
        let parts = self.cpu.0.iter().filter(|(part, _)| **part != "idle");
        let parts: Vec<String> =
            parts.map(|(part, seconds)| format!("{part} {:.0}", seconds * 1e6 / each)).collect();
        parts.join(", ")
    }
}

/// Enough payments for the set duration.
pub(crate) fn how_many(settings: &Settings) -> u64 {
    settings.duration.as_secs().max(1) * PAYMENTS_A_SECOND
}

/// Produces a payment for each order and watches the database until all are applied and confirmed, or four
/// times the set duration (at least 10 s) is over.
pub(crate) fn run(
    parts: &Parts,
    service: &Service,
    url: &str,
    payments: u64,
    watched: &cpu::Watched,
) -> Result<Applied> {
    let limit = (parts.settings.duration * 4).max(Duration::from_secs(10));
    produce(parts, &service.payment_topic, payments)?;
    let mut connection = parts.runtime.block_on(PgConnection::connect(url))?;
    let mut counts = || -> Result<(u64, u64)> {
        let query = "select (select count(*) from payments),
                            (select count(*) from orders where status = 'CONFIRMED')";
        let (applied, confirmed): (i64, i64) =
            parts.runtime.block_on(sqlx::query_as(query).fetch_one(&mut connection))?;
        Ok((u64::try_from(applied)?, u64::try_from(confirmed)?))
    };
    let waiting = Instant::now();
    while counts()?.0 == 0 {
        if waiting.elapsed() > BROKER {
            return Err("no payment was applied: see the log of the service".into());
        }
        std::thread::sleep(POLL);
    }
    let (started, first, before) = (Instant::now(), counts()?.0, watched.usage());
    let mut applied_at = started;
    let (mut applied, mut confirmed) = (first, 0);
    while confirmed < payments && started.elapsed() < limit {
        std::thread::sleep(POLL);
        let now = counts()?;
        if now.0 > applied {
            (applied, applied_at) = (now.0, Instant::now());
        }
        confirmed = now.1;
    }
    let seconds = (applied_at - started).as_secs_f64().max(0.001);
    Ok(Applied {
        rate: as_f64(applied - first) / seconds,
        payments,
        done: applied,
        confirmed,
        seconds: started.elapsed().as_secs_f64(),
        cpu: watched.usage().since(&before),
    })
}

fn produce(parts: &Parts, topic: &str, payments: u64) -> Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", parts.bootstrap_servers()).set("linger.ms", "5");
    let producer: BaseProducer = config.create()?;
    for order in 0..payments {
        let id = work::order_id(order).to_string();
        let amount: serde_json::Number = work::TOTAL.parse()?;
        let record = json!({
            "eventType": "PAYMENT_SUCCESS", "service": "PAYMENT_SERVICE", "userEmail": "bench@example.com",
            "entityId": id, "amount": amount, "timestamp": "2026-01-21T12:30:00",
            "metadata": {"eventId": format!("payment-{id}"), "paymentMode": "UPI"},
        })
        .to_string();
        while let Err((error, _)) = producer.send(BaseRecord::to(topic).key(&id).payload(&record)) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            producer.poll(POLL);
        }
    }
    Ok(producer.flush(BROKER)?)
}
