//! The length and the seed of a proof.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The plan from the environment; by default the short proof of `cargo test`.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The seed of all random choices (`PROOF_SEED`).
    pub(super) seed: u64,
    /// The minimum number of killed processes (`PROOF_KILLS`).
    pub(super) kills: usize,
    /// The minimum number of answered requests (`PROOF_REQUESTS`).
    pub(super) requests: usize,
    /// The number of concurrent clients (`PROOF_CLIENTS`).
    pub(super) clients: usize,
    /// A command with `start`, `restart` and `stop` for a real broker (`PROOF_KAFKA`); else the embedded one.
    pub(super) kafka: Option<String>,
}

impl Plan {
    pub(super) fn read() -> Self {
        Self {
            seed: number("PROOF_SEED", 1),
            kills: number("PROOF_KILLS", 16),
            requests: number("PROOF_REQUESTS", 400),
            clients: number("PROOF_CLIENTS", 16),
            kafka: std::env::var("PROOF_KAFKA").ok().filter(|command| !command.is_empty()),
        }
    }

    /// The payment deadline: most payments arrive before it, and the proof can wait for it.
    pub(super) fn unpaid_order_ttl(&self) -> Duration {
        Duration::from_secs((8 + self.kills as u64 / 2).min(40))
    }
}

fn number<T: FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name} must be a number")),
        _ => default,
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, kills, requests, clients, kafka } = self;
        let broker = kafka.as_deref().unwrap_or("embedded");
        write!(
            f,
            "PROOF_SEED={seed} PROOF_KILLS={kills} PROOF_REQUESTS={requests} PROOF_CLIENTS={clients}, Kafka: {broker}"
        )
    }
}
