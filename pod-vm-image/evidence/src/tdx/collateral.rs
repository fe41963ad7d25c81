//! Intel's signed files about platforms: TCB info, the quoting enclave's identity, revocation lists.
//!
//! One JSON file holds them all, as `dcap-qvl` and others store what Intel's Provisioning Certification Service answers:
//! ```json
//! {"tcb_info": "{...}", "tcb_info_signature": "<hex>", "tcb_info_issuer_chain": "<PEM>", "qe_identity": "{...}",
//!  "qe_identity_signature": "<hex>", "qe_identity_issuer_chain": "<PEM>", "root_ca_crl": "<hex DER>", "pck_crl": "<hex DER>"}
//! ```
//! Source: "Intel SGX and TDX Provisioning Certification Service API" version 4.

use std::time::SystemTime;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::pck::{Pck, certificates, root};
use super::quote::EnclaveReport;
use super::tcb::{Assessment, QeIdentity, TcbInfo};
use super::{TdQuote, TdxError};
use crate::x509::{Certificate, Scheme};

/// Longest file that is read; TCB infos have some 50 KiB.
pub(super) const MAX_BYTES: usize = 4 << 20;

/// Intel's files, not verified yet: that needs the time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Collateral {
    tcb_info: String,
    #[serde(with = "hex")]
    tcb_info_signature: Vec<u8>,
    tcb_info_issuer_chain: String,
    qe_identity: String,
    #[serde(with = "hex")]
    qe_identity_signature: Vec<u8>,
    qe_identity_issuer_chain: String,
    #[serde(with = "hex")]
    root_ca_crl: Vec<u8>,
    #[serde(with = "hex")]
    pck_crl: Vec<u8>,
}

impl Collateral {
    /// Reads the file.
    pub fn from_json(text: &[u8]) -> Result<Self, TdxError> {
        if text.len() > MAX_BYTES {
            return Err(TdxError::Collateral(format!("it has {} bytes; at most {MAX_BYTES} are read", text.len())));
        }
        serde_json::from_slice(text).map_err(|error| TdxError::Collateral(error.to_string()))
    }

    /// What Intel says of this platform and enclave.
    pub(super) fn assess(&self, quote: &TdQuote, enclave: &EnclaveReport<'_>, pck: &Pck, now: SystemTime) -> Result<Assessment, TdxError> {
        let info = signed(&self.tcb_info, &self.tcb_info_signature, &self.tcb_info_issuer_chain, now)?;
        let identity = signed(&self.qe_identity, &self.qe_identity_signature, &self.qe_identity_issuer_chain, now)?;
        self.check_revocation(pck, now)?;
        let read = |error: serde_json::Error| TdxError::Collateral(error.to_string());
        let info: TcbInfo = serde_json::from_str(info).map_err(read)?;
        let identity: QeIdentity = serde_json::from_str(identity).map_err(read)?;
        is_current(&info.issue_date, &info.next_update, now)?;
        is_current(&identity.issue_date, &identity.next_update, now)?;
        info.assess(quote, pck)?.with_enclave(identity.assess(enclave)?)
    }

    fn check_revocation(&self, pck: &Pck, now: SystemTime) -> Result<(), TdxError> {
        let chain = certificates(self.tcb_info_issuer_chain.as_bytes())?;
        let root_der = chain.last().ok_or_else(|| TdxError::Collateral("it has no root".to_owned()))?;
        let issuer = Certificate::parse("PCK CA", &pck.issuer)?;
        let lists = [(&self.root_ca_crl, &root(root_der)?, &pck.issuer_serial), (&self.pck_crl, &issuer, &pck.serial)];
        for (list, signer, serial) in lists {
            let refused = |what: String| TdxError::Collateral(format!("revocation list: {what}"));
            let (_, list) = CertificateRevocationList::from_der(list).map_err(|error| refused(error.to_string()))?;
            let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let ends = list.next_update().map_or(i64::MIN, |time| time.timestamp());
            if i64::try_from(seconds).unwrap_or(i64::MAX) > ends {
                return Err(refused("it has expired".to_owned()));
            }
            let key = UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1, signer.public_key());
            key.verify(list.tbs_cert_list.as_ref(), &list.signature_value.data)
                .map_err(|_| refused("its CA did not sign it".to_owned()))?;
            if list.iter_revoked_certificates().any(|revoked| revoked.raw_serial() == &serial[..]) {
                return Err(refused("the platform's certificate is revoked".to_owned()));
            }
        }
        Ok(())
    }
}

/// The text, if Intel's TCB signing key signed it.
fn signed<'a>(text: &'a str, signature: &[u8], chain: &str, now: SystemTime) -> Result<&'a str, TdxError> {
    let chain = certificates(chain.as_bytes())?;
    let [signer_der, root_der] = &chain[..] else { return Err(TdxError::Collateral("not a chain of two certificates".to_owned())) };
    let (root, signer) = (root(root_der)?, Certificate::parse("TCB signing", signer_der)?);
    root.is_valid_at(now)?;
    signer.is_valid_at(now)?;
    signer.is_signed_by(&root, Scheme::EcdsaP256)?;
    if signer.common_name() != Some("Intel SGX TCB Signing") {
        return Err(TdxError::Collateral("its signer does not sign TCB info".to_owned()));
    }
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, signer.public_key());
    key.verify(text.as_bytes(), signature).map_err(|_| TdxError::Collateral("Intel did not sign it".to_owned()))?;
    Ok(text)
}

fn is_current(issued: &str, next: &str, now: SystemTime) -> Result<(), TdxError> {
    let read = |text: &str| OffsetDateTime::parse(text, &Rfc3339).map_err(|error| TdxError::Collateral(format!("{text}: {error}")));
    let now = OffsetDateTime::from(now);
    if read(issued)? <= now && now <= read(next)? {
        Ok(())
    } else {
        Err(TdxError::Collateral(format!("it is of {issued} and valid until {next}: fetch it again")))
    }
}
