//! Keys of 32 bytes: erased when dropped, never printed.

use std::fmt;

use zeroize::Zeroizing;

/// A key of a layer, or one that wraps such keys.
#[derive(Clone)]
pub(crate) struct Key256(Zeroizing<[u8; 32]>);

/// The key that wraps the keys of layers; the key broker holds it.
#[derive(Debug, Clone)]
pub struct WrappingKey(pub(crate) Key256);

/// A key that has not 32 bytes.
#[derive(Debug, thiserror::Error)]
#[error("a key has 32 bytes, not {actual}")]
pub struct KeyLength {
    /// Bytes given.
    pub actual: usize,
}

impl Key256 {
    pub(crate) fn from_slice(bytes: &[u8]) -> Result<Self, KeyLength> {
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            return Err(KeyLength { actual: bytes.len() });
        }
        key.copy_from_slice(bytes);
        Ok(Self(key))
    }

    pub(crate) fn random() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut key = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut key[..])?;
        Ok(Self(key))
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl WrappingKey {
    /// The content of the resource. The caller erases its own copy.
    pub fn new(bytes: &[u8]) -> Result<Self, KeyLength> {
        Key256::from_slice(bytes).map(Self)
    }
}

impl fmt::Debug for Key256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key256(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_32_bytes_and_do_not_print() {
        assert_eq!(WrappingKey::new(&[7; 31]).unwrap_err().to_string(), "a key has 32 bytes, not 31");
        assert!(WrappingKey::new(&[7; 33]).is_err());
        assert_eq!(format!("{:?}", WrappingKey::new(&[7; 32]).unwrap()), "WrappingKey(Key256(..))");
    }
}
