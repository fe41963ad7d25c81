//! The outer form of OpenPGP: armor and packets.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// One packet; its body in one piece, however it was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

const BEGIN: &str = "-----BEGIN PGP ";
const END: &str = "-----END PGP ";
const DAMAGED: &str = "it is no OpenPGP data, or damaged";

/// The bytes inside ASCII armor; bytes without armor as they are. The armor's checksum is not looked at: signatures are.
pub(crate) fn armored(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let Some(text) = str::from_utf8(bytes).ok().filter(|text| text.trim_start().starts_with(BEGIN)) else {
        return Ok(Cow::Borrowed(bytes));
    };
    let mut lines = text.trim_start().lines().map(str::trim_end).skip(1);
    // Headers end at an empty line.
    lines.by_ref().find(|line| line.is_empty()).ok_or("its armor has no content")?;
    let content: String = lines.take_while(|line| !line.starts_with('=') && !line.starts_with(END)).collect();
    Ok(Cow::Owned(STANDARD.decode(content).map_err(|_| "its armor is not base64")?))
}

/// All packets.
pub(crate) fn packets(mut bytes: &[u8]) -> Result<Vec<Packet>, String> {
    let mut packets = Vec::new();
    while !bytes.is_empty() {
        packets.push(packet(&mut bytes).ok_or(DAMAGED)?);
    }
    if packets.is_empty() { Err(DAMAGED.to_owned()) } else { Ok(packets) }
}

fn packet(bytes: &mut &[u8]) -> Option<Packet> {
    let header = number(bytes, 1)?;
    if header & 0x80 == 0 {
        return None;
    }
    if header & 0x40 == 0 {
        let tag = u8::try_from(header >> 2 & 0x0f).ok()?;
        let length = match header & 3 {
            3 => bytes.len(),
            size => number(bytes, 1 << size)?,
        };
        return Some(Packet { tag, body: take(bytes, length)?.to_vec() });
    }
    let tag = u8::try_from(header & 0x3f).ok()?;
    let mut body = Vec::new();
    loop {
        let (length, is_last) = new_length(bytes)?;
        body.extend_from_slice(take(bytes, length)?);
        if is_last {
            return Some(Packet { tag, body });
        }
    }
}

/// The length of a new packet or of a part of one, and whether it is the last part.
fn new_length(bytes: &mut &[u8]) -> Option<(usize, bool)> {
    match number(bytes, 1)? {
        short @ 0..192 => Some((short, true)),
        high @ 192..224 => Some((((high - 192) << 8) + number(bytes, 1)? + 192, true)),
        power @ 224..255 => Some((1 << (power & 0x1f), false)),
        _ => Some((number(bytes, 4)?, true)),
    }
}

/// Subpackets of a signature: type with its critical bit, and content.
pub(crate) fn subpackets(mut bytes: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let length = match number(&mut bytes, 1)? {
            short @ 0..192 => short,
            high @ 192..255 => ((high - 192) << 8) + number(&mut bytes, 1)? + 192,
            _ => number(&mut bytes, 4)?,
        };
        let (kind, content) = take(&mut bytes, length)?.split_first()?;
        all.push((*kind, content));
    }
    Some(all)
}

/// A multiprecision integer: its bits, then its bytes without leading zeros.
pub(crate) fn integer<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let bits = number(bytes, 2)?;
    take(bytes, bits.div_ceil(8))
}

/// A big-endian number.
pub(crate) fn number(bytes: &mut &[u8], size: usize) -> Option<usize> {
    Some(take(bytes, size)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

pub(crate) fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_of_all_forms_are_read() {
        let body = |length: usize| vec![7; length];
        let of = |header: &[u8], length| packets(&[header, &body(length)].concat()).map(|mut all| all.remove(0));
        for (header, length, tag) in [
            (&[0x88, 5][..], 5, 2),
            (&[0x89, 1, 0], 256, 2),
            (&[0x8a, 0, 0, 1, 0], 256, 2),
            (&[0xa3], 9, 8),
            (&[0xc2, 191], 191, 2),
            (&[0xc2, 192, 0], 192, 2),
            (&[0xc2, 255, 0, 0, 0, 3], 3, 2),
        ] {
            assert_eq!(of(header, length), Ok(Packet { tag, body: body(length) }), "{header:?}");
        }
        let partial = [&[0xcb, 0xe1][..], &[1, 2], &[0xe0, 3, 1, 4]].concat();
        assert_eq!(packets(&partial), Ok(vec![Packet { tag: 11, body: vec![1, 2, 3, 4] }]));
        for bad in [&[][..], &[0x02], &[0x88, 5, 1], &[0xc2, 255, 255, 255, 255, 255, 1], &[0xcb, 0xe1, 1, 2]] {
            assert!(packets(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn armor_is_taken_off() {
        let text = b"-----BEGIN PGP SIGNATURE-----\r\nVersion: x\r\n\r\nYWJj\r\nZGVm\r\n=abcd\r\n-----END PGP SIGNATURE-----\r\n";
        assert_eq!(armored(text).unwrap().as_ref(), b"abcdef");
        assert_eq!(armored(b"\x88\x01\x02").unwrap().as_ref(), b"\x88\x01\x02");
        assert!(armored(b"-----BEGIN PGP SIGNATURE-----\n").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = packets(&bytes);
            let _ = subpackets(&bytes);
        }
    }
}
