//! A keyslot: the volume key, spread over 4000 stripes of which all are needed, encrypted under a passphrase.
//!
//! The formats are LUKS1's, which LUKS2 took over: anti-forensic splitter and AES-XTS over sectors of 512 bytes.

use std::io;
use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_256, EncryptingKey, UnboundCipherKey};
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::pbkdf2::{self, PBKDF2_HMAC_SHA256};
use zeroize::Zeroizing;

use super::random;

/// How many pieces the key is split in.
pub(super) const STRIPES: usize = 4000;
/// The area's own key: AES-256-XTS.
pub(super) const KEY_BYTES: usize = 64;

const SALT_BYTES: usize = 32;
const SECTOR: usize = 512;
const AES_BLOCK: usize = 16;
const HASH_BYTES: usize = 32;
/// An area ends at a multiple of this.
const ALIGNMENT: usize = 4096;

/// A key that is ready to be written.
pub(super) struct Keyslot {
    /// What the passphrase is stretched with.
    pub(super) salt: Zeroizing<Vec<u8>>,
    /// The encrypted stripes, and zeros up to a multiple of 4 KiB.
    pub(super) area: Vec<u8>,
}

impl Keyslot {
    /// Locks a key whose size is a multiple of 32 bytes.
    pub(super) fn seal(key: &[u8], passphrase: &[u8], iterations: u32) -> io::Result<Self> {
        let salt = random(SALT_BYTES)?;
        let mut stripes = split(key, &random(key.len() * (STRIPES - 1))?)?;
        encrypt(&mut stripes, &stretch::<KEY_BYTES>(passphrase, &salt, iterations))?;
        let mut area = stripes.to_vec();
        area.resize(area.len().next_multiple_of(ALIGNMENT), 0);
        Ok(Self { salt, area })
    }
}

/// PBKDF2 with HMAC-SHA-256.
pub(super) fn stretch<const BYTES: usize>(secret: &[u8], salt: &[u8], iterations: u32) -> Zeroizing<[u8; BYTES]> {
    let mut key = Zeroizing::new([0; BYTES]);
    let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(PBKDF2_HMAC_SHA256, iterations, salt, secret, key.as_mut_slice());
    key
}

/// The stripes: the random ones, and one more that completes them to the key.
fn split(key: &[u8], random: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
    if key.is_empty() || !key.len().is_multiple_of(HASH_BYTES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mixed = mix(random, key.len());
    // With its capacity from the beginning, as growing leaves copies behind.
    let mut stripes = Zeroizing::new(Vec::with_capacity(random.len() + key.len()));
    stripes.extend_from_slice(random);
    stripes.extend(mixed.iter().zip(key).map(|(a, b)| a ^ b));
    Ok(stripes)
}

/// All stripes, each diffused into the next.
fn mix(stripes: &[u8], size: usize) -> Zeroizing<Vec<u8>> {
    let mut mixed = Zeroizing::new(vec![0; size]);
    for stripe in stripes.chunks_exact(size) {
        xor(&mut mixed, stripe);
        for (index, part) in (0_u32..).zip(mixed.chunks_exact_mut(HASH_BYTES)) {
            let mut hash = Context::new(&SHA256);
            hash.update(&index.to_be_bytes());
            hash.update(part);
            part.copy_from_slice(hash.finish().as_ref());
        }
    }
    mixed
}

/// AES-256-XTS over sectors that are numbered from zero (`aes-xts-plain64`). aws-lc's own XTS is not in its Rust interface; block
/// mode is, and XTS is that between two XORs.
fn encrypt(data: &mut [u8], key: &[u8; KEY_BYTES]) -> io::Result<()> {
    let failed = |_| io::Error::other("AES");
    let cipher = |half| UnboundCipherKey::new(&AES_256, half).and_then(EncryptingKey::ecb).map_err(failed);
    let (data_key, tweak_key) = key.split_at(KEY_BYTES / 2);
    let (data_cipher, tweak_cipher) = (cipher(data_key)?, cipher(tweak_key)?);
    for (number, sector) in (0_u128..).zip(data.chunks_mut(SECTOR)) {
        let mut tweak = number.to_le_bytes();
        tweak_cipher.encrypt(&mut tweak).map_err(failed)?;
        let mut tweak = u128::from_le_bytes(tweak);
        let mut mask = [0; SECTOR];
        for block in mask.chunks_exact_mut(AES_BLOCK) {
            block.copy_from_slice(&tweak.to_le_bytes());
            // Times x in the field of 2^128 elements.
            tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
        }
        xor(sector, &mask);
        data_cipher.encrypt(sector).map_err(failed)?;
        xor(sector, &mask);
    }
    Ok(())
}

fn xor(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(a, b)| *a ^= b);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xts_is_that_of_ieee_1619() {
        // Vector 10: 512 bytes at data unit 0xff, of which ours are numbered from zero; so the one before it is made of zeros.
        let key: Vec<u8> = [
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592",
        ]
        .concat()
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex"))
        .collect();
        let mut data = vec![0; 0x100 * SECTOR];
        for (index, byte) in data[0xff * SECTOR..].iter_mut().enumerate() {
            *byte = u8::try_from(index % 256).expect("a byte");
        }
        encrypt(&mut data, key.as_slice().try_into().expect("64 bytes")).expect("encrypt");
        let sector = &data[0xff * SECTOR..];
        assert_eq!(sector[..8], [0x1c, 0x3b, 0x3a, 0x10, 0x2f, 0x77, 0x03, 0x86]);
        assert_eq!(sector[508..], [0xe1, 0x48, 0xc1, 0x51]);
    }

    #[test]
    fn stripes_give_the_key_back_and_need_every_bit() {
        let key: Vec<u8> = (0..96).collect();
        let random: Vec<u8> = (0..96 * 9).map(|i: usize| u8::try_from(i % 251).expect("a byte")).collect();
        let mut stripes = split(&key, &random).expect("split");
        let merge = |stripes: &[u8]| {
            let (random, last) = stripes.split_at(stripes.len() - 96);
            let mut merged = mix(random, 96);
            xor(&mut merged, last);
            merged.to_vec()
        };
        assert_eq!(merge(&stripes), key);
        stripes[17] ^= 1;
        assert_ne!(merge(&stripes), key);
        assert!(split(&key[..33], &[]).is_err());
    }
}
