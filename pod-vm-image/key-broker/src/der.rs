//! As much DER as RSA keys need: AWS-LC gives and takes PKCS#8 and SubjectPublicKeyInfo, while the protocol wants PKCS#1 and bare numbers.

use zeroize::Zeroizing;

/// `rsaEncryption` with its NULL parameters.
const RSA_ALGORITHM: &[u8] = &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
/// `INTEGER 0`: the version of PKCS#8 and of PKCS#1.
const VERSION: &[u8] = &[0x02, 0x01, 0x00];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// The PKCS#1 key inside a PKCS#8 one.
pub(crate) fn pkcs1_of_pkcs8(pkcs8: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut rest = read(&mut &pkcs8[..], SEQUENCE)?;
    rest = rest.strip_prefix(VERSION)?.strip_prefix(RSA_ALGORITHM)?;
    Some(Zeroizing::new(read(&mut rest, OCTET_STRING)?.to_vec()))
}

/// The PKCS#8 key around a PKCS#1 one.
pub(crate) fn pkcs8_of_pkcs1(pkcs1: &[u8]) -> Zeroizing<Vec<u8>> {
    let key = Zeroizing::new(written(OCTET_STRING, &[pkcs1]));
    Zeroizing::new(written(SEQUENCE, &[VERSION, RSA_ALGORITHM, &key]))
}

/// Modulus and exponent of a PKCS#1 private key, without leading zeros.
pub(crate) fn public_numbers(pkcs1: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = read(&mut &pkcs1[..], SEQUENCE)?.strip_prefix(VERSION)?;
    let modulus = read(&mut rest, INTEGER)?;
    let exponent = read(&mut rest, INTEGER)?;
    Some((without_zeros(modulus), without_zeros(exponent)))
}

/// SubjectPublicKeyInfo of an RSA key.
pub(crate) fn public_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let key = written(SEQUENCE, &[&unsigned(modulus), &unsigned(exponent)]);
    written(SEQUENCE, &[RSA_ALGORITHM, &written(BIT_STRING, &[&[0], &key])])
}

fn unsigned(bytes: &[u8]) -> Vec<u8> {
    let bytes = without_zeros(bytes);
    let sign: &[u8] = if bytes.first().is_none_or(|first| *first >= 0x80) { &[0] } else { &[] };
    written(INTEGER, &[sign, bytes])
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// The content of the next value, which must have this tag. Lengths of up to three bytes are read.
fn read<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (found, rest) = input.split_first()?;
    let (first, mut rest) = rest.split_first()?;
    if *found != tag {
        return None;
    }
    let mut length = usize::from(*first);
    if *first >= 0x80 {
        let count = usize::from(*first & 0x7f);
        if !(1..=3).contains(&count) {
            return None;
        }
        let (bytes, after) = rest.split_at_checked(count)?;
        length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after;
    }
    let (content, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some(content)
}

fn written(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = length.to_be_bytes();
    let significant = without_zeros(&bytes);
    // In one piece, so that no copy of a private key is left behind by a growing buffer.
    let mut value = Vec::with_capacity(length + 2 + significant.len());
    value.push(tag);
    match (length, u8::try_from(length), u8::try_from(significant.len())) {
        (0..0x80, Ok(short), _) => value.push(short),
        (_, _, Ok(count)) => {
            value.push(0x80 | count);
            value.extend_from_slice(significant);
        }
        // A usize has eight bytes.
        _ => {}
    }
    for part in parts {
        value.extend_from_slice(part);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_are_written_and_read() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x1_0000] {
            let content = vec![7; length];
            let value = written(OCTET_STRING, &[&content]);
            assert_eq!(read(&mut &value[..], OCTET_STRING).unwrap(), content, "{length}");
            assert_eq!(read(&mut &value[..value.len() - usize::from(length > 0)], OCTET_STRING).is_none(), length > 0);
        }
        assert!(read(&mut &[OCTET_STRING, 0x80][..], OCTET_STRING).is_none());
        assert!(read(&mut &[OCTET_STRING][..], OCTET_STRING).is_none());
        assert!(read(&mut &[INTEGER, 0][..], OCTET_STRING).is_none());
    }

    #[test]
    fn unsigned_numbers_have_a_sign_byte_where_needed() {
        assert_eq!(unsigned(&[0, 0, 0x80]), [INTEGER, 2, 0, 0x80]);
        assert_eq!(unsigned(&[0x7f]), [INTEGER, 1, 0x7f]);
        assert_eq!(unsigned(&[]), [INTEGER, 1, 0]);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(
            start in prop_oneof![Just(vec![]), Just(vec![SEQUENCE]), Just(vec![SEQUENCE, 0x82])],
            rest in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let bytes = [start, rest].concat();
            prop_assert!(pkcs1_of_pkcs8(&bytes).is_none());
            let _ = public_numbers(&bytes);
        }
    }
}
