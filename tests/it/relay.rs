//! Replicas that relay side by side: nothing lost, nothing invented, nothing out of sequence.

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

/// A shop without a service, whose replicas even out and take over within a second. On a machine that is busy
/// with other things, a change of status may take longer than its usual deadline.
pub(crate) fn brisk() -> Builder {
    Shop::builder()
        .with("KAFKA_DELIVERY_TIMEOUT_MS", "600")
        .with("RELAY_LEASE_MS", "1500")
        .with("DATABASE_DEADLINE_MS", "30000")
        .with("REQUEST_DEADLINE_MS", "60000")
}

/// Places orders through all replicas at once, and moves each of them through the other replicas.
async fn trade(replicas: &[Shop], orders: usize) {
    const CLIENTS: usize = 12;
    let product = replicas[0].product("phone", "10", 1_000_000).await;
    let client = async |client: usize| {
        for number in (client..orders).step_by(CLIENTS) {
            let at = |step: usize| &replicas[(number + step) % replicas.len()];
            let order = at(0).placed(ADA, &[(&product, 1)]).await;
            // Two admins ask for the same at the same time: one change, one event.
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

/// How many buckets each replica holds, the fewest first.
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

/// After an outage of the database that was longer than their leases, every replica finds the others expired.
/// Two that forget each other at the same moment must not each wait for what the other holds.
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
    let in_hand = "select from relay_replicas where replica = $1 for update nowait";

    // The other is just coming back: its row is passed over.
    let mut coming_back = shop.database.begin().await.unwrap();
    sqlx::query(in_hand).bind(other).execute(&mut *coming_back).await.unwrap();
    renew(one).await.unwrap();
    coming_back.rollback().await.unwrap();

    // The other is just forgetting this one, which waits for that and holds nothing that the other may want.
    let mut forgetting = shop.database.begin().await.unwrap();
    let forget = "delete from relay_replicas where replica = $1";
    sqlx::query(forget).bind(one).execute(&mut *forgetting).await.unwrap();
    let finish = async {
        shop.somebody_waits_for_a_lock().await;
        sqlx::query(in_hand).bind(other).execute(&mut *forgetting).await.unwrap();
        forgetting.commit().await.unwrap();
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

    // Each that comes or goes makes the others share anew, while orders are placed.
    let comings_and_goings = async {
        for _ in 0..4 {
            let mut visitor = App::start(Config::read(&shop.environment).unwrap()).await.unwrap();
            visitor.ready().await;
            eventually("the visitor has buckets", async || held(&shop).await.len() == 4).await;
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
        // It dies with requests on their way: some are answered, some are not, some are half relayed.
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
    // Who waited for these leases to expire would wait for ten minutes.
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

/// Puts `orders` times three events into the outbox, made of one real event; returns what they are.
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
