//! The files of this version for operators and consumers: the `OpenAPI` and `AsyncAPI` documents, manifests, dashboards
//! and decision records. `order-service kit FOLDER` writes them. The files are in `src/kit`, and the binary contains
//! them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::api::{self, Topics};
use crate::config::{ORDER_EVENTS, PAYMENT_EVENTS};

/// Pairs each file name of `src/kit` with its text.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("kit/", $name)))),*]
    };
}

/// Every file with its path in the folder. A test compares the list with `src/kit`.
const FILES: &[(&str, &str)] = &files![
    "decisions/0001-publish-through-an-outbox.md",
    "decisions/0002-lease-buckets-of-orders.md",
    "decisions/0003-begin-each-read-behind-what-was-relayed.md",
    "decisions/0004-share-commits.md",
    "decisions/0005-write-the-idempotency-key-with-its-order.md",
    "decisions/0006-take-stock-by-jobs-in-the-database.md",
    "decisions/0007-store-the-offset-after-the-work-and-park-what-cannot-be-applied.md",
    "decisions/0008-believe-the-gateways-headers.md",
    "decisions/0009-plans-do-not-depend-on-statistics.md",
    "decisions/0010-test-on-real-parts.md",
    "decisions/0011-libraries-for-everything-but-orders.md",
    "grafana/order-service.json",
    "grafana/provisioning/dashboards/order-service.yml",
    "grafana/provisioning/datasources/prometheus.yml",
    "kubernetes/configmap.yaml",
    "kubernetes/deployment.yaml",
    "kubernetes/horizontalpodautoscaler.yaml",
    "kubernetes/kustomization.yaml",
    "kubernetes/migrate.yaml",
    "kubernetes/networkpolicy.yaml",
    "kubernetes/poddisruptionbudget.yaml",
    "kubernetes/prometheusrule.yaml",
    "kubernetes/secret.yaml",
    "kubernetes/service.yaml",
    "kubernetes/servicemonitor.yaml",
    "otel/collector.yml",
    "prometheus/prometheus.yml",
    "prometheus/rules.test.yml",
    "prometheus/rules/order-service.yml",
    "runbooks/OrderServiceDatabasePoolExhausted.md",
    "runbooks/OrderServiceErrorBudgetBurn.md",
    "runbooks/OrderServiceLatencyHigh.md",
    "runbooks/OrderServiceNotReady.md",
    "runbooks/OrderServiceOrdersStuck.md",
    "runbooks/OrderServiceOutboxParked.md",
    "runbooks/OrderServicePaymentsLag.md",
    "runbooks/OrderServicePaymentsParked.md",
    "runbooks/OrderServiceProductServiceUnavailable.md",
    "runbooks/OrderServiceRefundsDue.md",
    "runbooks/OrderServiceRelayBucketsUnheld.md",
    "runbooks/OrderServiceRelayLag.md",
    "runbooks/OrderServiceStockJobsOverdue.md",
    "runbooks/OrderServiceStockJobsParked.md",
    "runbooks/OrderServiceTargetDown.md",
    "runbooks/README.md",
];

/// The path of the `OpenAPI` document.
const OPENAPI: &str = "openapi.json";

/// The path of the `AsyncAPI` document. It has the default names of the topics.
const ASYNCAPI: &str = "asyncapi.json";

/// Why the files were not written.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum KitError {
    #[error("{} is not empty: name a new folder, or an empty one", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} cannot be written", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("the OpenAPI or the AsyncAPI document cannot be rendered")]
    Render(#[from] serde_json::Error),
}

/// Writes all files to a folder that is new or empty, and returns their number. Overwrites nothing.
pub fn write(folder: &Path) -> Result<usize, KitError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| KitError::Write(path, error)
    };
    let (openapi, asyncapi) = (api::openapi().to_pretty_json()?, asyncapi()?);
    fs::create_dir_all(folder).map_err(failed(folder))?;
    if fs::read_dir(folder).map_err(failed(folder))?.next().is_some() {
        return Err(KitError::NotEmpty(folder.to_owned()));
    }
    let files = FILES.iter().copied().chain([(OPENAPI, openapi.as_str()), (ASYNCAPI, asyncapi.as_str())]);
    let mut written = 0;
    for (name, text) in files {
        let path = folder.join(name);
        let write = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            File::create_new(&path)?.write_all(text.as_bytes())
        };
        write().map_err(failed(&path))?;
        written += 1;
    }
    Ok(written)
}

fn asyncapi() -> Result<String, serde_json::Error> {
    let topics = Topics { orders: ORDER_EVENTS, payments: PAYMENT_EVENTS };
    serde_json::to_string_pretty(&api::asyncapi(&topics))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The files below a folder, by their relative path.
    fn below(folder: &Path) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, fs::read_to_string(path).unwrap());
                }
            }
        }
        found
    }

    #[test]
    fn the_kit_contains_exactly_the_files_of_its_source_folder() {
        let written = tempfile::tempdir().unwrap();
        let folder = written.path().join("new/kit");

        assert_eq!(write(&folder).unwrap(), FILES.len() + 2);

        let mut source = below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kit"));
        source.insert(OPENAPI.to_owned(), api::openapi().to_pretty_json().unwrap());
        source.insert(ASYNCAPI.to_owned(), asyncapi().unwrap());
        let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&below(&folder)), names(&source), "add or remove it in FILES of src/kit.rs");
        assert!(below(&folder) == source, "a file differs");
    }

    #[test]
    fn a_folder_that_is_not_empty_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mine"), "text").unwrap();

        let refused = write(folder.path()).unwrap_err();

        assert!(matches!(refused, KitError::NotEmpty(_)), "{refused}");
        assert_eq!(below(folder.path()), BTreeMap::from([("mine".to_owned(), "text".to_owned())]));
        let file = folder.path().join("mine");
        let refused = write(&file).unwrap_err();
        assert!(matches!(refused, KitError::Write(..)), "{refused}");
    }

    #[test]
    fn the_manifests_name_this_version() {
        let version = env!("CARGO_PKG_VERSION");
        let text = |name: &str| FILES.iter().find(|(file, _)| *file == name).unwrap().1;
        assert!(text("kubernetes/kustomization.yaml").contains(&format!("newTag: {version}\n")));
        let job = format!("name: order-service-migrate-{}\n", version.replace('.', "-"));
        assert!(text("kubernetes/migrate.yaml").contains(&job));
    }
}
