//! Finds PostgreSQL's server binaries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::DevError;
use super::fetch::{self, FetchError};

/// The binaries that create a database and serve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
}

impl Binaries {
    /// The machine's own binaries, or downloaded ones if it has none.
    pub(super) async fn find_or_fetch() -> Result<Self, DevError> {
        if let Some(binaries) = Self::installed() {
            return Ok(binaries);
        }
        Self::fetch().await.map_err(|cause| DevError::NoPostgres {
            install: if cfg!(target_os = "macos") {
                "brew install postgresql"
            } else {
                "apt-get install -y postgresql"
            },
            cause,
        })
    }

    /// Whether the server has this major version. A data folder names the major version that created it.
    pub(super) fn is_version(&self, major: &str) -> Result<bool, DevError> {
        let answer = Command::new(&self.postgres).arg("--version").output();
        let answer = answer.map_err(DevError::io("ask PostgreSQL for its version"))?;
        // `postgres (PostgreSQL) 17.6 (Debian 17.6-1)`
        let text = String::from_utf8_lossy(&answer.stdout);
        let version = text.split_whitespace().nth(2).unwrap_or_default();
        let version: String = version.chars().take_while(char::is_ascii_digit).collect();
        Ok(version == major)
    }

    async fn fetch() -> Result<Self, FetchError> {
        let folder = fetch::bin_folder().await?;
        let missing = || FetchError::Unpack(format!("{} lacks initdb or postgres", folder.display()));
        Self::in_folder(&folder).ok_or_else(missing)
    }

    fn installed() -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(pg_config_bindir())
            .chain(versions("/usr/lib/postgresql", ""))
            .chain(versions("/opt/homebrew/opt", "postgresql"))
            .chain(versions("/usr/local/opt", "postgresql"))
            .find_map(|folder| Self::in_folder(&folder))
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        // The server runs in another folder, where a relative entry of PATH is wrong.
        let folder = folder.canonicalize().ok()?;
        let binaries = Self { initdb: folder.join("initdb"), postgres: folder.join("postgres") };
        (binaries.initdb.is_file() && binaries.postgres.is_file()).then_some(binaries)
    }
}

fn pg_config_bindir() -> Option<PathBuf> {
    let answer = Command::new("pg_config").arg("--bindir").output().ok()?;
    let folder = String::from_utf8(answer.stdout).ok()?;
    answer.status.success().then(|| PathBuf::from(folder.trim()))
}

/// The `bin` folders of all versions below a folder, the highest version first.
fn versions(folder: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = version(name.strip_prefix(prefix)?)?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, bin)| bin).collect()
}

/// `17` of Debian and `@17` of Homebrew; Homebrew's name without a number is a link to its current one.
fn version(suffix: &str) -> Option<u32> {
    if suffix.is_empty() {
        return Some(u32::MAX);
    }
    suffix.trim_start_matches('@').split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::versions;

    #[test]
    fn the_highest_version_comes_first() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        for name in ["postgresql@9.6", "postgresql@17", "postgresql@18", "postgresql-hooks", "redis"] {
            fs::create_dir(folder.path().join(name))?;
        }
        let found = versions(&folder.path().to_string_lossy(), "postgresql");
        let expected = ["postgresql@18/bin", "postgresql@17/bin", "postgresql@9.6/bin"];
        assert_eq!(found, expected.map(|name| folder.path().join(name)));
        Ok(())
    }
}
