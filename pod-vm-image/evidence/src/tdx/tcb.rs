//! Which TCB level a platform has ("Intel SGX PCS API", "Get TDX TCB Info", the algorithm given there).

use std::fmt;

use serde::Deserialize;

use super::pck::Pck;
use super::quote::EnclaveReport;
use super::{TdQuote, TdxError};

/// What Intel calls a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum TcbStatus {
    /// Nothing to do.
    UpToDate,
    /// Software must mitigate.
    #[serde(rename = "SWHardeningNeeded")]
    SwHardeningNeeded,
    /// The BIOS must be set in another way.
    ConfigurationNeeded,
    /// Both of the above.
    #[serde(rename = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    /// Firmware is old.
    OutOfDate,
    /// Firmware is old, and the BIOS must be set in another way.
    OutOfDateConfigurationNeeded,
    /// Not to be trusted any more.
    Revoked,
}

/// What Intel's files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    /// The worse of platform and quoting enclave.
    pub status: TcbStatus,
    /// Security advisories that apply.
    pub advisories: Vec<String>,
    /// Date of the platform's TCB level.
    pub date: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TcbInfo {
    id: String,
    version: u32,
    pub(super) issue_date: String,
    pub(super) next_update: String,
    fmspc: String,
    pce_id: String,
    tdx_module: Option<TdxModule>,
    #[serde(default)]
    tdx_module_identities: Vec<ModuleIdentity>,
    tcb_levels: Vec<Level>,
}

#[derive(Deserialize)]
struct TdxModule {
    mrsigner: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModuleIdentity {
    id: String,
    mrsigner: String,
    tcb_levels: Vec<EnclaveLevel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Level {
    tcb: Tcb,
    tcb_date: String,
    tcb_status: TcbStatus,
    #[serde(rename = "advisoryIDs", default)]
    advisories: Vec<String>,
}

#[derive(Deserialize)]
struct Tcb {
    sgxtcbcomponents: Vec<Component>,
    pcesvn: u16,
    tdxtcbcomponents: Vec<Component>,
}

#[derive(Deserialize)]
struct Component {
    svn: u8,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct QeIdentity {
    id: String,
    pub(super) issue_date: String,
    pub(super) next_update: String,
    miscselect: String,
    miscselect_mask: String,
    attributes: String,
    attributes_mask: String,
    mrsigner: String,
    isvprodid: u16,
    tcb_levels: Vec<EnclaveLevel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EnclaveLevel {
    tcb: EnclaveTcb,
    tcb_status: TcbStatus,
}

#[derive(Deserialize)]
struct EnclaveTcb {
    isvsvn: u16,
}

impl TcbInfo {
    pub(super) fn assess(&self, quote: &TdQuote, pck: &Pck) -> Result<Assessment, TdxError> {
        let other = |what: &str| TdxError::Collateral(format!("its {what} is of other platforms"));
        if self.id != "TDX" || self.version < 3 {
            return Err(TdxError::Collateral(format!("TCB info of {} version {}", self.id, self.version)));
        }
        if !self.fmspc.eq_ignore_ascii_case(&hex::encode(pck.fmspc)) {
            return Err(other("FMSPC"));
        }
        if !self.pce_id.eq_ignore_ascii_case(&hex::encode(pck.pce_id)) {
            return Err(other("PCE id"));
        }
        let svn = &quote.body.tcb_svn;
        let module = self.module_status(quote)?;
        // From module version 1 on, the first two components are the module's, which has an identity of its own.
        let skip = if svn[1] > 0 { 2 } else { 0 };
        let level = self.tcb_levels.iter().find(|level| {
            covers(&pck.cpu_svn, &level.tcb.sgxtcbcomponents, 0)
                && pck.pce_svn >= level.tcb.pcesvn
                && covers(svn, &level.tcb.tdxtcbcomponents, skip)
        });
        let level = level.ok_or_else(|| TdxError::Collateral("no TCB level is as low as the platform's".to_owned()))?;
        let status = module.map_or(level.tcb_status, |module| worse(level.tcb_status, module));
        Ok(Assessment { status, advisories: level.advisories.clone(), date: level.tcb_date.clone() })
    }

    fn module_status(&self, quote: &TdQuote) -> Result<Option<TcbStatus>, TdxError> {
        let refused = |what: &str| TdxError::Collateral(format!("the TDX module {what}"));
        let is_signer = |signer: &str| signer.eq_ignore_ascii_case(&hex::encode(quote.body.mrsigner_seam));
        let [svn, version, ..] = quote.body.tcb_svn;
        if version == 0 {
            let signer = self.tdx_module.as_ref().is_none_or(|module| is_signer(&module.mrsigner));
            return if signer { Ok(None) } else { Err(refused("has another signer")) };
        }
        let id = format!("TDX_{version:02X}");
        let identity = self.tdx_module_identities.iter().find(|identity| identity.id.eq_ignore_ascii_case(&id));
        let identity = identity.ok_or_else(|| refused(&format!("{id} is not in the TCB info")))?;
        if !is_signer(&identity.mrsigner) {
            return Err(refused("has another signer"));
        }
        let level = identity.tcb_levels.iter().find(|level| u16::from(svn) >= level.tcb.isvsvn);
        level.map(|level| Some(level.tcb_status)).ok_or_else(|| refused("is older than every level"))
    }
}

fn covers(svn: &[u8; 16], components: &[Component], skip: usize) -> bool {
    components.len() == svn.len() && svn.iter().zip(components).skip(skip).all(|(have, need)| *have >= need.svn)
}

impl QeIdentity {
    pub(super) fn assess(&self, enclave: &EnclaveReport<'_>) -> Result<TcbStatus, TdxError> {
        let refused = |what: &str| TdxError::Collateral(format!("the quoting enclave's {what} is not the one of Intel's"));
        if self.id != "TD_QE" {
            return Err(TdxError::Collateral(format!("identity of {}", self.id)));
        }
        let is_masked = |found: &[u8], mask: &str, expected: &str| {
            let (Ok(mask), Ok(expected)) = (hex::decode(mask), hex::decode(expected)) else { return false };
            mask.len() == found.len() && expected.len() == found.len() && (0..found.len()).all(|i| found[i] & mask[i] == expected[i])
        };
        if !is_masked(&reversed(enclave.misc_select), &self.miscselect_mask, &self.miscselect) {
            return Err(refused("MISCSELECT"));
        }
        if !is_masked(&enclave.attributes, &self.attributes_mask, &self.attributes) {
            return Err(refused("ATTRIBUTES"));
        }
        if !self.mrsigner.eq_ignore_ascii_case(&hex::encode(enclave.mr_signer)) || self.isvprodid != enclave.product {
            return Err(refused("signer"));
        }
        let level = self.tcb_levels.iter().find(|level| enclave.svn >= level.tcb.isvsvn);
        level.map(|level| level.tcb_status).ok_or_else(|| refused("version"))
    }
}

/// MISCSELECT is a number in Intel's file and little-endian in the report.
fn reversed(mut bytes: [u8; 4]) -> [u8; 4] {
    bytes.reverse();
    bytes
}

fn worse(one: TcbStatus, other: TcbStatus) -> TcbStatus {
    one.max(other)
}

impl Assessment {
    pub(super) fn with_enclave(self, enclave: TcbStatus) -> Result<Self, TdxError> {
        Ok(Self { status: worse(self.status, enclave), ..self })
    }
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UpToDate => "UpToDate",
            Self::SwHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::Revoked => "Revoked",
        })
    }
}
