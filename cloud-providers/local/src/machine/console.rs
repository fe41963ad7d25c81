//! The end of what a machine or its QEMU wrote. The bytes are the guest's: limited, and without anything a terminal would obey.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// How much of the end is shown.
const TAIL_BYTES: u64 = 4096;

/// The last lines of a file, at most [`TAIL_BYTES`]; empty when there is no file.
pub(crate) fn tail(path: &Path) -> io::Result<String> {
    let Some(mut file) = super::files::none_if_missing(File::open(path))? else { return Ok(String::new()) };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    if length > TAIL_BYTES {
        // The first line is cut; drop it unless it is all there is.
        if let Some(end) = bytes.iter().position(|b| *b == b'\n').filter(|end| end + 1 < bytes.len()) {
            bytes.drain(..=end);
        }
    }
    Ok(printable(&bytes))
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    let plain = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.trim_end().chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_the_last_whole_lines_without_control_characters() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("console.log");
        assert_eq!(tail(&path).expect("tail"), "");
        std::fs::write(&path, format!("{}\nlast \x1b[31mline\r\n", "x".repeat(5000))).expect("write");
        assert_eq!(tail(&path).expect("tail"), "last \u{fffd}[31mline");
        std::fs::write(&path, "x".repeat(5000)).expect("write");
        assert_eq!(tail(&path).expect("tail").len(), 4096);
    }
}
