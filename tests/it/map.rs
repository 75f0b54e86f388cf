//! The map in `src/lib.rs` is correct: the tests that it names exist, and the modules respect their layers.

use std::fs;
use std::path::{Path, PathBuf};

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

#[test]
fn the_map_names_only_tests_that_exist() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let tests: Vec<(String, String)> = rust_files("tests/it")
        .iter()
        .map(|file| (file.display().to_string(), fs::read_to_string(file).unwrap()))
        .collect();
    let named = map.split('`').filter_map(|text| text.split_once("::")).filter(|(file, _)| {
        file.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') && *file != "events"
    });
    let mut count = 0;
    for (file, test) in named {
        let there = tests.iter().any(|(path, text)| {
            path.contains(&format!("it/{file}")) && (test == "*" || text.contains(&format!("fn {test}(")))
        });
        assert!(there, "{file}::{test}");
        count += 1;
    }
    assert!(count >= 12, "the map names only {count} tests");
}

/// The modules of the crate, lowest first.
const LAYERS: &[&str] = &[
    "http_client",
    "json",
    "lifecycle",
    "domain",
    "metrics",
    "telemetry",
    "store",
    "products",
    "orders",
    "events",
    "api",
    "config",
    "kit",
    "app",
];

/// This rules out import cycles between modules.
#[test]
fn a_module_imports_only_modules_of_lower_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layer = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    for file in rust_files("src") {
        let relative = file.strip_prefix(&root).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let is_test = relative.iter().any(|part| part == "tests" || part == "tests.rs");
        let Some(here) = layer(module).filter(|_| !is_test) else { continue };
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for import in code.split("crate::").skip(1) {
            let name: String = import.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let there = layer(&name).unwrap_or_else(|| panic!("{}: {name} has no layer", file.display()));
            assert!(there <= here, "{} must not import {name}", file.display());
        }
    }
}

#[test]
fn a_module_uses_only_the_frameworks_of_its_layer() {
    let forbidden: [(&str, &[&str]); 4] = [
        ("src/domain", &["axum::", "sqlx::", "rdkafka::", "reqwest::", "tokio::", "async fn"]),
        ("src/orders", &["axum::", "sqlx::", "rdkafka::", "reqwest::"]),
        ("src/store", &["axum::", "rdkafka::", "reqwest::"]),
        ("src/api", &["sqlx::", "rdkafka::"]),
    ];
    for (folder, words) in forbidden {
        for file in rust_files(folder) {
            let text = fs::read_to_string(&file).unwrap();
            for word in words {
                assert!(!text.contains(word), "{} uses {word}", file.display());
            }
        }
    }
}
