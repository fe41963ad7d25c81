//! Kinds of evidence: which claims they have, where, and which must be pinned.

/// Kinds of evidence, by their names on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tee {
    /// A TPM and nothing else: who makes the TPM is trusted.
    Tpm,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// SEV-SNP with Azure's TPM.
    AzSnpVtpm,
    /// TDX with Azure's TPM.
    AzTdxVtpm,
    /// SEV-SNP with a TPM of the cloud, which is trusted. Only our own verifier knows it.
    SnpTpm,
    /// Written by whoever likes to. For tests.
    Sample,
}

/// What Intel says of a platform's firmware, where it is not up to date. A revoked platform is never accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum TcbStatus {
    /// Software must mitigate an advisory.
    #[value(name = "SWHardeningNeeded")]
    SwHardeningNeeded,
    /// The BIOS must be set in another way.
    #[value(name = "ConfigurationNeeded")]
    ConfigurationNeeded,
    /// Both of the above.
    #[value(name = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    /// Firmware is old.
    #[value(name = "OutOfDate")]
    OutOfDate,
    /// Firmware is old, and the BIOS must be set in another way.
    #[value(name = "OutOfDateConfigurationNeeded")]
    OutOfDateConfigurationNeeded,
    /// The firmware was updated under the running VM.
    #[value(name = "TDRelaunchAdvised")]
    TdRelaunchAdvised,
    /// The same, and the BIOS must be set in another way.
    #[value(name = "TDRelaunchAdvisedConfigurationNeeded")]
    TdRelaunchAdvisedConfigurationNeeded,
    /// The verifier has no collateral of Intel's: nobody knows. Only our own verifier says so; Trustee refuses then.
    #[value(name = "Unknown")]
    Unknown,
}

/// What a claim tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// What booted in the VM.
    Executables,
    /// What it runs on.
    Hardware,
}

/// A claim without which the others say nothing.
#[derive(Debug)]
pub(super) struct Need {
    pub(super) claim: &'static str,
    /// What would be open without it.
    pub(super) why: &'static str,
    /// Whether `--any-firmware` does without it.
    pub(super) is_firmware: bool,
}

/// The claim of [`TcbStatus`].
pub(super) const TCB_STATUS: &str = "tcb_status";
/// As verifiers name the versions of an SNP platform's firmware.
const REPORTED_TCB: &str = "reported_tcb_";
const PARTS_OF_TCB: [&str; 5] = ["bootloader", "fmc", "microcode", "snp", "tee"];
const IMAGE: &str = "a part of the image is not pinned without it";
const FIRMWARE: &str = "any other firmware could make up every register";
const BOOT: [Need; 3] = [need("pcr04", IMAGE), need("pcr09", IMAGE), need("pcr11", IMAGE)];

const fn need(claim: &'static str, why: &'static str) -> Need {
    Need { claim, why, is_firmware: false }
}

const fn firmware(claim: &'static str) -> Need {
    Need { claim, why: FIRMWARE, is_firmware: true }
}

impl TcbStatus {
    /// As verifiers claim it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SwHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::TdRelaunchAdvised => "TDRelaunchAdvised",
            Self::TdRelaunchAdvisedConfigurationNeeded => "TDRelaunchAdvisedConfigurationNeeded",
            Self::Unknown => "Unknown",
        }
    }
}

/// Whether it is a version of an SNP platform's firmware: a number.
pub(super) fn is_version(claim: &str) -> bool {
    claim.strip_prefix(REPORTED_TCB).is_some_and(|part| PARTS_OF_TCB.contains(&part))
}

impl Tee {
    /// As in protocols and claims.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tpm => "tpm",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::AzSnpVtpm => "az-snp-vtpm",
            Self::AzTdxVtpm => "az-tdx-vtpm",
            Self::SnpTpm => "snp-tpm",
            Self::Sample => "sample",
        }
    }

    fn has_registers(self) -> bool {
        matches!(self, Self::Tpm | Self::AzSnpVtpm | Self::AzTdxVtpm | Self::SnpTpm)
    }

    pub(super) fn is_snp(self) -> bool {
        matches!(self, Self::Snp | Self::AzSnpVtpm | Self::SnpTpm)
    }

    pub(super) fn is_tdx(self) -> bool {
        matches!(self, Self::Tdx | Self::AzTdxVtpm)
    }

    /// What must be pinned.
    pub(super) fn needs(self) -> Vec<Need> {
        let own = match self {
            Self::Sample | Self::Tpm => Vec::new(),
            Self::Snp => vec![need("measurement", IMAGE)],
            Self::Tdx => vec![need("rtmr_1", IMAGE), need("rtmr_2", IMAGE), firmware("mr_td")],
            Self::AzSnpVtpm => vec![firmware("measurement")],
            Self::AzTdxVtpm => vec![firmware("mr_td")],
            Self::SnpTpm => vec![need("ak_public", "the VM could quote with a TPM of its own making")],
        };
        own.into_iter().chain(BOOT.into_iter().filter(|_| self.has_registers())).collect()
    }

    /// Where a claim lies below the evidence's kind; more than one place where Trustee's releases differ.
    pub(super) fn paths(self, claim: &str) -> Option<Vec<Vec<String>>> {
        let path = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        let is_register =
            matches!(claim.strip_prefix("pcr"), Some(number) if number.len() == 2 && number.parse::<u8>().is_ok_and(|n| n < 24));
        match claim {
            _ if self == Self::Sample => Some(vec![path(&[claim])]),
            _ if is_register && self == Self::Tpm => Some(vec![path(&[claim]), path(&["tpm", claim])]),
            _ if is_register && self.has_registers() => Some(vec![path(&["tpm", claim])]),
            "ak_public" if self == Self::Tpm => Some(vec![path(&[claim])]),
            "ak_public" if self == Self::SnpTpm => Some(vec![path(&["tpm", claim])]),
            "measurement" if self.is_snp() => Some(vec![path(&[claim])]),
            _ if is_version(claim) && self.is_snp() => Some(vec![path(&[claim])]),
            TCB_STATUS if self.is_tdx() => Some(vec![path(&[claim])]),
            // Initdata's own, see `Pins::bound`.
            "rtmr_3" if self == Self::Tdx => None,
            "mr_td" | "mr_seam" | "rtmr_0" | "rtmr_1" | "rtmr_2" | "rtmr_3" if self.is_tdx() => Some(vec![path(&["quote", "body", claim])]),
            _ => None,
        }
    }

    pub(super) fn subject(self, claim: &str) -> Subject {
        let is_hardware = self != Self::Sample && (matches!(claim, "ak_public" | TCB_STATUS) || is_version(claim));
        if is_hardware { Subject::Hardware } else { Subject::Executables }
    }

    pub(super) fn known(self) -> &'static str {
        match self {
            Self::Tpm => "pcr00 to pcr23, ak_public",
            Self::Snp => "measurement, reported_tcb_bootloader, _fmc, _microcode, _snp and _tee",
            Self::Tdx => "mr_td, mr_seam, rtmr_0 to rtmr_2",
            Self::AzSnpVtpm => "pcr00 to pcr23, measurement, reported_tcb_bootloader, _fmc, _microcode, _snp and _tee",
            Self::AzTdxVtpm => "pcr00 to pcr23, mr_td, mr_seam, rtmr_0 to rtmr_3",
            Self::SnpTpm => "pcr00 to pcr23, ak_public, measurement, reported_tcb_bootloader, _fmc, _microcode, _snp and _tee",
            Self::Sample => "any",
        }
    }

    /// Reference values are common to all policies of a broker, so their names say whose they are.
    pub(crate) fn reference(self, claim: &str) -> String {
        format!("{}_{claim}", self.name().replace('-', "_"))
    }
}
