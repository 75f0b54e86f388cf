//! The user and the folder for PostgreSQL, which refuses root.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::DevError;

const ROOT: u32 = 0;

/// The user that PostgreSQL runs as instead of root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunAs {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The user to run PostgreSQL as. `None` if the current user can run it.
pub(super) fn for_postgres() -> Result<Option<RunAs>, DevError> {
    if !am_root()? {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").map_err(DevError::io("read /etc/passwd"))?;
    find(&passwd, "postgres").or_else(|| find(&passwd, "nobody")).map(Some).ok_or(DevError::NoAccount)
}

/// Whether the current user is root. Takes the owner of a new file, which needs no unsafe code.
pub(super) fn am_root() -> Result<bool, DevError> {
    let probe = tempfile::tempfile().and_then(|file| file.metadata());
    Ok(probe.map_err(DevError::io("make a temporary file"))?.uid() == ROOT)
}

/// The folder for temporary files, or `/tmp` if the other user cannot use that folder.
pub(super) fn temp_dir(run_as: Option<&RunAs>) -> PathBuf {
    let usual = std::env::temp_dir();
    let is_open_to_all = || allows(&usual, 0o003) && can_be_reached(&usual);
    if run_as.is_none() || is_open_to_all() { usual } else { PathBuf::from("/tmp") }
}

/// Whether all users can enter the folder.
pub(super) fn can_be_reached(folder: &Path) -> bool {
    folder.ancestors().all(|parent| allows(parent, 0o001))
}

fn allows(path: &Path, bits: u32) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & bits == bits)
}

fn find(passwd: &str, name: &str) -> Option<RunAs> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        (uid != ROOT).then_some(RunAs { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::{RunAs, find};

    #[test]
    fn the_uid_and_gid_are_parsed() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\npostgres:x:101:104:PostgreSQL,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(find(passwd, "postgres"), Some(RunAs { uid: 101, gid: 104 }));
        assert_eq!(find(passwd, "nobody"), None);
        assert_eq!(find(passwd, "root"), None);
    }
}
