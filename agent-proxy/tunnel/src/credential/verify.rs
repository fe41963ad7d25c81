//! The guest's check of a node's credential.

use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest as _, Sha256};
use webpki::{EndEntityCert, KeyUsage};

use super::{INSTANCE_URI, NODE_URI};

/// What a credential says: this node may bind this instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) instance_id: String,
    pub(crate) node: String,
}

/// Why a chain is not an assignment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("the chain has {0} certificates; it must be a leaf and the binder CA")]
    Length(usize),
    #[error("the CA is not the one that user data names")]
    ForeignCa,
    #[error("certificate is not valid: {0}")]
    Invalid(webpki::Error),
    #[error("certificate does not name exactly one instance and one node")]
    Names,
}

/// Checks a chain against the CA fingerprint of user data. `now` is the guest's clock, which its host controls: a host can
/// make an expired credential pass, but not without that node's key. Expiry limits what a key stolen later is good for.
pub(crate) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    ca_sha256: &[u8; 32],
    now: UnixTime,
) -> Result<Assignment, ChainError> {
    let [ca] = intermediates else { return Err(ChainError::Length(1 + intermediates.len())) };
    let ca_cert = EndEntityCert::try_from(ca).map_err(ChainError::Invalid)?;
    if Sha256::digest(ca_cert.subject_public_key_info()).as_slice() != ca_sha256 {
        return Err(ChainError::ForeignCa);
    }
    // Only the key of this certificate is pinned; whatever else it says was not checked, and nothing else of it is used
    // except its name, which the leaf must repeat.
    let anchor = webpki::anchor_from_trusted_cert(ca).map_err(ChainError::Invalid)?;
    let leaf = EndEntityCert::try_from(leaf).map_err(ChainError::Invalid)?;
    leaf.verify_for_usage(&[webpki::aws_lc_rs::ECDSA_P256_SHA256], &[anchor], &[], now, KeyUsage::client_auth(), None, None)
        .map_err(ChainError::Invalid)?;
    let only = |prefix| {
        let mut names = leaf.valid_uri_names().filter_map(move |uri| uri.strip_prefix(prefix));
        names.next().filter(|_| names.next().is_none()).map(str::to_owned).ok_or(ChainError::Names)
    };
    Ok(Assignment { instance_id: only(INSTANCE_URI)?, node: only(NODE_URI)? })
}
