//! Reads a tar stream entry by entry, in bounded memory.
//!
//! Headers are the tar crate's; the stream around them is read here, because the crate collects extended headers of any size, and splits
//! pax records at line ends, which cuts binary values such as `security.capability`.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::printable;
use crate::{LayerError, Limits};

/// An entry with its extended headers applied.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As in the archive.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryType,
    /// The target of a link.
    pub(crate) link: Vec<u8>,
    /// Permission bits, set-id and sticky bits included.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    pub(crate) mtime_nanos: u32,
    /// Names and values.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The stream, at a header or inside an entry's content, which is read with [`Read`].
pub(crate) struct Archive<'a, R> {
    stream: R,
    limits: &'a Limits,
    content: u64,
    padding: u64,
}

const BLOCK: u64 = 512;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

/// What extended headers say of the entry that follows.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
}

impl<'a, R: Read> Archive<'a, R> {
    pub(crate) fn new(stream: R, limits: &'a Limits) -> Self {
        Self { stream, limits, content: 0, padding: 0 }
    }

    /// The next entry; content of the last one that was not read is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extended = Extended::default();
        let mut header_bytes = 0;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            let size = number_of(&header.as_old().size, header.entry_size())?;
            if !matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader) {
                return self.entry(&header, extended).map(Some);
            }
            header_bytes = size.saturating_add(header_bytes + BLOCK);
            if header_bytes > self.limits.header_bytes {
                return Err(LayerError::Limit { what: "bytes of headers of one entry", limit: self.limits.header_bytes });
            }
            self.begin_content(size)?;
            if kind == EntryType::XGlobalHeader {
                // Defaults for all entries, such as git's comment. Docker ignores them.
                continue;
            }
            let mut body = Vec::new();
            self.read_to_end(&mut body).map_err(damaged)?;
            match kind {
                EntryType::GNULongName => extended.path = Some(until_nul(&body)),
                EntryType::GNULongLink => extended.link = Some(until_nul(&body)),
                _ => extended.records(&body)?,
            }
        }
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> Result<Entry, LayerError> {
        let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let mut kind = header.entry_type();
        if extended.sparse {
            return Err(LayerError::Kind { path: printable(&path), kind: 'S' });
        }
        if kind == EntryType::Regular && path.ends_with(b"/") {
            // How archives older than POSIX mark a folder.
            kind = EntryType::Directory;
        }
        let size = match kind {
            EntryType::Regular | EntryType::Continuous => {
                extended.size.map_or_else(|| number_of(&header.as_old().size, header.entry_size()), Ok)?
            }
            // As in Go's reader, which made the archive: these have no content, whatever the header says.
            EntryType::Directory | EntryType::Link | EntryType::Symlink | EntryType::Fifo | EntryType::Char | EntryType::Block => 0,
            other => return Err(LayerError::Kind { path: printable(&path), kind: char::from(other.as_byte()) }),
        };
        let (mtime, mtime_nanos) = match extended.mtime {
            Some(mtime) => mtime,
            None => (i64::try_from(number_of(&header.as_old().mtime, header.mtime())?).unwrap_or(0), 0),
        };
        self.begin_content(size)?;
        Ok(Entry {
            path,
            kind,
            link: extended.link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
            mode: number_of(&header.as_old().mode, header.mode())? & 0o7777,
            uid: extended.uid.map_or_else(|| number_of(&header.as_old().uid, header.uid()), Ok)?,
            gid: extended.gid.map_or_else(|| number_of(&header.as_old().gid, header.gid()), Ok)?,
            mtime,
            mtime_nanos,
            xattrs: extended.xattrs,
        })
    }

    fn begin_content(&mut self, size: u64) -> Result<(), LayerError> {
        let blocks = size.checked_next_multiple_of(BLOCK).ok_or_else(|| damaged(io::Error::other("an entry's size overflows")))?;
        (self.content, self.padding) = (size, blocks - size);
        Ok(())
    }

    fn skip(&mut self) -> Result<(), LayerError> {
        let rest = self.content + self.padding;
        (self.content, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.stream.by_ref().take(rest), &mut io::sink()).map_err(damaged)?;
        if skipped == rest { Ok(()) } else { Err(damaged(io::ErrorKind::UnexpectedEof.into())) }
    }

    /// `None` at the end: a block of zeros, or the stream's end where a header would begin.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let first = self.stream.read(&mut bytes[..]).map_err(damaged)?;
        if first == 0 {
            return Ok(None);
        }
        self.stream.read_exact(&mut bytes[first..]).map_err(damaged)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
        if header.cksum().map_err(damaged)? != sum {
            return Err(damaged(io::Error::other("a header's checksum is wrong")));
        }
        Ok(Some(header))
    }
}

impl<R: Read> Read for Archive<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.stream.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content -= read as u64;
        Ok(read)
    }
}

impl Extended {
    /// `length key=value\n`, where the length counts itself and the line end.
    fn records(&mut self, mut body: &[u8]) -> Result<(), LayerError> {
        let wrong = || damaged(io::Error::other("a pax header is malformed"));
        while !body.is_empty() {
            let space = body.iter().take(20).position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length: usize = number(&body[..space]).ok_or_else(wrong)?;
            if length <= space + 1 || length > body.len() || body[length - 1] != b'\n' {
                return Err(wrong());
            }
            let record = &body[space + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            self.record(&record[..equals], &record[equals + 1..]).ok_or_else(wrong)?;
            body = &body[length..];
        }
        Ok(())
    }

    /// `None` for a value that does not parse. An empty value takes a former one back.
    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = optional(value)?,
            b"uid" => self.uid = optional(value)?,
            b"gid" => self.gid = optional(value)?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
                self.sparse |= key.starts_with(SPARSE_PREFIX);
            }
        }
        Some(())
    }
}

/// A field of a header; an empty one is zero, as every other reader has it.
fn number_of<T: Default>(field: &[u8], parsed: io::Result<T>) -> Result<T, LayerError> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(T::default()) } else { parsed.map_err(damaged) }
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    str::from_utf8(digits).ok()?.parse().ok()
}

fn optional(value: &[u8]) -> Option<Option<u64>> {
    if value.is_empty() { Some(None) } else { number(value).map(Some) }
}

/// `-1234.5678`: seconds and a fraction, which always counts forwards.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 { Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)) } else { Some((seconds, nanos)) }
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// The error inside, if the stream carried one of ours.
pub(crate) fn damaged(error: io::Error) -> LayerError {
    match error.downcast::<LayerError>() {
        Ok(inner) => inner,
        Err(source) => LayerError::Damaged { source },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(bytes: &[u8]) -> Result<Vec<Entry>, LayerError> {
        let limits = Limits::default();
        let mut archive = Archive::new(bytes, &limits);
        let mut found = Vec::new();
        while let Some(entry) = archive.next()? {
            found.push(entry);
        }
        Ok(found)
    }

    fn archive(records: &[(&str, &[u8])], path: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn pax_values_may_hold_line_ends() {
        let capability = b"\x01\x00\x00\x02\n\x0a\n\x00";
        let records: &[(&str, &[u8])] =
            &[("SCHILY.xattr.security.capability", capability), ("mtime", b"-1.25"), ("uid", b"4000000000"), ("path", b"other")];
        let found = entries(&archive(records, "name", b"x")).unwrap();
        assert_eq!(found[0].xattrs, [(b"security.capability".to_vec(), capability.to_vec())]);
        assert_eq!((found[0].mtime, found[0].mtime_nanos), (-2, 750_000_000));
        assert_eq!(found[0].uid, 4_000_000_000);
        assert_eq!(found[0].path, b"other");
    }

    #[test]
    fn gnu_long_names_and_skipped_content_are_followed() {
        let long = "d/".repeat(120) + "f";
        let mut bytes = archive(&[], &long, &[7; 1300]);
        bytes.truncate(bytes.len() - 1024);
        bytes.extend(archive(&[], "second", b""));
        let found = entries(&bytes).unwrap();
        assert_eq!(found.iter().map(|entry| entry.path.clone()).collect::<Vec<_>>(), [long.into_bytes(), b"second".to_vec()]);
    }

    #[test]
    fn sparse_files_and_large_headers_are_refused() {
        assert!(matches!(entries(&archive(&[("GNU.sparse.major", b"1")], "s", b"")), Err(LayerError::Kind { kind: 'S', .. })));
        let large = vec![b'x'; 2 << 20];
        assert!(matches!(entries(&archive(&[("comment", &large)], "s", b"")), Err(LayerError::Limit { .. })));
    }

    #[test]
    fn truncated_archive_is_damaged_at_every_length() {
        let whole = archive(&[("comment", b"x")], "name", &[1; 700]);
        let end = whole.len() - 1024;
        for length in (1..end).filter(|length| length % 512 != 0 || (512..1024).contains(length)) {
            assert!(matches!(entries(&whole[..length]), Err(LayerError::Damaged { .. })), "{length}");
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0usize..2048, byte in any::<u8>()) {
            let mut bytes = archive(&[("SCHILY.xattr.user.a", b"b"), ("size", b"3")], "name", b"abc");
            bytes[at] = byte;
            let _ = entries(&bytes);
        }
    }
}
