//! What is to be done with the files that were written, as lines for a shell: capital words are the reader's.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{AGENT_POLICY, ATTESTATION_POLICY, REFERENCE_VALUES, RESOURCE_POLICY};

/// The administrator's part of a command line for Trustee.
const TRUSTEE: &str = "kbs-client --url URL --cert-file KBS_CERT config --auth-private-key ADMIN_KEY";

/// The files, and what follows.
pub(super) fn text(out: &Path, files: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, _) in files {
        let _ = writeln!(text, "{}", out.join(name).display());
    }
    let content = |name: &str| files.iter().find(|(file, _)| *file == name).map(|(_, content)| content);
    let path = |name: &str| quoted(&out.join(name).display().to_string());
    if content(AGENT_POLICY).is_some() {
        let policy = path(AGENT_POLICY);
        let _ = write!(text, "\nnext, into the pod's initdata:\n  peerpodctl initdata new --policy {policy} ... > initdata.toml\n");
    }
    let Some(values) = content(REFERENCE_VALUES) else { return text };
    let values: Map<String, Value> = serde_json::from_str(values).unwrap_or_default();
    let (attestation, resource) = (path(ATTESTATION_POLICY), path(RESOURCE_POLICY));
    let set = |what: &str| format!("peerpods-relying-party {what} --state STATE --url URL");
    let _ = write!(text, "\nnext, into a key broker for trials:\n  {} {attestation}\n", set("set-attestation-policy"),);
    for (name, value) in &values {
        let _ = writeln!(text, "  {} {name} {}", set("set-reference-value"), quoted(&value.to_string()));
    }
    let _ = write!(
        text,
        "  {} {resource}\nor into Trustee:\n  {TRUSTEE} set-attestation-policy --type rego --id default_cpu --policy-file {attestation}\n",
        set("set-resource-policy"),
    );
    let mut several = Map::new();
    for (name, value) in values {
        match value.as_array().map(Vec::as_slice) {
            Some([Value::String(value)]) => drop(writeln!(text, "  {TRUSTEE} set-sample-reference-value {name} {}", quoted(value))),
            _ => drop(several.insert(name, value)),
        }
    }
    if !several.is_empty() {
        // kbs-client sets a list of one, and the next call replaces it.
        let payload = STANDARD.encode(Value::Object(several).to_string());
        let message = json!({"version": "0.1.0", "type": "sample", "payload": payload});
        let _ = writeln!(
            text,
            "  curl --fail --cacert KBS_CERT -H \"Authorization: Bearer $ADMIN_TOKEN\" -H 'Content-Type: application/json' \\\n    \
             --data {} URL/kbs/v0/reference-value",
            quoted(&message.to_string())
        );
    }
    let _ = writeln!(text, "  {TRUSTEE} set-resource-policy --policy-file {resource}");
    let _ = write!(
        text,
        "then, that nobody else gets it:\n  peerpodctl verify kbs --url URL --kbs-cert KBS_CERT --admin-token ADMIN_TOKEN_FILE\n"
    );
    text
}

/// A word of a shell's.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_set_in_both_brokers() {
        let values = json!({"snp_measurement": ["0a", "Cg=="], "snp_reported_tcb_snp": ["8", 8], "az_pcr04": ["0b"]}).to_string();
        let rego = || String::new();
        let files = [(ATTESTATION_POLICY, rego()), (RESOURCE_POLICY, rego()), (REFERENCE_VALUES, values.clone())];
        let text = text(Path::new("it's here"), &files);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let has = |line: &str| assert!(lines.contains(&line), "{line}\n{text}");
        has("peerpods-relying-party set-attestation-policy --state STATE --url URL 'it'\\''s here/attestation-policy.rego'");
        has("peerpods-relying-party set-resource-policy --state STATE --url URL 'it'\\''s here/resource-policy.rego'");
        has("peerpods-relying-party set-reference-value --state STATE --url URL snp_measurement '[\"0a\",\"Cg==\"]'");
        has(&format!("{TRUSTEE} set-sample-reference-value az_pcr04 0b"));
        assert!(!text.contains("set-sample-reference-value snp_measurement"), "kbs-client would keep the last value only");
        let message = lines.iter().find_map(|line| line.strip_prefix("--data '")?.split('\'').next()).unwrap();
        let message: Value = serde_json::from_str(message).unwrap();
        let payload: Value = serde_json::from_slice(&STANDARD.decode(message["payload"].as_str().unwrap()).unwrap()).unwrap();
        assert_eq!(payload, json!({"snp_measurement": ["0a", "Cg=="], "snp_reported_tcb_snp": ["8", 8]}));
    }

    #[test]
    fn agent_policies_go_into_initdata() {
        let text = text(Path::new("out"), &[(AGENT_POLICY, String::new())]);
        assert!(text.contains("peerpodctl initdata new --policy out/policy.rego"), "{text}");
        assert!(!text.contains("kbs-client"), "{text}");
    }
}
