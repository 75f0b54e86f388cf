//! `order-service dev` runs everything on one machine and leaves nothing behind.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use order_service::config::Environment;
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::support::{
    Mode, PATIENCE, Proxy, Replica, Topic, command, eventually, exit_code, http_client, signal, stack,
};

/// A running `dev` with its output. Dropping it kills the process.
struct Dev {
    child: Child,
    screen: Vec<String>,
}

/// The processes that `dev` started, with a check that they have ended.
struct Parts {
    postgres_pid: String,
    postgres_folder: PathBuf,
    kafka_address: String,
}

impl Dev {
    /// Starts `dev` and reads its output.
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts `dev` with a data folder.
    fn start_in(data: &TempDir) -> Self {
        Self::start_with(&["--data", data.path().to_str().unwrap()])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let environment = Environment::default().with("PATH", path()).with("LOG_FILTER", "error");
        let mut child = command("dev", &environment).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let (lines, printed) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
        });
        let mut dev = Self { child, screen: Vec::new() };
        let deadline = Instant::now() + PATIENCE;
        // The curl command is the last line of the output.
        while !dev.screen.last().is_some_and(|line| line.contains("-d '{")) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = printed.recv_timeout(left);
            dev.screen.push(line.unwrap_or_else(|_| panic!("no screen: {:#?}", dev.screen)));
        }
        dev
    }

    /// The address of a part, from its line of the output.
    fn address(&self, part: &str) -> &str {
        let mut lines = self.screen.iter().filter_map(|line| line.trim().strip_prefix(part));
        let address = lines.next().unwrap_or_else(|| panic!("no {part}: {:#?}", self.screen));
        assert!(address.starts_with(' ') && lines.next().is_none(), "{:#?}", self.screen);
        address.trim()
    }

    /// Runs the printed command unchanged; returns the status and the body of the answer.
    fn first_order(&self) -> (String, Value) {
        let start = self.screen.iter().position(|line| line.trim().starts_with("curl ")).expect("a command");
        let output = Command::new("sh").args(["-c", &self.screen[start..].join("\n")]).output().unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer with its head");
        (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap())
    }

    /// Sends a request to a part; returns the status and the body of the answer.
    async fn call(&self, method: &str, part: &str, path: &str, body: &str) -> (u16, Value) {
        let request = http_client()
            .request(method.parse().unwrap(), format!("{}{path}", self.address(part)))
            .header("X-User-Email", "admin@example.com")
            .header("X-User-Role", "ADMIN")
            .header("Content-Type", "application/json");
        let answer = request.body(body.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
    }

    async fn status_of(&self, order: &str) -> Value {
        let (_, order) = self.call("GET", "http", &format!("/api/orders/{order}"), "").await;
        order["status"].clone()
    }

    async fn stock_of(&self, product: &str) -> Value {
        let (_, product) = self.call("GET", "product-service", &format!("/api/products/{product}"), "").await;
        product["stock"].clone()
    }

    fn topic(&self, name: &str) -> Topic {
        Topic { bootstrap_servers: self.address("kafka").to_owned(), name: name.to_owned() }
    }

    /// Starts the second replica and returns its process.
    async fn start_second_replica(&self) -> String {
        let (status, answer) = self.call("PUT", "console", "/parts/replica", r#"{"state":"up"}"#).await;
        assert_eq!(status, 200, "{answer}");
        let mut events =
            http_client().get(format!("{}/events", self.address("console"))).send().await.unwrap();
        let mut told = String::new();
        loop {
            told += &String::from_utf8_lossy(&events.chunk().await.unwrap().expect("more events"));
            if let Some((_, after)) = told.split_once("\"pid\":")
                && let Some(end) = after.find(|c: char| !c.is_ascii_digit())
            {
                return after[..end].to_owned();
            }
        }
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(self.address("postgres")).await.unwrap()
    }

    async fn parts(&self) -> Parts {
        let (pid, folder): (String, String) = sqlx::query_as(
            "select split_part(pg_read_file('postmaster.pid'), E'\\n', 1), current_setting('data_directory')",
        )
        .fetch_one(&mut self.connect().await)
        .await
        .unwrap();
        Parts {
            postgres_pid: pid,
            postgres_folder: PathBuf::from(folder).parent().expect("a folder of ours").to_owned(),
            kafka_address: self.address("kafka").to_owned(),
        }
    }
}

/// An empty folder that PostgreSQL's user can also reach.
fn data_folder() -> TempDir {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

/// The error of `dev` for a folder that it refuses.
fn refusal(data: &TempDir) -> String {
    let environment = Environment::default().with("PATH", path());
    let output = command("dev", &environment).arg("--data").arg(data.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

fn path() -> String {
    std::env::var("PATH").unwrap()
}

/// PostgreSQL's programs on a machine where creating a database never ends, until this value is dropped.
struct SlowPrograms(TempDir);

impl SlowPrograms {
    fn new() -> Self {
        // PostgreSQL may run as another user, which cannot reach the temporary folder of this user.
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let everybody = |path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        everybody(folder.path().to_owned(), 0o777);
        for program in ["initdb", "postgres"] {
            let path = folder.path().join(program);
            let script = "#!/bin/sh\npwd >\"$0.runs\"\nwhile [ -e \"$0\" ]; do sleep 0.02; done\nexit 1\n";
            fs::write(&path, script).unwrap();
            everybody(path, 0o755);
        }
        Self(folder)
    }

    fn path(&self) -> String {
        format!("{}:{}", self.0.path().display(), path())
    }

    /// The folder of the database that is being created, once the creation has begun.
    async fn database_folder(&self) -> PathBuf {
        let said = || fs::read_to_string(self.0.path().join("initdb.runs")).unwrap_or_default();
        eventually("a database is being created", async || said().ends_with('\n')).await;
        PathBuf::from(said().trim_end())
    }
}

async fn ends(name: &str, pid: &str) {
    let alive = || Command::new("kill").args(["-0", pid]).stderr(Stdio::null()).status();
    eventually(&format!("{name} ends"), async || !alive().unwrap().success()).await;
}

impl Drop for Dev {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Parts {
    async fn are_gone_without_a_trace(&self) {
        ends("PostgreSQL", &self.postgres_pid).await;
        eventually("its folder is removed", async || !self.postgres_folder.exists()).await;
        eventually("Kafka ends", async || TcpStream::connect(&self.kafka_address).is_err()).await;
    }
}

#[tokio::test]
async fn the_output_names_every_part_and_its_curl_command_places_an_order() {
    let dev = Dev::start();

    let (status, placed) = dev.first_order();

    assert!(status.starts_with("HTTP/1.1 201"), "{status}");
    assert_eq!(
        (&placed["status"], placed["totalAmount"].to_string()),
        (&"CREATED".into(), "5497".to_owned())
    );
    let orders: i64 =
        sqlx::query_scalar("select count(*) from orders").fetch_one(&mut dev.connect().await).await.unwrap();
    assert_eq!(orders, 1);
    let topic = Topic { bootstrap_servers: dev.address("kafka").to_owned(), name: "order-events".to_owned() };
    let event = topic.records(1).await.remove(0);
    assert_eq!(
        (&event.key, event.event_type()),
        (&placed["orderId"].as_str().unwrap().to_owned(), "ORDER_PLACED".to_owned())
    );
    for path in [
        format!("{}/health/ready", dev.address("http")),
        format!("{}/health", dev.address("product-service")),
    ] {
        assert_eq!(http_client().get(&path).send().await.unwrap().status(), 200, "{path}");
    }
}

#[tokio::test]
async fn two_instances_run_side_by_side() {
    let (first, second) = (Dev::start(), Dev::start());

    for part in ["http", "postgres", "kafka", "product-service"] {
        assert_ne!(first.address(part), second.address(part));
    }
    for dev in [&first, &second] {
        let (status, _) = dev.first_order();
        assert!(status.starts_with("HTTP/1.1 201"), "{status}");
    }
}

#[tokio::test]
async fn ctrl_c_stops_everything_and_leaves_nothing_behind() {
    let mut dev = Dev::start();
    let parts = dev.parts().await;
    assert!(parts.postgres_folder.exists());

    signal(&dev.child, "INT");

    assert_eq!(exit_code(&mut dev.child), Some(0));
    parts.are_gone_without_a_trace().await;
}

#[tokio::test]
async fn ctrl_c_during_the_start_of_postgresql_ends_dev_and_leaves_nothing_behind() {
    let programs = SlowPrograms::new();
    let environment = Environment::default().with("PATH", programs.path());
    let mut dev = Replica::spawn_command("dev", &environment);
    let folder = programs.database_folder().await;
    assert!(folder.exists());

    dev.signal("INT");

    assert_eq!(dev.exit_code(), Some(0));
    drop(programs);
    eventually("the folder of PostgreSQL is removed", async || !folder.exists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ctrl_c_while_the_database_does_not_answer_ends_dev() {
    let (proxy, url) = Proxy::before_database(&stack().database_url).await;
    proxy.set(Mode::Silent);
    let environment = Environment::default()
        .with("DATABASE_URL", url)
        .with("BIND_ADDRESS", "127.0.0.1:0")
        .with("STARTUP_TIMEOUT_MS", "3600000")
        .with("LOG_FORMAT", "json");
    let mut dev = Replica::spawn_command("dev", &environment);
    dev.wait_for_log("listening");

    dev.signal("INT");

    assert_eq!(dev.exit_code(), Some(0));
}

#[tokio::test]
async fn a_kill_leaves_nothing_behind() {
    let mut dev = Dev::start();
    let parts = dev.parts().await;

    signal(&dev.child, "KILL");

    assert_eq!(exit_code(&mut dev.child), None);
    parts.are_gone_without_a_trace().await;
}

#[tokio::test]
async fn a_data_folder_keeps_orders_stock_and_events() {
    let data = data_folder();
    let mut dev = Dev::start_in(&data);
    let (_, placed) = dev.first_order();
    let order = placed["orderId"].as_str().unwrap().to_owned();
    let path = format!("/api/orders/{order}/status");
    let (status, _) = dev.call("PUT", "http", &path, r#"{"status":"CONFIRMED"}"#).await;
    assert_eq!((status, dev.stock_of("PROD123").await), (200, 48.into()));
    let events = dev.topic("order-events").records(2).await;
    let (_, ledger) = dev.call("GET", "product-service", "/demo/ledger", "").await;
    let pid = dev.parts().await.postgres_pid;

    signal(&dev.child, "INT");
    assert_eq!(exit_code(&mut dev.child), Some(0));
    ends("PostgreSQL", &pid).await;
    let dev = Dev::start_in(&data);

    assert_eq!(dev.status_of(&order).await, "CONFIRMED");
    assert_eq!(dev.stock_of("PROD123").await, 48);
    assert_eq!(dev.call("GET", "product-service", "/demo/ledger", "").await.1, ledger);
    assert_eq!(dev.topic("order-events").records(2).await, events);
    // The keys of stock calls are restored, too: giving back finds the stock that was taken.
    let (status, _) = dev.call("PUT", "http", &path, r#"{"status":"CANCELLED"}"#).await;
    assert_eq!(status, 200);
    eventually("the stock is given back", async || dev.stock_of("PROD123").await == 50).await;
    let all = dev.topic("order-events").records(3).await;
    let of_order: Vec<i64> = all.iter().map(crate::support::Record::sequence).collect();
    assert_eq!(of_order, [1, 2, 3]);
}

#[tokio::test]
async fn a_data_folder_keeps_the_orders_after_a_kill() {
    let data = data_folder();
    let mut dev = Dev::start_in(&data);
    let (_, placed) = dev.first_order();

    signal(&dev.child, "KILL");
    assert_eq!(exit_code(&mut dev.child), None);
    let dev = Dev::start_in(&data);

    assert_eq!(dev.status_of(placed["orderId"].as_str().unwrap()).await, "CREATED");
}

#[test]
fn a_data_folder_in_use_is_refused() {
    let data = data_folder();
    let _first = Dev::start_in(&data);

    let refusal = refusal(&data);

    assert!(refusal.contains("--data") && refusal.contains("in use by another"), "{refusal}");
}

#[test]
fn a_foreign_data_folder_or_postgresql_version_is_refused_and_unchanged() {
    let data = data_folder();
    fs::write(data.path().join("letter.txt"), "dear").unwrap();
    let of_others = refusal(&data);
    assert!(of_others.contains("--data") && of_others.contains("is not empty"), "{of_others}");
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1);

    let data = data_folder();
    let version = data.path().join("postgres/data/PG_VERSION");
    fs::create_dir_all(version.parent().unwrap()).unwrap();
    fs::write(&version, "9\n").unwrap();
    fs::write(data.path().join("order-service-dev"), "").unwrap();
    let of_another = refusal(&data);
    assert!(of_another.contains("--data") && of_another.contains("PostgreSQL 9"), "{of_another}");
    assert_eq!(fs::read_to_string(&version).unwrap(), "9\n");
}

#[tokio::test]
async fn the_second_replica_of_the_console_always_ends_with_dev() {
    for (signal_name, code) in [("INT", Some(0)), ("KILL", None)] {
        let mut dev = Dev::start();
        let replica = dev.start_second_replica().await;

        signal(&dev.child, signal_name);

        assert_eq!(exit_code(&mut dev.child), code);
        ends("the second replica", &replica).await;
    }
}

#[tokio::test]
async fn the_console_places_orders_only_for_its_own_page() {
    let dev = Dev::start();
    let body = r#"{"items":[{"productId":"PROD123","quantity":1}]}"#;

    let (status, placed) = dev.call("POST", "console", "/api/orders", body).await;

    assert_eq!((status, &placed["status"]), (201, &"CREATED".into()));
    let console = dev.address("console");
    assert!(console.starts_with("http://127.0.0.1:"), "{console}");
    let page = http_client().get(console).send().await.unwrap();
    assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    for (header, value, status) in [
        ("Host", "evil.example", 421),
        ("Origin", "http://evil.example", 403),
        ("Sec-Fetch-Site", "cross-site", 403),
        ("Content-Type", "text/plain", 415),
    ] {
        let request = http_client().post(format!("{console}/api/orders")).body(body);
        let answer = request.header(header, value).send().await.unwrap();
        assert_eq!(answer.status(), status, "{header}");
        assert!(answer.headers().get("access-control-allow-origin").is_none());
    }
}
