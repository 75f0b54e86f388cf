//! Checks the readiness or the liveness of the service on this machine, for containers without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use order_service::http_client;

use super::Failure;

const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn run(bound: SocketAddr, probe: &str) -> Result<(), Failure> {
    let url = format!("http://{}/health/{probe}", reachable(bound));
    let client = http_client::plain_builder().no_proxy().timeout(TIMEOUT).build()?;
    let status = client.get(&url).send().await?.status();
    if status.is_success() { Ok(()) } else { Err(format!("{url} answered {status}").into()) }
}

/// The address to connect to: a service that listens on all interfaces also listens on loopback.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}
