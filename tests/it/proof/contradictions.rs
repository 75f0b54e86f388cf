//! The result of `order-service check` on the final database.

use serde_json::Value;

use super::promise::Promise;
use super::world::World;
use crate::support::command;

pub(super) async fn check(world: &World) -> Promise {
    let mut check = command("check", &world.environment());
    check.arg("--json");
    let output = tokio::task::spawn_blocking(move || check.output().unwrap()).await.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let mut found = Promise::no("contradictions that order-service check finds");
    for _ in 0..report["checked"]["orders"].as_u64().unwrap() {
        found.try_out(true, String::new);
    }
    for broken in report["broken"].as_array().unwrap() {
        found.try_out(false, || broken.to_string());
    }
    found
}
