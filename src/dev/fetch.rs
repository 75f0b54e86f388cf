//! Downloads PostgreSQL's server binaries for a machine without them, from Maven Central, pinned by version and
//! SHA-256.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::run_as;
use crate::http_client;

const VERSION: &str = "18.6.0";
const BASE: &str = "https://repo1.maven.org/maven2/io/zonky/test/postgres";
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const DOWNLOAD_WITHIN: Duration = Duration::from_mins(5);

/// Why PostgreSQL's binaries could not be downloaded.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error("there is no build for {0}")]
    Platform(String),
    #[error("the download failed")]
    Http(#[from] reqwest::Error),
    #[error("{url} has SHA-256 {found}, not {pinned}")]
    Checksum { url: String, found: String, pinned: &'static str },
    #[error("the binaries could not be stored")]
    Io(#[from] std::io::Error),
    #[error("unpacking failed; it needs unzip, tar and xz: {0}")]
    Unpack(String),
}

/// The platform and the SHA-256 of its build. The builds for Linux need glibc.
fn build() -> Option<(&'static str, &'static str)> {
    Some(match (std::env::consts::OS, std::env::consts::ARCH) {
        _ if cfg!(target_env = "musl") => return None,
        ("linux", "x86_64") => {
            ("linux-amd64", "008ee189eaa7ca2b58bd01dd950291e638b998392cf982297acd4779ec898ac1")
        }
        ("linux", "aarch64") => {
            ("linux-arm64v8", "5f54e016723afa6213925a8acb939bac52944b1d348f65c7a20f0cd2928c31be")
        }
        ("macos", "x86_64") => {
            ("darwin-amd64", "690941008aac9ee360820fde9bb7870a4f3dcac5e9e2f9e45e42333a436ad0f9")
        }
        ("macos", "aarch64") => {
            ("darwin-arm64v8", "8f6ed6f38195b50a40712ada8b2a12060b6193c1a6977a6eb5cff053bb5a1b89")
        }
        _ => return None,
    })
}

/// The folder of the binaries. Downloads them once; later calls find them in the cache.
pub(super) async fn bin_folder() -> Result<PathBuf, FetchError> {
    let here = || format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH);
    let build = build().ok_or_else(|| FetchError::Platform(here()))?;
    let cache = cache();
    let home = cache.join(format!("postgresql-{VERSION}"));
    if home.exists() {
        return Ok(home.join("bin"));
    }
    fs::create_dir_all(&cache)?;
    // On the file system of its final place, so that the rename is atomic and an incomplete copy is never used.
    let scratch = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(&cache)?;
    let jar = scratch.path().join("postgresql.jar");
    let unpacked = scratch.path().join("postgresql");
    download(build, &jar).await?;
    let target = unpacked.clone();
    let unpacking = tokio::task::spawn_blocking(move || unpack(&jar, &target)).await;
    unpacking.map_err(std::io::Error::other)??;
    let moved = fs::rename(&unpacked, &home);
    match moved {
        // If the rename failed, another process may have been faster.
        Err(error) if !home.exists() => Err(error.into()),
        _ => Ok(home.join("bin")),
    }
}

async fn download((platform, pinned): (&str, &'static str), target: &Path) -> Result<(), FetchError> {
    let artifact = format!("embedded-postgres-binaries-{platform}");
    let url = format!("{BASE}/{artifact}/{VERSION}/{artifact}-{VERSION}.jar");
    tracing::info!(%url, "this machine has no PostgreSQL: downloading it once");
    let client = http_client::builder()
        .https_only(true)
        .connect_timeout(CONNECT_WITHIN)
        .timeout(DOWNLOAD_WITHIN)
        .build()?;
    let mut response = client.get(&url).send().await?.error_for_status()?;
    let mut file = File::create(target)?;
    let mut hash = Sha256::new();
    while let Some(chunk) = response.chunk().await? {
        hash.update(&chunk);
        file.write_all(&chunk)?;
    }
    let found = hash.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    if found == pinned {
        return Ok(());
    }
    Err(FetchError::Checksum { url, found, pinned })
}

/// The jar contains one tar archive.
fn unpack(jar: &Path, target: &Path) -> Result<(), FetchError> {
    fs::create_dir(target)?;
    let script = r#"unzip -p "$1" '*.txz' >"$1.txz" && tar -xJf "$1.txz" -C "$2""#;
    let output = Command::new("sh")
        .args(["-c", script, "unpack"])
        .args([jar, target])
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(FetchError::Unpack(complaint.trim().to_owned()))
}

/// The cache folder. As root it is outside root's home: the server then runs as another user, who cannot enter it.
fn cache() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let root = run_as::am_root().unwrap_or(false);
    let base = if root {
        PathBuf::from("/var/cache")
    } else {
        var("XDG_CACHE_HOME")
            .or_else(|| var("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(std::env::temp_dir)
    };
    base.join("order-service")
}
