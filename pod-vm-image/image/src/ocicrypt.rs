//! Encrypted layers in the form of ocicrypt, with keys wrapped as the Confidential Containers project does it.
//!
//! ```text
//! layer       AES-256-CTR of the layer as it would be in clear; its media type ends in +encrypted
//! pubopts     base64 JSON: the cipher's name and the HMAC-SHA256 of the ciphertext
//! packets     base64 JSON: PrivateOptions, sealed with AES-256-GCM under a key that the key broker holds by the name `kid`
//! ```
//!
//! The HMAC's key is the layer's own key, so only who was given that key can tell whether the ciphertext is right; the order is therefore:
//! key, whole ciphertext into a file without a name ([`spool`]), both checks, and only then the first byte of plaintext. What the HMAC does
//! not cover (media type, order of layers) the diff_ids of the configuration do.
//!
//! Reading and writing are here; [`crate::encrypt`] is the public side of writing.

mod cipher;
mod key;
mod keyring;
mod options;
mod packet;
mod spool;

pub use key::{KeyLength, WrappingKey};
pub use options::PrivateOptions;

pub(crate) use cipher::{Authenticator, LayerCipher};
pub(crate) use key::Key256;
pub(crate) use keyring::KeyRing;
pub(crate) use options::{Annotations, Encryption, NONCE_BYTES, encode_public};
pub(crate) use packet::seal;
pub(crate) use spool::{Sealed, Spool, SpoolError, Unreadable};

use std::sync::Arc;

use crate::ResourceError;

/// Annotation of a layer: its public options.
pub(crate) const PUBLIC_OPTIONS: &str = "org.opencontainers.image.enc.pubopts";
/// Annotations of a layer: its key, wrapped; a provider's name follows. Names are of no consequence, as in ocicrypt-rs.
pub(crate) const PROVIDERS: &str = "org.opencontainers.image.enc.keys.provider.";
/// The end of an encrypted layer's media type.
pub(crate) const ENCRYPTED: &str = "+encrypted";

/// Why an encrypted layer cannot be opened. Never says anything of a key.
#[derive(Debug, thiserror::Error)]
pub enum DecryptError {
    /// Nothing that could give a key.
    #[error("it is encrypted and there is no key broker to ask")]
    NoSource,
    /// A key packet that this version cannot read.
    #[error("key packet of provider {provider}: {reason}")]
    Packet {
        /// The provider's name in the annotation.
        provider: String,
        /// What is wrong.
        reason: String,
    },
    /// The key broker does not give the key.
    #[error("its key is not to be had")]
    Key(#[source] Arc<ResourceError>),
    /// More keys than a pull may ask for.
    #[error("the image needs more than {limit} different keys")]
    TooManyKeys {
        /// The limit.
        limit: usize,
    },
    /// The resource is no key.
    #[error("resource {kid} is not a key of 32 bytes")]
    NotAKey {
        /// Its name.
        kid: String,
    },
    /// The key does not open the packet.
    #[error("key {kid} does not open its key packet")]
    WrongKey {
        /// The key's name.
        kid: String,
    },
    /// What the packet holds is of no use.
    #[error("the options under key {kid}: {reason}")]
    Options {
        /// The key's name.
        kid: String,
        /// What is wrong; nothing of the content.
        reason: &'static str,
    },
    /// The ciphertext was changed, or belongs to another key.
    #[error("its HMAC is wrong: the ciphertext was changed or belongs to another key")]
    Hmac,
    /// The decrypted layer is another one.
    #[error("its decrypted content has digest {actual} and not {expected}")]
    Plaintext {
        /// As it was when the layer was encrypted.
        expected: crate::Digest,
        /// What came out.
        actual: crate::Digest,
    },
    /// The cipher refuses; no input should bring that about.
    #[error("the cipher failed")]
    Cipher,
}

/// Opens a packet with its key, for tests of the writing side.
#[cfg(test)]
pub(crate) fn open_packet(packet: &str, key: &Key256) -> Result<PrivateOptions, DecryptError> {
    packet::Packet::parse(packet).map_err(|reason| DecryptError::Packet { provider: String::new(), reason })?.open(key)
}
