//! Key packets of the Confidential Containers project, version 1: `{kid, wrapped_data, iv, wrap_type}`, AES-256-GCM.
//!
//! The image crate makes such packets for layers that it encrypted itself; here whatever ocicrypt hands over is wrapped as it is.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A packet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Packet {
    /// The name of the key that opens it.
    pub(super) kid: String,
    wrapped_data: String,
    iv: String,
    wrap_type: String,
}

/// The one way of wrapping.
pub(super) const WRAP_TYPE: &str = "A256GCM";

impl Packet {
    /// Wraps bytes under a key with a new nonce.
    pub(super) fn seal(plain: &[u8], key: &[u8], kid: &str) -> Result<Self, Unspecified> {
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?);
        let mut iv = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut iv)?;
        let mut bytes = Zeroizing::new(plain.to_vec());
        let tag = cipher.seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut bytes[..])?;
        let wrapped_data = STANDARD.encode([&bytes[..], tag.as_ref()].concat());
        Ok(Self { kid: kid.to_owned(), wrapped_data, iv: STANDARD.encode(iv), wrap_type: WRAP_TYPE.to_owned() })
    }

    /// What it holds, if this is its key.
    pub(super) fn open(&self, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unspecified> {
        if self.wrap_type != WRAP_TYPE {
            return Err(Unspecified);
        }
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?);
        let iv = STANDARD.decode(&self.iv).ok().and_then(|iv| iv.try_into().ok()).ok_or(Unspecified)?;
        let mut bytes = Zeroizing::new(STANDARD.decode(&self.wrapped_data).map_err(|_| Unspecified)?);
        let plain = cipher.open_in_place(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut bytes[..])?.len();
        bytes.truncate(plain);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_open_with_their_key_alone() {
        let packet = Packet::seal(b"options", &[7; 32], "kbs:///default/key/1").unwrap();
        assert_eq!(*packet.open(&[7; 32]).unwrap(), b"options");
        assert!(packet.open(&[8; 32]).is_err() && packet.open(&[7; 31]).is_err());
        let other = Packet::seal(b"options", &[7; 32], "kbs:///default/key/1").unwrap();
        assert_ne!(packet.iv, other.iv);
        assert!(Packet { wrap_type: "A256CTR".to_owned(), ..packet }.open(&[7; 32]).is_err());
    }

    /// From Python's `cryptography`: AESGCM(09…09).encrypt(03…03, b"x", None).
    #[test]
    fn packets_of_others_open() {
        let json =
            r#"{"kid":"kbs:///default/key/1","wrapped_data":"qVa8TQF26oig2rCQEmgeZow=","iv":"AwMDAwMDAwMDAwMD","wrap_type":"A256GCM"}"#;
        let packet: Packet = serde_json::from_str(json).unwrap();
        assert_eq!(*packet.open(&[9; 32]).unwrap(), b"x");
    }
}
