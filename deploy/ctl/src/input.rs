//! Files that people name on the command line: read within a limit, `-` is standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// It is not there, or may not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file; `-` is standard input.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is longer than any such file is.
    #[error("{} has more than {limit} bytes; is it the right file?", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Bytes that are read at most.
        limit: u64,
    },
    /// It is no text.
    #[error("{} is not UTF-8 text; is it the right file?", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

/// Bytes of any text that is read here: more than initdata can carry.
pub(crate) const MAX_TEXT_BYTES: u64 = 4 << 20;

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>, InputError> {
    let failed = |source| InputError::Read { path: path.to_owned(), source };
    let mut content = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(limit + 1).read_to_end(&mut content).map_err(failed)?;
    } else {
        File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut content).map_err(failed)?;
    }
    if content.len() as u64 > limit {
        return Err(InputError::TooLong { path: path.to_owned(), limit });
    }
    Ok(content)
}

/// Reads a whole text of at most [`MAX_TEXT_BYTES`].
pub(crate) fn text(path: &Path) -> Result<String, InputError> {
    String::from_utf8(bytes(path, MAX_TEXT_BYTES)?).map_err(|_| InputError::NotText { path: path.to_owned() })
}

/// `NAME=PATH` of a command line.
pub(crate) fn named_path(argument: &str) -> Result<(String, PathBuf), String> {
    match argument.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err(format!("{argument:?} is not NAME=PATH")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, [0xff; 8]).unwrap();
        assert_eq!(bytes(&path, 8).unwrap().len(), 8);
        assert!(matches!(bytes(&path, 7), Err(InputError::TooLong { limit: 7, .. })));
        assert!(matches!(text(&path), Err(InputError::NotText { .. })));
        assert!(matches!(bytes(&folder.path().join("none"), 7), Err(InputError::Read { .. })));
    }

    #[test]
    fn named_paths_have_both_parts() {
        assert_eq!(named_path("a=b=c").unwrap(), ("a".to_owned(), "b=c".into()));
        assert!(named_path("a").is_err() && named_path("=b").is_err() && named_path("a=").is_err());
    }
}
