//! AMD's certificates: ARK signs ASK and ASVK, ASK signs VCEKs, ASVK signs VLEKs; one set for each line of processors.
//!
//! `roots/*.pem` are AMD's, as its key distribution service hands them out.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::der_parser::oid;
use x509_parser::oid_registry::Oid;

use super::{Report, SnpError};
use crate::x509::{Certificate, CertificateError, Scheme};

/// A line of processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// Third generation.
    Milan,
    /// Fourth generation, Bergamo and Siena included.
    Genoa,
    /// Fifth generation.
    Turin,
}

/// PEM of a product's root, the signer of its VCEKs, and the signer of its VLEKs.
const ROOTS: [(Product, &str, [&str; 2]); 3] = [
    (Product::Milan, include_str!("roots/ark-milan.pem"), [include_str!("roots/ask-milan.pem"), include_str!("roots/asvk-milan.pem")]),
    (Product::Genoa, include_str!("roots/ark-genoa.pem"), [include_str!("roots/ask-genoa.pem"), include_str!("roots/asvk-genoa.pem")]),
    (Product::Turin, include_str!("roots/ark-turin.pem"), [include_str!("roots/ask-turin.pem"), include_str!("roots/asvk-turin.pem")]),
];

/// Extensions of endorsement certificates (57230, table "VCEK certificate extensions"), by the field that they must equal.
const BOOTLOADER: Oid<'static> = oid!(1.3.6.1.4.1.3704.1.3.1);
const TEE: Oid<'static> = oid!(1.3.6.1.4.1.3704.1.3.2);
const SNP: Oid<'static> = oid!(1.3.6.1.4.1.3704.1.3.3);
const MICROCODE: Oid<'static> = oid!(1.3.6.1.4.1.3704.1.3.8);
const FMC: Oid<'static> = oid!(1.3.6.1.4.1.3704.1.3.9);
const CHIP: Oid<'static> = oid!(1.3.6.1.4.1.3704.1.4);

/// Names of the two kinds of keys.
const VCEK: &str = "SEV-VCEK";
const VLEK: &str = "SEV-VLEK";

/// A VCEK or VLEK certificate with AMD behind it.
pub(super) struct Endorsed<'a> {
    product: Product,
    certificate: Certificate<'a>,
    is_of_a_chip: bool,
}

impl<'a> Endorsed<'a> {
    pub(super) fn verify(der: &'a [u8], now: SystemTime) -> Result<Self, SnpError> {
        let certificate = Certificate::parse("VCEK or VLEK", der)?;
        certificate.is_valid_at(now)?;
        let malformed = |what: &str| CertificateError::Malformed { which: "VCEK or VLEK", what: what.to_owned() };
        let is_of_a_chip = match certificate.common_name() {
            Some(VCEK) => true,
            Some(VLEK) => false,
            _ => return Err(malformed("it names neither kind of key").into()),
        };
        let mut refusal: SnpError = malformed("no processors are known").into();
        for (product, root, [chips, clouds]) in ROOTS {
            match verify_below(&certificate, root, if is_of_a_chip { chips } else { clouds }, now) {
                Ok(()) => return Ok(Self { product, certificate, is_of_a_chip }),
                Err(error) => refusal = error.into(),
            }
        }
        Err(refusal)
    }

    /// Whether the report is of this chip and firmware, and signed by this key.
    pub(super) fn check(&self, report: &Report) -> Result<Product, SnpError> {
        let tcb = &report.reported_tcb;
        let parts = [
            (BOOTLOADER, tcb.bootloader, "bootloader version"),
            (TEE, tcb.tee, "TEE version"),
            (SNP, tcb.snp, "SNP firmware version"),
            (MICROCODE, tcb.microcode, "microcode version"),
        ];
        for (oid, found, what) in parts {
            if self.small_number(&oid)? != found {
                return Err(SnpError::NotEndorsed(what));
            }
        }
        if let Some(fmc) = tcb.fmc
            && self.small_number(&FMC)? != fmc
        {
            return Err(SnpError::NotEndorsed("FMC version"));
        }
        if self.is_of_a_chip && !self.is_chip(&report.chip_id)? {
            return Err(SnpError::NotEndorsed("chip"));
        }
        if report.is_signed_by(self.certificate.public_key())? { Ok(self.product) } else { Err(SnpError::Signature) }
    }

    /// A DER INTEGER from 0 to 255; AMD writes one byte, or a zero before one whose highest bit is set.
    fn small_number(&self, oid: &Oid<'_>) -> Result<u8, CertificateError> {
        match self.certificate.extension(oid)? {
            [2, 1, number] if *number < 0x80 => Ok(*number),
            [2, 2, 0, number] if *number >= 0x80 => Ok(*number),
            _ => Err(CertificateError::Malformed { which: "VCEK or VLEK", what: format!("extension {oid} is not a number from 0 to 255") }),
        }
    }

    /// The identifier's bytes, bare or as an OCTET STRING; Turin's have eight, the report fills up with zeros.
    fn is_chip(&self, chip_id: &[u8; 64]) -> Result<bool, CertificateError> {
        let value = self.certificate.extension(&CHIP)?;
        let id = match value {
            [4, length, id @ ..] if usize::from(*length) == id.len() => id,
            bare => bare,
        };
        Ok(matches!(id.len(), 8 | 64) && chip_id.starts_with(id) && chip_id[id.len()..].iter().all(|byte| *byte == 0))
    }
}

fn verify_below(certificate: &Certificate<'_>, root: &'static str, signer: &'static str, now: SystemTime) -> Result<(), CertificateError> {
    let (root, signer) = (decode(root)?, decode(signer)?);
    let root = Certificate::parse("ARK", &root)?;
    let signer = Certificate::parse("ASK or ASVK", &signer)?;
    for above in [&root, &signer] {
        above.is_valid_at(now)?;
        above.is_signed_by(&root, Scheme::RsaPssSha384)?;
    }
    certificate.is_signed_by(&signer, Scheme::RsaPssSha384)
}

fn decode(pem: &'static str) -> Result<CertificateDer<'static>, CertificateError> {
    let malformed = |error: rustls_pki_types::pem::Error| CertificateError::Malformed { which: "AMD", what: error.to_string() };
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(malformed)
}
