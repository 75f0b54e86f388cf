//! `order-service kit FOLDER` writes the files of this version and overwrites nothing.

use order_service::config::Environment;

use crate::support::command;

#[test]
fn the_kit_is_written_once_and_needs_no_settings() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("kit");
    let write = || command("kit", &Environment::default()).arg(&folder).output().unwrap();

    let output = write();

    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    let deployment = folder.join("kubernetes/deployment.yaml");
    let source = include_str!("../../src/kit/kubernetes/deployment.yaml");
    assert_eq!(std::fs::read_to_string(&deployment).unwrap(), source);

    std::fs::write(&deployment, "changed by hand").unwrap();
    let output = write();

    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("is not empty"), "{said}");
    assert_eq!(std::fs::read_to_string(&deployment).unwrap(), "changed by hand");
}
