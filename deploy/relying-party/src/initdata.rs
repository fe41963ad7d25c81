//! Initdata as it comes with an attestation: its digest, and claims for policies.

use peerpods_evidence::initdata::Initdata;
use peerpods_key_broker::wire::InitData;
use serde_json::{Map, Value};

/// What initdata says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Claimed {
    /// Hash of the whole text by the algorithm that it names.
    pub(crate) digest: Vec<u8>,
    /// Its files: `aa.toml` and `cdh.toml` as JSON; the data of `policy.rego` as `agent_policy_claims`, or else its text.
    pub(crate) claims: Value,
}

const AGENT_POLICY: &str = "policy.rego";
const POLICY_DATA: &str = "policy_data :=";

/// Reads initdata; every byte counts for the digest.
pub(crate) fn read(init_data: &InitData) -> Result<Claimed, String> {
    if init_data.format != "toml" {
        return Err("init-data is not in the format toml".to_owned());
    }
    let initdata = Initdata::parse(&init_data.body).map_err(|error| error.to_string())?;
    let digest = initdata.algorithm.digest(init_data.body.as_bytes());
    let mut claims = Map::new();
    for (name, text) in initdata.data {
        let (name, value) = match name.as_str() {
            // What is not TOML stays text, as in Trustee.
            "aa.toml" | "cdh.toml" => {
                let parsed = toml::from_str::<toml::Table>(&text).ok().and_then(|table| serde_json::to_value(table).ok());
                (name, parsed.unwrap_or(Value::String(text)))
            }
            AGENT_POLICY => match policy_data(&text) {
                Some(data) => ("agent_policy_claims".to_owned(), data),
                None => (name, Value::String(text)),
            },
            _ => (name, Value::String(text)),
        };
        claims.insert(name, value);
    }
    Ok(Claimed { digest, claims: Value::Object(claims) })
}

/// The JSON at the end of an agent policy that Kata's genpolicy wrote. At the start of a line, so that no comment passes for it.
fn policy_data(policy: &str) -> Option<Value> {
    let start = policy.rfind(POLICY_DATA)?;
    let (before, data) = policy.split_at(start);
    if !before.is_empty() && !before.ends_with('\n') {
        return None;
    }
    serde_json::from_str(data.strip_prefix(POLICY_DATA)?).ok().filter(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TEXT: &str = r#"version = "0.1.0"
algorithm = "sha256"
[data]
"aa.toml" = '''
[token_configs.kbs]
url = "http://127.0.0.1:8080"
'''
"cdh.toml" = "not TOML"
"other.txt" = "text"
"policy.rego" = '''
package agent_policy
default CreateContainerRequest := false
policy_data := {
  "containers": [{"OCI": {"Process": {"Args": ["/bin/true"]}}}]
}
'''
"#;

    #[test]
    fn files_become_claims() {
        let claimed = read(&InitData::toml(TEXT)).unwrap();
        let expected = json!({
            "aa.toml": { "token_configs": { "kbs": { "url": "http://127.0.0.1:8080" } } },
            "cdh.toml": "not TOML",
            "other.txt": "text",
            "agent_policy_claims": { "containers": [{ "OCI": { "Process": { "Args": ["/bin/true"] } } }] },
        });
        assert_eq!(claimed.claims, expected);
        assert_eq!(claimed.digest, peerpods_evidence::initdata::digest(Some(TEXT)).unwrap());
        assert_ne!(claimed.digest, read(&InitData::toml(&format!("{TEXT}\n"))).unwrap().digest);
    }

    #[test]
    fn only_data_at_the_end_is_taken() {
        for policy in [
            "package agent_policy\n# policy_data := {\"a\": 1}",
            "package agent_policy\npolicy_data := {\"a\": 1}\nallow := true",
            "package agent_policy\npolicy_data := [1]",
            "package agent_policy",
        ] {
            assert_eq!(policy_data(policy), None, "{policy}");
        }
        assert_eq!(policy_data("policy_data := {\"a\": 1}\n"), Some(json!({ "a": 1 })));
    }

    #[test]
    fn other_formats_are_refused() {
        assert!(read(&InitData { format: "json".to_owned(), body: TEXT.to_owned() }).is_err());
        assert!(read(&InitData::toml("version = \"9\"")).is_err());
    }
}
