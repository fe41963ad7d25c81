//! Snapshots on disk: one JSON file each, and a folder for those that can be mounted.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Format of the file: 1.
    pub version: u32,
    /// containerd's name of it.
    pub name: String,
    /// The name of the one below; empty for none.
    pub parent: String,
    /// What it is.
    pub kind: Kind,
    /// containerd's labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// When its labels changed last.
    pub updated_unix_ms: u64,
}

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// May be mounted to be read.
    View,
    /// May be mounted to be written.
    Active,
    /// A layer; has no content here.
    Committed,
}

/// Why the store cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refuses.
    #[error("cannot use {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// A file is not one of ours.
    #[error("{path} is damaged: containerd must unpack the image again; next: remove the file")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file of another version.
    #[error("{path} has version {found}, this program reads {VERSION}: use the peerpods-node that wrote it")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// All snapshots, in memory and on disk; one process at a time.
#[derive(Debug)]
pub struct Store {
    records: PathBuf,
    folders: PathBuf,
    snapshots: BTreeMap<String, Snapshot>,
}

const VERSION: u32 = 1;

impl Kind {
    /// containerd's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

impl Snapshot {
    /// One of now without parent and labels.
    pub fn new(name: &str, kind: Kind) -> Self {
        let now = crate::ledger::now_ms();
        Self {
            version: VERSION,
            name: name.to_owned(),
            parent: String::new(),
            kind,
            labels: BTreeMap::new(),
            created_unix_ms: now,
            updated_unix_ms: now,
        }
    }
}

impl Store {
    /// Reads what is there. Files that were being written are removed, and so are folders without a file.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let (records, folders) = (dir.join("records"), dir.join("folders"));
        for made in [&records, &folders] {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(made).map_err(io(made))?;
        }
        let mut snapshots = BTreeMap::new();
        for entry in fs::read_dir(&records).map_err(io(&records))? {
            let path = entry.map_err(io(&records))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                fs::remove_file(&path).map_err(io(&path))?;
                continue;
            }
            let snapshot: Snapshot = serde_json::from_slice(&fs::read(&path).map_err(io(&path))?)
                .map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
            if snapshot.version != VERSION {
                return Err(StoreError::Version { path, found: snapshot.version });
            }
            snapshots.insert(snapshot.name.clone(), snapshot);
        }
        let store = Self { records, folders, snapshots };
        let known: Vec<PathBuf> = store.snapshots.values().filter(|s| s.kind != Kind::Committed).map(|s| store.folder(&s.name)).collect();
        for entry in fs::read_dir(&store.folders).map_err(io(&store.folders))? {
            let path = entry.map_err(io(&store.folders))?.path();
            if !known.contains(&path) {
                fs::remove_dir_all(&path).map_err(io(&path))?;
            }
        }
        Ok(store)
    }

    /// One by its name.
    pub fn get(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.get(name)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.values()
    }

    /// Whether one stands on it.
    pub fn has_children(&self, name: &str) -> bool {
        self.snapshots.values().any(|snapshot| snapshot.parent == name)
    }

    /// The folder of one that can be mounted.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folders.join(hash(name))
    }

    /// Writes one, new or changed; durable when this returns.
    pub fn put(&mut self, snapshot: Snapshot) -> Result<(), StoreError> {
        let path = self.record(&snapshot.name);
        let new = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec(&snapshot)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            fs::File::open(&self.records)?.sync_all()
        };
        write().map_err(io(&path))?;
        self.snapshots.insert(snapshot.name.clone(), snapshot);
        Ok(())
    }

    /// Removes one with its folder; none of that name is no error.
    pub fn remove(&mut self, name: &str) -> Result<(), StoreError> {
        let path = self.record(name);
        absent(fs::remove_file(&path)).map_err(io(&path))?;
        self.snapshots.remove(name);
        self.clear(name)
    }

    /// Removes the folder of one.
    pub fn clear(&self, name: &str) -> Result<(), StoreError> {
        let folder = self.folder(name);
        absent(fs::remove_dir_all(&folder)).map_err(io(&folder))
    }

    fn record(&self, name: &str) -> PathBuf {
        self.records.join(format!("{}.json", hash(name)))
    }
}

/// Names have slashes and spaces and any length.
fn hash(name: &str) -> String {
    hex::encode(Sha256::digest(name))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path, source }
}

fn absent(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_outlive_the_process_and_leftovers_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.put(Snapshot::new("k8s.io/1/sha256:aa", Kind::Committed)).unwrap();
        store.put(Snapshot { parent: "k8s.io/1/sha256:aa".to_owned(), ..Snapshot::new("c", Kind::Active) }).unwrap();
        fs::create_dir(store.folder("c")).unwrap();
        fs::create_dir(store.folder("gone")).unwrap();
        fs::write(dir.path().join("records/x.new"), "{").unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.all().count(), 2);
        assert!(store.has_children("k8s.io/1/sha256:aa"));
        assert!(store.folder("c").exists() && !store.folder("gone").exists());
        store.remove("c").unwrap();
        store.remove("c").unwrap();
        assert!(!store.folder("c").exists());
        assert_eq!(Store::open(dir.path()).unwrap().all().count(), 1);
    }

    #[test]
    fn other_versions_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.put(Snapshot { version: 2, ..Snapshot::new("x", Kind::Active) }).unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("version 2"));
        assert_eq!(fs::read_dir(dir.path().join("records")).unwrap().count(), 1);
    }

    #[test]
    fn files_of_version_1_are_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("records")).unwrap();
        let bytes = include_bytes!("../../../../tests/compat/snapshots/v1/layer.json");
        fs::write(dir.path().join("records/x.json"), bytes).unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layer = store.get("sha256:aa").unwrap();
        assert_eq!((layer.kind, layer.parent.as_str()), (Kind::Committed, "sha256:00"));
    }
}
