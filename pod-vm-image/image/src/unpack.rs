//! Unpacks one layer into a folder: inflate, hash, check limits, write. Runs on a blocking thread and holds a few hundred KiB.

mod archive;
mod finish;
mod meter;
mod pending;
mod tree;
mod zstd;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::EntryType;

pub(crate) use finish::{Attribution, finish};
pub(crate) use meter::Space;
pub(crate) use pending::nameless;
pub(crate) use tree::own_path;

use crate::download::{Compressed, GivenUp};
use crate::manifest::Compression;
use crate::ocicrypt::{DecryptError, Sealed, Spool, SpoolError, Unreadable};
use crate::{Digest, LayerError, Limits};
use archive::{Archive, Entry, damaged};
use meter::{Inflated, Meter};
use pending::{Deferred, Pending};
use tree::{Attributes, Tree, refuse};

/// A layer to unpack.
pub(crate) struct Job {
    pub(crate) compressed: Compressed,
    pub(crate) compression: Compression,
    /// Of the compressed stream.
    pub(crate) digest: Digest,
    /// Of the archive.
    pub(crate) diff_id: Digest,
    /// For a layer that arrives encrypted.
    pub(crate) sealed: Option<Sealed>,
    pub(crate) limits: Limits,
    /// An empty folder.
    pub(crate) root: PathBuf,
    pub(crate) space: Space,
}

/// A layer on disk that still lacks what it inherits from the layers below.
pub(crate) struct Unpacked {
    pub(crate) root: PathBuf,
    pending: Pending,
}

/// Why there is no layer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The content's fault.
    Layer(LayerError),
    /// The registry sent something else.
    WrongDigest(Digest),
    /// The layer does not open.
    Decrypt(DecryptError),
    /// The download was given up; its own error says why.
    GivenUp,
    /// The store's own files.
    Store(&'static str, io::Error),
}

/// The start of names that say what a layer removes.
const WHITEOUT: &[u8] = b".wh.";
/// Removes everything of a folder.
const WHITEOUT_ALL: &[u8] = b".wh..wh..opq";
/// Other notes of aufs, which mean nothing elsewhere.
const WHITEOUT_NOTE: &[u8] = b".wh..wh.";
/// Bytes copied at once.
const COPY_BYTES: usize = 128 << 10;

/// Unpacks, and succeeds only if all digests match. A layer that arrives encrypted is complete and authentic before anything is unpacked.
pub(crate) fn unpack(mut job: Job) -> Result<Unpacked, Failure> {
    let Some(sealed) = job.sealed.take() else {
        let digest = job.digest.clone();
        return unpack_clear(job, Some(&digest));
    };
    let path = job.root.with_extension("spool");
    let spool = Spool::fill(job.compressed, &path, &sealed, &mut job.space)?;
    let sealed = sealed.options.digest().clone();
    let compressed = Compressed::from_spool(spool, &sealed);
    // skopeo, when it compresses and encrypts in one go, seals the digest of what it read: that of the archive, which is looked at anyway.
    let expected = (sealed != job.diff_id).then_some(&sealed);
    match unpack_clear(Job { compressed, ..job }, expected) {
        Err(Failure::WrongDigest(actual)) => Err(Failure::Decrypt(DecryptError::Plaintext { expected: sealed, actual })),
        other => other,
    }
}

/// `expected` is the digest of the stream as it arrives here; `None` leaves the diff_id alone to tell.
fn unpack_clear(job: Job, expected: Option<&Digest>) -> Result<Unpacked, Failure> {
    let Job { compressed, compression, diff_id, limits, root, mut space, .. } = job;
    let note = root.with_extension("pending");
    let pending = Pending::create(&note).map_err(|error| Failure::Store("note a layer's folders", error))?;
    let mut tree = Tree::new(&root, &limits, pending).map_err(|error| Failure::Store("open a layer's folder", error))?;
    let inflated = Inflated::new(compressed, compression).map_err(|error| Failure::Store("set up the decompressor", error))?;
    let mut meter = Meter::new(inflated, &diff_id, &limits);

    let written = write_all(&mut Archive::new(&mut meter, &limits), &mut tree, &mut space)
        .and_then(|()| io::copy(&mut meter, &mut io::sink()).map(drop).map_err(damaged));
    let (compressed, actual) = meter.finish();
    let written = match written {
        Err(LayerError::Damaged { source }) => Err(LayerError::Damaged { source: not_of_the_layer(source)? }),
        other => other,
    };
    // A damaged stream is most likely not the one that the digest names, which is the better thing to say.
    if let Ok(()) | Err(LayerError::Damaged { .. }) = written {
        let read = compressed.finish();
        let received = read.or_else(|error| Err(Failure::Layer(LayerError::Damaged { source: not_of_the_layer(error)? })))?;
        if expected.is_some_and(|expected| received != *expected) {
            return Err(Failure::WrongDigest(received));
        }
    }
    written.map_err(Failure::Layer)?;
    if actual != diff_id {
        return Err(Failure::Layer(LayerError::DiffId { expected: diff_id, actual }));
    }
    Ok(Unpacked { root, pending: tree.pending })
}

/// Fails with what the error says if it is about where the stream comes from, and gives back one that is about what is in it.
fn not_of_the_layer(error: io::Error) -> Result<io::Error, Failure> {
    let error = match error.downcast::<Unreadable>() {
        Ok(Unreadable::File(error)) => return Err(Failure::Store("read back an encrypted layer", error)),
        Ok(Unreadable::Cipher) => return Err(Failure::Decrypt(DecryptError::Cipher)),
        Err(error) => error,
    };
    match error.downcast::<GivenUp>() {
        Ok(GivenUp) => Err(Failure::GivenUp),
        Err(error) => Ok(error),
    }
}

impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::WrongDigest(actual) => Self::WrongDigest(actual),
            SpoolError::Decrypt(error) => Self::Decrypt(error),
            SpoolError::GivenUp => Self::GivenUp,
            SpoolError::Layer(error) => Self::Layer(error),
            SpoolError::File(error) => Self::Store("spool an encrypted layer", error),
        }
    }
}

fn write_all<R: Read>(archive: &mut Archive<'_, R>, tree: &mut Tree<'_>, space: &mut Space) -> Result<(), LayerError> {
    let mut buffer = vec![0; COPY_BYTES];
    while let Some(entry) = archive.next()? {
        tree.count()?;
        space.check_entry(&entry.path)?;
        write(archive, tree, space, &entry, &mut buffer)?;
    }
    Ok(())
}

fn write<R: Read>(
    archive: &mut Archive<'_, R>,
    tree: &mut Tree<'_>,
    space: &mut Space,
    entry: &Entry,
    buffer: &mut [u8],
) -> Result<(), LayerError> {
    let path = &entry.path;
    let names = names(path)?;
    if let Some((last, _)) = names.split_last()
        && last.starts_with(WHITEOUT)
    {
        return whiteout(tree, &names, path);
    }
    if matches!(entry.kind, EntryType::Char | EntryType::Block) {
        // Old base images have a few; the container gets its own /dev.
        return if names.first() == Some(&&b"dev"[..]) { Ok(()) } else { Err(LayerError::Device { path: printable(path) }) };
    }
    let attributes = attributes(entry)?;
    if entry.kind == EntryType::Directory {
        let folder = tree.put_folder(&names, path)?;
        set_owner_and_mode(&folder, path, &attributes)?;
        set_xattrs(&folder, path, &entry.xattrs, space)?;
        let time = Deferred::Time { seconds: attributes.seconds, nanos: attributes.nanos };
        let names = names.join(&b'/');
        return tree.pending.push(&names, &time).map_err(|source| LayerError::Write { action: "note", path: printable(path), source });
    }
    let Some((above, name)) = tree.place(&names)? else {
        return Err(LayerError::Path { path: printable(path), reason: "the root is not a folder" });
    };
    match entry.kind {
        EntryType::Link => {
            let target =
                self::names(&entry.link).map_err(|_| LayerError::HardLink { path: printable(path), target: printable(&entry.link) })?;
            return tree.put_hard_link(&above, name, path, &target);
        }
        EntryType::Symlink => tree.replace(&above, name, path, "link", |at, name| fs::symlinkat(entry.link.as_slice(), at, name))?,
        EntryType::Fifo => {
            tree.replace(&above, name, path, "make", |at, name| fs::mknodat(at, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0))?;
        }
        _ => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = tree.replace(&above, name, path, "make", |at, name| fs::openat(at, name, flags, Mode::from_raw_mode(0o600)))?;
            copy(archive, &file, space, path, buffer)?;
            set_owner_and_mode(&file, path, &attributes)?;
            set_xattrs(&file, path, &entry.xattrs, space)?;
            return fs::futimens(&file, &times(&attributes)).map_err(|errno| refuse("set the time of", path, errno));
        }
    }
    fs::chownat(&above, name, Some(attributes.uid), Some(attributes.gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| refuse("set the owner of", path, errno))?;
    if entry.kind == EntryType::Fifo {
        fs::chmodat(&above, name, attributes.mode, AtFlags::empty()).map_err(|errno| refuse("set the mode of", path, errno))?;
    }
    fs::utimensat(&above, name, &times(&attributes), AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| refuse("set the time of", path, errno))
}

fn whiteout(tree: &mut Tree<'_>, names: &tree::Names<'_>, path: &[u8]) -> Result<(), LayerError> {
    let Some((above, name)) = tree.place(names)? else { return Ok(()) };
    if name == WHITEOUT_ALL {
        return tree.put_opaque(&above, path);
    }
    if name.starts_with(WHITEOUT_NOTE) {
        return Ok(());
    }
    match &name[WHITEOUT.len()..] {
        b"" | b"." | b".." => Err(LayerError::Whiteout { path: printable(path) }),
        hidden => tree.put_whiteout(&above, hidden, path),
    }
}

fn copy<R: Read>(
    archive: &mut Archive<'_, R>,
    file: &OwnedFd,
    space: &mut Space,
    path: &[u8],
    buffer: &mut [u8],
) -> Result<(), LayerError> {
    loop {
        let read = archive.read(buffer).map_err(damaged)?;
        if read == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let written = rustix::io::write(file, rest).map_err(|errno| refuse("write", path, errno))?;
            rest = &rest[written..];
        }
        space.wrote(read, path)?;
    }
}

/// The parts of a path, which is taken from the image's root however it begins.
fn names(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    let refused = |reason| Err(LayerError::Path { path: printable(path), reason });
    if path.contains(&0) {
        return refused("it holds a zero byte");
    }
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) { refused("it goes up with ..") } else { Ok(names) }
}

fn attributes(entry: &Entry) -> Result<Attributes, LayerError> {
    // The largest number stands for "leave as it is" and cannot be an owner.
    let id = |number: u64| u32::try_from(number).ok().filter(|id| *id != u32::MAX);
    let (Some(uid), Some(gid)) = (id(entry.uid), id(entry.gid)) else {
        return Err(LayerError::Path { path: printable(&entry.path), reason: "its owner is not a 32-bit number" });
    };
    Ok(Attributes {
        mode: Mode::from_raw_mode(entry.mode),
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        seconds: entry.mtime,
        nanos: entry.mtime_nanos,
    })
}

/// Owner first: changing it takes set-id bits and capabilities away.
fn set_owner_and_mode(file: &OwnedFd, path: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
    fs::fchown(file, Some(attributes.uid), Some(attributes.gid)).map_err(|errno| refuse("set the owner of", path, errno))?;
    fs::fchmod(file, attributes.mode).map_err(|errno| refuse("set the mode of", path, errno))
}

/// File capabilities and users' own attributes. Others are left out: `trusted.*` would steer overlayfs, labels are of other systems.
fn set_xattrs(file: &OwnedFd, path: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)], space: &Space) -> Result<(), LayerError> {
    for (name, value) in xattrs {
        let capability = name == b"security.capability";
        if !capability && (!name.starts_with(b"user.") || name.starts_with(b"user.overlay.")) {
            tracing::debug!(path = printable(path), name = printable(name), "extended attribute left out");
            continue;
        }
        match fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            Err(Errno::NOTSUP) if !capability => {}
            // ext4 says "no space" of its one block for attributes.
            Err(Errno::TOOBIG | Errno::RANGE | Errno::NOSPC) if space.free().is_ok_and(|free| free > 0) => {
                return Err(LayerError::Path { path: printable(path), reason: "its extended attributes are too large" });
            }
            other => other.map_err(|errno| refuse("set an extended attribute of", path, errno))?,
        }
    }
    Ok(())
}

fn times(attributes: &Attributes) -> Timestamps {
    let time = Timespec { tv_sec: attributes.seconds, tv_nsec: attributes.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A path of an archive for a person: escaped and of bounded length.
pub(crate) fn printable(path: &[u8]) -> String {
    let shown = path[..path.len().min(200)].escape_ascii().to_string();
    if path.len() > 200 { shown + "…" } else { shown }
}

/// Removes a half-made layer. What cannot be removed now is removed when the store is next opened.
pub(crate) fn discard(root: &Path) {
    if let Err(error) = std::fs::remove_dir_all(root)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %root.display(), %error, "cannot remove a half-made layer");
    }
}
