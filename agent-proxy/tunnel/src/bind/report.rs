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
