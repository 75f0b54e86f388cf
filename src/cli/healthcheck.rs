//! Asks the service on this machine whether it is ready, or whether it lives; for containers that have no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::Failure;

const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn run(bound: SocketAddr, probe: &str) -> Result<(), Failure> {
    let url = format!("http://{}/health/{probe}", reachable(bound));
    let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
    let status = client.get(&url).send().await?.status();
    if status.is_success() { Ok(()) } else { Err(format!("{url} answered {status}").into()) }
}

/// An address to connect to: what listens on every interface listens on loopback.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}
