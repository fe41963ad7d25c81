//! The PCK certificate: which platform, with which firmware, and its chain to Intel's root.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use x509_parser::der_parser::ber::BerObject;
use x509_parser::der_parser::der::parse_der;
use x509_parser::der_parser::oid;
use x509_parser::oid_registry::Oid;

use super::TdxError;
use crate::bytes::Malformed;
use crate::x509::{Certificate, CertificateError, Scheme};

/// SHA-256 of "Intel SGX Root CA", <https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer>.
const ROOT_SHA256: &str = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3";

/// The extension and its members (PCK profile, section 1.3.5).
const SGX: Oid<'static> = oid!(1.2.840.113741.1.13.1);
const TCB: Oid<'static> = oid!(1.2.840.113741.1.13.1.2);
const PCE_ID: Oid<'static> = oid!(1.2.840.113741.1.13.1.3);
const FMSPC: Oid<'static> = oid!(1.2.840.113741.1.13.1.4);
const PLATFORM_INSTANCE: Oid<'static> = oid!(1.2.840.113741.1.13.1.6);
const PCE_SVN: Oid<'static> = oid!(1.2.840.113741.1.13.1.2.17);
const CPU_SVN: Oid<'static> = oid!(1.2.840.113741.1.13.1.2.18);

/// A platform by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pck {
    /// The key, an uncompressed point on P-256.
    pub(super) point: Vec<u8>,
    /// The certificate's serial number, for revocation.
    pub(super) serial: Vec<u8>,
    /// Its issuer's serial number.
    pub(super) issuer_serial: Vec<u8>,
    /// Its issuer's certificate, which signs the revocation list.
    pub(super) issuer: Vec<u8>,
    pub(super) cpu_svn: [u8; 16],
    pub(super) pce_svn: u16,
    pub(super) pce_id: [u8; 2],
    pub(super) fmspc: [u8; 6],
    pub(super) platform_instance_id: Option<[u8; 16]>,
}

/// Three certificates: PCK, its CA, the root.
pub(super) struct PckChain(pub(super) Vec<CertificateDer<'static>>);

impl PckChain {
    /// Reads PEM, of which every byte matters but a zero at its end.
    pub(super) fn parse(pem: &[u8]) -> Result<Self, TdxError> {
        let text = pem.strip_suffix(&[0]).unwrap_or(pem);
        let certificates = certificates(text)?;
        if certificates.len() == 3 { Ok(Self(certificates)) } else { Err(Malformed::new("not a chain of three certificates").into()) }
    }

    pub(super) fn verify(&self, now: SystemTime) -> Result<Pck, TdxError> {
        let [leaf_der, issuer_der, root_der] = &self.0[..] else { return Err(Malformed::new("not three certificates").into()) };
        let root = root(root_der)?;
        let issuer = Certificate::parse("PCK CA", issuer_der)?;
        let leaf = Certificate::parse("PCK", leaf_der)?;
        for certificate in [&root, &issuer, &leaf] {
            certificate.is_valid_at(now)?;
        }
        issuer.is_signed_by(&root, Scheme::EcdsaP256)?;
        leaf.is_signed_by(&issuer, Scheme::EcdsaP256)?;
        if !issuer.common_name().is_some_and(|name| name.starts_with("Intel SGX PCK ")) {
            return Err(malformed("PCK CA", "it is not a CA of PCK certificates").into());
        }
        Pck::read(&leaf, &issuer, issuer_der).map_err(Into::into)
    }
}

/// Intel's root, by its digest.
pub(super) fn root<'a>(der: &'a CertificateDer<'_>) -> Result<Certificate<'a>, CertificateError> {
    if hex::encode(Sha256::digest(der)) != ROOT_SHA256 {
        return Err(malformed("root", "it is not Intel's root"));
    }
    Certificate::parse("Intel's root", der)
}

/// Strict PEM: what lies between certificates, and the way lines are broken, is nobody's but ours to judge, so only one form is taken.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TdxError> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let bad = |what: &str| TdxError::from(Malformed::new(format!("certificate chain: {what}")));
    let text = std::str::from_utf8(pem).map_err(|_| bad("not text"))?;
    let decoded: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let decoded = decoded.map_err(|error| bad(&error.to_string()))?;
    let write = |der: &CertificateDer<'_>| {
        let body = STANDARD.encode(der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    let written: String = decoded.iter().map(write).collect();
    if text == written || text == written.trim_end() { Ok(decoded) } else { Err(bad("not plain PEM")) }
}

fn malformed(which: &'static str, what: &str) -> CertificateError {
    CertificateError::Malformed { which, what: what.to_owned() }
}

impl Pck {
    fn read(leaf: &Certificate<'_>, issuer: &Certificate<'_>, issuer_der: &[u8]) -> Result<Self, CertificateError> {
        let bad = |what: &str| malformed("PCK", what);
        let (rest, extension) = parse_der(leaf.extension(&SGX)?).map_err(|_| bad("its SGX extension is not DER"))?;
        if !rest.is_empty() {
            return Err(bad("bytes follow its SGX extension"));
        }
        let tcb = need(&extension, &TCB)?;
        let octets = |value: &BerObject<'_>| value.as_slice().map(<[u8]>::to_vec).unwrap_or_default();
        let fixed = |value: Vec<u8>, wanted: &Oid<'_>| value.try_into().map_err(|_| bad(&format!("{wanted} has another length")));
        let instance = member(&extension, &PLATFORM_INSTANCE).map(|value| octets(&value));
        let short = |wanted: &Oid<'_>| bad(&format!("{wanted} has another length"));
        Ok(Self {
            point: leaf.public_key().to_vec(),
            serial: leaf.serial().to_vec(),
            issuer_serial: issuer.serial().to_vec(),
            issuer: issuer_der.to_vec(),
            cpu_svn: fixed(octets(&need(&tcb, &CPU_SVN)?), &CPU_SVN)?,
            pce_svn: need(&tcb, &PCE_SVN)?.as_u32().ok().and_then(|svn| svn.try_into().ok()).ok_or_else(|| short(&PCE_SVN))?,
            pce_id: octets(&need(&extension, &PCE_ID)?).try_into().map_err(|_| short(&PCE_ID))?,
            fmspc: octets(&need(&extension, &FMSPC)?).try_into().map_err(|_| short(&FMSPC))?,
            platform_instance_id: instance.map(|id| id.try_into().map_err(|_| short(&PLATFORM_INSTANCE))).transpose()?,
        })
    }
}

fn need<'a>(of: &BerObject<'a>, wanted: &Oid<'_>) -> Result<BerObject<'a>, CertificateError> {
    member(of, wanted).ok_or_else(|| malformed("PCK", &format!("it has no {wanted}")))
}

/// A member of a sequence of pairs of a name and a value.
fn member<'a>(of: &BerObject<'a>, wanted: &Oid<'_>) -> Option<BerObject<'a>> {
    let pairs = of.as_sequence().ok()?.iter();
    pairs.filter_map(|pair| pair.as_sequence().ok()).find_map(|pair| match &pair[..] {
        [name, value] if name.as_oid().is_ok_and(|oid| oid == wanted) => Some(value.clone()),
        _ => None,
    })
}
