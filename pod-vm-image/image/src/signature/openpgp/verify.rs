//! Keys and signatures of OpenPGP version 4, and whether one belongs to the other.

use aws_lc_rs::digest::{self, Algorithm, SHA256, SHA384, SHA512};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey,
};

use super::packets::{integer, number, subpackets, take};

/// A public key.
#[derive(Clone)]
pub(crate) struct Key {
    /// The packet's body, which is what signatures of keys are of.
    body: Vec<u8>,
    material: Material,
}

#[derive(Clone)]
enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    Ed25519(Vec<u8>),
    /// The point, not compressed.
    P256(Vec<u8>),
    P384(Vec<u8>),
    /// A key that cannot verify, such as one for encryption.
    Other,
}

/// A signature.
pub(crate) struct Signature {
    kind: u8,
    hash: &'static Algorithm,
    /// What is hashed after the data.
    trailer: Vec<u8>,
    /// As the public key algorithm has them: one number, two, or 64 bytes in one.
    numbers: Vec<Vec<u8>>,
    /// Of the signature itself; only what it protects counts.
    can_sign: bool,
    /// The signature of a subkey in that of its primary key.
    embedded: Option<Box<Signature>>,
}

/// What a signature is of.
pub(crate) enum Hashed<'a> {
    Data(&'a [u8]),
    /// A primary key and its subkey.
    Binding(&'a Key, &'a Key),
}

const BINARY: u8 = 0x00;
const SUBKEY_BINDING: u8 = 0x18;
const PRIMARY_KEY_BINDING: u8 = 0x19;
const KEY_REVOCATION: u8 = 0x20;
const SUBKEY_REVOCATION: u8 = 0x28;

const RSA: [usize; 2] = [1, 3];
const ECDSA: usize = 19;
const EDDSA_LEGACY: usize = 22;
const ED25519_KEY: usize = 27;

/// Object identifiers of curves, as the packets have them.
const OF_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OF_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const OF_ED25519: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

/// Subpackets that change what a signature means.
const SIGNATURE_EXPIRES: u8 = 3;
const KEY_FLAGS: u8 = 27;
const EMBEDDED_SIGNATURE: u8 = 32;
/// Subpackets that may be critical and are no business of a reader who knows the key: when and by whom it was made, when its key expires,
/// preferences, reasons.
const HARMLESS: [u8; 15] = [2, 7, 9, 11, 16, 21, 22, 23, 24, 25, 26, 28, 30, 33, 34];
/// In a subpacket's type.
const CRITICAL: u8 = 0x80;
/// Among key flags.
const MAY_SIGN: u8 = 0x02;

impl Key {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let damaged = || "a key is damaged".to_owned();
        let mut rest = body;
        if number(&mut rest, 1).ok_or_else(damaged)? != 4 {
            return Err("a key is not of version 4".to_owned());
        }
        let _made = number(&mut rest, 4).ok_or_else(damaged)?;
        let algorithm = number(&mut rest, 1).ok_or_else(damaged)?;
        let material = Material::parse(algorithm, rest).ok_or_else(damaged)?;
        Ok(Self { body: body.to_vec(), material })
    }

    pub(crate) fn verifies(&self, signature: &Signature, hashed: &Hashed<'_>) -> bool {
        let mut message = match hashed {
            Hashed::Data(data) => data.to_vec(),
            Hashed::Binding(primary, subkey) => [primary.hashed(), subkey.hashed()].concat(),
        };
        message.extend_from_slice(&signature.trailer);
        self.material.verifies(signature, &message)
    }

    fn hashed(&self) -> Vec<u8> {
        // A key of version 4 that is longer cannot be written with this length; it then verifies nothing.
        let length = u16::try_from(self.body.len()).unwrap_or(0);
        [&[0x99][..], &length.to_be_bytes(), &self.body].concat()
    }
}

impl Material {
    fn parse(algorithm: usize, mut rest: &[u8]) -> Option<Self> {
        if RSA.contains(&algorithm) {
            return Some(Self::Rsa { modulus: integer(&mut rest)?.to_vec(), exponent: integer(&mut rest)?.to_vec() });
        }
        match algorithm {
            ED25519_KEY => Some(Self::Ed25519(take(&mut rest, 32)?.to_vec())),
            ECDSA | EDDSA_LEGACY => {
                let length = number(&mut rest, 1)?;
                let curve = take(&mut rest, length)?;
                let point = integer(&mut rest)?;
                Some(match (algorithm, curve) {
                    (ECDSA, OF_P256) => Self::P256(point.to_vec()),
                    (ECDSA, OF_P384) => Self::P384(point.to_vec()),
                    // 0x40 says that the point has the curve's own form.
                    (EDDSA_LEGACY, OF_ED25519) => Self::Ed25519(point.strip_prefix(&[0x40])?.to_vec()),
                    _ => Self::Other,
                })
            }
            _ => Some(Self::Other),
        }
    }

    fn verifies(&self, signature: &Signature, message: &[u8]) -> bool {
        let numbers: Vec<&[u8]> = signature.numbers.iter().map(Vec::as_slice).collect();
        match (self, numbers.as_slice()) {
            (Self::Rsa { modulus, exponent }, [number]) => {
                let parameters = if signature.hash == &SHA256 {
                    &RSA_PKCS1_2048_8192_SHA256
                } else if signature.hash == &SHA384 {
                    &RSA_PKCS1_2048_8192_SHA384
                } else {
                    &RSA_PKCS1_2048_8192_SHA512
                };
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                padded(&[number], modulus.len()).is_some_and(|signature| key.verify(parameters, message, &signature).is_ok())
            }
            (Self::Ed25519(point), numbers) => {
                let bytes = match numbers {
                    [both] if both.len() == 64 => Some(both.to_vec()),
                    [_, _] => padded(numbers, 32),
                    _ => None,
                };
                let hash = digest::digest(signature.hash, message);
                bytes.is_some_and(|bytes| UnparsedPublicKey::new(&ED25519, point).verify(hash.as_ref(), &bytes).is_ok())
            }
            (Self::P256(point), [_, _]) if signature.hash == &SHA256 => {
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
                padded(&numbers, 32).is_some_and(|signature| key.verify(message, &signature).is_ok())
            }
            (Self::P384(point), [_, _]) if signature.hash == &SHA384 => {
                let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point);
                padded(&numbers, 48).is_some_and(|signature| key.verify(message, &signature).is_ok())
            }
            _ => false,
        }
    }
}

/// Numbers one after the other, each with leading zeros up to this size.
fn padded(numbers: &[&[u8]], size: usize) -> Option<Vec<u8>> {
    let mut all = Vec::with_capacity(numbers.len() * size);
    for number in numbers {
        all.resize(all.len() + size.checked_sub(number.len())?, 0);
        all.extend_from_slice(number);
    }
    Some(all)
}

impl Signature {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        Self::parse_within(body, true)
    }

    fn parse_within(body: &[u8], may_embed: bool) -> Result<Self, String> {
        let damaged = || "a signature packet is damaged".to_owned();
        let mut rest = body;
        let header = take(&mut rest, 4).ok_or_else(damaged)?;
        let &[version, kind, algorithm, hash] = header else { return Err(damaged()) };
        if version != 4 {
            return Err(format!("it has version {version}; only 4 is supported"));
        }
        let hash = match hash {
            8 => &SHA256,
            9 => &SHA384,
            10 => &SHA512,
            other => return Err(format!("its hash algorithm {other} is not supported: only SHA-256, SHA-384 and SHA-512 are")),
        };
        let length = number(&mut rest, 2).ok_or_else(damaged)?;
        let protected = take(&mut rest, length).ok_or_else(damaged)?;
        let hashed_length = 6 + length;
        let length = number(&mut rest, 2).ok_or_else(damaged)?;
        let unprotected = take(&mut rest, length).ok_or_else(damaged)?;
        let _first_of_hash = take(&mut rest, 2).ok_or_else(damaged)?;

        let mut signature =
            Self { kind, hash, trailer: body[..hashed_length].to_vec(), numbers: Vec::new(), can_sign: false, embedded: None };
        signature.trailer.extend_from_slice(&[4, 0xff]);
        signature.trailer.extend_from_slice(&u32::try_from(hashed_length).map_err(|_| damaged())?.to_be_bytes());
        for (kind, content) in subpackets(protected).ok_or_else(damaged)? {
            match kind & !CRITICAL {
                SIGNATURE_EXPIRES if content.iter().any(|byte| *byte != 0) => {
                    return Err("it expires, and the clock of a pod VM is the host's".to_owned());
                }
                SIGNATURE_EXPIRES => {}
                KEY_FLAGS => signature.can_sign = content.first().is_some_and(|flags| flags & MAY_SIGN != 0),
                EMBEDDED_SIGNATURE if may_embed => signature.embed(content),
                other if kind & CRITICAL != 0 && !HARMLESS.contains(&other) => {
                    return Err(format!("its critical subpacket {other} is not supported"));
                }
                _ => {}
            }
        }
        // The embedded signature proves itself, so it may be where nothing else counts.
        for (kind, content) in subpackets(unprotected).ok_or_else(damaged)? {
            if kind & !CRITICAL == EMBEDDED_SIGNATURE && may_embed {
                signature.embed(content);
            }
        }
        if usize::from(algorithm) == ED25519_KEY {
            signature.numbers.push(rest.to_vec());
        } else {
            while !rest.is_empty() {
                signature.numbers.push(integer(&mut rest).ok_or_else(damaged)?.to_vec());
            }
        }
        Ok(signature)
    }

    /// One that cannot be read is as good as none.
    fn embed(&mut self, body: &[u8]) {
        self.embedded = Self::parse_within(body, false).ok().map(Box::new).or(self.embedded.take());
    }

    pub(crate) fn is_of_binary_data(&self) -> Result<(), String> {
        if self.kind == BINARY { Ok(()) } else { Err(format!("its type is {:#04x}, not that of a binary document", self.kind)) }
    }

    pub(crate) fn revokes(&self) -> bool {
        matches!(self.kind, KEY_REVOCATION | SUBKEY_REVOCATION)
    }

    /// Whether by this the primary key lets the subkey sign, and the subkey agrees.
    pub(crate) fn binds_for_signing(&self, primary: &Key, subkey: &Key) -> bool {
        let binding = Hashed::Binding(primary, subkey);
        self.kind == SUBKEY_BINDING
            && self.can_sign
            && primary.verifies(self, &binding)
            && self.embedded.as_ref().is_some_and(|back| back.kind == PRIMARY_KEY_BINDING && subkey.verifies(back, &binding))
    }
}
