//! The pool with a fake server that implements PostgreSQL's protocol for a ping and a statement without rows.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use sqlx::Executor;
use sqlx::postgres::PgSslMode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;

const READY: &[u8] = b"Z\0\0\0\x05I";
const DONE: &[u8] = b"C\0\0\0\x0bSELECT\0Z\0\0\0\x05I";
const BEGUN: &[u8] = b"C\0\0\0\x0aBEGIN\0Z\0\0\0\x05T";

/// The counters of the sessions.
#[derive(Default)]
struct Server {
    opened: AtomicUsize,
    open: AtomicUsize,
    most: AtomicUsize,
    pings: AtomicUsize,
    /// Sessions that their client ended.
    ended: AtomicUsize,
    settings: Mutex<Vec<String>>,
}

/// The current behaviour of the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Answer,
    Silence,
    /// The first sessions, up to this number, end.
    End(usize),
}

struct World {
    server: Arc<Server>,
    mode: watch::Sender<Mode>,
    pool: Pool,
    listening: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl World {
    async fn new(max_connections: u32, acquire_timeout: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (server, mode) = (Arc::<Server>::default(), watch::Sender::new(Mode::Answer));
        let (counting, modes) = (Arc::clone(&server), mode.clone());
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, mode) = (Arc::clone(&counting), modes.subscribe());
                tokio::spawn(async move {
                    let number = server.opened.fetch_add(1, SeqCst) + 1;
                    server.most.fetch_max(server.open.fetch_add(1, SeqCst) + 1, SeqCst);
                    // A session that ends abruptly is already counted.
                    let _ = session(stream, &server, number, mode).await;
                    server.open.fetch_sub(1, SeqCst);
                });
            }
        });
        let options = PgConnectOptions::new().host("127.0.0.1").port(port).username("anyone");
        let options = options.ssl_mode(PgSslMode::Disable).options([("statement_timeout", "1234")]);
        let pool = Pool::new(options, max_connections, acquire_timeout, PoolMetrics::default());
        Self { server, mode, pool, listening }
    }

    async fn patient(max_connections: u32) -> Self {
        Self::new(max_connections, Duration::from_mins(1)).await
    }

    fn opened(&self) -> usize {
        self.server.opened.load(SeqCst)
    }

    fn pings(&self) -> usize {
        self.server.pings.load(SeqCst)
    }

    /// Uses a connection without an error.
    async fn use_one(&self) -> Result<(), Error> {
        let mut connection = self.pool.acquire().await?;
        connection.execute("select").await?;
        connection.release();
        Ok(())
    }

    fn idle(&self) -> usize {
        self.pool.0.lock().stack.len()
    }

    /// Changes the idle time and the age of the idle connections.
    fn age(&self, idle_for: Duration, open_for: Duration) {
        for idle in &mut self.pool.0.lock().stack {
            idle.since = idle.since.checked_sub(idle_for).unwrap();
            idle.opened = idle.opened.checked_sub(open_for).unwrap();
        }
    }
}

async fn session(
    mut stream: TcpStream,
    server: &Server,
    number: usize,
    mut mode: watch::Receiver<Mode>,
) -> std::io::Result<()> {
    let length = stream.read_u32().await?;
    let mut startup = vec![0; usize::try_from(length).unwrap() - 4];
    stream.read_exact(&mut startup).await?;
    server.settings.lock().unwrap().push(String::from_utf8_lossy(&startup).into_owned());
    stream.write_all(b"R\0\0\0\x08\0\0\0\0").await?;
    stream.write_all(READY).await?;
    let is_over = |mode: &Mode| matches!(mode, Mode::End(last) if number <= *last);
    loop {
        let kind = tokio::select! {
            kind = stream.read_u8() => kind?,
            _ = mode.wait_for(is_over) => return Ok(()),
        };
        let length = stream.read_u32().await?;
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        stream.read_exact(&mut body).await?;
        let _ = mode.wait_for(|mode| *mode != Mode::Silence).await;
        match kind {
            b'S' => {
                server.pings.fetch_add(1, SeqCst);
                stream.write_all(READY).await?;
            }
            b'Q' if body.starts_with(b"BEGIN") => stream.write_all(BEGUN).await?,
            b'Q' => stream.write_all(DONE).await?,
            b'X' => {
                server.ended.fetch_add(1, SeqCst);
                return Ok(());
            }
            _ => return Ok(()),
        }
    }
}

/// Waits for the effect of another task.
async fn eventually(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_mins(1), waiting).await.unwrap();
}

#[tokio::test]
async fn a_connection_is_reused_without_a_ping_and_with_its_session_settings() {
    let world = World::patient(4).await;
    for _ in 0..100 {
        world.use_one().await.unwrap();
    }
    assert_eq!((world.opened(), world.pings()), (1, 0));
    assert!(world.server.settings.lock().unwrap()[0].contains("statement_timeout=1234"));
}

#[tokio::test]
async fn the_pool_never_exceeds_its_maximum() {
    let world = Arc::new(World::patient(3).await);
    let users: Vec<_> = (0..30)
        .map(|user| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                for round in 0..10 {
                    if (user + round) % 7 == 0 {
                        // A connection that is dropped during a statement.
                        let mut connection = world.pool.acquire().await.unwrap();
                        let _ = timeout(Duration::ZERO, connection.execute("select")).await;
                    } else {
                        world.use_one().await.unwrap();
                    }
                }
            })
        })
        .collect();
    for user in users {
        user.await.unwrap();
    }
    assert_eq!(world.pool.0.permits.available_permits(), 3);
    assert!(world.idle() <= 3, "{} idle", world.idle());
    // The server counts a connection until it has noticed its end.
    eventually(|| world.server.open.load(SeqCst) == world.idle()).await;
}

#[tokio::test]
async fn waiting_too_long_for_a_connection_is_an_error() {
    let world = World::new(1, Duration::from_millis(50)).await;
    let in_use = world.pool.acquire().await.unwrap();
    assert!(matches!(world.pool.acquire().await, Err(Error::PoolTimedOut)));
    in_use.release();
    world.use_one().await.unwrap();
    assert_eq!(world.opened(), 1);
}

#[tokio::test]
async fn a_waiting_caller_gets_the_next_released_connection_or_opens_a_new_one() {
    let world = World::patient(1).await;
    let in_use = world.pool.acquire().await.unwrap();
    let (used, ()) = tokio::join!(world.use_one(), async { in_use.release() });
    used.unwrap();
    let in_use = world.pool.acquire().await.unwrap();
    let (used, ()) = tokio::join!(world.use_one(), async { drop(in_use) });
    used.unwrap();
    assert_eq!(world.opened(), 2, "the dropped connection was not reused");
}

#[tokio::test]
async fn a_connection_dropped_during_a_statement_is_never_reused() {
    let world = World::patient(1).await;
    world.use_one().await.unwrap();
    world.mode.send_replace(Mode::Silence);
    let mut connection = world.pool.acquire().await.unwrap();
    assert!(timeout(Duration::from_millis(20), connection.execute("select")).await.is_err());
    drop(connection);
    world.mode.send_replace(Mode::Answer);
    world.use_one().await.unwrap();
    assert_eq!(world.opened(), 2);
}

#[tokio::test]
async fn a_connection_with_an_open_transaction_or_an_unsent_rollback_is_never_reused() {
    let world = World::patient(1).await;
    let mut connection = world.pool.acquire().await.unwrap();
    let transaction = connection.begin().await.unwrap();
    drop(transaction);
    connection.release();
    let mut connection = world.pool.acquire().await.unwrap();
    let transaction = connection.begin().await.unwrap();
    std::mem::forget(transaction);
    connection.release();
    world.use_one().await.unwrap();
    assert_eq!(world.opened(), 3);
}

#[tokio::test]
async fn a_connection_that_broke_during_a_long_idle_time_is_replaced() {
    let world = World::patient(1).await;
    world.use_one().await.unwrap();
    world.age(PING_AFTER_IDLE, PING_AFTER_IDLE);
    world.use_one().await.unwrap();
    assert_eq!((world.opened(), world.pings()), (1, 1), "the connection was healthy");
    world.mode.send_replace(Mode::End(1));
    eventually(|| world.server.open.load(SeqCst) == 0).await;
    world.age(PING_AFTER_IDLE, PING_AFTER_IDLE);
    world.use_one().await.unwrap();
    assert_eq!(world.opened(), 2);
}

#[tokio::test]
async fn after_a_connection_is_lost_the_idle_ones_are_pinged_before_use() {
    let world = World::patient(3).await;
    let three = tokio::join!(world.pool.acquire(), world.pool.acquire(), world.pool.acquire());
    for connection in <[_; 3]>::from(three) {
        connection.unwrap().release();
    }
    world.mode.send_replace(Mode::End(3));
    eventually(|| world.server.open.load(SeqCst) == 0).await;
    assert!(world.use_one().await.is_err(), "the first caller gets the error");
    for _ in 0..3 {
        world.use_one().await.unwrap();
    }
    assert_eq!(world.opened(), 4);
}

#[tokio::test]
async fn a_ping_without_an_answer_fails_at_the_deadline() {
    let world = World::new(1, Duration::from_millis(50)).await;
    world.use_one().await.unwrap();
    world.age(PING_AFTER_IDLE, PING_AFTER_IDLE);
    world.mode.send_replace(Mode::Silence);
    assert!(matches!(world.pool.acquire().await, Err(Error::PoolTimedOut)));
    world.mode.send_replace(Mode::Answer);
    world.use_one().await.unwrap();
    assert_eq!(world.opened(), 2, "the silent connection was closed");
}

#[tokio::test]
async fn old_connections_are_closed_cleanly() {
    let world = World::patient(2).await;
    world.use_one().await.unwrap();
    world.age(Duration::ZERO, MAX_LIFETIME);
    world.use_one().await.unwrap();
    assert_eq!(world.opened(), 2, "a connection that is too old is not used");
    eventually(|| world.server.ended.load(SeqCst) == 1).await;
    world.age(IDLE_TIMEOUT, IDLE_TIMEOUT);
    let old = world.pool.0.take_old();
    assert_eq!((old.len(), world.idle()), (1, 0), "a connection that was idle for too long is closed");
}

#[tokio::test]
async fn a_closing_pool_waits_for_connections_in_use_and_hands_out_no_more() {
    let world = World::patient(2).await;
    let in_use = world.pool.acquire().await.unwrap();
    world.use_one().await.unwrap();
    let closing = async {
        world.pool.close().await;
        // A second close, like the one of each clone of a store.
        world.pool.close().await;
    };
    let ending = async {
        assert!(matches!(world.pool.acquire().await, Err(Error::PoolClosed)));
        assert_eq!(world.server.ended.load(SeqCst), 0, "connections in use stay open");
        in_use.release();
    };
    tokio::join!(closing, ending);
    eventually(|| world.server.ended.load(SeqCst) == 2).await;
    assert!(matches!(world.pool.acquire().await, Err(Error::PoolClosed)));
}
