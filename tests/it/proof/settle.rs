//! Waits until all work is done or nothing changes any more.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::plan::Plan;
use super::story::Story;
use super::world::World;

/// Longer than any pause, lease and session of the proof's settings, except the payment deadline of orders: after this
/// time without a change nothing will change, and the checks report what is missing.
const STANDSTILL: Duration = Duration::from_secs(35);
/// The maximum total wait.
const LONGEST: Duration = Duration::from_mins(5);

const STATE: &str = "
select (select count(*) from outbox) as outbox,
       (select count(*) from stock_jobs where state in ('TAKING', 'RETURNING')) as stock_jobs,
       (select coalesce(sum(failures), 0) from stock_jobs) as failures,
       (select count(*) from orders where status = 'CREATED'
        and not exists (select from parked_payments where order_id = orders.id)) as created,
       (select count(*) from (select partition, \"offset\" from payment_events
                              union select partition, \"offset\" from parked_payments) as record) as payments,
       (select coalesce(sum(version), 0) from orders)::bigint as versions
";

#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
struct State {
    outbox: i64,
    stock_jobs: i64,
    failures: i64,
    created: i64,
    payments: i64,
    versions: i64,
}

/// Waits until every order, stock job, event and payment is finished.
pub(super) async fn settle(world: &World, plan: &Plan, stories: &[Story]) {
    let count = |of: fn(&Story) -> usize| i64::try_from(stories.iter().map(of).sum::<usize>()).unwrap();
    let payments = count(|story| story.payments.len() + story.garbage.len());
    let started = Instant::now();
    let (mut last, mut since) = (None, started);
    let ttl = plan.unpaid_order_ttl();
    while since.elapsed() < STANDSTILL + ttl && started.elapsed() < LONGEST + ttl {
        let state: Option<State> = sqlx::query_as(STATE).fetch_one(&world.database).await.ok();
        let is_settled = state.is_some_and(|state| {
            state.outbox + state.stock_jobs + state.created == 0 && state.payments >= payments
        });
        if is_settled {
            return;
        }
        if state.is_some() && state != last {
            (last, since) = (state, Instant::now());
        }
        sleep(Duration::from_millis(50)).await;
    }
}
