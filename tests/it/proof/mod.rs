//! The proof: three replicas under load, killed again and again together with their broker and their
//! database, keep every promise. What is checked is what everybody else sees: the database, the topic, the
//! Product Service's own book, and the answers that the clients got.
//!
//! Short under `cargo test`; the long one is
//! `PROOF_KILLS=300 PROOF_REQUESTS=30000 PROOF_SEED=1 cargo test --release --test it proof -- --nocapture`.
//! It has to fail when a promise is broken: `.ci/planted` shows that.

mod broker;
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
    ]
    .into_iter()
    .flatten()
    .collect();
    for promise in &promises {
        println!("proof: {promise}");
    }
    println!("proof: held by two attempts for a while: {} lines", promises_of_stock::held_twice(&evidence));
    assert!(!evidence.orders.is_empty() && !evidence.movements.is_empty(), "nothing was tried");
    let broken = promises.iter().filter(|promise| !promise.is_kept()).count();
    assert_eq!(broken, 0, "promises are broken; PROOF_SEED was {}", plan.seed);
}

/// What was done, how many requests were answered, and what the clients saw.
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
