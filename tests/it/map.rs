//! The map in `src/lib.rs` is true: the tests that it names exist, and the arrows of import hold.

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
fn every_test_that_the_map_names_exists() {
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
    assert!(count >= 12, "only {count} tests are named");
}

#[test]
fn the_arrows_of_import_hold() {
    let forbidden: [(&str, &[&str]); 4] = [
        ("src/domain", &["axum::", "sqlx::", "rdkafka::", "reqwest::", "tokio::", "async fn"]),
        ("src/orders", &["axum::", "sqlx::", "rdkafka::", "reqwest::", "crate::api", "crate::events"]),
        ("src/store", &["axum::", "rdkafka::", "reqwest::", "crate::api", "crate::orders", "crate::events"]),
        ("src/api", &["sqlx::", "rdkafka::"]),
    ];
    for (folder, words) in forbidden {
        for file in rust_files(folder) {
            let text = fs::read_to_string(&file).unwrap();
            for word in words {
                assert!(!text.contains(word), "{} imports {word}", file.display());
            }
        }
    }
}
