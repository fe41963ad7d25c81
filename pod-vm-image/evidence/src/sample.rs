//! The `sample` format: **insecure**. It is unsigned JSON that anybody can write; it exercises every step of attestation and
//! proves nothing. A class may use it only with `root_of_trust = "insecure"`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The name of this format.
pub const TEE: &str = "sample";

/// Sample evidence, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleEvidence {
    /// Security version number, a decimal string as in Trustee's sample.
    pub svn: String,
    /// What the requester of the evidence asked to be bound into it.
    pub report_data: Vec<u8>,
    /// The initdata register: `None` while it holds its reset value.
    pub initdata: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    svn: String,
    report_data: String,
    /// Ours; Trustee's sample has none.
    #[serde(default)]
    initdata: Option<String>,
}

/// Why bytes are not sample evidence.
#[derive(Debug, thiserror::Error)]
#[error("malformed sample evidence: {0}")]
pub struct SampleError(String);

impl SampleEvidence {
    /// The claims, named as Trustee's (`deps/verifier/src/sample`); all but the report data are constants there too.
    pub fn claims(&self) -> serde_json::Value {
        serde_json::json!({
            "svn": self.svn,
            "debug": false,
            "launch_digest": "abcde",
            "platform_version": {"major": 1, "minor": 4},
            "report_data": hex::encode(&self.report_data),
            "init_data": self.initdata.as_ref().map(hex::encode),
        })
    }

    /// Writes the JSON.
    pub fn encode(&self) -> Vec<u8> {
        let wire = Wire {
            svn: self.svn.clone(),
            report_data: STANDARD.encode(&self.report_data),
            initdata: self.initdata.as_ref().map(|digest| STANDARD.encode(digest)),
        };
        serde_json::to_vec(&wire).expect("a struct of strings always serializes")
    }

    /// Reads the JSON. The caller has limited its size.
    pub fn decode(bytes: &[u8]) -> Result<Self, SampleError> {
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| SampleError(error.to_string()))?;
        let bytes = |key: &str, text: &str| STANDARD.decode(text).map_err(|error| SampleError(format!("{key}: {error}")));
        Ok(Self {
            report_data: bytes("report_data", &wire.report_data)?,
            initdata: wire.initdata.as_deref().map(|text| bytes("initdata", text)).transpose()?,
            svn: wire.svn,
        })
    }
}
