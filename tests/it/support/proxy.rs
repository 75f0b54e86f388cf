//! A TCP proxy that simulates outages of a database or any other server.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The behaviour of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Data passes.
    Open,
    /// Existing and new connections are closed.
    Cut,
    /// Connections stay open and no data passes, like a network that drops packets.
    Silent,
    /// Existing connections stay open but never pass data again, even if new ones do, like a host that disappeared.
    Vanished,
    /// Data passes until a client sends these bytes: from then on its connection passes no more answers.
    NoAnswerTo(&'static str),
    /// Data passes until a client sends these bytes: the proxy delivers them, closes the connection and is open again.
    CutOnceAfter(&'static str),
}

/// A proxy in front of `target`.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
}

impl Proxy {
    pub(crate) async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        let setter = Arc::clone(&mode);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target, Arc::clone(&setter)));
            }
        });
        Self { address, mode }
    }

    /// A proxy in front of the database of this URL, and the URL through it.
    pub(crate) async fn before_database(url: &str) -> (Self, String) {
        let mut url: reqwest::Url = url.parse().unwrap();
        let host = (url.host_str().unwrap().to_owned(), url.port().unwrap_or(5432));
        let target = tokio::net::lookup_host(host).await.unwrap().next().unwrap();
        let proxy = Self::before(target).await;
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(proxy.address.port())).unwrap();
        (proxy, url.into())
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn pass(mut client: TcpStream, target: SocketAddr, setter: Arc<watch::Sender<Mode>>) {
    let mut mode = setter.subscribe();
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    loop {
        if mode.wait_for(|mode| *mode != Mode::Silent).await.is_err() {
            return;
        }
        let now = *mode.borrow();
        match now {
            Mode::Cut => return,
            Mode::Vanished => {
                drop(server);
                return std::future::pending().await;
            }
            Mode::Open | Mode::Silent | Mode::NoAnswerTo(_) | Mode::CutOnceAfter(_) => {}
        }
        let passing = async {
            match now {
                Mode::NoAnswerTo(bytes) => copy_until(bytes, &mut client, &mut server, || false).await,
                Mode::CutOnceAfter(bytes) => {
                    let is_first =
                        || setter.send_if_modified(|mode| std::mem::replace(mode, Mode::Open) == now);
                    copy_until(bytes, &mut client, &mut server, is_first).await
                }
                _ => copy_bidirectional(&mut client, &mut server).await.map(|_| ()),
            }
        };
        tokio::select! {
            _ = passing => return,
            _ = mode.changed() => {}
        }
    }
}

/// Copies in both directions until the client has sent `bytes`, then only from the client, or ends the connection.
async fn copy_until(
    bytes: &str,
    client: &mut TcpStream,
    server: &mut TcpStream,
    ends: impl Fn() -> bool,
) -> std::io::Result<()> {
    let (mut request, mut answer, mut mute) = (vec![0; 65_536], vec![0; 65_536], false);
    loop {
        tokio::select! {
            read = client.read(&mut request) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                mute |= request[..read].windows(bytes.len()).any(|window| window == bytes.as_bytes());
                server.write_all(&request[..read]).await?;
                if mute && ends() {
                    return Ok(());
                }
            }
            read = server.read(&mut answer) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                if !mute {
                    client.write_all(&answer[..read]).await?;
                }
            }
        }
    }
}
