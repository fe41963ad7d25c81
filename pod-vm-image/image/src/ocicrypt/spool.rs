//! The ciphertext of a layer on the scratch disk, until it is known to be right.
//!
//! It lies in a file that has no name from the moment it is made: the kernel removes it with the last descriptor, whatever happens.

use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Seek as _, Write as _};
use std::path::Path;

use bytes::Bytes;

use super::{Authenticator, DecryptError, LayerCipher, PrivateOptions};
use crate::Digest;
use crate::LayerError;
use crate::download::Compressed;
use crate::unpack::Space;

/// What a layer that arrives encrypted has to be, and what opens it.
pub(crate) struct Sealed {
    /// HMAC of the ciphertext.
    pub(crate) hmac: Vec<u8>,
    pub(crate) options: PrivateOptions,
}

/// Proven ciphertext, which is decrypted as it is read.
pub(crate) struct Spool {
    file: File,
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

/// Bytes read and decrypted at once.
const BLOCK_BYTES: usize = 128 << 10;

impl Spool {
    /// Takes all of the ciphertext from the network; succeeds only if it has the descriptor's digest and its HMAC.
    pub(crate) fn fill(
        mut ciphertext: Compressed,
        path: &Path,
        digest: &Digest,
        sealed: &Sealed,
        space: &mut Space,
    ) -> Result<Self, SpoolError> {
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
        if actual != *digest {
            return Err(SpoolError::WrongDigest(actual));
        }
        authenticator.verify(&sealed.hmac).map_err(SpoolError::Decrypt)?;
        file.rewind().map_err(SpoolError::File)?;
        let options = &sealed.options;
        let cipher = LayerCipher::new(&options.key, &options.nonce).map_err(|_| SpoolError::Decrypt(DecryptError::Cipher))?;
        Ok(Self { file, cipher, buffer: vec![0; BLOCK_BYTES] })
    }

    /// The next bytes in clear; none at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.file.read(&mut self.buffer)? {
            0 => Ok(None),
            read => {
                let plain = self.cipher.apply(&self.buffer[..read]).map_err(|_| io::Error::other(DecryptError::Cipher))?;
                Ok(Some(plain.into()))
            }
        }
    }
}

fn nameless(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}
