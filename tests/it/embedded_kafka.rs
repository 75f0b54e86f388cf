//! The embedded Kafka of `dev` and the tests, which runs in its own process.

use std::net::TcpStream;
use std::process::Command;
use std::thread;

use order_service::dev::kafka::ALL_BROKERS;

use crate::support::{Topic, embedded_kafka};

/// librdkafka aborts the process of its cluster if a restarted broker cannot bind its port again. This happened when
/// that process started children: between fork and exec, a child holds a copy of every socket.
#[tokio::test]
async fn the_cluster_survives_broker_restarts_while_processes_are_started() {
    let kafka = embedded_kafka(1);
    kafka.create_topic("orders", 1).unwrap();
    let topic = Topic { bootstrap_servers: kafka.bootstrap_servers().to_owned(), name: "orders".to_owned() };
    topic.publish("1", b"{}").await;

    thread::scope(|scope| {
        let start_processes = || {
            for _ in 0..100 {
                assert!(Command::new("true").status().unwrap().success());
            }
        };
        let starting = [scope.spawn(start_processes), scope.spawn(start_processes)];
        while !starting.iter().all(thread::ScopedJoinHandle::is_finished) {
            kafka.broker_down(ALL_BROKERS).unwrap();
            kafka.broker_up(ALL_BROKERS).unwrap();
        }
    });

    assert_eq!(topic.records(1).await[0].payload, "{}");
}

#[tokio::test]
async fn the_cluster_refuses_unknown_commands_and_continues() {
    let kafka = embedded_kafka(1);

    let refusal = kafka.create_topic("two words", 1).unwrap_err().to_string();

    assert!(refusal.contains("two words") && refusal.contains("no command"), "{refusal}");
    let refusal = kafka.broker_down(7).unwrap_err().to_string();
    assert!(refusal.contains("broker-down 7"), "{refusal}");
    kafka.create_topic("orders", 1).unwrap();
}

#[tokio::test]
async fn dropping_the_cluster_leaves_no_process() {
    let kafka = embedded_kafka(1);
    let address = kafka.bootstrap_servers().to_owned();
    assert!(TcpStream::connect(&address).is_ok());

    drop(kafka);

    assert!(TcpStream::connect(&address).is_err());
}
