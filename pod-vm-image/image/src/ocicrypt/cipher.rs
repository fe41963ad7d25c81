//! The cipher and the authenticator of layers.

use aws_lc_rs::cipher::{AES_256, DecryptionContext, StreamingDecryptingKey, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;

use super::options::NONCE_BYTES;
use super::{DecryptError, Key256};

/// AES-256-CTR whose counter is the whole block, big-endian. It is its own inverse.
pub(crate) struct LayerCipher(StreamingDecryptingKey);

/// HMAC-SHA256 of ciphertext.
pub(crate) struct Authenticator(hmac::Context);

/// What a block cipher may want beyond its input.
const SLACK: usize = 15;

impl LayerCipher {
    pub(crate) fn new(key: &Key256, nonce: &[u8; NONCE_BYTES]) -> Result<Self, Unspecified> {
        let key = UnboundCipherKey::new(&AES_256, key.expose())?;
        StreamingDecryptingKey::ctr(key, DecryptionContext::Iv128(FixedLength::from(nonce))).map(Self)
    }

    /// The next bytes of the stream.
    pub(crate) fn apply(&mut self, input: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let mut output = vec![0; input.len() + SLACK];
        let written = self.0.update(input, &mut output)?.written().len();
        output.truncate(written);
        if written == input.len() { Ok(output) } else { Err(Unspecified) }
    }
}

impl Authenticator {
    pub(crate) fn new(key: &Key256) -> Self {
        Self(hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.expose())))
    }

    pub(crate) fn update(&mut self, ciphertext: &[u8]) {
        self.0.update(ciphertext);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.sign().as_ref().to_vec()
    }

    /// In a time that does not depend on where the first difference is.
    pub(crate) fn verify(self, expected: &[u8]) -> Result<(), DecryptError> {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.finish(), expected).map_err(|_| DecryptError::Hmac)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(hex: &str) -> Key256 {
        Key256::from_slice(&hex::decode(hex).unwrap()).unwrap()
    }

    /// NIST SP 800-38A, F.5.5.
    #[test]
    fn cipher_gives_the_published_answer_however_it_is_cut() {
        let key = key("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        let nonce: [u8; 16] = hex::decode("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff").unwrap().try_into().unwrap();
        let plain = hex::decode(
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
             30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
        );
        let expected = "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5\
                        2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6";
        for cut in [1, 7, 16, 64] {
            let mut cipher = LayerCipher::new(&key, &nonce).unwrap();
            let pieces: Vec<u8> = plain.as_ref().unwrap().chunks(cut).flat_map(|piece| cipher.apply(piece).unwrap()).collect();
            assert_eq!(hex::encode(pieces), expected, "{cut}");
        }
    }

    /// All 128 bits count: the block after ff…ff is that of 00…00.
    #[test]
    fn counter_wraps_as_one_number() {
        let key = key(&"11".repeat(32));
        let wrapped = LayerCipher::new(&key, &[0xff; 16]).unwrap().apply(&[0; 32]).unwrap();
        let zero = LayerCipher::new(&key, &[0; 16]).unwrap().apply(&[0; 16]).unwrap();
        assert_eq!(wrapped[16..], zero[..]);
    }

    /// RFC 4231, test case 2, has a short key; this one is from `openssl mac -macopt hexkey:0b…0b -digest SHA256 HMAC`.
    #[test]
    fn authenticator_gives_the_known_answer() {
        let key = key(&"0b".repeat(32));
        let mut authenticator = Authenticator::new(&key);
        authenticator.update(b"Hi ");
        authenticator.update(b"There");
        assert_eq!(hex::encode(authenticator.finish()), HI_THERE);
        assert!(matches!(Authenticator::new(&key).verify(&[0; 32]), Err(DecryptError::Hmac)));
        assert!(matches!(Authenticator::new(&key).verify(&[]), Err(DecryptError::Hmac)));
    }

    const HI_THERE: &str = "198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7";

    proptest! {
        #[test]
        fn cipher_is_its_own_inverse(key in prop::array::uniform32(0_u8..), nonce in prop::array::uniform16(0_u8..), text: Vec<u8>) {
            let key = Key256::from_slice(&key).unwrap();
            let sealed = LayerCipher::new(&key, &nonce).unwrap().apply(&text).unwrap();
            prop_assert_eq!(LayerCipher::new(&key, &nonce).unwrap().apply(&sealed).unwrap(), text);
        }
    }
}
