//! How the service starts, and which errors prevent the start.

use std::net::TcpListener;
use std::process::{Output, Stdio};

use order_service::config::Environment;
use sqlx::Postgres;
use sqlx::migrate::Migrate;
use sqlx::pool::PoolConnection;

use crate::support::{Mode, PATIENCE, Proxy, Replica, Shop, command, customer, lines};

const ADA: &str = "ada@example.com";

/// Runs a command to its end; returns its exit code and its standard error.
async fn run(name: &'static str, environment: &Environment) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::from(command(name, environment));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().unwrap();
    let output = child.wait_with_output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("an end");
    let Output { status, stderr, .. } = output.unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

async fn expect_refusal(name: &'static str, environment: &Environment, words: &[&str]) {
    let (code, said) = run(name, environment).await;
    assert_eq!(code, Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "{word} is missing: {said}");
    }
}

#[tokio::test]
async fn all_invalid_settings_are_named_at_once_without_their_values() {
    let wrong = [
        ("BIND_ADDRESS", "everywhere"),
        ("DATABASE_URL", "mysql://orders:sEcReT@db/orders"),
        ("DATABASE_MAX_CONNECTIONS", "1"),
        ("KAFKA_BOOTSTRAP_SERVERS", "sEcReT"),
        ("KAFKA_SECURITY_PROTOCOL", "sEcReT"),
        ("ORDER_EVENTS_TOPIC", "no topic"),
        ("PRODUCT_SERVICE_URL", "ftp://sEcReT@products"),
        ("GATEWAY_SECRET", "sEcReT"),
        ("MIGRATE_ON_START", "perhaps"),
        ("RELAY_BATCH", "-1"),
        ("REQUEST_DEADLINE_MS", "soon"),
    ];
    let all = wrong.map(|(name, value)| (name.to_owned(), value.to_owned()));

    let (code, said) = run("serve", &Environment::from(all)).await;

    assert_eq!(code, Some(1));
    for (name, _) in wrong {
        assert!(said.lines().any(|line| line.contains(name)), "{name} is not named: {said}");
    }
    assert!(!said.contains("sEcReT"), "{said}");
}

#[tokio::test]
async fn a_malformed_line_of_the_env_file_is_named_by_number_and_not_shown() {
    let broken = ["GATEWAY_SECRET='sEcReT", "GATEWAY_SECRET=sEcReT and more", "sEcReT", "A=$\\sEcReT\\x"];
    for line in broken {
        let folder = tempfile::tempdir().unwrap();
        let file = format!("# A comment\nLOG_FORMAT=\"json\"\n\n{line}\nBIND_ADDRESS=127.0.0.1:0\n");
        std::fs::write(folder.path().join(".env"), file).unwrap();
        let output = command("serve", &Environment::default()).current_dir(&folder).output().unwrap();

        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains(".env") && said.contains("line 4"), "{line}: {said}");
        assert!(!said.contains("sEcReT"), "{line}: {said}");
    }
}

#[tokio::test]
async fn missing_settings_are_named() {
    let required = ["DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "PRODUCT_SERVICE_URL"];
    expect_refusal("serve", &Environment::default(), &required).await;
    expect_refusal("migrate", &Environment::default(), &["DATABASE_URL"]).await;
}

#[tokio::test]
async fn settings_that_contradict_each_other_are_named() {
    let shop = Shop::builder()
        .with("RELAY_LEASE_MS", "2000")
        .with("KAFKA_DELIVERY_TIMEOUT_MS", "1000")
        .with("PRODUCT_ATTEMPT_TIMEOUT_MS", "5000")
        .with("REQUEST_DEADLINE_MS", "3000")
        .without_service()
        .await;

    let names = ["RELAY_LEASE_MS", "PRODUCT_ATTEMPT_TIMEOUT_MS", "REQUEST_DEADLINE_MS"];
    expect_refusal("serve", &shop.environment, &names).await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let shop = Shop::builder().with("BIND_ADDRESS", &address).without_service().await;

    expect_refusal("serve", &shop.environment, &["BIND_ADDRESS", &address]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_started_during_a_database_outage_serves_as_soon_as_it_ends() {
    let database = Shop::empty_database().await;
    let (proxy, url) = Proxy::before_database(&database).await;
    proxy.set(Mode::Cut);
    let shop = Shop::builder().database(&database).with("DATABASE_URL", url).without_service().await;
    let replica = Replica::spawn(&shop.environment);
    let address = replica.wait_for_log("listening")["address"].as_str().unwrap().to_owned();
    let shop = shop.through(&format!("http://{address}"));
    let phone = shop.product("phone", "10", 5).await;

    replica.wait_for_log("waiting for the database");
    shop.call("GET", "/health/live").send().await.expect(200);
    shop.call("GET", "/health/ready").send().await.expect_unavailable("unavailable");
    shop.place(customer(ADA), &lines(&[(&phone, 1)])).await.expect_unavailable("unavailable");

    proxy.set(Mode::Open);
    replica.wait_for_log("serving");
    shop.call("GET", "/health/ready").send().await.expect(200);
    shop.placed(ADA, &[(&phone, 1)]).await;
    shop.expect_every_event().await;
}

#[tokio::test]
async fn a_database_that_refuses_the_connection_ends_the_start_at_once() {
    let missing = Shop::empty_database().await.replace("it_", "no_such_");
    let shop = Shop::builder()
        .with("DATABASE_URL", missing)
        .with("STARTUP_TIMEOUT_MS", "3600000")
        .without_service()
        .await;

    expect_refusal("serve", &shop.environment, &["DATABASE_URL", "does not exist"]).await;
}

#[tokio::test]
async fn a_database_that_never_becomes_reachable_ends_the_start() {
    for mode in [Mode::Cut, Mode::Silent] {
        let database = Shop::empty_database().await;
        let (proxy, url) = Proxy::before_database(&database).await;
        proxy.set(mode);
        let shop = Shop::builder()
            .database(&database)
            .with("DATABASE_URL", url)
            .with("STARTUP_TIMEOUT_MS", "600")
            .with("DATABASE_DEADLINE_MS", "300")
            .without_service()
            .await;

        for migrate in ["true", "false"] {
            let environment = shop.environment.clone().with("MIGRATE_ON_START", migrate);
            expect_refusal("serve", &environment, &["STARTUP_TIMEOUT_MS"]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stop_during_the_wait_for_the_database_ends_the_start_at_once() {
    let database = Shop::empty_database().await;
    let (proxy, url) = Proxy::before_database(&database).await;
    proxy.set(Mode::Silent);
    let shop = Shop::builder()
        .database(&database)
        .with("DATABASE_URL", url)
        .with("DATABASE_DEADLINE_MS", "600000")
        .with("STARTUP_TIMEOUT_MS", "3600000")
        .without_service()
        .await;
    let mut replica = Replica::spawn(&shop.environment);
    replica.wait_for_log("listening");

    replica.signal("TERM");

    assert_eq!(replica.exit_code(), Some(0));
    let log = replica.rest_of_log();
    assert!(!log.iter().any(|line| line["message"] == "serving"), "{log:#?}");
}

#[tokio::test]
async fn without_migrate_on_start_the_service_starts_only_after_the_migration() {
    let database = Shop::empty_database().await;
    let shop = Shop::builder().database(&database).with("MIGRATE_ON_START", "false").without_service().await;
    expect_refusal("serve", &shop.environment, &["MIGRATE_ON_START", "order-service migrate"]).await;

    for _ in 0..2 {
        let (code, said) = run("migrate", &shop.environment).await;
        assert_eq!(code, Some(0), "{said}");
    }

    let replica = Replica::start(&shop.environment);
    let shop = shop.through(&replica.url);
    let phone = shop.product("phone", "10", 5).await;
    shop.placed(ADA, &[(&phone, 1)]).await;
}

#[tokio::test]
async fn replicas_that_migrate_an_empty_database_concurrently_all_start() {
    let database = Shop::empty_database().await;
    let shop = Shop::builder().database(&database).without_service().await;
    let phone = shop.product("phone", "10", 50).await;

    let replicas = [(); 4].map(|()| Replica::spawn(&shop.environment));
    for replica in &replicas {
        let address = replica.wait_for_log("listening")["address"].as_str().unwrap().to_owned();
        replica.wait_for_log("serving");
        shop.through(&format!("http://{address}")).placed(ADA, &[(&phone, 1)]).await;
    }
    shop.expect_every_event().await;
}

/// The lock that a hanging migration of another replica holds.
async fn hold_the_lock_of_migrations(shop: &Shop) -> PoolConnection<Postgres> {
    let mut holder = shop.database.acquire().await.unwrap();
    holder.lock().await.unwrap();
    holder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_start_that_waits_for_another_migration_logs_it_and_survives_a_lost_connection() {
    let database = Shop::empty_database().await;
    let (proxy, url) = Proxy::before_database(&database).await;
    let shop = Shop::builder().database(&database).with("DATABASE_URL", url).without_service().await;
    let mut holder = hold_the_lock_of_migrations(&shop).await;

    let replica = Replica::spawn(&shop.environment);
    replica.wait_for_log("waiting for the lock of another replica");
    proxy.set(Mode::Cut);
    replica.wait_for_log("waiting for the database");

    proxy.set(Mode::Open);
    holder.unlock().await.unwrap();
    replica.wait_for_log("serving");
}

#[tokio::test]
async fn the_healthcheck_fails_until_the_service_is_ready() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, _) = run("healthcheck", &Environment::default().with("BIND_ADDRESS", free)).await;
    assert_eq!(code, Some(1), "nothing listens");

    let shop = Shop::builder().with("SHUTDOWN_DELAY_MS", "600000").without_service().await;
    let replica = Replica::start(&shop.environment);
    let port = replica.url.rsplit(':').next().unwrap();
    // A container listens on every interface, and its healthcheck calls the service from inside.
    for bound in [format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}")] {
        let (code, said) = run("healthcheck", &Environment::default().with("BIND_ADDRESS", bound)).await;
        assert_eq!(code, Some(0), "{said}");
    }

    replica.signal("TERM");
    replica.wait_for_log("stopping");
    let bound = format!("127.0.0.1:{port}");
    let environment = Environment::default().with("BIND_ADDRESS", bound);
    expect_refusal("healthcheck", &environment, &["503"]).await;
    // The service is still live; platforms restart containers that are not.
    let mut live = command("healthcheck", &environment);
    assert!(live.arg("--live").status().unwrap().success());
}

#[tokio::test]
async fn a_public_service_without_a_gateway_secret_logs_a_warning() {
    let shop = Shop::builder().with("BIND_ADDRESS", "0.0.0.0:0").without_service().await;
    let warning = Replica::spawn(&shop.environment).wait_for_log("GATEWAY_SECRET is not set");
    assert_eq!(warning["level"], "WARN");

    let secret = shop.environment.clone().with("GATEWAY_SECRET", "0123456789abcdef");
    let loopback = shop.environment.clone().with("BIND_ADDRESS", "127.0.0.1:0");
    for safe in [secret, loopback] {
        let mut replica = Replica::spawn(&safe);
        replica.wait_for_log("listening");
        replica.signal("TERM");
        let log = replica.rest_of_log();
        assert!(!log.iter().any(|line| line.to_string().contains("GATEWAY_SECRET")), "{log:#?}");
    }
}
