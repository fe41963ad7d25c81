//! Tokens of VMs that no policy knows.

use serde_json::{Value, json};

/// Kinds of evidence that Trustee and our verifier take for a VM's own; those of devices come beside them.
pub(super) const TEES: [&str; 12] =
    ["az-snp-vtpm", "az-tdx-vtpm", "cca", "csv", "hygondcu", "sample", "se", "sgx", "snp", "snp-tpm", "tdx", "tpm"];

/// What an attestation policy may come to (EAR).
pub(super) const STATUSES: [&str; 4] = ["affirming", "warning", "contraindicated", "none"];

/// What a resource policy sees: the token's claims, and beside them newer Trustee's summary of them.
pub(super) fn token(tee: &str, status: &str) -> Value {
    let (hardware, executables, configuration) = match status {
        "affirming" => (2, 3, 2),
        "warning" => (2, 33, 36),
        "none" => (0, 0, 0),
        _ => (97, 33, 36),
    };
    // Genuine evidence has such claims; the values are nobody's.
    let evidence = json!({
        "measurement": "00", "svn": "0", "tcb_status": "OutOfDate",
        "tpm": {"pcr04": "00", "pcr09": "00", "pcr11": "00"},
        "quote": {"body": {"mr_td": "00", "mr_seam": "00", "rtmr_0": "00", "rtmr_1": "00", "rtmr_2": "00", "rtmr_3": "00"}},
    });
    let mut claims = json!({"submods": {"cpu0": {
        "ear.status": status,
        "ear.appraisal-policy-id": "default",
        "ear.trustworthiness-vector": {"hardware": hardware, "executables": executables, "configuration": configuration},
        "ear.veraison.annotated-evidence": {tee: evidence, "init_data": "00", "report_data": "00", "runtime_data_claims": {}},
    }}});
    let summary = json!({
        "tee_type": [tee], "policy_ids": ["default"], "issuer": "", "verification_result": status == "affirming", "claims": claims,
    });
    claims["trust_context"] = json!({"attestation_summary": summary, "tee_pubkey": {}, "custom_claims": {}});
    claims
}
