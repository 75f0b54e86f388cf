//! The proof of kills: replicas under load, killed again and again together with their broker and their database,
//! keep every promise. The proof checks only what is visible from outside: the database, both topics, the Product
//! Service's own ledger, and the answers that the clients got.
//!
//! # Method
//!
//! Three replicas, PostgreSQL, Kafka and a Product Service that loses answers and refuses stock that it has. Clients
//! place, pay, pay twice within a second, confirm, cancel and repeat, all from one seed. Meanwhile replicas, broker and
//! database are killed, commits are answered late or not at all, and a reader holds a snapshot of the database open. At
//! the end every replica stays down for longer than an order may stay unpaid, while payments continue.
//!
//! Each promise is one line: failures, trials, and the rate that no failure in that many trials excludes (3/N at 95 %).
//! `cargo test` runs a short proof. The long one:
//!
//! ```sh
//! PROOF_KAFKA=.ci/kafka PROOF_KILLS=300 PROOF_REQUESTS=30000 PROOF_SEED=20261124 \
//!     cargo test --test it proof::every -- --nocapture
//! ```
//!
//! `PROOF_KAFKA` makes the broker a real Apache Kafka, which is killed and started again. `.ci/planted` plants each bug
//! of `tests/planted` in a copy of the tree and demands that the proof names the broken promise.
//!
//! # Figures
//!
//! | run | kills | requests | result |
//! |---|---|---|---|
//! | 2026-11-22 | 301 | 67,153 | 0 of 30,996 orders and 0 of 41,036 events missing, 0 out of order, 0 of 468 repeats differ, 0 of 12,744 keys moved stock twice |
//! | 2026-11-25, seed 20261124, Apache Kafka | 300 (226 replicas, 37 database, 37 broker) | 30,494 | every line 0; 36 snapshots, 56 times of late commits, 25 minutes on two busy cores |
//! | 2026-11-28, seed 20261128, Apache Kafka | 240 (180 replicas, 30 database, 30 broker) | 30,758 | every line 0, and `order-service check` finds nothing; 29 snapshots, 45 times of late commits, 14 minutes |
//!
//! The runs before 2026-11-24 had no late commits, double payments and refusals. Other long runs:
//! `PROMISE_SCALE=long cargo test --test it eight_concurrent -- --nocapture`, likewise `sixty_four` and `shuffled`.
//! An hour without a real Kafka: 1,042,529 orders placed meanwhile, each event delivered once within 42 s after the
//! outage, `serve` at 28 MB throughout.

mod broker;
mod contradictions;
mod evidence;
mod load;
mod nemesis;
mod outage;
mod plan;
mod promise;
mod promises_of_events;
mod promises_of_orders;
mod promises_of_stock;
mod random;
mod settle;
mod shelf;
mod snapshot;
mod story;
mod world;

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use evidence::Evidence;
use load::Load;
use nemesis::{Nemesis, Tally};
use plan::Plan;
use promise::Promise;
use random::Random;
use shelf::Shelf;
use story::Story;
use world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the report is what the proof is for")]
async fn every_promise_survives_kills() {
    let (plan, started) = (Plan::read(), Instant::now());
    println!("proof: {plan}");
    let world = World::start(&plan).await;
    let end = CancellationToken::new();
    let snapshot = tokio::spawn(snapshot::hold(Arc::clone(&world), end.clone()));
    let (tally, answered, stories) = load_and_kill(&world, &plan).await;
    println!(
        "proof: {tally}, {answered} requests answered, {} orders asked for, in {} s",
        stories.len(),
        started.elapsed().as_secs()
    );
    settle::settle(&world, &plan, &stories).await;
    println!("proof: settled after {} s", started.elapsed().as_secs());
    end.cancel();
    let (snapshots, held) = snapshot.await.unwrap();
    println!("proof: {snapshots} snapshots held open for {} s", held.as_secs());
    let evidence = Evidence::gather(&world, &plan, stories).await;
    for change in &evidence.changes {
        println!("proof: became {} by {}: {}", change.to_status, change.reason, change.count);
    }
    let promises: Vec<Promise> = [
        promises_of_orders::check(&evidence),
        promises_of_events::check(&evidence),
        promises_of_stock::check(&evidence),
        vec![contradictions::check(&world).await],
    ]
    .into_iter()
    .flatten()
    .collect();
    for promise in &promises {
        println!("proof: {promise}");
    }
    println!("proof: lines that two attempts held temporarily: {}", promises_of_stock::held_twice(&evidence));
    assert!(!evidence.orders.is_empty() && !evidence.movements.is_empty(), "nothing was tried");
    let broken = promises.iter().filter(|promise| !promise.is_kept()).count();
    assert_eq!(broken, 0, "promises are broken; PROOF_SEED was {}", plan.seed);
}

/// Returns the faults, the number of answered requests, and the stories of the clients.
async fn load_and_kill(world: &Arc<World>, plan: &Plan) -> (Tally, usize, Vec<Story>) {
    let mut random = Random::new(plan.seed);
    let shelf = Shelf::stock(world, plan.requests / 2).await;
    let load = Arc::new(Load::new(Arc::clone(world), shelf));
    let stop = CancellationToken::new();
    let clients: Vec<_> = (0..plan.clients)
        .map(|_| tokio::spawn(Arc::clone(&load).client(random.fork(), stop.clone())))
        .collect();
    let tally = Nemesis::new(Arc::clone(world), Arc::clone(&load), random.fork()).run(plan).await;
    stop.cancel();
    let mut stories = Vec::new();
    for client in clients {
        stories.extend(client.await.unwrap());
    }
    outage::outlast_unpaid_orders(world, &load, plan, &mut stories, random).await;
    (tally, load.answered(), stories)
}
