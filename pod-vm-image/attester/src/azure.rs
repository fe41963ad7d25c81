//! `az-snp-vtpm` and `az-tdx-vtpm`: Azure's paravisor keeps the hardware report in the vTPM.
//!
//! The request's report data is written to an index, which makes the paravisor ask the hardware again; the report is read from another. The
//! VCEK certificate (SNP) and the signed quote (TDX) come from the metadata service.
//! Source: Azure/cvm-attestation-tools; Microsoft Learn, "Azure confidential VMs guest attestation design detail".

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use peerpods_evidence::azure::{SNP_TEE, TDX_TEE};
use peerpods_evidence::register::INITDATA_PCR;
use serde_json::{Value, json};

use crate::AttesterError;
use crate::tpm::{ALL_PCRS, CharacterDevice, Tpm};

/// The hardware report, as the paravisor last made it.
const REPORT_INDEX: u32 = 0x0140_0001;
/// 64 bytes that go into the next report's variable data.
const USER_DATA_INDEX: u32 = 0x0140_0002;
/// The vTPM's attestation key.
const ATTESTATION_KEY: u32 = 0x8100_0003;

/// The metadata service, link-local and without TLS; what it says is verified by others.
const METADATA: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254)), 80);
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER: u64 = 256 << 10;

/// Where the hardware report is in the HCL report.
const HARDWARE_REPORT: std::ops::Range<usize> = 32..32 + 1024;

pub(crate) struct AzureVtpm {
    tpm: Tpm<CharacterDevice>,
    tee: &'static str,
}

impl AzureVtpm {
    pub(crate) fn snp(tpm: Tpm<CharacterDevice>) -> Self {
        Self { tpm, tee: SNP_TEE }
    }

    pub(crate) fn tdx(tpm: Tpm<CharacterDevice>) -> Self {
        Self { tpm, tee: TDX_TEE }
    }

    pub(crate) fn tee(&self) -> &'static str {
        self.tee
    }

    pub(crate) fn evidence(&mut self, report_data: &[u8; 48]) -> Result<Vec<u8>, AttesterError> {
        let mut user_data = [0; 64];
        user_data[..report_data.len()].copy_from_slice(report_data);
        self.tpm.nv_write(USER_DATA_INDEX, &user_data)?;
        let hcl_report = self.tpm.nv_read(REPORT_INDEX)?;
        let quote = self.tpm.quote(ATTESTATION_KEY, report_data, ALL_PCRS)?;
        let mut evidence = json!({
            "version": if self.tee == SNP_TEE { 2 } else { 1 },
            "tpm_quote": {
                "signature": hex::encode(quote.bare_signature()?),
                "message": hex::encode(&quote.message),
                "pcrs": quote.pcrs.to_hex(),
            },
            "hcl_report": URL_SAFE.encode(&hcl_report),
        });
        if self.tee == SNP_TEE {
            evidence["vcek"] = URL_SAFE.encode(vcek()?).into();
        } else {
            let report = hcl_report.get(HARDWARE_REPORT).ok_or_else(|| AttesterError::Unusable("the HCL report is short".to_owned()))?;
            evidence["td_quote"] = URL_SAFE.encode(td_quote(report)?).into();
        }
        serde_json::to_vec(&evidence).map_err(|error| AttesterError::Unusable(error.to_string()))
    }

    pub(crate) fn extend_initdata(&mut self, digest: &[u8]) -> Result<(), AttesterError> {
        Ok(self.tpm.extend(u32::try_from(INITDATA_PCR).unwrap_or(u32::MAX), digest)?)
    }
}

/// DER of the VCEK certificate.
fn vcek() -> Result<Vec<u8>, AttesterError> {
    let answer = ask("GET", "/metadata/THIM/amd/certification", None)?;
    let pem = answer["vcekCert"].as_str().ok_or_else(|| AttesterError::Unusable("the metadata service gives no vcekCert".to_owned()))?;
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(body).map_err(|error| AttesterError::Unusable(format!("vcekCert: {error}")))
}

/// The quote for a TDREPORT.
fn td_quote(report: &[u8]) -> Result<Vec<u8>, AttesterError> {
    let answer = ask("POST", "/acc/tdquote", Some(&json!({"report": URL_SAFE_NO_PAD.encode(report)})))?;
    let quote = answer["quote"].as_str().ok_or_else(|| AttesterError::Unusable("the metadata service gives no quote".to_owned()))?;
    URL_SAFE_NO_PAD.decode(quote).map_err(|error| AttesterError::Unusable(format!("quote: {error}")))
}

/// One request of HTTP/1.0, whose answer ends with the connection: the service is a local one and this runs on a blocking thread.
fn ask(method: &str, path: &str, body: Option<&Value>) -> Result<Value, AttesterError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| AttesterError::Unusable(format!("metadata service, {path}: {what}: {error}"));
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect_timeout(&METADATA, METADATA_TIMEOUT).map_err(|error| failed("connect", &error))?;
    let limits = stream.set_read_timeout(Some(METADATA_TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(METADATA_TIMEOUT)));
    limits.map_err(|error| failed("connect", &error))?;
    let request = format!(
        "{method} {path} HTTP/1.0\r\nMetadata: true\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).map_err(|error| failed("send", &error))?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).map_err(|error| failed("read", &error))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, content) = answer.split_once("\r\n\r\n").ok_or_else(|| failed("read", &"no answer"))?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(failed("refused", &head.lines().next().unwrap_or_default()));
    }
    serde_json::from_str(content).map_err(|error| failed("read", &error))
}
