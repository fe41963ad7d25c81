//! The pod's folder: what the daemon tells the link, and what the link tells the daemon.
//!
//! `link.json` is written by the daemon before it starts the link and never changes. `status.json` is written by the link alone, by
//! rename. `link.lock` is held by the link as long as it lives: a second link for the same folder ends at once, however it came to be
//! started, so a daemon that died between starting a link and noting it down does no harm.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use peerpods_tunnel::node::Pin;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What the link needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkFile {
    /// Format of this file: 1.
    pub version: u32,
    /// For the log.
    pub sandbox_id: String,
    /// For the log.
    pub instance_id: String,
    /// Where the pod VM answers.
    pub address: SocketAddr,
    /// The pod VM's key as it was when it was attested.
    pub pin: Pin,
    /// PEM file of the key that the pod VM lets drive its agent.
    pub node_key: PathBuf,
    /// Where shims connect.
    pub socket: PathBuf,
    /// The pod's network namespace on the node, whose local connections are forwarded; `None`: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
}

/// What the link is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkStatus {
    /// Format of this file: 1.
    pub version: u32,
    /// Whose file this is; says nothing once that process is gone.
    pub process: ProcessIdentity,
    /// Connections of shims that are open now.
    pub connections: u32,
    /// Connections of shims since the link began.
    pub accepted: u64,
    /// Sessions that are being resumed now.
    pub resuming: u32,
    /// Why the link ended, when the session was lost.
    pub lost: Option<String>,
}

/// A process that cannot be confused with a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// Clock ticks between the machine's boot and the process's start.
    pub start_time: u64,
}

/// Why a file of the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Another version wrote it.
    #[error("{path} has version {found}, this program reads 1: use the peerpods-link that came with the peerpods-node that wrote it")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

/// The version of both files.
pub const VERSION: u32 = 1;

const LINK: &str = "link.json";
const STATUS: &str = "status.json";
const LOCK: &str = "link.lock";
/// The link's output.
pub const LOG: &str = "link.log";
/// The name of the agent socket in the folder.
pub const SOCKET: &str = "agent.ttrpc";

impl LinkFile {
    /// Reads `link.json`.
    pub fn read(dir: &Path) -> Result<Self, FolderError> {
        read(&dir.join(LINK))
    }

    /// Writes `link.json`, mode 0600, by rename.
    pub fn write(&self, dir: &Path) -> Result<(), FolderError> {
        write(&dir.join(LINK), self)
    }

    /// Takes `link.json` away, so that a link which was started and has not read it ends at once; none there is no error.
    pub fn remove(dir: &Path) -> Result<(), FolderError> {
        let path = dir.join(LINK);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(FolderError::Write { path, source }),
            _ => Ok(()),
        }
    }

    /// Whether the daemon still wants a link here.
    pub fn exists(dir: &Path) -> bool {
        dir.join(LINK).exists()
    }
}

impl LinkStatus {
    /// A link that has just begun.
    pub fn new(process: ProcessIdentity) -> Self {
        Self { version: VERSION, process, connections: 0, accepted: 0, resuming: 0, lost: None }
    }

    /// Reads `status.json`; `None` if no link has written it yet.
    pub fn read(dir: &Path) -> Result<Option<Self>, FolderError> {
        match read(&dir.join(STATUS)) {
            Ok(status) => Ok(Some(status)),
            Err(FolderError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes `status.json` by rename.
    pub fn write(&self, dir: &Path) -> Result<(), FolderError> {
        write(&dir.join(STATUS), self)
    }
}

impl ProcessIdentity {
    /// The calling process.
    pub fn own() -> std::io::Result<Self> {
        let pid = std::process::id();
        let start_time = start_time(pid)?.ok_or_else(|| std::io::Error::other("the own process is not in /proc"))?;
        Ok(Self { pid, start_time })
    }

    /// Whether this very process runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        matches!(start_time(self.pid), Ok(Some(start_time)) if start_time == self.start_time)
    }
}

/// Takes the folder for the calling process; `None` if another link has it. Holds as long as the file is open.
pub fn lock(dir: &Path) -> Result<Option<File>, FolderError> {
    let path = dir.join(LOCK);
    let failed = |source| FolderError::Write { path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Field 22 of `/proc/<pid>/stat`; `None` when there is no such process or it is a zombie.
fn start_time(pid: u32) -> std::io::Result<Option<u64>> {
    let text = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        // ESRCH: the process ended between open and read.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    Ok(parse_stat(&text))
}

/// The name in parentheses may hold anything, so fields are counted from its end.
fn parse_stat(text: &str) -> Option<u64> {
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FolderError> {
    let bytes = std::fs::read(path).map_err(|source| FolderError::Read { path: path.to_owned(), source })?;
    let damaged = |source| FolderError::Damaged { path: path.to_owned(), source };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(found) if found != u64::from(VERSION) => Err(FolderError::Version { path: path.to_owned(), found }),
        _ => serde_json::from_value(value).map_err(damaged),
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), FolderError> {
    let failed = |source| FolderError::Write { path: path.to_owned(), source };
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| failed(std::io::Error::other(e)))?;
    bytes.push(b'\n');
    let temporary = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_alive_and_an_earlier_one_of_the_same_number_is_not() {
        let own = ProcessIdentity::own().expect("in /proc");
        assert!(own.is_alive());
        assert!(!ProcessIdentity { start_time: own.start_time + 1, ..own }.is_alive());
    }

    #[test]
    fn process_names_with_parentheses_do_not_shift_the_fields() {
        let tail = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(parse_stat(&format!("17 (a) b (c) {tail}")), Some(4242));
        assert_eq!(parse_stat("17 (gone) Z 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9"), None);
    }

    #[test]
    fn a_folder_has_one_link() {
        let dir = tempfile::tempdir().expect("tempdir");
        let held = lock(dir.path()).expect("lock").expect("free");
        assert!(lock(dir.path()).expect("lock").is_none());
        drop(held);
        assert!(lock(dir.path()).expect("lock").is_some());
    }

    #[test]
    fn unknown_version_is_refused_by_name_and_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join(LINK);
        std::fs::write(&path, r#"{"version":2,"new":true}"#).expect("write");
        let error = LinkFile::read(dir.path()).expect_err("refused");
        assert!(error.to_string().contains("version 2"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), r#"{"version":2,"new":true}"#);
    }

    #[test]
    fn status_that_was_never_written_is_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(LinkStatus::read(dir.path()).expect("none"), None);
        let status = LinkStatus::new(ProcessIdentity { pid: 7, start_time: 9 });
        status.write(dir.path()).expect("write");
        assert_eq!(LinkStatus::read(dir.path()).expect("read"), Some(status));
    }
}
