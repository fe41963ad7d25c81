//! The ciphertext of a layer on the scratch disk, until it is known to be right.
//!
//! It lies in a file that has no name from the moment it is made ([`nameless`]).

use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Seek as _, Write as _};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};

use super::{Authenticator, DecryptError, LayerCipher, PrivateOptions};
use crate::Digest;
use crate::LayerError;
use crate::download::Compressed;
use crate::unpack::{Space, nameless};

/// What a layer that arrives encrypted has to be, and what opens it.
pub(crate) struct Sealed {
    /// Digest of the ciphertext.
    pub(crate) ciphertext: Digest,
    /// HMAC of the ciphertext.
    pub(crate) hmac: Vec<u8>,
    pub(crate) options: PrivateOptions,
}

/// Proven ciphertext, which is decrypted as it is read, once: its disk is given back on the way, for what is unpacked of it.
pub(crate) struct Spool {
    file: File,
    /// Bytes that were read.
    read: u64,
    /// Of these, bytes whose disk was given back.
    released: u64,
    cipher: LayerCipher,
    buffer: Vec<u8>,
}

/// Why the ciphertext is of no use.
pub(crate) enum SpoolError {
    /// The registry sent something else.
    WrongDigest(Digest),
    /// It does not belong to the key.
    Decrypt(DecryptError),
    /// The download was given up; its own error says why.
    GivenUp,
    /// The disk is full, or nearly.
    Layer(LayerError),
    /// The spool's file.
    File(io::Error),
}

/// Inside an [`io::Error`]: proven ciphertext cannot be had in clear, which is no fault of the layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("cannot read the ciphertext")]
    File(#[source] io::Error),
    #[error("the cipher failed")]
    Cipher,
}

/// The beginning of what [`Sealed::mark`] hashes.
const MARK: &[u8] = b"peerpods-image/layer/1\0";
/// Bytes read and decrypted at once.
const BLOCK_BYTES: usize = 128 << 10;
/// Bytes after which disk is given back.
const RELEASE_BYTES: u64 = 4 << 20;

impl Sealed {
    /// Stands for the decrypted layer, and nobody without the layer's key can tell it. Whatever is compared when a layer is decrypted has
    /// part in it, so that what another manifest finds by it is what that manifest would have decrypted itself.
    pub(crate) fn mark(&self, diff_id: &Digest) -> Vec<u8> {
        let PrivateOptions { key, nonce, digest } = &self.options;
        let mut authenticator = Authenticator::new(key);
        for part in [MARK, nonce, &self.hmac, format!("{}\0{digest}\0{diff_id}", self.ciphertext).as_bytes()] {
            authenticator.update(part);
        }
        authenticator.finish()
    }
}

impl Spool {
    /// Takes all of the ciphertext from the network; succeeds only if it has the descriptor's digest and its HMAC.
    pub(crate) fn fill(mut ciphertext: Compressed, path: &Path, sealed: &Sealed, space: &mut Space) -> Result<Self, SpoolError> {
        let mut file = nameless(path).map_err(SpoolError::File)?;
        let mut authenticator = Authenticator::new(&sealed.options.key);
        loop {
            let chunk = ciphertext.fill_buf().map_err(|_| SpoolError::GivenUp)?;
            if chunk.is_empty() {
                break;
            }
            authenticator.update(chunk);
            file.write_all(chunk).map_err(SpoolError::File)?;
            let length = chunk.len();
            space.wrote(length, b"(encrypted layer)").map_err(SpoolError::Layer)?;
            ciphertext.consume(length);
        }
        let actual = ciphertext.finish().map_err(|_| SpoolError::GivenUp)?;
        if actual != sealed.ciphertext {
            return Err(SpoolError::WrongDigest(actual));
        }
        authenticator.verify(&sealed.hmac).map_err(SpoolError::Decrypt)?;
        file.rewind().map_err(SpoolError::File)?;
        Self::of(file, &sealed.options).map_err(SpoolError::Decrypt)
    }

    fn of(file: File, options: &PrivateOptions) -> Result<Self, DecryptError> {
        let cipher = LayerCipher::new(&options.key, &options.nonce).map_err(|_| DecryptError::Cipher)?;
        Ok(Self { file, read: 0, released: 0, cipher, buffer: vec![0; BLOCK_BYTES] })
    }

    /// The next bytes in clear; none at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.file.read(&mut self.buffer).map_err(|error| io::Error::other(Unreadable::File(error)))? {
            0 => Ok(None),
            read => {
                let plain = self.cipher.apply(&self.buffer[..read]).map_err(|_| io::Error::other(Unreadable::Cipher))?;
                self.read += read as u64;
                self.release();
                Ok(Some(plain.into()))
            }
        }
    }

    fn release(&mut self) {
        let length = self.read - self.released;
        if length >= RELEASE_BYTES {
            // Where the file system cannot, the disk is free when the layer is unpacked.
            let _ = fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, self.released, length);
            self.released = self.read;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::Limits;
    use crate::manifest::Compression;
    use crate::ocicrypt::Key256;
    use crate::unpack::{Failure, Job, unpack};

    #[test]
    fn disk_is_given_back_while_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = nameless(&folder.path().join("0.spool")).unwrap();
        let length = 2 * RELEASE_BYTES + 5;
        std::io::copy(&mut std::io::repeat(7).take(length), &mut file).unwrap();
        file.rewind().unwrap();
        let options = PrivateOptions { key: Key256::from_slice(&[1; 32]).unwrap(), nonce: [2; 16], digest: Digest::of(b"x") };
        let mut spool = Spool::of(file, &options).unwrap();
        let held = |spool: &Spool| spool.file.metadata().unwrap().blocks() * 512;
        let before = held(&spool);
        let mut read = 0;
        while let Some(plain) = spool.next().unwrap() {
            read += plain.len() as u64;
            let released = before - held(&spool);
            assert!(released <= read, "not before it is read");
            assert!(released + RELEASE_BYTES + BLOCK_BYTES as u64 >= read, "and soon after");
        }
        assert_eq!(read, length);
        assert!(held(&spool) <= before - 2 * RELEASE_BYTES, "{before} {}", held(&spool));
    }

    #[test]
    fn disk_that_fails_is_not_taken_for_a_wrong_layer() {
        for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().join("0");
            std::fs::create_dir(&root).unwrap();
            let digest = Digest::of(b"x");
            let options = PrivateOptions { key: Key256::from_slice(&[1; 32]).unwrap(), nonce: [2; 16], digest: digest.clone() };
            // Nothing is mapped where memory begins: reading there gives what a broken disk gives.
            let spool = Spool::of(File::open("/proc/self/mem").unwrap(), &options).unwrap();
            let job = Job {
                compressed: Compressed::from_spool(spool, &digest),
                compression,
                digest: digest.clone(),
                diff_id: digest,
                sealed: None,
                limits: Limits::default(),
                root,
                space: Space::new(folder.path().to_owned(), 0),
            };
            match unpack(job) {
                Err(Failure::Store("read back an encrypted layer", source)) => {
                    assert_eq!(source.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{compression:?}");
                }
                Err(other) => panic!("{compression:?}: {other:?}"),
                Ok(_) => panic!("{compression:?}"),
            }
        }
    }
}
