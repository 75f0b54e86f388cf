//! The layers of the crate: a module imports only modules of the layers below it, so no two import each other.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules, lowest first.
const LAYERS: &[&str] = &[
    "json",
    "lifecycle",
    "domain",
    "telemetry",
    "store",
    "products",
    "orders",
    "events",
    "api",
    "config",
    "kit",
    "app",
    "dev",
];

/// The source files of a folder and its sub-folders, without tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    let is_source = |path: &PathBuf| {
        let is_test = path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
        path.extension().is_some_and(|extension| extension == "rs") && !is_test
    };
    files.filter(is_source).collect()
}

#[test]
fn a_module_imports_only_modules_of_lower_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layer = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    for path in sources(&root) {
        let relative = path.strip_prefix(&root).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let Some(here) = layer(module.trim_end_matches(".rs")) else { continue };
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for import in code.split("crate::").skip(1) {
            let name: String = import.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let there =
                layer(&name).unwrap_or_else(|| panic!("{}: add {name} to LAYERS", relative.display()));
            assert!(there <= here, "{} must not import {name}", relative.display());
        }
    }
}
