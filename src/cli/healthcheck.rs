//! Checks the readiness or the liveness of the service on this machine, for containers without curl.

use std::net::SocketAddr;
use std::time::Duration;

use order_service::http_client;

use super::Failure;

const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn run(address: SocketAddr, probe: &str) -> Result<(), Failure> {
    let url = format!("http://{address}/health/{probe}");
    let client = http_client::plain_builder().no_proxy().timeout(TIMEOUT).build()?;
    let status = client.get(&url).send().await?.status();
    if status.is_success() { Ok(()) } else { Err(format!("{url} answered {status}").into()) }
}
