//! Writing DER (X.690): the few elements that must be compared or made here.

pub(crate) const BIT_STRING: u8 = 3;
pub(crate) const SEQUENCE: u8 = 0x30;

/// A tag, the content's length in as few bytes as possible, the content.
pub(crate) fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut encoded = vec![tag];
    let length = content.len().to_be_bytes();
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => encoded.push(short),
        _ => {
            let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
            encoded.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
            encoded.extend_from_slice(significant);
        }
    }
    encoded.extend_from_slice(content);
    encoded
}

/// A positive INTEGER from its bytes, which have no leading zero.
pub(crate) fn integer(number: &[u8]) -> Vec<u8> {
    let needs_zero = number.first().is_none_or(|byte| byte & 0x80 != 0);
    tagged(2, &[if needs_zero { &[0][..] } else { &[] }, number].concat())
}
