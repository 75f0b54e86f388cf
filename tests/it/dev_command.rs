//! `order-service dev`: everything on one machine, and nothing left of it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use order_service::config::Environment;
use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::support::{PATIENCE, Topic, command, eventually, exit_code, signal};

/// A running `dev`, and what it has printed. Dropping it kills it.
struct Dev {
    child: Child,
    screen: Vec<String>,
}

/// What only the running server can tell of itself.
struct Server {
    pid: String,
    folder: PathBuf,
}

impl Dev {
    /// Starts it and reads its screen.
    fn start() -> Self {
        let path = std::env::var("PATH").unwrap();
        let environment = Environment::default().with("PATH", path).with("LOG_FILTER", "error");
        let mut child = command("dev", &environment).stdout(Stdio::piped()).spawn().unwrap();
        let (lines, printed) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
        });
        let mut dev = Self { child, screen: Vec::new() };
        let deadline = Instant::now() + PATIENCE;
        // The curl command is the last thing on it.
        while !dev.screen.last().is_some_and(|line| line.contains("-d '{")) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = printed.recv_timeout(left);
            dev.screen.push(line.unwrap_or_else(|_| panic!("no screen: {:#?}", dev.screen)));
        }
        dev
    }

    /// The address of a part: it has a line of its own.
    fn address(&self, part: &str) -> &str {
        let mut lines = self.screen.iter().filter_map(|line| line.trim().strip_prefix(part));
        let address = lines.next().unwrap_or_else(|| panic!("no {part}: {:#?}", self.screen));
        assert!(address.starts_with(' ') && lines.next().is_none(), "{:#?}", self.screen);
        address.trim()
    }

    /// Runs the printed command, as it stands; returns the status and the body of the answer.
    fn first_order(&self) -> (String, Value) {
        let start = self.screen.iter().position(|line| line.trim().starts_with("curl ")).expect("a command");
        let output = Command::new("sh").args(["-c", &self.screen[start..].join("\n")]).output().unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer with its head");
        (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap())
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(self.address("postgres")).await.unwrap()
    }

    async fn server(&self) -> Server {
        let (pid, folder): (String, String) = sqlx::query_as(
            "select split_part(pg_read_file('postmaster.pid'), E'\\n', 1), current_setting('data_directory')",
        )
        .fetch_one(&mut self.connect().await)
        .await
        .unwrap();
        Server { pid, folder: PathBuf::from(folder).parent().expect("a folder of ours").to_owned() }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    async fn is_gone_without_a_trace(&self) {
        let alive = || Command::new("kill").args(["-0", &self.pid]).stderr(Stdio::null()).status();
        eventually("PostgreSQL ends", async || !alive().unwrap().success()).await;
        eventually("its folder goes", async || !self.folder.exists()).await;
    }
}

#[tokio::test]
async fn the_screen_names_every_part_and_its_curl_places_a_first_order() {
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
        assert_eq!(reqwest::get(&path).await.unwrap().status(), 200, "{path}");
    }
}

#[tokio::test]
async fn a_second_one_works_beside_the_first() {
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
    let server = dev.server().await;
    assert!(server.folder.exists());

    signal(&dev.child, "INT");

    assert_eq!(exit_code(&mut dev.child), Some(0));
    server.is_gone_without_a_trace().await;
}

#[tokio::test]
async fn even_a_kill_leaves_nothing_behind() {
    let mut dev = Dev::start();
    let server = dev.server().await;

    signal(&dev.child, "KILL");

    assert_eq!(exit_code(&mut dev.child), None);
    server.is_gone_without_a_trace().await;
}
