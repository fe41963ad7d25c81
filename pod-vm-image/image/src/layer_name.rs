//! What layers are called in the store, which decides who gets one that is there.
//!
//! A layer in clear is called by its chain id: whoever can name its content may have it. One that arrives encrypted is called by something
//! that only the layer's own key gives, and so are all above it: configurations say in clear what the digests of decrypted layers are, and
//! a manifest that lists such a digest without the key, or with another one, must not be given what an earlier pull has decrypted.

use std::fmt;

use crate::Digest;
use crate::ocicrypt::Sealed;

/// A layer's name in the store.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LayerName(String);

/// The beginning of names that a key had part in. No chain id begins so, and those are for others to choose.
const SEALED: &str = "sealed-";

impl LayerName {
    /// The names of an image's layers, bottom first. Each layer is given as its diff_id with what opens it, if it arrives encrypted.
    pub(crate) fn of_all<'a>(layers: impl IntoIterator<Item = (&'a Digest, Option<&'a Sealed>)>) -> Vec<Self> {
        let mut names: Vec<Self> = Vec::new();
        for (diff_id, sealed) in layers {
            let name = match (names.last(), sealed) {
                (None, None) => Self(diff_id.to_string()),
                // As the OCI image format has it.
                (Some(below), None) if !below.is_sealed() => Self(Digest::of(format!("{below} {diff_id}").as_bytes()).to_string()),
                (Some(below), None) => Self::sealed(&format!("{below} {diff_id}")),
                (below, Some(sealed)) => {
                    let below = below.map_or("", |below| below.0.as_str());
                    Self::sealed(&format!("{below} {}", hex::encode(sealed.mark(diff_id))))
                }
            };
            names.push(name);
        }
        names
    }

    fn sealed(text: &str) -> Self {
        Self(format!("{SEALED}{}", Digest::of(text.as_bytes()).hex()))
    }

    fn is_sealed(&self) -> bool {
        self.0.starts_with(SEALED)
    }

    /// A line of a mount's record.
    pub(crate) fn from_record(line: &str) -> Self {
        Self(line.to_owned())
    }

    /// The name of its folder.
    pub(crate) fn file_name(&self) -> &str {
        self.0.split_once(':').map_or(&self.0, |(_, digits)| digits)
    }

    /// A chain id, or `sealed-…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ocicrypt::{Key256, PrivateOptions};

    fn digest(byte: char) -> Digest {
        format!("sha256:{}", byte.to_string().repeat(64)).parse().unwrap()
    }

    fn sealed(key: u8) -> Sealed {
        let options = PrivateOptions { key: Key256::from_slice(&[key; 32]).unwrap(), nonce: [2; 16], digest: digest('d') };
        Sealed { ciphertext: digest('c'), hmac: vec![3; 32], options }
    }

    #[test]
    fn names_of_layers_in_clear_are_the_chain_ids_of_the_specification() {
        let names = LayerName::of_all([(&digest('a'), None), (&digest('b'), None)]);
        assert_eq!(names[0].as_str(), digest('a').as_str());
        assert_eq!(names[1].as_str(), Digest::of(format!("{} {}", digest('a'), digest('b')).as_bytes()).as_str());
        assert_eq!(names[0].file_name(), "a".repeat(64));
        assert_eq!(LayerName::from_record(&names[1].to_string()), names[1]);
    }

    #[test]
    fn whatever_opens_a_layer_has_part_in_its_name_and_in_those_above() {
        let (below, own, above) = (digest('1'), digest('2'), digest('3'));
        let names = |sealed: Option<&Sealed>, diff_id: &Digest| LayerName::of_all([(&below, None), (diff_id, sealed), (&above, None)]);
        let good = names(Some(&sealed(1)), &own);
        assert_eq!(names(Some(&sealed(1)), &own), good);
        let mut others = vec![names(None, &own), names(Some(&sealed(2)), &own), names(Some(&sealed(1)), &digest('9'))];
        let changes: [fn(&mut Sealed); 4] = [
            |sealed| sealed.ciphertext = digest('e'),
            |sealed| sealed.hmac[0] ^= 1,
            |sealed| sealed.options.nonce[0] ^= 1,
            |sealed| sealed.options.digest = digest('e'),
        ];
        for change in changes {
            let mut changed = sealed(1);
            change(&mut changed);
            others.push(names(Some(&changed), &own));
        }
        for other in others {
            assert_eq!(other[0], good[0]);
            assert!(other[1] != good[1] && other[2] != good[2], "{other:?}");
        }
        assert!(good[1].file_name().starts_with("sealed-") && good[2].file_name().starts_with("sealed-"), "{good:?}");
        let bottom = LayerName::of_all([(&own, Some(&sealed(1)))]);
        assert!(bottom[0].file_name().starts_with("sealed-") && bottom[0] != good[1]);
    }
}
