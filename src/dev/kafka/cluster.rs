//! The process of the cluster.

use std::io::{BufRead, Write};

use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::DONE;
use crate::dev::DevError;

/// Runs a cluster of `brokers` brokers until `commands` ends. Prints its address, then one line per command: `done`, or
/// the error.
pub fn run(brokers: i32, commands: impl BufRead, mut answers: impl Write) -> Result<(), DevError> {
    let host: BaseProducer = ClientConfig::new()
        .set("test.mock.num.brokers", brokers.to_string())
        .set("log_level", "0")
        .create()?;
    let cluster = host.client().mock_cluster().ok_or(DevError::NoCluster)?;
    let mut say = |line: &str| {
        writeln!(answers, "{line}")
            .and_then(|()| answers.flush())
            .map_err(DevError::io("answer for the embedded Kafka"))
    };
    say(&cluster.bootstrap_servers())?;
    for command in commands.lines() {
        let command = command.map_err(DevError::io("read a command for the embedded Kafka"))?;
        match obey(&cluster, &command, brokers) {
            Ok(()) => say(DONE)?,
            Err(error) => say(&error.to_string())?,
        }
    }
    Ok(())
}

fn obey<C: ProducerContext>(
    cluster: &MockCluster<'_, C>,
    command: &str,
    brokers: i32,
) -> Result<(), DevError> {
    let unknown = || DevError::UnknownCommand(command.to_owned());
    let number = |text: &str| text.parse::<i32>().map_err(|_| unknown());
    let words: Vec<&str> = command.split(' ').collect();
    match words[..] {
        ["create-topic", name, partitions] => {
            cluster.create_topic(name, number(partitions)?, brokers.min(3))?;
        }
        ["broker-down", broker] => cluster.broker_down(number(broker)?)?,
        ["broker-up", broker] => cluster.broker_up(number(broker)?)?,
        ["produce-errors", ref codes @ ..] => {
            let error = |code: &&str| RDKafkaRespErr::try_from(number(code)?).map_err(|_| unknown());
            let errors: Vec<RDKafkaRespErr> = codes.iter().map(error).collect::<Result<_, _>>()?;
            cluster.request_errors(RDKafkaApiKey::Produce, &errors);
        }
        _ => return Err(unknown()),
    }
    Ok(())
}
