//! Concurrent relays lose no event, invent none, and keep the order of events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use order_service::app::App;
use order_service::config::{Config, read_store};
use order_service::store::Store;
use uuid::Uuid;

use crate::support::{Builder, Replica, Shop, eventually, expect_history};

const ADA: &str = "ada@example.com";
const BUCKETS: i64 = 64;

/// A shop without a service, whose replicas rebalance and take over within a second. The deadline of a status change
/// is longer than usual, for busy machines.
pub(crate) fn brisk() -> Builder {
    Shop::builder()
        .with("KAFKA_DELIVERY_TIMEOUT_MS", "600")
        .with("RELAY_LEASE_MS", "1500")
        .with("DATABASE_DEADLINE_MS", "30000")
        .with("REQUEST_DEADLINE_MS", "60000")
}

/// Places orders through all replicas at once, and changes the status of each through the other replicas.
async fn trade(replicas: &[Shop], orders: usize) {
    const CLIENTS: usize = 12;
    let product = replicas[0].product("phone", "10", 1_000_000).await;
    let client = async |client: usize| {
        for number in (client..orders).step_by(CLIENTS) {
            let at = |step: usize| &replicas[(number + step) % replicas.len()];
            let order = at(0).placed(ADA, &[(&product, 1)]).await;
            // Two admins request the same change at the same time: one change, one event.
            tokio::join!(async { at(1).set_status(&order, "CONFIRMED").await.expect(200) }, async {
                at(2).set_status(&order, "CONFIRMED").await.expect(200)
            },);
            if number % 2 == 0 {
                at(1).set_status(&order, "CANCELLED").await.expect(200);
            }
        }
    };
    join_all((0..CLIENTS).map(client)).await;
}

/// The number of buckets of each replica, in ascending order.
async fn held(shop: &Shop) -> Vec<i64> {
    sqlx::query_scalar(
        "select count(*) from relay_leases where owner is not null and expires_at > now()
         group by owner order by 1",
    )
    .fetch_all(&shop.database)
    .await
    .unwrap()
}

async fn shares_become(shop: &Shop, shares: &[i64]) {
    eventually(&format!("the shares are {shares:?}"), async || held(shop).await == shares).await;
}

fn processes(shop: &Shop, count: usize) -> Vec<(Replica, Shop)> {
    let start = |_| {
        let replica = Replica::start(&shop.environment);
        let through = shop.through(&replica.url);
        (replica, through)
    };
    (0..count).map(start).collect()
}

/// After a database outage that was longer than the leases, every replica sees the others as expired. Two replicas that
/// delete each other's row at the same time must not deadlock.
#[tokio::test]
async fn replicas_that_see_each_other_expired_do_not_deadlock() {
    let shop = Shop::builder().without_service().await;
    let (database, stock) = read_store(&shop.environment).unwrap();
    let store = Store::new(&database, stock, &Arc::default());
    let renew = async |replica| store.renew_lease(replica, Duration::from_mins(1)).await;
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    renew(one).await.unwrap();
    renew(other).await.unwrap();
    let outage = "update relay_replicas set expires_at = '-infinity'";
    sqlx::query(outage).execute(&shop.database).await.unwrap();
    let lock_row = "select from relay_replicas where replica = $1 for update nowait";

    // The other replica is renewing its own row: this one skips the locked row.
    let mut renewing = shop.database.begin().await.unwrap();
    sqlx::query(lock_row).bind(other).execute(&mut *renewing).await.unwrap();
    renew(one).await.unwrap();
    renewing.rollback().await.unwrap();

    // The other replica is deleting the row of this one, which waits and holds no lock that the other needs.
    let mut deleting = shop.database.begin().await.unwrap();
    let forget = "delete from relay_replicas where replica = $1";
    sqlx::query(forget).bind(one).execute(&mut *deleting).await.unwrap();
    let finish = async {
        shop.a_session_waits_for_a_lock().await;
        sqlx::query(lock_row).bind(other).execute(&mut *deleting).await.unwrap();
        deleting.commit().await.unwrap();
    };
    let (renewed, ()) = tokio::join!(renew(one), finish);
    renewed.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_in_one_process_relay_events_in_order() {
    let shop = brisk().without_service().await;
    let start = async || App::start(Config::read(&shop.environment).unwrap()).await.unwrap();
    let (one, two) = (start().await, start().await);
    join_all([one.ready(), two.ready()]).await;
    let replicas = [&one, &two].map(|app| shop.through(&format!("http://{}", app.address)));

    trade(&replicas, 120).await;

    assert_eq!(shop.versions().await.len(), 120);
    shop.expect_whole_orders().await;
    shop.expect_every_event().await;
    shares_become(&shop, &[32, 32]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_relay_while_others_start_and_stop() {
    let shop = brisk().without_service().await;
    let (mut processes, replicas): (Vec<_>, Vec<_>) = processes(&shop, 3).into_iter().unzip();

    // Each start and each stop of a replica causes a rebalance, while orders are placed.
    let comings_and_goings = async {
        for _ in 0..4 {
            let mut visitor = App::start(Config::read(&shop.environment).unwrap()).await.unwrap();
            visitor.ready().await;
            eventually("the new replica has buckets", async || held(&shop).await.len() == 4).await;
            visitor.stop().await.unwrap();
            visitor = App::start(Config::read(&shop.environment).unwrap()).await.unwrap();
            visitor.ready().await;
            visitor.stop().await.unwrap();
        }
    };
    tokio::join!(trade(&replicas, 200), comings_and_goings);

    shop.expect_whole_orders().await;
    shop.expect_every_event().await;
    shares_become(&shop, &[20, 22, 22]).await;
    for process in &mut processes {
        process.signal("TERM");
        assert_eq!(process.exit_code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_buckets_of_a_killed_replica_are_taken_over_and_no_event_is_lost() {
    let shop = brisk().without_service().await;
    let (processes, replicas): (Vec<_>, Vec<_>) = processes(&shop, 2).into_iter().unzip();
    shares_become(&shop, &[32, 32]).await;

    let kill = async {
        eventually("orders are being relayed", async || shop.count("orders").await > 20).await;
        processes[1].signal("KILL");
    };
    tokio::join!(trade(&replicas[..1], 200), kill);

    shop.expect_every_event().await;
    shares_become(&shop, &[BUCKETS]).await;
    assert_eq!(shop.count("relay_replicas").await, 1);
}

#[tokio::test]
async fn the_others_finish_the_work_of_a_replica_killed_under_load() {
    let shop = brisk().with("RELAY_BATCH", "64").without_service().await;
    for round in 1..=3 {
        let replica = Replica::start(&shop.environment);
        let through = shop.through(&replica.url);
        let phone = shop.product("phone", "10", 1_000_000).await;
        // The kill hits requests in flight: some are answered, some are not, some are partly relayed.
        let work = join_all((0..40).map(async |_| {
            let call = through.call("POST", "/api/orders").by(crate::support::customer(ADA));
            call.json(&crate::support::lines(&[(&phone, 1)])).try_send().await
        }));
        let kill = async {
            eventually("some orders are placed", async || shop.count("orders").await > round * 15).await;
            replica.signal("KILL");
        };
        tokio::join!(work, kill);
    }

    let last = Replica::start(&shop.environment);
    shop.expect_whole_orders().await;
    shop.expect_every_event().await;
    drop(last);
}

#[tokio::test]
async fn a_stopping_replica_hands_over_its_buckets_at_once() {
    // Without a handover, these leases would expire only after ten minutes.
    let shop = brisk().without_service().await;
    let patient = shop.environment.clone().with("RELAY_LEASE_MS", "600000");
    let mut first = Replica::start(&patient);
    shares_become(&shop, &[BUCKETS]).await;
    let second = Replica::start(&shop.environment);
    let through = shop.through(&second.url);
    let phone = shop.product("phone", "10", 1_000).await;
    for _ in 0..10 {
        through.placed(ADA, &[(&phone, 1)]).await;
    }

    first.signal("TERM");
    assert_eq!(first.exit_code(), Some(0));

    for _ in 0..10 {
        through.placed(ADA, &[(&phone, 1)]).await;
    }
    shop.expect_every_event().await;
    shares_become(&shop, &[BUCKETS]).await;
}

/// Inserts three events for each of `orders` into the outbox, copied from one real event; returns the versions.
pub(crate) async fn pile_up(shop: &Shop, template: &str, orders: i64) -> BTreeMap<String, i64> {
    let ids: Vec<Uuid> = (0..orders).map(|_| Uuid::now_v7()).collect();
    sqlx::query(
        r#"insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
           select number % 64, gen_random_uuid(), id, sequence, 'ORDER_PLACED',
                  replace(replace($2, '"sequence":1', '"sequence":' || sequence),
                          '"timestamp":"20', '"timestamp":"2' || sequence),
                  '[]'
           from generate_series(1, 3) as sequence,
                unnest($1::uuid[]) with ordinality as given (id, number)
           order by sequence, number"#,
    )
    .bind(&ids)
    .bind(template)
    .execute(&shop.database)
    .await
    .unwrap();
    ids.into_iter().map(|id| (id.to_string(), 3)).collect()
}

#[tokio::test]
async fn a_backlog_drains_in_order() {
    let mut shop = brisk().with("RELAY_BATCH", "200").start().await;
    let phone = shop.product("phone", "10", 1_000).await;
    let order = shop.placed(ADA, &[(&phone, 1)]).await;
    let first = shop.topic.records(1).await.remove(0);
    shop.stop_service().await;

    let mut due = pile_up(&shop, &first.payload, 1_000).await;
    due.insert(order, 1);
    shop.start_service().await;

    shop.relayed().await;
    expect_history(&shop.topic.everything().await, &due);
}
