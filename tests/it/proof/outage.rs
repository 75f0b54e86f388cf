//! An outage of the service that is longer than the payment deadline of orders, while customers keep paying.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::load::Load;
use super::plan::Plan;
use super::random::Random;
use super::story::{PaymentKind, Story};
use super::world::{EVERY_REPLICA, World};

/// Kills every replica, pays many of the unpaid orders, and waits until the payment deadline of all orders has passed.
/// The replicas restart before Kafka does.
pub(super) async fn outlast_unpaid_orders(
    world: &Arc<World>,
    load: &Load,
    plan: &Plan,
    stories: &mut [Story],
    mut random: Random,
) {
    for replica in EVERY_REPLICA {
        world.kill_replica(replica).await;
    }
    let unpaid = stories.iter_mut().filter(|story| story.order().is_some() && story.payments.is_empty());
    let late: Vec<&mut Story> = unpaid.filter(|_| random.percent(70)).collect();
    join_all(late.into_iter().map(async |story| {
        let kind = PaymentKind::Success;
        let payment = load.pay(story, kind, &story.payment(kind, true)).await;
        story.payments.push(payment);
    }))
    .await;
    sleep(plan.unpaid_order_ttl()).await;
    let start = async {
        for replica in EVERY_REPLICA {
            world.start_replica(replica).await;
        }
    };
    tokio::join!(world.broker.outage(), start);
}
