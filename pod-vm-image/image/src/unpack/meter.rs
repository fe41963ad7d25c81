//! Watches what a layer costs while it is read and written.

use std::io::{self, Read};
use std::path::PathBuf;

use flate2::bufread::MultiGzDecoder;
use rustix::io::Errno;

use super::printable;
use super::zstd::Frames;
use crate::digest::Hasher;
use crate::download::Compressed;
use crate::manifest::Compression;
use crate::{Digest, LayerError, Limits};

/// The archive's bytes.
pub(crate) enum Inflated {
    Plain(Box<Compressed>),
    Gzip(Box<MultiGzDecoder<Compressed>>),
    Zstd(Box<Frames>),
}

impl Inflated {
    pub(crate) fn new(compressed: Compressed, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::Plain => Self::Plain(Box::new(compressed)),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(compressed))),
            Compression::Zstd => Self::Zstd(Box::new(Frames::new(compressed)?)),
        })
    }

    fn compressed(&self) -> &Compressed {
        match self {
            Self::Plain(compressed) => compressed,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zstd(frames) => frames.get_ref(),
        }
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(compressed) => compressed.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(frames) => frames.read(buffer),
        }
    }
}

/// Hashes the archive's bytes and stops at a limit.
pub(crate) struct Meter<'a> {
    inner: Inflated,
    hasher: Hasher,
    total: u64,
    limits: &'a Limits,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(inner: Inflated, expected: &Digest, limits: &'a Limits) -> Self {
        Self { inner, hasher: expected.hasher(), total: 0, limits }
    }

    /// The rest of the compressed stream, and the digest of what was read.
    pub(crate) fn finish(self) -> (Compressed, Digest) {
        let compressed = match self.inner {
            Inflated::Plain(compressed) => *compressed,
            Inflated::Gzip(decoder) => decoder.into_inner(),
            Inflated::Zstd(frames) => frames.into_inner(),
        };
        (compressed, self.hasher.finish())
    }
}

impl Read for Meter<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.total += read as u64;
        let stop = |what, limit| Err(io::Error::other(LayerError::Limit { what, limit }));
        if self.total > self.limits.layer_bytes {
            return stop("bytes after decompression", self.limits.layer_bytes);
        }
        let allowed = self.inner.compressed().received().saturating_mul(self.limits.ratio);
        if self.total > self.limits.ratio_free_bytes && self.total > allowed {
            return stop("times the compressed size after decompression", self.limits.ratio);
        }
        Ok(read)
    }
}

/// Keeps the reserve of the scratch disk free.
pub(crate) struct Space {
    /// A folder on the disk.
    folder: PathBuf,
    reserve: u64,
    bytes: usize,
    entries: u32,
}

/// Bytes written between two looks at the disk.
const LOOK_EVERY_BYTES: usize = 4 << 20;
/// Entries made between two looks at the disk.
const LOOK_EVERY_ENTRIES: u32 = 512;

impl Space {
    pub(crate) fn new(folder: PathBuf, reserve: u64) -> Self {
        Self { folder, reserve, bytes: 0, entries: 0 }
    }

    /// Bytes free beyond the reserve.
    pub(crate) fn free(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.folder)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(self.reserve))
    }

    pub(crate) fn wrote(&mut self, bytes: usize, path: &[u8]) -> Result<(), LayerError> {
        self.bytes += bytes;
        if self.bytes < LOOK_EVERY_BYTES { Ok(()) } else { self.look(path) }
    }

    pub(crate) fn check_entry(&mut self, path: &[u8]) -> Result<(), LayerError> {
        self.entries += 1;
        if self.entries < LOOK_EVERY_ENTRIES { Ok(()) } else { self.look(path) }
    }

    fn look(&mut self, path: &[u8]) -> Result<(), LayerError> {
        (self.bytes, self.entries) = (0, 0);
        let write = |source| LayerError::Write { action: "write", path: printable(path), source };
        if self.free().map_err(write)? > 0 { Ok(()) } else { Err(write(Errno::NOSPC.into())) }
    }
}
