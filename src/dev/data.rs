//! The folder of `dev --data`, which keeps data from one start to the next.
//!
//! | file or folder | content |
//! |---|---|
//! | `order-service-dev` | marks a folder of `dev`; locked while it is in use |
//! | `postgres/` | PostgreSQL's data, with PostgreSQL's own durability |
//! | `products.jsonl` | every change of the demo Product Service's catalogue and stock |
//! | `kafka.jsonl` | the records of both topics |
//!
//! Kafka's records keep their partitions and offsets. Consumer groups are not kept: at the next start each group begins
//! where its `auto.offset.reset` says, and the service recognises the payments that it has read before. If `dev` is
//! killed instead of stopped, its last records may be missing from `kafka.jsonl`. A power cut may also remove the last
//! lines of both `.jsonl` files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::DevError;

const MARKER: &str = "order-service-dev";
/// The content of the marker. Each incompatible change of the folder's format increments the number.
const FORMAT: &str = "data of order-service dev, format 1\n";
/// A PostgreSQL whose `dev` was killed keeps the folder locked until it has stopped.
const FREE_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// A data folder, locked by this process.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    lock: File,
}

impl DataFolder {
    /// Creates the folder if it is missing, and locks it. Refuses a folder that is in use, or that `dev` did not
    /// create.
    pub async fn open(path: &Path) -> Result<Self, DevError> {
        let refused = |why: String| DevError::Data { folder: path.to_owned(), why };
        let failed = |what| move |error: std::io::Error| refused(format!("cannot be {what}: {error}"));
        fs::create_dir_all(path).map_err(failed("created"))?;
        let folder = path.canonicalize().map_err(failed("read"))?;
        let marker = folder.join(MARKER);
        let is_empty = fs::read_dir(&folder).map_err(failed("read"))?.next().is_none();
        if !is_empty && !marker.exists() {
            return Err(refused("is not empty, and `dev` did not create it: name a new folder".to_owned()));
        }
        let options = OpenOptions::new().read(true).append(true).create(true).open(&marker);
        let mut lock = options.map_err(failed("written"))?;
        let deadline = Instant::now() + FREE_WITHIN;
        while let Err(error) = lock.try_lock() {
            match error {
                TryLockError::WouldBlock if Instant::now() < deadline => sleep(POLL).await,
                TryLockError::WouldBlock => return Err(refused("is in use by another `dev`".to_owned())),
                TryLockError::Error(error) => return Err(failed("locked")(error)),
            }
        }
        let mut format = String::new();
        lock.read_to_string(&mut format).map_err(failed("read"))?;
        if format.is_empty() {
            lock.write_all(FORMAT.as_bytes()).map_err(failed("written"))?;
        } else if format != FORMAT {
            return Err(refused("was created by another version of `dev`".to_owned()));
        }
        Ok(Self { path: folder, lock })
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.path.join("postgres")
    }

    /// Opens a file of the folder, and reads its complete lines as JSON.
    pub(super) fn read_lines<T: DeserializeOwned>(&self, name: &str) -> Result<(File, Vec<T>), DevError> {
        let (file, lines) =
            whole_lines(&self.path.join(name)).map_err(DevError::io("read a file of --data"))?;
        let read = |(number, line): (usize, &String)| {
            serde_json::from_str(line).map_err(|error| {
                self.refuse(format!("has no readable line {} in {name}: {error}", number + 1))
            })
        };
        Ok((file, lines.iter().enumerate().map(read).collect::<Result<_, _>>()?))
    }

    /// The lock, for a child process that also uses the folder. It is released when both processes have ended.
    pub(super) fn lock(&self) -> std::io::Result<File> {
        self.lock.try_clone()
    }

    /// An error about the folder that names `--data`.
    pub(super) fn refuse(&self, why: String) -> DevError {
        DevError::Data { folder: self.path.clone(), why }
    }
}

/// Reads the complete lines of a file, and cuts off a last line that a killed process has left incomplete.
fn whole_lines(path: &Path) -> std::io::Result<(File, Vec<String>)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    file.set_len(whole as u64)?;
    Ok((file, text[..whole].lines().map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_with_other_files_is_refused_and_unchanged() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("letter.txt"), "dear")?;
        let refusal = DataFolder::open(folder.path()).await.err().map(|error| error.to_string());
        assert!(refusal.is_some_and(|text| text.starts_with("--data ") && text.contains("is not empty")));
        assert_eq!(fs::read_dir(folder.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn an_incomplete_last_line_is_truncated() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("lines");
        fs::write(&path, "one\ntwo\nthr")?;
        let (mut file, lines) = whole_lines(&path)?;
        assert_eq!(lines, ["one", "two"]);
        file.write_all(b"three\n")?;
        assert_eq!(fs::read_to_string(&path)?, "one\ntwo\nthree\n");
        Ok(())
    }
}
