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
        let (info, info_signer) = signed(&self.tcb_info, &self.tcb_info_signature, &self.tcb_info_issuer_chain, now)?;
        let (identity, identity_signer) = signed(&self.qe_identity, &self.qe_identity_signature, &self.qe_identity_issuer_chain, now)?;
        let chain = certificates(self.tcb_info_issuer_chain.as_bytes())?;
        let root = root(chain.last().ok_or_else(|| TdxError::Collateral("it has no root".to_owned()))?)?;
        check_revocation(&self.root_ca_crl, &root, &[&pck.issuer_serial, &info_signer, &identity_signer], now)?;
        check_revocation(&self.pck_crl, &Certificate::parse("PCK CA", &pck.issuer)?, &[&pck.serial], now)?;
        let read = |error: serde_json::Error| TdxError::Collateral(error.to_string());
        let info: TcbInfo = serde_json::from_str(info).map_err(read)?;
        let identity: QeIdentity = serde_json::from_str(identity).map_err(read)?;
        is_current(&info.issue_date, &info.next_update, now)?;
        is_current(&identity.issue_date, &identity.next_update, now)?;
        info.assess(quote, pck)?.with_enclave(identity.assess(enclave)?)
    }
}

/// Refuses what is on the list of this CA, or a list that is not its own of now.
fn check_revocation(list: &[u8], signer: &Certificate<'_>, serials: &[&[u8]], now: SystemTime) -> Result<(), TdxError> {
    let refused = |what: String| TdxError::Collateral(format!("revocation list: {what}"));
    let (_, list) = CertificateRevocationList::from_der(list).map_err(|error| refused(error.to_string()))?;
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let ends = list.next_update().map_or(i64::MIN, |time| time.timestamp());
    if i64::try_from(seconds).unwrap_or(i64::MAX) > ends {
        return Err(refused("it has expired".to_owned()));
    }
    let key = UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1, signer.public_key());
    key.verify(list.tbs_cert_list.as_ref(), &list.signature_value.data).map_err(|_| refused("its CA did not sign it".to_owned()))?;
    let revoked = list.iter_revoked_certificates().find(|revoked| serials.contains(&revoked.raw_serial()));
    revoked.map_or(Ok(()), |revoked| Err(refused(format!("certificate {} is revoked", revoked.raw_serial_as_string()))))
}

/// The text, if Intel's TCB signing key signed it, and that key's serial number.
fn signed<'a>(text: &'a str, signature: &[u8], chain: &str, now: SystemTime) -> Result<(&'a str, Vec<u8>), TdxError> {
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
    Ok((text, signer.serial().to_vec()))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    };

    use super::*;

    fn issuer() -> (Issuer<'static, KeyPair>, Vec<u8>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        (Issuer::new(params, key), der)
    }

    #[test]
    fn revoked_serials_foreign_lists_and_old_ones_are_refused() {
        let ((ca, ca_der), (_, other_der)) = (issuer(), issuer());
        let (ca_certificate, other) = (Certificate::parse("CA", &ca_der).unwrap(), Certificate::parse("CA", &other_der).unwrap());
        let revoked = rcgen::RevokedCertParams {
            serial_number: vec![5, 6].into(),
            revocation_time: rcgen::date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, 1),
            next_update: rcgen::date_time_ymd(2027, 1, 1),
            crl_number: vec![1].into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&ca).unwrap().der().to_vec();
        let now = SystemTime::from(rcgen::date_time_ymd(2026, 6, 1));
        let year = Duration::from_secs(366 * 86_400);
        let check = |signer: &Certificate<'_>, serials: &[&[u8]], now| check_revocation(&list, signer, serials, now);
        check(&ca_certificate, &[&[1], &[5], &[6, 5]], now).unwrap();
        for (signer, serials, now, because) in [
            (&ca_certificate, &[&[1][..], &[5, 6]][..], now, "05:06 is revoked"),
            (&other, &[&[1]], now, "did not sign"),
            (&ca_certificate, &[&[1]], now + year, "expired"),
        ] {
            let error = check(signer, serials, now).unwrap_err().to_string();
            assert!(error.contains(because), "{error}");
        }
    }
}
