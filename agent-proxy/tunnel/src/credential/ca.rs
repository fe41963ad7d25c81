//! The binder CA: the controller's key, whose hash is in every pod VM's user data.

use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::key::P256Public;
use super::{CredentialError, INSTANCE_URI, NODE_URI, NodeKey, check_name};

/// Clocks of controller and pod VM may differ by this much before a fresh certificate looks like one from the future.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Issues the credentials that nodes bind with. Only the controller holds one.
#[derive(Debug, Clone)]
pub struct BinderCa {
    key: NodeKey,
    cert_der: Vec<u8>,
}

impl BinderCa {
    /// A new CA. Its certificate has no end: what counts is the key, which user data pins.
    pub fn generate() -> Result<Self, CredentialError> {
        let key = NodeKey::generate()?;
        let certificate = ca_params().self_signed(key.pair()).map_err(make("the binder CA's certificate"))?;
        Ok(Self { cert_der: certificate.der().to_vec(), key })
    }

    /// Reads what [`BinderCa::to_pem`] wrote.
    pub fn from_pem(pem: &str) -> Result<Self, CredentialError> {
        let cert = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| CredentialError::Pem(error.to_string()))?;
        let key = NodeKey::from_pem(pem)?;
        let parsed = webpki::EndEntityCert::try_from(&cert).map_err(|error| CredentialError::Pem(error.to_string()))?;
        if parsed.subject_public_key_info().as_ref() != key.spki_der() {
            return Err(CredentialError::Mismatch);
        }
        Ok(Self { key, cert_der: cert.to_vec() })
    }

    /// Key and certificate, for a file with mode 0600.
    pub fn to_pem(&self) -> String {
        let body = pem_body(&self.cert_der);
        format!("{}-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n", self.key.to_pem())
    }

    /// For [`crate::user_data::UserData::binder_ca_sha256`].
    pub fn spki_sha256_hex(&self) -> String {
        hex::encode(Sha256::digest(self.key.spki_der()))
    }

    /// The CA's certificate.
    pub fn cert_der(&self) -> &[u8] {
        &self.cert_der
    }

    /// Lets the holder of the node key bind this one instance until `now + ttl`. Returns the DER chain: leaf, CA.
    pub fn issue(
        &self,
        node_spki_der: &[u8],
        instance_id: &str,
        node: &str,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Vec<Vec<u8>>, CredentialError> {
        check_name(instance_id)?;
        check_name(node)?;
        let uri = |text: String| text.try_into().map(SanType::URI).map_err(make("a node's certificate"));
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "peerpods node");
        params.subject_alt_names = vec![uri(format!("{INSTANCE_URI}{instance_id}"))?, uri(format!("{NODE_URI}{node}"))?];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + ttl).into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = Issuer::from_params(&CA_PARAMS, self.key.pair());
        let leaf = params.signed_by(&P256Public::parse(node_spki_der)?, &issuer).map_err(make("a node's certificate"))?;
        Ok(vec![leaf.der().to_vec(), self.cert_der.clone()])
    }
}

/// The same parameters make the CA's certificate and name it as issuer, so that the two always agree.
static CA_PARAMS: std::sync::LazyLock<CertificateParams> = std::sync::LazyLock::new(ca_params);

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "peerpods binder CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn make(what: &'static str) -> impl Fn(rcgen::Error) -> CredentialError {
    move |error| CredentialError::Make { what, cause: error.to_string() }
}

fn pem_body(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    text.as_bytes().chunks(64).flat_map(|line| line.iter().map(|byte| char::from(*byte)).chain(['\n'])).collect()
}
