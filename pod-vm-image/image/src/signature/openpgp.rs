//! GPG signatures: the part of OpenPGP (RFC 9580, formats of version 4) that `skopeo --sign-by` and `podman --sign-by` write.
//!
//! Read are signed messages of one signature over binary data, compressed or not, and key rings, both also in ASCII armor. A signature counts
//! if a primary key of the ring made it, or a subkey that its primary key has bound for signing and that has signed so itself.
//!
//! Written here and not taken from a library, since verifying needs little of OpenPGP and the libraries bring all of it, with a second
//! implementation of every cipher. Whatever is not understood makes a signature or a key count for nothing:
//!
//! * SHA-1 and MD5, DSA, keys below 2048 bits, keys and signatures of other versions than 4;
//! * revoked keys (that the revocation is there is enough, it is not verified);
//! * signatures that expire: the clock is the host's. For the same reason the expiry of keys is not looked at; a key that should not count
//!   any more is taken out of the policy.

mod packets;
mod verify;

use std::fmt;
use std::io::Read as _;

use packets::{Packet, armored, packets};
use verify::{Hashed, Key, Signature};

/// Keys of GPG that signatures of images are verified with.
#[derive(Clone)]
pub struct GpgKeys(Vec<Key>);

/// Bytes of a message once it is decompressed.
const MAX_MESSAGE_BYTES: u64 = 256 << 10;

const SIGNATURE: u8 = 2;
const ONE_PASS_SIGNATURE: u8 = 4;
const PUBLIC_KEY: u8 = 6;
const COMPRESSED: u8 = 8;
const LITERAL: u8 = 11;
const PUBLIC_SUBKEY: u8 = 14;

impl GpgKeys {
    /// Reads `gpg --export`, with or without `--armor`. Succeeds if there is at least one key that can verify.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let bytes = armored(bytes)?;
        let packets = packets(&bytes)?;
        let mut keys = Vec::new();
        let starts: Vec<usize> =
            packets.iter().enumerate().filter(|(_, packet)| packet.tag == PUBLIC_KEY).map(|(index, _)| index).collect();
        for (position, start) in starts.iter().enumerate() {
            let end = starts.get(position + 1).copied().unwrap_or(packets.len());
            keys.extend(certificate(&packets[*start..end]));
        }
        if keys.is_empty() { Err("it holds no key that can verify signatures".to_owned()) } else { Ok(Self(keys)) }
    }

    /// The data of a signed message, if one of the keys signed it.
    pub fn open(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let (signature, data) = message_of(message)?;
        let signature = Signature::parse(&signature)?;
        signature.is_of_binary_data()?;
        let hashed = Hashed::Data(&data);
        let is_ours = self.0.iter().any(|key| key.verifies(&signature, &hashed));
        if is_ours { Ok(data) } else { Err("it was not made with one of the policy's keys".to_owned()) }
    }
}

impl fmt::Debug for GpgKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GpgKeys").field(&self.0.len()).finish()
    }
}

/// The keys of one certificate that may sign. What is unknown or odd is left out.
fn certificate(packets: &[Packet]) -> Vec<Key> {
    let Some(primary) = packets.first().and_then(|packet| Key::parse(&packet.body).ok()) else { return Vec::new() };
    let signatures_after = |start: usize| {
        let following = packets[start + 1..].iter().take_while(|packet| packet.tag == SIGNATURE);
        following.map(|packet| Signature::parse(&packet.body)).collect::<Vec<_>>()
    };
    // A signature that cannot be read could be the revocation.
    let direct = signatures_after(0);
    if direct.iter().any(|signature| signature.as_ref().map_or(true, Signature::revokes)) {
        return Vec::new();
    }
    let mut keys = Vec::new();
    for (index, packet) in packets.iter().enumerate().filter(|(_, packet)| packet.tag == PUBLIC_SUBKEY) {
        let Ok(subkey) = Key::parse(&packet.body) else { continue };
        let signatures = signatures_after(index);
        let is_revoked = signatures.iter().any(|signature| signature.as_ref().map_or(true, Signature::revokes));
        let is_bound = signatures.iter().flatten().any(|binding| binding.binds_for_signing(&primary, &subkey));
        if is_bound && !is_revoked {
            keys.push(subkey);
        }
    }
    keys.push(primary);
    keys
}

/// The signature's body and what it is of.
fn message_of(bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let bytes = armored(bytes)?;
    let mut packets = packets(&bytes)?;
    if let [Packet { tag: COMPRESSED, body }] = packets.as_slice() {
        packets = self::packets(&decompressed(body)?)?;
    }
    let tags: Vec<u8> = packets.iter().map(|packet| packet.tag).collect();
    let (signature, literal) = match tags.as_slice() {
        [ONE_PASS_SIGNATURE, LITERAL, SIGNATURE] => (2, 1),
        [SIGNATURE, LITERAL] => (0, 1),
        _ => return Err(format!("it is not an OpenPGP message with one signature (packets {tags:?})")),
    };
    let data = literal_data(&packets[literal].body).ok_or("its literal data is damaged")?.to_vec();
    Ok((packets.swap_remove(signature).body, data))
}

/// After the format, the file's name and the date.
fn literal_data(body: &[u8]) -> Option<&[u8]> {
    let name = usize::from(*body.get(1)?);
    body.get(2 + name + 4..)
}

fn decompressed(body: &[u8]) -> Result<Vec<u8>, String> {
    let (algorithm, content) = body.split_first().ok_or("its compressed data is empty")?;
    let mut all = Vec::new();
    let limit = MAX_MESSAGE_BYTES + 1;
    let read = match algorithm {
        0 => content.take(limit).read_to_end(&mut all),
        1 => flate2::read::DeflateDecoder::new(content).take(limit).read_to_end(&mut all),
        2 => flate2::read::ZlibDecoder::new(content).take(limit).read_to_end(&mut all),
        other => return Err(format!("its compression algorithm {other} is not supported")),
    };
    read.map_err(|error| format!("its compressed data: {error}"))?;
    if all.len() as u64 > MAX_MESSAGE_BYTES { Err(format!("it is longer than {MAX_MESSAGE_BYTES} bytes")) } else { Ok(all) }
}

#[cfg(test)]
mod tests;
