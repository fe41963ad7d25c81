//! Collects evidence inside the pod VM; guest only.
//!
//! One [`Attester`] lives in the agent role for the VM's whole life. It is the kind that user data names, or there is none: a VM that
//! cannot make that evidence refuses, it never falls back to a weaker kind. It owns the initdata register: extended exactly once, when
//! the VM is bound, and never reset. It verifies nothing; that is for the node and the key broker.
//!
//! | kind | evidence from | initdata register |
//! |---|---|---|
//! | `snp` | configfs-tsm, or [`SevGuest`] | HOSTDATA, which is set at launch: nothing to extend, so the VM refuses to be bound |
//! | `tdx` | configfs-tsm, CCEL | RTMR 3 |
//! | `snp-tpm` | as `snp`, and the TPM | PCR 8 |
//! | `az-snp-vtpm`, `az-tdx-vtpm` | vTPM, its HCL report, the metadata service | PCR 8 |
//! | `tpm` | TPM | PCR 8 |
//! | `sample` | nothing | this process |
//!
//! Calls block for as long as the hardware takes: seconds for a quote.

mod azure;
mod sample;
mod sev_guest;
mod tdx;
pub mod tpm;
mod tsm;

use std::path::{Path, PathBuf};

use peerpods_evidence::snp_tpm::{self, SnpTpmEvidence};
use peerpods_evidence::{azure as azure_format, register, sample as sample_format, snp, tdx as tdx_format, tpm as tpm_format};

use azure::AzureVtpm;
use sample::Sample;
use sev_guest::SnpReports;
use tdx::TrustDomain;
use tpm::{Activation, CharacterDevice, Tpm, TpmAttester, TpmError};
use tsm::{Report, Tsm, TsmError};

pub use sev_guest::{OpenSevGuest, SevGuest, SevGuestAnswer};

/// Makes evidence of one kind.
pub struct Attester {
    kind: Kind,
    register: InitdataRegister,
}

/// What became of the register; the hardware would take any number of digests.
enum InitdataRegister {
    /// As after boot.
    Reset,
    /// An extension began and nobody knows whether the hardware has taken it.
    Unknown,
    /// Extended with this digest.
    Extended(Vec<u8>),
}

enum Kind {
    Sample(Sample),
    Tpm(TpmAttester<CharacterDevice>),
    SnpTpm(SnpReports, TpmAttester<CharacterDevice>),
    Snp(SnpReports),
    Tdx(TrustDomain),
    Azure(AzureVtpm),
}

/// Where the kernel shows what the attester needs; tests have their own.
#[derive(Debug, Clone)]
pub struct Paths {
    /// configfs-tsm.
    pub tsm: PathBuf,
    /// The TPM, behind the kernel's resource manager.
    pub tpm: PathBuf,
    /// The firmware's log of a TPM.
    pub tpm_log: PathBuf,
    /// The firmware's log of a trust domain.
    pub ccel: PathBuf,
    /// RTMR 3 of a trust domain.
    pub rtmr: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            tsm: PathBuf::from("/sys/kernel/config/tsm/report"),
            tpm: PathBuf::from("/dev/tpmrm0"),
            tpm_log: PathBuf::from("/sys/kernel/security/tpm0/binary_bios_measurements"),
            ccel: PathBuf::from("/sys/firmware/acpi/tables/data/CCEL"),
            rtmr: PathBuf::from("/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"),
        }
    }
}

/// Why there is no evidence, or no measurement.
#[derive(Debug, thiserror::Error)]
pub enum AttesterError {
    /// This image has no attester of that kind.
    #[error("no attester for {0:?}; this image has: snp, snp-tpm, tdx, az-snp-vtpm, az-tdx-vtpm, tpm, sample")]
    UnsupportedTee(String),
    /// The VM is not of the kind that it was launched as.
    #[error("this machine is no {tee:?} machine: {detail}")]
    NotThisTee {
        /// The kind.
        tee: &'static str,
        /// What is missing.
        detail: String,
    },
    /// The initdata register was extended before, with another digest.
    #[error("the initdata register was extended before, with another digest; a pod VM serves one pod")]
    AlreadyExtended,
    /// An earlier extension failed, so what the register holds is not known.
    #[error("an earlier extension of the initdata register failed; this pod VM is spent: delete it and start another one")]
    Spent,
    /// Not the length of a digest.
    #[error("an initdata digest has 32 to 64 bytes, not {0}")]
    BadDigest(usize),
    /// The register cannot take it whole.
    #[error(transparent)]
    DigestTooLong(#[from] register::DigestTooLong),
    /// The register is set by the host at launch, so no initdata can be bound later.
    #[error(
        "the initdata register of {0:?} machines is set at launch, before a pod is known; use a class with tee = \"snp-tpm\" and \
         root_of_trust = \"cloud-tpm\", which has a TPM for it"
    )]
    FixedAtLaunch(&'static str),
    /// Only a TPM can activate a credential.
    #[error("a {0:?} machine has no credential to activate")]
    NoCredential(&'static str),
    /// The TPM.
    #[error("the TPM")]
    Tpm(#[from] TpmError),
    /// The kernel's interface to the TEE.
    #[error("the kernel's report interface")]
    Tsm(#[from] TsmError),
    /// The kernel's older interface to SNP.
    #[error("ask /dev/sev-guest for a report")]
    SevGuest(#[source] std::io::Error),
    /// Something that the kernel shows as a file.
    #[error("{action} {path}")]
    File {
        /// What was done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What the hardware gave is not what it should be.
    #[error("the hardware's answer is unusable: {0}")]
    Unusable(String),
}

impl Attester {
    /// The attester for the kind that user data names, with the kernel's own paths and no device for SNP beside configfs-tsm.
    pub fn for_tee(tee: &str) -> Result<Self, AttesterError> {
        Self::with_paths(tee, &Paths::default(), &|| Err(std::io::ErrorKind::Unsupported.into()))
    }

    /// The same with other paths, and `/dev/sev-guest`.
    pub fn with_paths(tee: &str, paths: &Paths, sev_guest: OpenSevGuest<'_>) -> Result<Self, AttesterError> {
        let tpm = |tee| open_tpm(tee, paths);
        let tsm = |tee, provider| Tsm::open(&paths.tsm, provider).map_err(|error| missing(tee, &error));
        let snp_reports = |tee| SnpReports::open(tee, paths, sev_guest);
        let kind = match tee {
            sample_format::TEE => Kind::Sample(Sample::default()),
            tpm_format::TEE => Kind::Tpm(tpm(tpm_format::TEE)?),
            snp_tpm::TEE => Kind::SnpTpm(snp_reports(snp_tpm::TEE)?, tpm(snp_tpm::TEE)?),
            snp::TEE => Kind::Snp(snp_reports(snp::TEE)?),
            tdx_format::TEE => Kind::Tdx(TrustDomain::new(tsm(tdx_format::TEE, "tdx_guest")?, paths)),
            azure_format::SNP_TEE => Kind::Azure(AzureVtpm::snp(open_device(azure_format::SNP_TEE, &paths.tpm)?)),
            azure_format::TDX_TEE => Kind::Azure(AzureVtpm::tdx(open_device(azure_format::TDX_TEE, &paths.tpm)?)),
            other => return Err(AttesterError::UnsupportedTee(other.to_owned())),
        };
        Ok(Self { kind, register: InitdataRegister::Reset })
    }

    /// The kind, as in the Evidence message and the key broker's protocol.
    pub fn tee(&self) -> &'static str {
        match &self.kind {
            Kind::Sample(_) => sample_format::TEE,
            Kind::Tpm(_) => tpm_format::TEE,
            Kind::SnpTpm(..) => snp_tpm::TEE,
            Kind::Snp(_) => snp::TEE,
            Kind::Tdx(_) => tdx_format::TEE,
            Kind::Azure(azure) => azure.tee(),
        }
    }

    /// Evidence of the VM's current state with this report data in it.
    pub fn evidence(&mut self, report_data: &[u8; 48]) -> Result<Vec<u8>, AttesterError> {
        match &mut self.kind {
            Kind::Sample(sample) => Ok(sample.evidence(report_data)),
            Kind::Tpm(tpm) => Ok(tpm.evidence(report_data)?.encode()),
            Kind::SnpTpm(reports, tpm) => {
                let tpm = tpm.evidence(report_data)?;
                let snp = snp_evidence(reports.report(&snp_tpm::report_data(report_data, &tpm.ak_public))?);
                SnpTpmEvidence { snp, tpm }.encode().map_err(|error| AttesterError::Unusable(error.to_string()))
            }
            Kind::Snp(reports) => {
                let evidence = snp_evidence(reports.report(report_data)?).encode();
                evidence.map_err(|error| AttesterError::Unusable(error.to_string()))
            }
            Kind::Tdx(domain) => Ok(domain.evidence(report_data)?.encode()),
            Kind::Azure(azure) => azure.evidence(report_data),
        }
    }

    /// Whether the register could take this digest, before anything is done that cannot be undone.
    pub fn check_initdata(&self, digest: &[u8]) -> Result<(), AttesterError> {
        if !(32..=64).contains(&digest.len()) {
            return Err(AttesterError::BadDigest(digest.len()));
        }
        match &self.kind {
            Kind::Sample(_) => Ok(()),
            Kind::Tpm(_) | Kind::SnpTpm(..) | Kind::Azure(_) => Ok(register::pcr_after(digest).map(drop)?),
            Kind::Tdx(_) => Ok(register::rtmr_after(digest).map(drop)?),
            Kind::Snp(_) => Err(AttesterError::FixedAtLaunch(snp::TEE)),
        }
    }

    /// Extends the initdata register, once in the VM's life; the same digest again changes nothing.
    /// After an error the caller must treat the VM as spent: nothing is ever measured into it again.
    pub fn extend_initdata(&mut self, digest: &[u8]) -> Result<(), AttesterError> {
        self.check_initdata(digest)?;
        match &self.register {
            InitdataRegister::Extended(before) if before == digest => return Ok(()),
            InitdataRegister::Extended(_) => return Err(AttesterError::AlreadyExtended),
            InitdataRegister::Unknown => return Err(AttesterError::Spent),
            // Written down before the hardware is asked: an error may come before or after the extension.
            InitdataRegister::Reset => self.register = InitdataRegister::Unknown,
        }
        match &mut self.kind {
            Kind::Sample(sample) => sample.extend(digest),
            Kind::Tpm(tpm) | Kind::SnpTpm(_, tpm) => tpm.extend_initdata(digest)?,
            Kind::Azure(azure) => azure.extend_initdata(digest)?,
            Kind::Tdx(domain) => domain.extend_initdata(digest)?,
            Kind::Snp(_) => return Err(AttesterError::FixedAtLaunch(snp::TEE)),
        }
        self.register = InitdataRegister::Extended(digest.to_vec());
        Ok(())
    }

    /// Opens what a verifier encrypted to the TPM's endorsement key, which shows that the attestation key is the same TPM's.
    pub fn activate(&mut self, challenge: &tpm_format::credential::Challenge) -> Result<Activation, AttesterError> {
        let tee = self.tee();
        match &mut self.kind {
            Kind::Tpm(tpm) | Kind::SnpTpm(_, tpm) => Ok(tpm.activate(challenge)?),
            _ => Err(AttesterError::NoCredential(tee)),
        }
    }
}

fn snp_evidence(report: Report) -> snp::SnpEvidence {
    snp::SnpEvidence { report: report.outblob, certificates: tsm::certificates(report.auxblob.as_deref()) }
}

fn open_device(tee: &'static str, path: &Path) -> Result<Tpm<CharacterDevice>, AttesterError> {
    let device = CharacterDevice::open(path).map_err(|error| missing(tee, &error))?;
    Ok(Tpm::new(device))
}

fn open_tpm(tee: &'static str, paths: &Paths) -> Result<TpmAttester<CharacterDevice>, AttesterError> {
    let log = std::fs::read(&paths.tpm_log).ok();
    TpmAttester::new(open_device(tee, &paths.tpm)?, log).map_err(Into::into)
}

fn missing(tee: &'static str, error: &dyn std::error::Error) -> AttesterError {
    AttesterError::NotThisTee { tee, detail: chain(error) }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut detail = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        detail = format!("{detail}: {error}");
        cause = error.source();
    }
    detail
}

/// Reads what the kernel shows as a file, up to a limit.
fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, AttesterError> {
    use std::io::Read as _;
    let failed = |source| AttesterError::File { action: "read", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerpods_evidence::{Expected, InitdataState, ReferenceValues, RootOfTrust, Trust, initdata, verify};
    use std::time::SystemTime;

    fn no_device() -> std::io::Result<Box<dyn SevGuest>> {
        Err(std::io::ErrorKind::NotFound.into())
    }

    #[test]
    fn evidence_shows_reset_until_extended_and_then_the_digest() {
        let mut attester = Attester::for_tee("sample").unwrap();
        let show = |attester: &mut Attester, initdata| {
            let expected = Expected {
                report_data: [3; 48],
                initdata,
                root_of_trust: RootOfTrust::Insecure,
                reference_values: ReferenceValues::default(),
            };
            let evidence = attester.evidence(&[3; 48]).unwrap();
            verify(attester.tee(), &evidence, &expected, &Trust::default(), SystemTime::UNIX_EPOCH)
        };
        assert!(show(&mut attester, InitdataState::Reset).is_ok());
        let digest = initdata::digest(None).unwrap();
        attester.extend_initdata(&digest).unwrap();
        assert!(show(&mut attester, InitdataState::Reset).is_err());
        assert!(show(&mut attester, InitdataState::Extended(digest)).is_ok());
    }

    #[test]
    fn second_extension_is_refused_unless_it_is_the_same() {
        let mut attester = Attester::for_tee("sample").unwrap();
        attester.extend_initdata(&[1; 48]).unwrap();
        assert!(matches!(attester.extend_initdata(&[2; 48]), Err(AttesterError::AlreadyExtended)));
        let after = attester.evidence(&[0; 48]).unwrap();
        assert!(attester.extend_initdata(&[1; 48]).is_ok());
        assert_eq!(attester.evidence(&[0; 48]).unwrap(), after);
    }

    #[test]
    fn failed_extension_is_never_taken_for_one() {
        let kernel = tempfile::tempdir().unwrap();
        let path = |name: &str| kernel.path().join(name);
        let paths = Paths { tsm: path("tsm"), tpm: path("tpm"), tpm_log: path("log"), ccel: path("ccel"), rtmr: path("rtmr") };
        std::fs::create_dir_all(paths.tsm.join("peerpods")).unwrap();
        std::fs::write(paths.tsm.join("peerpods/provider"), "tdx_guest").unwrap();
        std::fs::create_dir(&paths.rtmr).unwrap();
        let mut attester = Attester::with_paths("tdx", &paths, &no_device).unwrap();
        assert!(matches!(attester.extend_initdata(&[1; 48]), Err(AttesterError::File { action: "extend", .. })));
        // Even now that it would succeed, and with the same digest.
        std::fs::remove_dir(&paths.rtmr).unwrap();
        for digest in [[1; 48], [2; 48]] {
            assert!(matches!(attester.extend_initdata(&digest), Err(AttesterError::Spent)));
        }
        assert!(!paths.rtmr.exists());
    }

    #[test]
    fn machine_whose_register_is_set_at_launch_names_the_class_to_use() {
        let error = AttesterError::FixedAtLaunch(snp::TEE).to_string();
        assert!(error.contains("tee = \"snp-tpm\" and root_of_trust = \"cloud-tpm\""), "{error}");
    }

    #[test]
    fn machine_of_another_kind_is_refused_by_name_and_not_replaced() {
        let nowhere = tempfile::tempdir().unwrap();
        let path = |name: &str| nowhere.path().join(name);
        let paths = Paths { tsm: path("tsm"), tpm: path("tpm"), tpm_log: path("log"), ccel: path("ccel"), rtmr: path("rtmr") };
        for tee in ["snp", "snp-tpm", "tdx", "az-snp-vtpm", "az-tdx-vtpm", "tpm"] {
            let error = Attester::with_paths(tee, &paths, &no_device).map(drop).unwrap_err();
            assert!(matches!(&error, AttesterError::NotThisTee { tee: named, .. } if *named == tee), "{error}");
        }
        assert!(matches!(Attester::for_tee("sgx").map(drop), Err(AttesterError::UnsupportedTee(named)) if named == "sgx"));
        assert!(matches!(Attester::for_tee("sample").unwrap().extend_initdata(&[0; 20]), Err(AttesterError::BadDigest(20))));
    }
}
