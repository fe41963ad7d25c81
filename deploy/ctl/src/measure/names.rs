//! What evidence of each kind claims, and the names under which policies ask for reference values.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::policy::Tee;

/// Kinds of evidence that measure something.
pub(super) const ALL: [Tee; 6] = [Tee::Tpm, Tee::Snp, Tee::Tdx, Tee::AzSnpVtpm, Tee::AzTdxVtpm, Tee::SnpTpm];

/// The claims of this kind that tell of image and firmware.
pub(super) fn of(tee: Tee) -> &'static [&'static str] {
    match tee {
        Tee::Tpm => &["pcr04", "pcr08", "pcr09", "pcr11"],
        Tee::Snp => &["measurement"],
        Tee::Tdx => &["mr_td", "rtmr_0", "rtmr_1", "rtmr_2", "rtmr_3"],
        Tee::AzSnpVtpm | Tee::SnpTpm => &["pcr04", "pcr08", "pcr09", "pcr11", "measurement"],
        Tee::AzTdxVtpm => &["pcr04", "pcr08", "pcr09", "pcr11", "mr_td"],
        Tee::Sample => &[],
    }
}

/// Why a claim of this kind can never be told here.
pub(super) fn beyond(tee: Tee, claim: &str) -> Option<&'static str> {
    match (tee, claim) {
        (Tee::AzSnpVtpm | Tee::AzTdxVtpm, "measurement" | "mr_td") => {
            Some("the firmware is Azure's own, which it changes without a word; read it from a machine that you trust")
        }
        (Tee::SnpTpm, "measurement") => {
            Some("the firmware is the cloud's own; read it from a machine that you trust, or from what the cloud publishes")
        }
        _ => None,
    }
}

/// The names of a claim's reference values: that of `policy generate`, and that of Trustee's default policy (`ear_default_policy_cpu.rego`
/// in its `attestation-service`) where it asks for one.
pub(super) fn references(tee: Tee, claim: &str) -> BTreeSet<String> {
    let of_trustee = match (tee, claim) {
        (Tee::Snp, "measurement") => Some("snp_launch_measurement"),
        (Tee::Tdx, "mr_td" | "rtmr_1" | "rtmr_2") => Some(claim),
        (Tee::AzSnpVtpm, "pcr11") => Some("snp_pcr11"),
        (Tee::AzTdxVtpm, "pcr11") => Some("tdx_pcr11"),
        _ => None,
    };
    of_trustee.map(str::to_owned).into_iter().chain([tee.reference(claim)]).collect()
}

/// Values as evidence may write them: releases of Trustee claim SNP's measurement in hexadecimal or in base64.
pub(super) fn forms(claim: &str, values: &[String]) -> BTreeSet<String> {
    let mut forms: BTreeSet<String> = values.iter().cloned().collect();
    if claim == "measurement" {
        forms.extend(values.iter().filter_map(|value| hex::decode(value).ok()).map(|bytes| STANDARD.encode(bytes)));
    }
    forms
}
