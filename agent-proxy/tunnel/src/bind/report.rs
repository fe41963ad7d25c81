//! Report data: what ties a piece of evidence to one TLS connection, one nonce and one VM key.

use sha2::{Digest as _, Sha384};

/// Label of the TLS exporter (RFC 8446 section 7.5, empty context, 32 bytes).
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-peerpods-bind";

/// `SHA-384("peerpods-bind/1" | 0 | exporter | nonce | SubjectPublicKeyInfo of the VM in DER)`.
/// All parts but the last have a fixed length, so no two inputs share an encoding.
pub(crate) fn report_data(exporter: &[u8; 32], nonce: &[u8; 32], vm_spki_der: &[u8]) -> [u8; 48] {
    let mut hash = Sha384::new();
    hash.update(b"peerpods-bind/1\0");
    hash.update(exporter);
    hash.update(nonce);
    hash.update(vm_spki_der);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_data_is_the_documented_hash() {
        // (printf 'peerpods-bind/1\0'; 32 times 01; 32 times 02; printf 'spki') | sha384sum
        let expected = "e1e2d4ed93a6e11e7fb3674f5f6ddd070c89a6d4322a528529daa6c2eef650a1d3b46810df2a7e6dfa326f68aa3d97c7";
        assert_eq!(hex::encode(report_data(&[1; 32], &[2; 32], b"spki")), expected);
        assert_eq!(include_str!("../../../../tests/compat/bind/v1/report-data.txt").trim_end(), expected);
    }
}
