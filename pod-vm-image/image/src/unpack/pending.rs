//! What is set on folders once a layer's entries are all written: times, which later entries would change again, and what folders that
//! the layer names only as part of a path inherit from the layers below.
//!
//! Kept in an unlinked file and not in memory: a layer may have a million folders.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::path::Path;

/// Something to do for a folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Deferred {
    /// Take owner, mode and times from a lower layer.
    Inherit,
    /// Set the modification time.
    Time {
        /// Since 1970.
        seconds: i64,
        /// Below a second.
        nanos: u32,
    },
}

/// A new file that was called so and has no name any more: the kernel removes it with its last descriptor, whatever happens.
pub(crate) fn nameless(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// Records in the order they were made.
pub(crate) struct Pending {
    file: BufWriter<File>,
}

impl Pending {
    /// In a file of this name, which is gone when this returns.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: BufWriter::new(nameless(path)?) })
    }

    pub(crate) fn push(&mut self, path: &[u8], deferred: &Deferred) -> io::Result<()> {
        let length = u32::try_from(path.len()).map_err(io::Error::other)?;
        let (kind, seconds, nanos) = match deferred {
            Deferred::Inherit => (0, 0, 0),
            Deferred::Time { seconds, nanos } => (1, *seconds, *nanos),
        };
        self.file.write_all(&[kind])?;
        self.file.write_all(&seconds.to_le_bytes())?;
        self.file.write_all(&nanos.to_le_bytes())?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(path)
    }

    /// Gives every record to `act`, in order.
    pub(crate) fn replay<E: From<io::Error>>(self, mut act: impl FnMut(&[u8], &Deferred) -> Result<(), E>) -> Result<(), E> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        let mut file = BufReader::new(file);
        let mut path = Vec::new();
        let mut kind = [0; 1];
        while file.read(&mut kind)? == 1 {
            let (mut seconds, mut nanos, mut length) = ([0; 8], [0; 4], [0; 4]);
            file.read_exact(&mut seconds)?;
            file.read_exact(&mut nanos)?;
            file.read_exact(&mut length)?;
            path.resize(u32::from_le_bytes(length) as usize, 0);
            file.read_exact(&mut path)?;
            let deferred = match kind {
                [0] => Deferred::Inherit,
                _ => Deferred::Time { seconds: i64::from_le_bytes(seconds), nanos: u32::from_le_bytes(nanos) },
            };
            act(&path, &deferred)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_in_order_and_the_file_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let mut pending = Pending::create(&folder.path().join("p")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        pending.push(b"a/b", &Deferred::Inherit).unwrap();
        pending.push(b"", &Deferred::Time { seconds: -5, nanos: 7 }).unwrap();
        let mut seen = Vec::new();
        pending
            .replay(|path, deferred| {
                seen.push(format!("{} {deferred:?}", path.escape_ascii()));
                Ok::<_, io::Error>(())
            })
            .unwrap();
        assert_eq!(seen, ["a/b Inherit", " Time { seconds: -5, nanos: 7 }"]);
    }
}
