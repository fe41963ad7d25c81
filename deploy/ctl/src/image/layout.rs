//! An OCI image layout: `oci-layout`, `index.json`, and content by its digest below `blobs/`.
//!
//! Layouts come from elsewhere: every document that is read is compared with its digest, and a layer's digest is checked by who reads it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use peerpods_image::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A layout that can be read, and written unless it came out of an archive.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    /// Where an archive was unpacked; gone with this.
    unpacked: Option<TempDir>,
}

/// Content by digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Such as `application/vnd.oci.image.manifest.v1+json`; empty if not given.
    pub(crate) media_type: String,
    /// Of the content.
    pub(crate) digest: Digest,
}

/// A layout cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    /// The system refuses.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// Such as `read`.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no OCI image layout: {reason}; next: `skopeo copy docker://IMAGE oci:DIR` makes one", path.display())]
    NotALayout {
        /// What was named.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A document in it.
    #[error("{what} {digest} cannot be read: {reason}")]
    Document {
        /// Such as `manifest`.
        what: &'static str,
        /// Its digest.
        digest: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The target is there already.
    #[error("{} is there already; next: name another or remove it", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
}

/// Bytes of a manifest, an index, or a configuration.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Manifests below one index: platforms and their attestations.
pub(super) const MAX_MANIFESTS: usize = 256;
const INDEX: &str = "index.json";
const MARKER: &str = "oci-layout";

/// Such as `sha256`.
pub(super) fn algorithm(digest: &Digest) -> &str {
    digest.as_str().split_once(':').map_or("", |(algorithm, _)| algorithm)
}

/// The hexadecimal digits of a digest.
pub(super) fn hex_of(digest: &Digest) -> &str {
    digest.as_str().split_once(':').map_or("", |(_, hex)| hex)
}

pub(super) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayoutError {
    move |source| LayoutError::Io { operation, path: path.to_owned(), source }
}

impl Layout {
    /// Opens a folder, or unpacks an archive beside nothing of the user's.
    pub(crate) fn open(path: &Path) -> Result<Self, LayoutError> {
        let is_folder = fs::metadata(path).map_err(io_error("read", path))?.is_dir();
        let layout = if is_folder {
            Self { root: path.to_owned(), unpacked: None }
        } else {
            let folder = TempDir::new().map_err(io_error("make a temporary folder for", path))?;
            unpack(path, folder.path())?;
            Self { root: folder.path().to_owned(), unpacked: Some(folder) }
        };
        let not = |reason: &str| LayoutError::NotALayout { path: path.to_owned(), reason: reason.to_owned() };
        let marker = read_document(&layout.root.join(MARKER)).map_err(|_| not("it has no file oci-layout"))?;
        let marker: Value = serde_json::from_slice(&marker).map_err(|_| not("oci-layout is no JSON"))?;
        match marker["imageLayoutVersion"].as_str() {
            Some("1.0.0") => Ok(layout),
            other => Err(not(&format!("its version is {}; only 1.0.0 is known", other.unwrap_or("missing")))),
        }
    }

    /// Makes an empty layout in a folder that is not there.
    pub(crate) fn create(path: &Path) -> Result<Self, LayoutError> {
        fs::create_dir(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => LayoutError::Exists { path: path.to_owned() },
            _ => io_error("make", path)(error),
        })?;
        let blobs = path.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(io_error("make", &blobs))?;
        let layout = Self { root: path.to_owned(), unpacked: None };
        write_whole(&path.join(MARKER), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(layout)
    }

    /// Whether what is written into it is lost.
    pub(crate) fn is_temporary(&self) -> bool {
        self.unpacked.is_some()
    }

    /// Entries of index.json, as they are.
    pub(crate) fn entries(&self) -> Result<Vec<Value>, LayoutError> {
        let path = self.root.join(INDEX);
        let not = |reason: &str| LayoutError::NotALayout { path: self.root.clone(), reason: reason.to_owned() };
        let index: Value = serde_json::from_slice(&read_document(&path)?).map_err(|error| not(&format!("index.json: {error}")))?;
        match index["manifests"].as_array() {
            Some(manifests) if manifests.len() <= MAX_MANIFESTS => Ok(manifests.clone()),
            Some(_) => Err(not("index.json has too many manifests")),
            None => Err(not("index.json has no manifests")),
        }
    }

    /// Replaces index.json in one step.
    pub(crate) fn set_entries(&self, manifests: &[Value]) -> Result<(), LayoutError> {
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
        write_whole(&self.root.join(INDEX), index.to_string().as_bytes())
    }

    /// A JSON document by its digest, which it is compared with.
    pub(crate) fn document(&self, what: &'static str, digest: &Digest) -> Result<Value, LayoutError> {
        let unreadable = |reason: String| LayoutError::Document { what, digest: digest.to_string(), reason };
        let bytes = read_document(&self.blob(digest))?;
        if algorithm(digest) != "sha256" {
            return Err(unreadable("only sha256 digests are supported".to_owned()));
        }
        if Digest::of(&bytes) != *digest {
            return Err(unreadable("its content has another digest; was it changed?".to_owned()));
        }
        serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))
    }

    /// A blob for reading as it is: nothing is checked.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File, LayoutError> {
        let path = self.blob(digest);
        File::open(&path).map_err(io_error("read", &path))
    }

    /// Adds content; gives its digest.
    pub(crate) fn add(&self, content: &[u8]) -> Result<Digest, LayoutError> {
        let digest = Digest::of(content);
        write_whole(&self.blob(&digest), content)?;
        Ok(digest)
    }

    /// Adds what `write` writes and gives the digest of.
    pub(crate) fn add_with<T, E: From<LayoutError>>(
        &self,
        write: impl FnOnce(&mut File) -> Result<(Digest, T), E>,
    ) -> Result<(Digest, T), E> {
        let folder = self.root.join("blobs/sha256");
        let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(io_error("write into", &folder))?;
        let (digest, value) = write(file.as_file_mut())?;
        let path = self.blob(&digest);
        publish(file, &path)?;
        Ok((digest, value))
    }

    /// Copies a document of another layout, whose digest was checked when it was read.
    pub(crate) fn copy_document(&self, from: &Self, what: &'static str, digest: &Digest) -> Result<(), LayoutError> {
        from.document(what, digest)?;
        let source = from.blob(digest);
        self.add(&read_document(&source)?).map(drop)
    }

    /// Writes the layout as a tar of which the same layout gives the same bytes.
    pub(crate) fn archive(&self, path: &Path) -> Result<(), LayoutError> {
        let failed = |error| io_error("write", path)(error);
        let file = File::create_new(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => LayoutError::Exists { path: path.to_owned() },
            _ => failed(error),
        })?;
        let mut tar = tar::Builder::new(io::BufWriter::new(file));
        tar.mode(tar::HeaderMode::Deterministic);
        for name in [MARKER, INDEX] {
            tar.append_path_with_name(self.root.join(name), name).map_err(failed)?;
        }
        let blobs = self.root.join("blobs/sha256");
        let listed = fs::read_dir(&blobs).map_err(io_error("read", &blobs))?;
        let mut names: Vec<_> = listed.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>().map_err(failed)?;
        names.sort();
        for name in names {
            tar.append_path_with_name(blobs.join(&name), Path::new("blobs/sha256").join(&name)).map_err(failed)?;
        }
        let file = tar.into_inner().and_then(|buffer| buffer.into_inner().map_err(|error| error.into_error())).map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(algorithm(digest)).join(hex_of(digest))
    }
}

impl Descriptor {
    /// Reads a descriptor of an index or a manifest.
    pub(crate) fn parse(value: &Value) -> Result<Self, LayoutError> {
        let text = value["digest"].as_str().unwrap_or_default();
        let digest = text.parse().map_err(|error: peerpods_image::DigestError| LayoutError::Document {
            what: "descriptor of",
            digest: text.chars().take(80).collect(),
            reason: error.to_string(),
        })?;
        Ok(Self { media_type: value["mediaType"].as_str().unwrap_or_default().to_owned(), digest })
    }
}

/// Unpacks what a layout has, and nothing else: plain files below plain folders.
fn unpack(archive: &Path, target: &Path) -> Result<(), LayoutError> {
    let failed = |error| io_error("unpack", archive)(error);
    let mut tar = tar::Archive::new(io::BufReader::new(File::open(archive).map_err(io_error("read", archive))?));
    for entry in tar.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let name = entry.path().map_err(failed)?.into_owned();
        let parts: Vec<_> = name.components().filter(|part| *part != Component::CurDir).collect();
        let is_plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
        let is_wanted = match parts.as_slice() {
            [Component::Normal(name)] => *name == MARKER || *name == INDEX,
            [Component::Normal(blobs), Component::Normal(_), Component::Normal(_)] => *blobs == "blobs",
            _ => false,
        };
        if !entry.header().entry_type().is_file() || !is_plain || !is_wanted {
            continue;
        }
        let path = target.join(parts.iter().collect::<PathBuf>());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        io::copy(&mut entry, &mut File::create(&path).map_err(failed)?).map_err(failed)?;
    }
    Ok(())
}

fn read_document(path: &Path) -> Result<Vec<u8>, LayoutError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io_error("read", path))?;
    file.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(io_error("read", path)(io::Error::other("it is longer than such documents are")));
    }
    Ok(bytes)
}

/// So that no reader sees half of it.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), LayoutError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io_error("write into", folder))?;
    file.write_all(content).map_err(io_error("write", path))?;
    publish(file, path)
}

/// Temporary files are their owner's alone; layouts are for whoever may enter their folder.
fn publish(file: tempfile::NamedTempFile, path: &Path) -> Result<(), LayoutError> {
    use std::os::unix::fs::PermissionsExt as _;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(io_error("write", path))?;
    file.as_file().sync_all().map_err(io_error("write", path))?;
    file.persist(path).map_err(|error| io_error("write", path)(error.error)).map(drop)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A layout with one image of two layers, as skopeo writes it, under tag 1; gives the image's digest.
    pub(crate) fn sample(path: &Path, layers: &[&[u8]]) -> Digest {
        let layout = Layout::create(path).unwrap();
        let config = br#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let descriptor = |media_type: &str, content: &[u8]| json!({"mediaType": media_type, "digest": layout.add(content).unwrap(), "size": content.len()});
        let layers: Vec<Value> = layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", config), "layers": layers});
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
        layout.set_entries(&[entry.clone()]).unwrap();
        Descriptor::parse(&entry).unwrap().digest
    }

    #[test]
    fn archives_and_folders_hold_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, tar) = (folder.path().join("a"), folder.path().join("a.tar"));
        let digest = sample(&dir, &[b"layer"]);
        let layout = Layout::open(&dir).unwrap();
        layout.archive(&tar).unwrap();
        assert!(matches!(layout.archive(&tar), Err(LayoutError::Exists { .. })));
        let archived = Layout::open(&tar).unwrap();
        assert!(archived.is_temporary() && !layout.is_temporary());
        assert_eq!(archived.entries().unwrap(), layout.entries().unwrap());
        assert_eq!(archived.document("manifest", &digest).unwrap(), layout.document("manifest", &digest).unwrap());
        assert!(matches!(Layout::create(&dir), Err(LayoutError::Exists { .. })));
    }

    #[test]
    fn other_folders_and_changed_documents_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Layout::open(folder.path()), Err(LayoutError::NotALayout { .. })));
        let dir = folder.path().join("a");
        let digest = sample(&dir, &[b"layer"]);
        fs::write(dir.join("blobs/sha256").join(hex_of(&digest)), "{}").unwrap();
        let error = Layout::open(&dir).unwrap().document("manifest", &digest).unwrap_err();
        assert!(error.to_string().contains("another digest"), "{error}");
        fs::write(dir.join(MARKER), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
        assert!(Layout::open(&dir).unwrap_err().to_string().contains("2.0.0"));
    }

    #[test]
    fn archives_cannot_leave_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hostile.tar");
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        for name in ["blobs/../../escaped", "escaped", "/escaped"] {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(1);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append(&header, &b"x"[..]).unwrap();
        }
        tar.finish().unwrap();
        let target = folder.path().join("target");
        fs::create_dir(&target).unwrap();
        unpack(&path, &target).unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        assert!(!folder.path().join("escaped").exists());
    }
}
