//! PEM, as far as keys of people come in it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// The label and the content of the first block that is no list of curve parameters, which OpenSSL puts before some keys.
pub(crate) fn first(text: &str) -> Option<(String, Zeroizing<Vec<u8>>)> {
    let mut rest = text;
    loop {
        let (_, after) = rest.split_once("-----BEGIN ")?;
        let (label, after) = after.split_once("-----")?;
        let (body, after) = after.split_once(&format!("-----END {label}-----"))?;
        if label == "EC PARAMETERS" {
            rest = after;
            continue;
        }
        let body: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
        return Some((label.to_owned(), Zeroizing::new(STANDARD.decode(body.as_bytes()).ok()?)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_key_is_found_behind_parameters() {
        let text = "x\n-----BEGIN EC PARAMETERS-----\nBg==\n-----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\nAA\nEC\n-----END EC PRIVATE KEY-----\n";
        let (label, bytes) = first(text).unwrap();
        assert_eq!((label.as_str(), bytes.as_slice()), ("EC PRIVATE KEY", &[0, 1, 2][..]));
        assert!(first("-----BEGIN A-----\nAA==\n").is_none() && first("").is_none());
    }
}
