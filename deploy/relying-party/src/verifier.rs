//! The port to evidence formats, and its one implementation: everything that `peerpods-evidence` verifies.

use std::time::SystemTime;

use peerpods_evidence::{InitdataState, Register, Trust, appraise};
use serde_json::{Value, json};

/// Verifies evidence: is it genuine, and is it of this very request?
///
/// Pure: the same arguments give the same answer, and nothing is fetched.
pub trait Verifier: Send + Sync {
    /// Verifies evidence of the format that the session named and gives its claims, under the format's name as in Trustee:
    /// `{"az-snp-vtpm": {...}}`. `now` is for the validity of certificates.
    ///
    /// The report data must have been compared. A claim `init_data` under the format's name means that the register of the
    /// evidence was compared with `init_data_digest`, or that none was given and this is what the register holds: it is what
    /// policies pin. A verifier that cannot compare must leave it out. An error is shown to the client.
    fn verify(
        &self,
        tee: &str,
        evidence: &Value,
        report_data: &[u8; 48],
        init_data_digest: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<Value, String>;
}

/// Knows SNP, TDX, both with Azure's vTPM, SNP with a cloud's TPM, TPMs, and `sample`, which protects nothing.
///
/// What stands behind a format is no claim: policies must name what they trust, and the default ones trust nothing.
#[derive(Debug, Default)]
pub struct EvidenceVerifier {
    trust: Trust,
}

impl EvidenceVerifier {
    /// With certificates, collateral and floors of the operator's.
    pub fn new(trust: Trust) -> Self {
        Self { trust }
    }
}

impl Verifier for EvidenceVerifier {
    fn verify(
        &self,
        tee: &str,
        evidence: &Value,
        report_data: &[u8; 48],
        init_data_digest: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<Value, String> {
        let mut appraisal = appraise(tee, evidence.to_string().as_bytes(), report_data, &self.trust, now).map_err(|error| chain(&error))?;
        match (&appraisal.register, init_data_digest) {
            // Trustee's sample has no register; as there, the client's word is taken for its initdata.
            (Register::Sample(None), Some(digest)) => appraisal.claims["init_data"] = hex::encode(digest).into(),
            (register, Some(digest)) => {
                register.check(&InitdataState::Extended(digest.to_vec())).map_err(|error| error.to_string())?;
            }
            (Register::Sample(None), None) => {
                if let Some(claims) = appraisal.claims.as_object_mut() {
                    claims.remove("init_data");
                }
            }
            (_, None) => {}
        }
        // What was compared: Trustee's claim is MRCONFIGID, which the host chooses.
        if let Register::Rtmr(value) = &appraisal.register {
            appraisal.claims["init_data"] = hex::encode(value).into();
        }
        Ok(json!({ tee: appraisal.claims }))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    fn verify(tee: &str, evidence: &Value, digest: Option<&[u8]>) -> Result<Value, String> {
        EvidenceVerifier::default().verify(tee, evidence, &[7; 48], digest, SystemTime::UNIX_EPOCH)
    }

    fn sample(report_data: &[u8]) -> Value {
        json!({ "svn": "1", "report_data": STANDARD.encode(report_data) })
    }

    #[test]
    fn sample_claims_are_those_of_the_evidence() {
        let claims = verify("sample", &sample(&[7; 48]), Some(&[1, 2])).unwrap();
        assert_eq!(claims["sample"]["svn"], "1");
        assert_eq!(claims["sample"]["init_data"], "0102");
        let none = verify("sample", &sample(&[7; 48]), None).unwrap();
        assert!(none["sample"].get("init_data").is_none());
    }

    #[test]
    fn register_of_the_evidence_must_hold_the_digest_of_the_initdata_that_was_sent() {
        let mut evidence = sample(&[7; 48]);
        evidence["initdata"] = STANDARD.encode([1, 2]).into();
        assert!(verify("sample", &evidence, Some(&[1, 2])).is_ok());
        assert!(verify("sample", &evidence, Some(&[3])).unwrap_err().contains("expected extended with 03"));
        assert_eq!(verify("sample", &evidence, None).unwrap()["sample"]["init_data"], "0102");
    }

    #[test]
    fn anything_else_is_refused() {
        assert!(verify("sgx", &sample(&[7; 48]), None).unwrap_err().contains("sgx"));
        assert!(verify("tpm", &sample(&[7; 48]), None).unwrap_err().contains("malformed TPM evidence"));
        for evidence in [sample(&[8; 48]), sample(&[7; 47]), sample(&[]), json!({ "svn": "1" }), json!("text"), json!({ "svn": 1 })] {
            assert!(verify("sample", &evidence, None).is_err(), "{evidence}");
        }
    }
}
