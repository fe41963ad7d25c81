//! What a key broker compares with: a policy that appraises evidence, one that releases resources, and reference values for the first.
//!
//! For Trustee as it is: claims lie under the evidence's kind, registers of a TPM under `tpm` or, for a bare TPM, beside the others; SNP's
//! measurement is claimed in base64 or hexadecimal; `init_data` is what the register holds, but for TDX: there it is MRCONFIGID, which the host
//! chooses, and our guest extends RTMR 3.

mod rego;
mod tee;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::initdata::Document;

pub(crate) use tee::{TcbStatus, Tee};

/// Of [`TcbStatus`]'s claim, where nothing is to be done.
const UP_TO_DATE: &str = "UpToDate";

/// Claim to its allowed values.
pub(crate) type Measurements = BTreeMap<String, BTreeSet<String>>;

/// What is pinned.
#[derive(Debug)]
pub(crate) struct Pins {
    /// Of the VM's image.
    pub(crate) measurements: Measurements,
    /// What the pod brings.
    pub(crate) initdata: Document,
    /// Resources as `repository/type/tag`.
    pub(crate) resources: BTreeSet<String>,
    /// The kind of evidence.
    pub(crate) tee: Tee,
    /// Whether measurements of firmware may be missing.
    pub(crate) any_firmware: bool,
    /// What a TDX platform's firmware may be, beside up to date.
    pub(crate) accepted_tcb: BTreeSet<TcbStatus>,
}

/// Why there are no policies.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokerError {
    /// Not claims and lists of values.
    #[error("the measurements are not JSON like {{\"pcr04\":[\"<hex>\"]}}: {0}; next: jq .measurements manifest.json > measurements.json")]
    Malformed(String),
    /// A claim that such evidence does not have.
    #[error("{tee} evidence has no claim {claim:?}; next: leave it out; known: {known}")]
    Claim {
        /// The kind.
        tee: &'static str,
        /// What was given.
        claim: String,
        /// What could be.
        known: &'static str,
    },
    /// A claim without which the others say nothing.
    #[error("{tee} evidence needs {claim} among the measurements: {why}; next: add it{escape}")]
    Missing {
        /// The kind.
        tee: &'static str,
        /// What is not there.
        claim: &'static str,
        /// What would be open without it.
        why: &'static str,
        /// What else could be done.
        escape: &'static str,
    },
    /// The register does not hold such a digest.
    #[error("the register does not hold digests of the algorithm that the initdata names; next: make it with --algorithm sha256")]
    Algorithm,
    /// Accepted, but never claimed.
    #[error("{0} evidence has no TCB status; next: leave --accept-tcb-status out")]
    NoTcbStatus(&'static str),
    /// A resource's name.
    #[error("{0:?} is not REPOSITORY/TYPE/TAG, such as default/key/1")]
    Resource(String),
    /// Nothing would be released.
    #[error("no resource to release; next: name it with --resource default/key/1")]
    NoResource,
}

/// Reads measurements: an object of lists, or of single values.
pub(crate) fn measurements(json: &str) -> Result<Measurements, BrokerError> {
    let malformed = |reason: &str| BrokerError::Malformed(reason.to_owned());
    let value: Value = serde_json::from_str(json).map_err(|error| malformed(&error.to_string()))?;
    let object = value.as_object().ok_or_else(|| malformed("no object"))?;
    let mut all = Measurements::new();
    for (claim, values) in object {
        let is_claim = !claim.is_empty() && claim.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        let values: BTreeSet<String> = match values {
            Value::Array(values) => values.iter().map(text).collect(),
            value => BTreeSet::from([text(value)]),
        };
        if !is_claim || values.is_empty() || values.contains("") {
            return Err(malformed(&format!("{claim:?} is not a claim with a list of values")));
        }
        all.insert(claim.clone(), values);
    }
    Ok(all)
}

impl Pins {
    /// Everything that claims are compared with.
    fn claims(&self) -> Measurements {
        let mut all = self.measurements.clone();
        if self.tee.is_tdx() {
            let accepted = self.accepted_tcb.iter().map(|status| status.name());
            all.insert(tee::TCB_STATUS.to_owned(), accepted.chain([UP_TO_DATE]).map(str::to_owned).collect());
        }
        all
    }

    /// Checks that what is pinned means something.
    pub(crate) fn check(&self) -> Result<(), BrokerError> {
        let tee = self.tee.name();
        for (claim, values) in &self.measurements {
            let known = self.tee.known();
            if self.tee.paths(claim).is_none() || (claim == tee::TCB_STATUS && self.tee.is_tdx()) {
                return Err(BrokerError::Claim { tee, claim: claim.clone(), known });
            }
            // Keys are base64, and sample evidence may say anything.
            if claim != "ak_public" && self.tee != Tee::Sample {
                values.iter().try_for_each(|value| check_value(claim, value))?;
            }
        }
        if self.tee == Tee::Sample && self.measurements.is_empty() {
            return Err(BrokerError::Missing {
                tee,
                claim: "a claim such as svn",
                why: "nothing of the image is pinned without it",
                escape: "",
            });
        }
        let is_pinned = |claim: &str| self.measurements.contains_key(claim);
        if let Some(need) = self.tee.needs().into_iter().find(|need| !(is_pinned(need.claim) || (need.is_firmware && self.any_firmware))) {
            let escape = if need.is_firmware { ", or accept any with --any-firmware" } else { "" };
            return Err(BrokerError::Missing { tee, claim: need.claim, why: need.why, escape });
        }
        if !self.tee.is_tdx() && !self.accepted_tcb.is_empty() {
            return Err(BrokerError::NoTcbStatus(tee));
        }
        match () {
            () if self.bound().1.is_empty() => Err(BrokerError::Algorithm),
            () if self.resources.is_empty() => Err(BrokerError::NoResource),
            () => Ok(()),
        }
    }

    /// What only makes the evidence weaker than it looks.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        match self.tee {
            Tee::Sample => warnings.push("sample evidence is written by whoever likes to: what this policy releases is public".to_owned()),
            Tee::Tpm if !self.measurements.contains_key("ak_public") => {
                warnings.push("no ak_public is pinned: any TPM is believed, one in software too; add it to the measurements".to_owned());
            }
            _ => {}
        }
        if self.tee.is_snp() && !self.measurements.keys().any(|claim| tee::is_version(claim)) {
            let next = "add reported_tcb_bootloader, _microcode, _snp and _tee to the measurements";
            warnings.push(format!("no version of the processor's firmware is pinned, so old ones with known holes are accepted; {next}"));
        }
        for status in &self.accepted_tcb {
            warnings.push(format!("platforms whose TCB status is {} are accepted: read Intel's advisories first", status.name()));
        }
        if self.any_firmware {
            warnings.push("firmware is not pinned (--any-firmware): who starts the VM can start one that lies about the rest".to_owned());
        }
        warnings
    }

    /// Where claims show the initdata that a VM was bound with, and what must be there; nothing if the register cannot hold the digest.
    fn bound(&self) -> (Vec<&'static str>, BTreeSet<String>) {
        let registers = self.initdata.registers();
        let init_data = |value: Option<String>| (vec!["init_data"], value.into_iter().collect());
        match self.tee {
            Tee::Sample => init_data(Some(hex::encode(self.initdata.digest()))),
            Tee::Snp => init_data(Some(hex::encode(registers.host_data))),
            Tee::Tdx => (vec!["tdx", "quote", "body", "rtmr_3"], registers.rtmr3.map(hex::encode).into_iter().collect()),
            Tee::Tpm | Tee::AzSnpVtpm | Tee::AzTdxVtpm | Tee::SnpTpm => init_data(registers.pcr08.map(hex::encode)),
        }
    }
}

/// Digests are lower-case hexadecimal, versions are numbers.
fn check_value(claim: &str, value: &str) -> Result<(), BrokerError> {
    let is_hex = value.len().is_multiple_of(2) && value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match tee::is_version(claim) {
        true if value.parse::<u8>().is_err() => Err(BrokerError::Malformed(format!("{claim}: {value:?} is not a number below 256"))),
        false if !is_hex => Err(BrokerError::Malformed(format!("{claim}: {value:?} is not lower-case hexadecimal"))),
        _ => Ok(()),
    }
}

/// `default/key/1` of a resource, with or without `kbs:///`.
pub(crate) fn resource(text: &str) -> Result<String, BrokerError> {
    let path = text.strip_prefix("kbs:///").unwrap_or(text);
    let refused = |_| BrokerError::Resource(text.to_owned());
    Ok(crate::key_file::KeyId::parse(&format!("kbs:///{path}")).map_err(refused)?.resource_path().to_owned())
}
