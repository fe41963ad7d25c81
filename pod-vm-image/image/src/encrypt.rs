//! Encrypts layers for [`Store::pull`](crate::Store::pull), and for every other reader of ocicrypt with a key provider.
//!
//! A layer is encrypted once, with a key of its own, and that key is wrapped for each [`WrappingKey`]:
//!
//! ```
//! use peerpods_image::encrypt::{WrappingKey, encrypt_layer, wrap_key};
//!
//! let mut ciphertext = Vec::new();
//! let layer = encrypt_layer(&b"a tar archive, compressed"[..], &mut ciphertext).unwrap();
//! let key = WrappingKey::new(&[7; 32]).unwrap();
//! let packet = wrap_key(&layer.options, &key, "kbs:///default/key/1").unwrap();
//! let annotations = [("org.opencontainers.image.enc.pubopts", &layer.public_options), ("org.opencontainers.image.enc.keys.provider.attestation-agent", &packet)];
//! ```
//!
//! The configuration stays in clear, and its diff_ids stay those of the layers in clear.

use std::io::{self, Read, Write};

pub use crate::ocicrypt::{KeyLength, PrivateOptions, WrappingKey};

use crate::Digest;
use crate::digest::Hasher;
use crate::manifest::{Compression, OCI_LAYER, layer_format};
use crate::ocicrypt::{self, Authenticator, Key256, LayerCipher, NONCE_BYTES};

/// Annotation of a layer: its public options.
pub const PUBLIC_OPTIONS_ANNOTATION: &str = ocicrypt::PUBLIC_OPTIONS;
/// Annotation of a layer: its key packets, in base64, with commas between them. By this name all readers find them.
pub const KEY_PACKETS_ANNOTATION: &str = "org.opencontainers.image.enc.keys.provider.attestation-agent";

/// A layer that was encrypted.
#[derive(Debug)]
pub struct EncryptedLayer {
    /// Of the ciphertext.
    pub digest: Digest,
    /// Bytes of the ciphertext, as many as there were in clear.
    pub size: u64,
    /// Value of [`PUBLIC_OPTIONS_ANNOTATION`].
    pub public_options: String,
    /// What opens the layer: to be wrapped and then dropped.
    pub options: PrivateOptions,
}

/// Why nothing was encrypted.
#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    /// The layer.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// Where the ciphertext goes.
    #[error("cannot write the encrypted layer")]
    Write(#[source] io::Error),
    /// No random numbers, or no memory.
    #[error("the cipher failed")]
    Cipher,
    /// The name of the wrapping key.
    #[error("{kid:?} is not the URI of a resource: it begins with kbs://")]
    Kid {
        /// What was given.
        kid: String,
    },
}

/// Bytes read and encrypted at once.
const BLOCK_BYTES: usize = 128 << 10;

/// Encrypts a layer, compressed or not, with a new key. Holds a few hundred KiB however large it is.
pub fn encrypt_layer(plain: impl Read, ciphertext: impl Write) -> Result<EncryptedLayer, EncryptError> {
    let mut nonce = [0; NONCE_BYTES];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| EncryptError::Cipher)?;
    encrypt_with(plain, ciphertext, Key256::random().map_err(|_| EncryptError::Cipher)?, nonce)
}

/// The media type of a layer once it is encrypted; `None` if it is no layer that [`Store::pull`](crate::Store::pull) reads.
///
/// Docker's types become those of OCI, since only they have encrypted forms; a manifest with such a layer is one of OCI. Layers of zstd are read
/// here, and not by the readers that the Confidential Containers project has.
pub fn encrypted_media_type(plain: &str) -> Option<String> {
    let compression = layer_format(plain)?;
    let encrypted = ocicrypt::ENCRYPTED;
    Some(match (plain.starts_with("application/vnd.docker."), compression) {
        (false, _) => format!("{plain}{encrypted}"),
        (true, Compression::Plain) => format!("{OCI_LAYER}{encrypted}"),
        (true, Compression::Gzip) => format!("{OCI_LAYER}+gzip{encrypted}"),
        (true, Compression::Zstd) => format!("{OCI_LAYER}+zstd{encrypted}"),
    })
}

/// Wraps a layer's key: one entry of [`KEY_PACKETS_ANNOTATION`], of version 1. `kid` is the wrapping key's resource URI.
pub fn wrap_key(options: &PrivateOptions, key: &WrappingKey, kid: &str) -> Result<String, EncryptError> {
    if !kid.starts_with("kbs://") {
        return Err(EncryptError::Kid { kid: kid.to_owned() });
    }
    ocicrypt::seal(options, &key.0, kid).map_err(|_| EncryptError::Cipher)
}

fn encrypt_with(
    mut plain: impl Read,
    mut ciphertext: impl Write,
    key: Key256,
    nonce: [u8; NONCE_BYTES],
) -> Result<EncryptedLayer, EncryptError> {
    let mut cipher = LayerCipher::new(&key, &nonce).map_err(|_| EncryptError::Cipher)?;
    let mut authenticator = Authenticator::new(&key);
    let (mut of_plain, mut of_ciphertext, mut size) = (Hasher::sha256(), Hasher::sha256(), 0);
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        let read = match plain.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(EncryptError::Read(error)),
        };
        of_plain.update(&buffer[..read]);
        let sealed = cipher.apply(&buffer[..read]).map_err(|_| EncryptError::Cipher)?;
        of_ciphertext.update(&sealed);
        authenticator.update(&sealed);
        ciphertext.write_all(&sealed).map_err(EncryptError::Write)?;
        size += read as u64;
    }
    ciphertext.flush().map_err(EncryptError::Write)?;
    let options = PrivateOptions { key, nonce, digest: of_plain.finish() };
    Ok(EncryptedLayer { digest: of_ciphertext.finish(), size, public_options: ocicrypt::encode_public(&authenticator.finish()), options })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    /// Ciphertext and HMAC are from Python's `cryptography`, with key 01…01 and nonce fe…ff.
    #[test]
    fn layer_is_encrypted_as_elsewhere() {
        let mut nonce = [0xff; 16];
        nonce[0] = 0xfe;
        let mut ciphertext = Vec::new();
        let text = b"the quick brown fox jumps over the lazy dog";
        let layer = encrypt_with(&text[..], &mut ciphertext, Key256::from_slice(&[1; 32]).unwrap(), nonce).unwrap();
        assert_eq!(hex::encode(&ciphertext), "5be3d3c6547c5f80ef02b56c6d2fdc471978f25a447de807b942e702687d637abffa9ce08bca934237d9fa");
        assert_eq!(layer.digest, Digest::of(&ciphertext));
        assert_eq!(layer.options.digest(), &Digest::of(text));
        assert_eq!(layer.size, 43);
        let public: serde_json::Value = serde_json::from_slice(&STANDARD.decode(layer.public_options).unwrap()).unwrap();
        assert_eq!(public["hmac"], "H02iNHDK9f3R6eofHPhKJUkuV+9Ugg7+lFK5H4Y1iHE=");
    }

    #[test]
    fn odd_names_and_media_types_are_refused() {
        let layer = encrypt_layer(&b""[..], Vec::new()).unwrap();
        let key = WrappingKey::new(&[7; 32]).unwrap();
        assert!(matches!(wrap_key(&layer.options, &key, "default/key/1"), Err(EncryptError::Kid { .. })));
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        assert_eq!(encrypted_media_type(gzip).as_deref(), Some("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"));
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        assert_eq!(encrypted_media_type(docker), encrypted_media_type(gzip));
        assert_eq!(encrypted_media_type("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), None);
        assert_eq!(encrypted_media_type("text/plain"), None);
    }

    proptest! {
        #[test]
        fn what_is_encrypted_comes_back(text: Vec<u8>, kek in prop::array::uniform32(0_u8..)) {
            let mut ciphertext = Vec::new();
            let layer = encrypt_layer(text.as_slice(), &mut ciphertext).unwrap();
            let key = WrappingKey::new(&kek).unwrap();
            let packet = wrap_key(&layer.options, &key, "kbs:///default/key/1").unwrap();
            let opened = crate::ocicrypt::open_packet(&packet, &key.0).unwrap();
            prop_assert_eq!(LayerCipher::new(&opened.key, &opened.nonce).unwrap().apply(&ciphertext).unwrap(), text.clone());
            prop_assert_eq!(opened.digest(), &Digest::of(&text));
        }
    }
}
