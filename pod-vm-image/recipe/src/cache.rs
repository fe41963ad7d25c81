//! Downloads by digest: `$XDG_CACHE_HOME/peerpods` or `~/.cache/peerpods`.
//!
//! A file is in the cache under its SHA-256 only after that was checked, and it is checked again when taken out, so a broken disk
//! or a visitor cannot change an image.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::sha256_hex;

/// The folder of downloads.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The user's cache.
    pub fn open_default() -> Result<Self> {
        let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
            Some(base) => PathBuf::from(base),
            None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
        };
        Self::open(&base.join("peerpods"))
    }

    /// The cache in this folder.
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("make cache folder {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The folder itself, for things that are not downloads by digest.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file with this digest, if it is here and still what it was.
    pub fn find(&self, sha256: &str) -> Result<Option<PathBuf>> {
        let path = self.folder.join(sha256);
        match std::fs::read(&path) {
            Ok(bytes) if sha256_hex(&bytes) == sha256 => Ok(Some(path)),
            Ok(_) => {
                std::fs::remove_file(&path).with_context(|| format!("remove damaged {}", path.display()))?;
                Ok(None)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Where to download the file with this digest to before [`Cache::keep`].
    pub fn staging(&self, sha256: &str) -> PathBuf {
        self.folder.join(format!("{sha256}.{}.part", std::process::id()))
    }

    /// Checks a downloaded file and moves it to its place.
    pub fn keep(&self, staged: &Path, sha256: &str) -> Result<PathBuf> {
        let bytes = std::fs::read(staged).with_context(|| format!("read {}", staged.display()))?;
        let found = sha256_hex(&bytes);
        if found != sha256 {
            let _ = std::fs::remove_file(staged);
            bail!("downloaded file has SHA-256 {found}, expected {sha256}");
        }
        let path = self.folder.join(sha256);
        std::fs::rename(staged, &path).with_context(|| format!("move to {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_file_is_thrown_away() {
        let folder = tempfile::tempdir().expect("folder");
        let cache = Cache::open(folder.path()).expect("cache");
        let digest = sha256_hex(b"content");
        std::fs::write(cache.staging(&digest), b"content").expect("write");
        let path = cache.keep(&cache.staging(&digest), &digest).expect("keep");
        assert_eq!(cache.find(&digest).expect("find"), Some(path.clone()));
        std::fs::write(&path, b"changed").expect("damage");
        assert_eq!(cache.find(&digest).expect("find"), None);
        assert!(!path.exists());
    }

    #[test]
    fn download_with_another_digest_is_not_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let cache = Cache::open(folder.path()).expect("cache");
        let digest = sha256_hex(b"content");
        std::fs::write(cache.staging(&digest), b"other").expect("write");
        assert!(cache.keep(&cache.staging(&digest), &digest).is_err());
        assert_eq!(cache.find(&digest).expect("find"), None);
    }
}
